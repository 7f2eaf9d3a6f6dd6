//! Links of a proxied page: those that name a path of the backend are led back through the proxy.

/// Which attributes of which elements hold addresses.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Rewrites every such address by `address`; all else stays as it is.
pub fn rewrite(page: &str, address: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(page.len() + page.len() / 8);
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = if rest.starts_with("<!--") {
            rest.find("-->").map(|e| e + 3)
        } else {
            tag_end(rest)
        };
        let Some(end) = end else { break };
        let (tag, after) = rest.split_at(end);
        rest = after;
        let name = name_of(tag);
        match LINKS.iter().find(|(n, _)| name.eq_ignore_ascii_case(n)) {
            Some((_, attributes)) => rewrite_tag(tag, attributes, &address, &mut out),
            None => out.push_str(tag),
        }
        // What stands in scripts and styles is text, whatever it looks like.
        if name.eq_ignore_ascii_case("script") || name.eq_ignore_ascii_case("style") {
            let close = format!("</{}", name.to_ascii_lowercase());
            let text = rest.to_ascii_lowercase().find(&close).unwrap_or(rest.len());
            out.push_str(&rest[..text]);
            rest = &rest[text..];
        }
    }
    out.push_str(rest);
    out
}

/// The element's name; empty for what is no opening tag.
fn name_of(tag: &str) -> &str {
    let inner = &tag[1..];
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(inner.len());
    &inner[..end]
}

/// Where a tag ends; a `>` within quotes doesn't end it.
fn tag_end(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, '>') => return Some(i + 1),
            (None, '"' | '\'') if text[..i].trim_end().ends_with('=') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
    }
    None
}

fn rewrite_tag(tag: &str, attributes: &[&str], address: &impl Fn(&str) -> String, out: &mut String) {
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let name = rest[..equals].trim_end();
        let name = &name[name
            .rfind(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\''))
            .map_or(0, |i| i + 1)..];
        let value = &rest[equals + 1..];
        let value_start = equals + 1 + (value.len() - value.trim_start().len());
        let (from, to) = match rest[value_start..].chars().next() {
            Some(q @ ('"' | '\'')) => {
                let from = value_start + 1;
                (from, rest[from..].find(q).map_or(rest.len(), |e| from + e))
            }
            _ => {
                let plain = &rest[value_start..];
                let end = plain
                    .find(|c: char| c.is_whitespace() || c == '>')
                    .unwrap_or(plain.len());
                (value_start, value_start + end)
            }
        };
        out.push_str(&rest[..from]);
        if attributes.iter().any(|a| name.eq_ignore_ascii_case(a)) {
            out.push_str(&address(&rest[from..to]));
        } else {
            out.push_str(&rest[from..to]);
        }
        rest = &rest[to..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_links_change_and_nothing_else() {
        let led = |page: &str| {
            rewrite(page, |a| {
                if a.starts_with('/') {
                    format!("/p{a}")
                } else {
                    a.to_string()
                }
            })
        };
        for (page, expected) in [
            (r#"<a href="/x">test</a>"#, r#"<a href="/p/x">test</a>"#),
            ("<IMG alt='a>b' SRC=/i.png>", "<IMG alt='a>b' SRC=/p/i.png>"),
            (r#"<a title="/t" href='/x?a=b'/>"#, r#"<a title="/t" href='/p/x?a=b'/>"#),
            (r#"<p href="/x">a < b</p>"#, r#"<p href="/x">a < b</p>"#),
            (
                r#"<script>"<a href='/x'>"</script>"#,
                r#"<script>"<a href='/x'>"</script>"#,
            ),
            (
                r#"<!-- <a href="/x"> --><a href="y">"#,
                r#"<!-- <a href="/x"> --><a href="y">"#,
            ),
            ("<a href=\"/unfinished", "<a href=\"/unfinished"),
            ("ä<a href=\"/ö\">ü</a>", "ä<a href=\"/p/ö\">ü</a>"),
        ] {
            assert_eq!(led(page), expected);
        }
    }
}
