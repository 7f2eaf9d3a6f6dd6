//! What a configuration may say, with upstream's words for what it may not; and what is made of it.

use super::{ClaimOrExpression, Extra, Issuer, Jwt, Prefixed, Written, url};
use keelson_api::{Cause, Value};
use keelson_machinery::cel::{Env, ObjectTy, Program, Record, Ty, compile};
use keelson_machinery::names;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

/// An issuer whose tokens are taken.
#[derive(Debug)]
pub struct Trusted {
    pub issuer: Issuer,
    pub audiences: Vec<String>,
    pub username: Source,
    pub groups: Source,
    pub uid: Source,
    /// Key, and the expression of its values.
    pub extra: Vec<(String, Rule)>,
    /// Claims that have to be there, with these values.
    pub required: Vec<(String, String)>,
    pub claim_rules: Vec<Rule>,
    pub user_rules: Vec<Rule>,
}

/// Where a part of the user comes from.
#[derive(Debug, Default)]
pub enum Source {
    #[default]
    Nowhere,
    Claim(Mapping),
    Expression(Rule),
}

#[derive(Debug, Default)]
pub struct Mapping {
    pub claim: String,
    pub prefix: String,
}

/// An expression, compiled; with what is said if it has to hold and doesn't.
#[derive(Debug)]
pub struct Rule {
    pub source: String,
    pub program: Program,
    pub message: String,
}

/// The most issuers.
const MAX_ISSUERS: usize = 64;

static CLAIMS: LazyLock<Env> = LazyLock::new(|| Env::default().with("claims", Ty::map(Ty::String, Ty::Dyn)));
static USER: LazyLock<Env> = LazyLock::new(|| {
    let fields = [
        ("username", Ty::String),
        ("uid", Ty::String),
        ("groups", Ty::list(Ty::String)),
        ("extra", Ty::map(Ty::String, Ty::list(Ty::String))),
    ];
    let user = Record {
        name: "kubernetes.UserInfo".into(),
        fields: fields.into_iter().map(|(name, ty)| (name.to_string(), ty)).collect(),
    };
    Env::default().with("user", Ty::Object(ObjectTy::Record(Arc::new(user))))
});

pub fn all(written: &Written, own: &[String]) -> (Vec<Arc<Trusted>>, Vec<Cause>) {
    let jwt = written.jwt.as_deref().unwrap_or_default();
    let mut c = Checker { wrong: Vec::new(), own };
    if jwt.len() > MAX_ISSUERS {
        let why = format!("Too many: {}: must have at most {MAX_ISSUERS} items", jwt.len());
        return (Vec::new(), vec![Cause::new("FieldValueTooMany", "jwt", why)]);
    }
    let (mut urls, mut documents) = (BTreeSet::new(), BTreeSet::new());
    let mut trusted = Vec::new();
    for (i, one) in jwt.iter().enumerate() {
        let at = format!("jwt[{i}]");
        trusted.extend(c.jwt(one, &at).map(Arc::new));
        if !urls.insert(&one.issuer.url) {
            c.duplicate(format!("{at}.issuer.url"), &one.issuer.url);
        }
        let document = one.issuer.discovery_url.as_ref().filter(|u| !u.is_empty());
        if let Some(document) = document.filter(|d| !documents.insert((*d).clone())) {
            c.duplicate(format!("{at}.issuer.discoveryURL"), document);
        }
    }
    if let Some(anonymous) = &written.anonymous {
        let conditions = anonymous.conditions.as_deref().unwrap_or_default();
        if !anonymous.enabled && !conditions.is_empty() {
            let shown = conditions
                .iter()
                .map(|c| keelson_api::value!({"Path": c.path.as_str()}))
                .collect();
            let why = "enabled should be set to true when conditions are defined";
            c.wrong
                .push(Cause::invalid("anonymous.conditions", &Value::Array(shown), why));
        }
    }
    (trusted, c.wrong)
}

struct Checker<'a> {
    wrong: Vec<Cause>,
    /// Issuers that are this server's own.
    own: &'a [String],
}

impl Checker<'_> {
    fn invalid(&mut self, at: impl Into<String>, value: &str, why: &str) {
        self.wrong.push(Cause::invalid(at, &value.into(), why));
    }
    fn required(&mut self, at: impl Into<String>, why: &str) {
        self.wrong.push(Cause::required(at, why));
    }
    fn duplicate(&mut self, at: impl Into<String>, value: &str) {
        self.wrong.push(Cause::duplicate(at, &value.into()));
    }

    /// Nothing if a part of it can't be made; that has been said then.
    fn jwt(&mut self, jwt: &Jwt, at: &str) -> Option<Trusted> {
        let before = self.wrong.len();
        self.issuer(&jwt.issuer, &format!("{at}.issuer"));
        let (required, claim_rules) = self.claim_rules(jwt, &format!("{at}.claimValidationRules"));
        let mappings = format!("{at}.claimMappings");
        let m = &jwt.claim_mappings;
        let username = self.prefixed(&m.username, &format!("{mappings}.username"), true);
        let groups = self.prefixed(&m.groups, &format!("{mappings}.groups"), false);
        let uid = self.uid(&m.uid, &format!("{mappings}.uid"));
        let extra = self.extra(m.extra.as_deref().unwrap_or_default(), &format!("{mappings}.extra"));
        self.verified_email(&username, extra.iter().map(|(_, e)| e).chain(&claim_rules), &mappings);
        let user_rules = self.user_rules(jwt, &format!("{at}.userValidationRules"));
        (before == self.wrong.len()).then(|| Trusted {
            issuer: jwt.issuer.clone(),
            audiences: jwt.issuer.audiences.clone().unwrap_or_default(),
            username,
            groups,
            uid,
            extra,
            required,
            claim_rules,
            user_rules,
        })
    }

    fn issuer(&mut self, issuer: &Issuer, at: &str) {
        let url_at = format!("{at}.url");
        match issuer.url.as_str() {
            "" => self.required(url_at, ""),
            url => self.url(url, self.own, &url_at),
        }
        let document = issuer.discovery_url.as_deref().unwrap_or_default();
        if !document.is_empty() {
            let at = format!("{at}.discoveryURL");
            if !issuer.url.is_empty() && issuer.url.trim_end_matches('/') == document.trim_end_matches('/') {
                self.invalid(&at, document, "discoveryURL must be different from URL");
            }
            self.url(document, &[], &at);
        }
        self.audiences(issuer, at);
        if !issuer.certificate_authority.is_empty()
            && let Err(why) = keelson_pki::verify::Roots::strictly(issuer.certificate_authority.as_bytes())
        {
            self.invalid(format!("{at}.certificateAuthority"), "<omitted>", &why);
        }
        if !["", "controlplane", "cluster"].contains(&issuer.egress_selector_type.as_str()) {
            let why = "egress selector must be either controlplane or cluster";
            self.invalid(format!("{at}.egressSelectorType"), &issuer.egress_selector_type, why);
        }
    }

    fn url(&mut self, url: &str, disallowed: &[String], at: &str) {
        if disallowed.iter().any(|d| d == url) {
            let mut list = disallowed.to_vec();
            list.sort();
            let why = format!("URL must not overlap with disallowed issuers: [{}]", list.join(" "));
            self.invalid(at, url, &why);
        }
        let parts = match url::parse(url) {
            Ok(parts) => parts,
            Err(why) => return self.invalid(at, url, &why),
        };
        for (wrong, why) in [
            (parts.scheme != "https", "URL scheme must be https"),
            (parts.has_user, "URL must not contain a username or password"),
            (parts.has_query, "URL must not contain a query"),
            (parts.has_fragment, "URL must not contain a fragment"),
        ] {
            if wrong {
                self.invalid(at, url, why);
            }
        }
    }

    fn audiences(&mut self, issuer: &Issuer, at: &str) {
        let list = issuer.audiences.as_deref().unwrap_or_default();
        let path = format!("{at}.audiences");
        if list.is_empty() {
            return self.required(&path, &format!("at least one {path} is required"));
        }
        let mut seen = BTreeSet::new();
        for (i, audience) in list.iter().enumerate() {
            if audience.is_empty() {
                self.required(format!("{path}[{i}]"), "");
            }
            if !seen.insert(audience) {
                self.duplicate(format!("{path}[{i}]"), audience);
            }
        }
        let policy = issuer.audience_match_policy.as_str();
        let why = match (list.len(), policy) {
            (_, "MatchAny") | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        self.invalid(format!("{at}.audienceMatchPolicy"), policy, why);
    }

    fn claim_rules(&mut self, jwt: &Jwt, at: &str) -> (Vec<(String, String)>, Vec<Rule>) {
        let (mut claims, mut expressions) = (BTreeSet::new(), BTreeSet::new());
        let (mut required, mut rules) = (Vec::new(), Vec::new());
        for (i, rule) in jwt.claim_validation_rules.iter().flatten().enumerate() {
            let at = format!("{at}[{i}]");
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => self.required(at, "claim or expression is required"),
                (claim, "") => {
                    if !rule.message.is_empty() {
                        let why = "may not be specified when claim is set";
                        self.invalid(format!("{at}.message"), &rule.message, why);
                    }
                    if !claims.insert(claim) {
                        self.duplicate(format!("{at}.claim"), claim);
                    }
                    required.push((claim.to_string(), rule.required_value.clone()));
                }
                ("", expression) => {
                    if !rule.required_value.is_empty() {
                        let why = "may not be specified when expression is set";
                        self.invalid(format!("{at}.requiredValue"), &rule.required_value, why);
                    }
                    if !expressions.insert(expression) {
                        self.duplicate(format!("{at}.expression"), expression);
                        continue;
                    }
                    let made = self.compile(expression, &CLAIMS, true, &format!("{at}.expression"));
                    rules.extend(made.map(|made| Rule {
                        message: rule.message.clone(),
                        ..made
                    }));
                }
                (claim, _) => self.invalid(at, claim, "claim and expression can't both be set"),
            }
        }
        (required, rules)
    }

    fn prefixed(&mut self, m: &Prefixed, at: &str, needed: bool) -> Source {
        match (m.claim.as_str(), m.expression.as_str()) {
            ("", "") if needed => self.required(at, "claim or expression is required"),
            ("", "") => {}
            ("", expression) => {
                if let Some(prefix) = &m.prefix {
                    let why = "may not be specified when expression is set";
                    self.invalid(format!("{at}.prefix"), prefix, why);
                }
                return self.expression(expression, at);
            }
            (claim, "") => match &m.prefix {
                None => self.required(
                    format!("{at}.prefix"),
                    "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
                ),
                Some(prefix) => {
                    return Source::Claim(Mapping {
                        claim: claim.into(),
                        prefix: prefix.clone(),
                    });
                }
            },
            _ => self.invalid(at, "", "claim and expression can't both be set"),
        }
        Source::Nowhere
    }

    fn uid(&mut self, m: &ClaimOrExpression, at: &str) -> Source {
        match (m.claim.as_str(), m.expression.as_str()) {
            ("", "") => Source::Nowhere,
            (claim, "") => Source::Claim(Mapping {
                claim: claim.into(),
                prefix: String::new(),
            }),
            ("", expression) => self.expression(expression, at),
            _ => {
                self.invalid(at, "", "claim and expression can't both be set");
                Source::Nowhere
            }
        }
    }

    fn expression(&mut self, source: &str, at: &str) -> Source {
        let made = self.compile(source, &CLAIMS, false, &format!("{at}.expression"));
        made.map_or(Source::Nowhere, Source::Expression)
    }

    fn extra(&mut self, list: &[Extra], at: &str) -> Vec<(String, Rule)> {
        let mut seen = BTreeSet::new();
        let mut made = Vec::new();
        for (i, extra) in list.iter().enumerate() {
            let (key, key_at) = (extra.key.as_str(), format!("{at}[{i}].key"));
            self.prefixed_path(key, &key_at);
            if key != key.to_lowercase() {
                self.invalid(&key_at, key, "must be lowercase");
            }
            if is_reserved(key) {
                let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                self.invalid(&key_at, key, why);
            }
            if !seen.insert(key) {
                self.duplicate(&key_at, key);
                continue;
            }
            let at = format!("{at}[{i}].valueExpression");
            if extra.value_expression.is_empty() {
                self.required(at, "");
                continue;
            }
            let rule = self.compile(&extra.value_expression, &CLAIMS, false, &at);
            made.extend(rule.map(|rule| (key.to_string(), rule)));
        }
        made
    }

    /// `example.org/foo`
    fn prefixed_path(&mut self, key: &str, at: &str) {
        if key.is_empty() {
            return self.required(at, "");
        }
        for (part, why) in names::domain_prefixed_path(key) {
            self.invalid(at, part, &why);
        }
    }

    /// Who is named by an address has to have shown that it is theirs.
    fn verified_email<'r>(&mut self, username: &Source, mut others: impl Iterator<Item = &'r Rule>, at: &str) {
        let Source::Expression(rule) = username else { return };
        let selects = |rule: &Rule, claim: &str| rule.program.selects(Some("claims"), claim);
        if selects(rule, "email") && !selects(rule, "email_verified") && !others.any(|r| selects(r, "email_verified")) {
            let why = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";
            self.invalid(format!("{at}.username.expression"), &rule.source, why);
        }
    }

    fn user_rules(&mut self, jwt: &Jwt, at: &str) -> Vec<Rule> {
        let mut seen = BTreeSet::new();
        let mut rules = Vec::new();
        for (i, rule) in jwt.user_validation_rules.iter().flatten().enumerate() {
            let at = format!("{at}[{i}].expression");
            if rule.expression.is_empty() {
                self.required(at, "");
            } else if !seen.insert(&rule.expression) {
                self.duplicate(at, &rule.expression);
            } else {
                let made = self.compile(&rule.expression, &USER, true, &at);
                rules.extend(made.map(|made| Rule {
                    message: rule.message.clone(),
                    ..made
                }));
            }
        }
        rules
    }

    fn compile(&mut self, source: &str, env: &Env, must_hold: bool, at: &str) -> Option<Rule> {
        let made = match compile(source, env) {
            Err(why) => Err(format!("compilation failed: {why}")),
            Ok(program) if must_hold && !matches!(program.ty, Ty::Bool) => Err("must evaluate to bool".to_string()),
            Ok(program) => Ok(program),
        };
        match made {
            Err(why) => {
                self.invalid(at, source, &why);
                None
            }
            Ok(program) => Some(Rule {
                source: source.to_string(),
                // Claims are named as issuers like it.
                program: program.with_escaped_names(),
                message: String::new(),
            }),
        }
    }
}

fn is_reserved(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    ["kubernetes.io", "k8s.io"].iter().any(|own| {
        domain
            .strip_suffix(own)
            .is_some_and(|sub| sub.is_empty() || sub.ends_with('.'))
    })
}
