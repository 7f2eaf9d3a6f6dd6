use super::*;

/// What a selector says of a device of `dra.example.com`: the answer, or the error.
fn said(expression: &str, attributes: &[(&str, Attribute)], capacity: &[(&str, &str)]) -> String {
    let owned = |(name, value): &(&str, Attribute)| ((*name).to_owned(), value.clone());
    let attributes: BTreeMap<_, _> = attributes.iter().map(owned).collect();
    let amount = |(name, text): &(&str, &str)| ((*name).to_owned(), Quantity::parse(text).unwrap());
    let capacity: BTreeMap<_, _> = capacity.iter().map(amount).collect();
    let device = Device {
        driver: "dra.example.com",
        is_shared: false,
        attributes: &attributes,
        capacity: &capacity,
    };
    match Selector::compile(expression) {
        Ok(selector) => match selector.matches(device) {
            Ok(is_it) => is_it.to_string(),
            Err(error) => explained(&error),
        },
        Err(error) => error,
    }
}

/// From upstream's table.
#[test]
fn selectors_see_what_a_device_has() {
    let text = |t: &str| Attribute::Text(t.into());
    let version = || Attribute::Version("1.0.0".into());
    type Case<'a> = (&'a str, &'a [(&'a str, Attribute)], &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case] = &[
        ("true", &[], &[], "true"),
        ("1", &[], &[], "must evaluate to bool or the unknown type, not int"),
        (r#""no-such-domain" in device.attributes"#, &[], &[], "false"),
        (
            r#""other.example.com" in device.attributes"#,
            &[("other.example.com/x", Attribute::Bool(true))],
            &[],
            "true",
        ),
        (r#"device.driver == "dra.example.com""#, &[], &[], "true"),
        ("device.allowMultipleAllocations", &[], &[], "false"),
        (
            r#"device.attributes["dra.example.com"].name"#,
            &[("name", Attribute::Bool(true))],
            &[],
            "true",
        ),
        (
            r#"device.attributes["dra.example.com"]["name"]"#,
            &[("dra.example.com/name", Attribute::Bool(true))],
            &[],
            "true",
        ),
        (
            r#"cel.bind(dra, device.attributes["dra.example.com"], dra.name)"#,
            &[("name", Attribute::Bool(true))],
            &[],
            "true",
        ),
        (
            r#"device.attributes["dra.example.com"].name > 0"#,
            &[("name", Attribute::Int(1))],
            &[],
            "true",
        ),
        (
            r#"device.attributes["dra.example.com"].name == "fish""#,
            &[("name", text("fish"))],
            &[],
            "true",
        ),
        (
            r#"device.attributes["dra.example.com"].name.isGreaterThan(semver("0.0.1"))"#,
            &[("name", version())],
            &[],
            "true",
        ),
        (
            r#"device.capacity["dra.example.com"].name.isGreaterThan(quantity("1Ki"))"#,
            &[],
            &[("name", "1Mi")],
            "true",
        ),
        (
            r#"!("name" in device.capacity["dra.example.com"]) || device.capacity["dra.example.com"].name.isGreaterThan(quantity("1Ki"))"#,
            &[],
            &[],
            "true",
        ),
        (
            r#"device.attributes.exists_one(x, x == "dra.example.com")"#,
            &[("services", text("a"))],
            &[],
            "true",
        ),
        (
            r#"device.attributes["dra.example.com"].?missing.orValue(false)"#,
            &[],
            &[],
            "false",
        ),
        (
            r#"device.attributes["no-such-domain"].noSuchAttr.isGreaterThan(quantity("0"))"#,
            &[],
            &[],
            "no such key: noSuchAttr. consider using CEL optional chaining (.? followed by orValue()) or guarding the check with has() for optional fields",
        ),
    ];
    for (expression, attributes, capacity, expected) in cases {
        assert_eq!(said(expression, attributes, capacity), *expected, "{expression}");
    }
    let broken = said(
        r#"device.attributes["dra.example.com"].name"#,
        &[("name", text("fish"))],
        &[],
    );
    assert!(
        broken.starts_with("CEL result of type string could not be converted to bool"),
        "{broken}"
    );
    let unknown = said("device.unknown", &[], &[]);
    assert!(
        unknown.starts_with("compilation failed: ERROR: <input>:1:7: undefined field 'unknown'"),
        "{unknown}"
    );
}

#[test]
fn only_selectors_of_devices_bind_names() {
    assert!(compile("cel.bind(a, 1, a == 1)", &Env::default()).is_err());
    assert!(Selector::compile("cel.bind(a, 1, a == 1)").is_ok());
}

#[test]
fn what_a_selector_costs_at_worst_is_known() {
    let cost = |expression: &str| Selector::compile(expression).unwrap().most_cost();
    assert!(cost(r#"device.attributes["dra.example.com"].name == "fish""#) < 10.0);
    let inner = r#"device.attributes["a"].all(y, device.attributes["a"].all(z, device.attributes["a"].all(u, x + y + z + u == "")))"#;
    let expensive = format!(r#"device.attributes["a"].all(x, {inner})"#);
    assert_eq!(
        Selector::compile(&expensive).unwrap_err(),
        "too complex, exceeds cost limit"
    );
    let padded = |length: usize| format!("{}true", " ".repeat(length - 4));
    assert!(Selector::compile(&padded(LONGEST)).is_ok());
    assert_eq!(
        Selector::compile(&padded(LONGEST + 1)).unwrap_err(),
        "must be no more than 10240 bytes"
    );
}
