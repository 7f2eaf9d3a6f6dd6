//! SELinux contexts: `user:role:type`, and a level where the policy has levels. Pure.

use keelson_cri::v1::SeLinuxOption;
use std::fmt;

/// Categories that pods' own levels are made of: c0 to c1021. The last two are the level of what confined containers can't
/// reach.
const CATEGORIES: u32 = 1022;
/// Of the files of containers that aren't confined.
pub const APART: &str = "s0:c1022,c1023";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: Option<String>,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

impl Context {
    pub fn parse(text: &str) -> Result<Context, String> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let context = (|| {
            Some(Context {
                user: parts.next()?,
                role: parts.next()?,
                kind: parts.next()?,
                level: parts.next(),
            })
        })();
        context
            .filter(|c| is_name(&c.user) && is_name(&c.role) && is_name(&c.kind))
            .filter(|c| c.level.as_deref().is_none_or(is_level))
            .ok_or_else(|| format!("{text:?} is no SELinux context"))
    }

    /// With a level, where there are levels.
    pub fn at(&self, level: Option<&str>) -> Context {
        let mut context = self.clone();
        if let (Some(own), Some(level)) = (&mut context.level, level) {
            level.clone_into(own);
        }
        context
    }

    /// As a pod or container wants it. What it says goes into mount options and the kernel, so it has to be names.
    pub fn with(&self, options: &SeLinuxOption) -> Result<Context, String> {
        let mut context = self.clone();
        for (part, what, into) in [
            ("user", &options.user, &mut context.user),
            ("role", &options.role, &mut context.role),
            ("type", &options.r#type, &mut context.kind),
        ] {
            if what.is_empty() {
                continue;
            }
            if !is_name(what) {
                return Err(format!("seLinuxOptions.{part} {what:?} is no name that SELinux has"));
            }
            what.clone_into(into);
        }
        if !options.level.is_empty() {
            if !is_level(&options.level) {
                return Err(format!(
                    "seLinuxOptions.level {:?} is no level that SELinux has",
                    options.level
                ));
            }
            context.level = Some(options.level.clone());
        }
        Ok(context)
    }
}

pub fn is_said(options: &SeLinuxOption) -> bool {
    [&options.user, &options.role, &options.r#type, &options.level]
        .iter()
        .any(|o| !o.is_empty())
}

/// A level of two categories that none of these is.
pub fn free_level(taken: &dyn Fn(&str) -> bool, draw: &mut dyn FnMut(u32) -> u32) -> Result<String, String> {
    // There are half a million; whoever draws this often in vain has nearly all of them.
    for _ in 0..100_000 {
        let (one, other) = (draw(CATEGORIES), draw(CATEGORIES));
        if one == other {
            continue;
        }
        let level = format!("s0:c{},c{}", one.min(other), one.max(other));
        if !taken(&level) {
            return Ok(level);
        }
    }
    Err("no SELinux level is free for another pod".into())
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

/// `s0`, `s0:c1,c2`, `s0-s15:c0.c1023`.
fn is_level(text: &str) -> bool {
    !text.is_empty() && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b":,.-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "system_u:system_r:container_t:s0";

    fn option(kind: &str, level: &str) -> SeLinuxOption {
        SeLinuxOption {
            r#type: kind.into(),
            level: level.into(),
            ..Default::default()
        }
    }

    #[test]
    fn contexts_are_read_and_written() {
        let context = Context::parse(TEXT).unwrap();
        assert_eq!(context.to_string(), TEXT);
        assert_eq!(context.at(Some("s0:c1,c2")).to_string(), format!("{TEXT}:c1,c2"));
        // Without levels in the policy there is none.
        let plain = Context::parse("u:r:t").unwrap();
        assert_eq!(plain.at(Some("s0:c1,c2")).to_string(), "u:r:t");
        for bad in ["", "u:r", "u:r:", "u:r:t:", "u:r:t:s0\"", "u:r:t,rw:s0", "u:r:t:s0 x"] {
            assert!(Context::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_replace_parts_and_are_names() {
        let context = Context::parse(TEXT).unwrap();
        let with = |kind, level| context.with(&option(kind, level)).map(|c| c.to_string());
        assert_eq!(with("spc_t", "").unwrap(), "system_u:system_r:spc_t:s0");
        assert_eq!(
            with("", "s0-s15:c0.c1023").unwrap(),
            "system_u:system_r:container_t:s0-s15:c0.c1023"
        );
        for (kind, level) in [
            ("a b", ""),
            ("a:b", ""),
            ("a,b", ""),
            ("", "s0\",suid"),
            ("", "s0 x"),
            ("", "s0\n"),
        ] {
            assert!(with(kind, level).is_err(), "{kind} {level}");
        }
        assert!(!is_said(&option("", "")) && is_said(&option("", "s0")));
    }

    #[test]
    fn levels_are_nobody_elses() {
        let mut drawn = [7, 7, 9, 3, 3, 9, 4, 9].into_iter();
        let level = free_level(&|l| l == "s0:c3,c9", &mut |_| drawn.next().unwrap()).unwrap();
        assert_eq!(level, "s0:c4,c9");
        let mut n = 0;
        let none = free_level(&|_| true, &mut |most| {
            n += 1;
            n % most
        });
        assert!(none.is_err());
    }
}
