//! Addresses for mail in certificates, as RFC 2821 writes them and as Go reads them.

/// What stands before and after the `@`; the quotes of the first part are taken off.
pub fn parse(text: &str) -> Option<(String, String)> {
    let (local, rest) = match text.strip_prefix('"') {
        Some(quoted) => self::quoted(quoted)?,
        None => atoms(text)?,
    };
    let domain = rest.strip_prefix('@')?;
    // A domain without labels is none that could be told apart, but it is taken.
    let labels = domain.is_empty() || domain.split('.').all(|l| !l.is_empty());
    let visible = domain.bytes().all(|b| (33..=126).contains(&b));
    (labels && visible).then(|| (local, domain.into()))
}

/// Text in quotes: almost anything, some of it after a backslash.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut local = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((local, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                c @ ('\x01'..='\x09' | '\x0b' | '\x0c' | '\x0e'..='\x7f') => local.push(c),
                _ => return None,
            },
            '\x01'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | ' '..='~' | '\x7f' => local.push(c),
            _ => return None,
        }
    }
    None
}

/// Words between dots.
fn atoms(text: &str) -> Option<(String, &str)> {
    let mut local = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let escaped = c == '\\';
        if !escaped && !c.is_ascii_alphanumeric() && !"!#$%&'*+-/=?^_`{|}~.".contains(c) {
            break;
        }
        if escaped {
            rest = &rest[1..];
        }
        let taken = rest.chars().next()?;
        local.push(taken);
        rest = &rest[taken.len_utf8()..];
    }
    let fits = !local.is_empty() && !local.starts_with('.') && !local.ends_with('.') && !local.contains("..");
    fits.then_some((local, rest))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn addresses_are_taken_apart() {
        let parts = |text: &str| parse(text).map(|(local, domain)| format!("{local} {domain}"));
        assert_eq!(parts("a.b@c.d").as_deref(), Some("a.b c.d"));
        assert_eq!(parts("\"a b\\\"\"@c").as_deref(), Some("a b\" c"));
        for bad in [
            "", "a", "@c", ".a@c", "a.@c", "a..b@c", "a b@c", "\"a@c", "a@c.", "a@c..d", "a@c d",
        ] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
