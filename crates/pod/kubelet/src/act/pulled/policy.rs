//! Whose use of an image that is there wants credentials: upstream's `imagePullCredentialsVerificationPolicy`. Pure.

use super::image_name;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    NeverVerify,
    /// Images that no kubelet pulled are for everybody.
    #[default]
    NeverVerifyPreloadedImages,
    /// Images on a list are for everybody.
    NeverVerifyAllowlistedImages(Allowlist),
    AlwaysVerify,
}

/// Names of repositories, whole or as beginnings that end with `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    whole: Vec<String>,
    beginnings: Vec<String>,
}

impl Verification {
    /// From a configuration's two fields, in upstream's names; only one policy takes a list.
    pub fn parse(policy: &str, allowed: &[String]) -> Result<Verification, String> {
        let policy = match policy {
            "" | "NeverVerifyPreloadedImages" => Verification::NeverVerifyPreloadedImages,
            "NeverVerify" => Verification::NeverVerify,
            "AlwaysVerify" => Verification::AlwaysVerify,
            "NeverVerifyAllowlistedImages" => {
                return Ok(Verification::NeverVerifyAllowlistedImages(Allowlist::parse(allowed)?));
            }
            other => return Err(format!("unknown image pull credential verification policy: {other}")),
        };
        if allowed.is_empty() {
            Ok(policy)
        } else {
            Err("an allowlist of preloaded images goes with the policy NeverVerifyAllowlistedImages only".to_owned())
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Verification::NeverVerify => "NeverVerify",
            Verification::NeverVerifyPreloadedImages => "NeverVerifyPreloadedImages",
            Verification::NeverVerifyAllowlistedImages(_) => "NeverVerifyAllowlistedImages",
            Verification::AlwaysVerify => "AlwaysVerify",
        }
    }

    /// `by_kubelet`: a kubelet of this machine has pulled it.
    pub fn wants_credentials(&self, image: &str, by_kubelet: bool) -> bool {
        match self {
            Verification::NeverVerify => false,
            Verification::NeverVerifyPreloadedImages => by_kubelet,
            Verification::NeverVerifyAllowlistedImages(list) => !list.has(image),
            Verification::AlwaysVerify => true,
        }
    }
}

impl Allowlist {
    fn parse(patterns: &[String]) -> Result<Allowlist, String> {
        let mut list = Allowlist::default();
        for pattern in patterns {
            if pattern.trim() != pattern {
                return Err(format!("leading/trailing spaces are not allowed: {pattern}"));
            }
            let beginning = pattern.strip_suffix('*').filter(|b| b.ends_with('/'));
            let text = beginning.unwrap_or(pattern);
            if text.is_empty() {
                return Err(format!("the supplied pattern is too short: {pattern}"));
            }
            if text.contains('*') {
                return Err(format!(
                    "not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}"
                ));
            }
            match beginning {
                Some("/") => return Err("at least registry hostname is required".to_owned()),
                Some(beginning) => list.beginnings.push(beginning.to_owned()),
                None => {
                    image_name::parse(text).map_err(|e| format!("failed to parse as an image name: {e}"))?;
                    if image_name::without_tag(text) != text {
                        return Err(format!(
                            "neither tag nor digest is accepted in an image reference: {pattern}"
                        ));
                    }
                    list.whole.push(text.to_owned());
                }
            }
        }
        Ok(list)
    }

    fn has(&self, image: &str) -> bool {
        let name = image_name::without_tag(image);
        self.whole.iter().any(|w| w == name) || self.beginnings.iter().any(|b| name.starts_with(b.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_repositories() {
        let list = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
            Verification::parse("NeverVerifyAllowlistedImages", &patterns)
        };
        let policy = list(&["r.io/team/*", "r.io/one"]).unwrap();
        for (image, wants) in [
            ("r.io/team/a:1", false),
            ("r.io/team/b/c", false),
            ("r.io/teams/a", true),
            ("r.io/one:2", false),
            ("r.io/one@sha256:00", false),
            ("r.io/one/two", true),
        ] {
            assert_eq!(policy.wants_credentials(image, true), wants, "{image}");
        }
        for bad in [" r.io/a", "*", "/*", "r.io/*/a", "r.io/a*", "r.io/a:1", ""] {
            assert!(list(&[bad]).is_err(), "{bad:?}");
        }
        assert!(Verification::parse("AlwaysVerify", &["r.io/a".to_owned()]).is_err());
        assert!(Verification::parse("Sometimes", &[]).is_err());
        assert_eq!(Verification::parse("", &[]).unwrap(), Verification::default());
    }
}
