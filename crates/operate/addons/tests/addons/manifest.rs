//! What files say.

use keelson_addons::manifest::{Manifest, depends_on, read};

fn names(text: &str) -> Result<Vec<String>, String> {
    Ok(read(text.as_bytes())?.iter().map(Manifest::shown).collect())
}

#[test]
fn documents_lists_and_json_are_read() {
    let text = "# first\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\n---\n\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n---\napiVersion: apps/v1\nkind: DeploymentList\nitems:\n- metadata: {name: c}\n";
    assert_eq!(names(text).unwrap(), ["ConfigMap/a", "Secret/b", "Deployment/c"]);
    let one = &read(text.as_bytes()).unwrap()[0];
    assert_eq!(
        (one.group(), one.version(), one.namespace.as_deref()),
        ("", "v1", Some("shop"))
    );
    let of_list = &read(text.as_bytes()).unwrap()[2];
    assert_eq!(
        (of_list.group(), of_list.value["kind"].as_str()),
        ("apps", Some("Deployment"))
    );
    assert_eq!(
        names(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}"#).unwrap(),
        ["Pod/p"]
    );
    assert_eq!(names("").unwrap(), Vec::<String>::new());
    assert_eq!(names("# nothing\n---\n---\n").unwrap(), Vec::<String>::new());
}

#[test]
fn words_mean_what_they_mean_to_kubectl() {
    let text = "apiVersion: v1\nkind: X\nmetadata: {name: a}\nmode: 0644\nis: true\ntext: \"no\"\n";
    let value = &read(text.as_bytes()).unwrap()[0].value;
    assert_eq!(
        (&value["mode"], &value["is"], &value["text"]),
        (&420.into(), &true.into(), &"no".into())
    );
}

#[test]
fn what_is_no_manifest_is_refused_without_saying_what_it_is() {
    for (text, why) in [
        ("a: [", "line"),
        ("- 1", "document 1 is no object"),
        ("apiVersion: v1\nkind: Pod\n", "has no name"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n",
            "generateName",
        ),
        ("kind: Pod\nmetadata: {name: x}\n", "what it is"),
        ("apiVersion: a/b/c\nkind: Pod\nmetadata: {name: x}\n", "GROUP/VERSION"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: y}\n", "quotes"),
        ("apiVersion: ../v1\nkind: Pod\nmetadata: {name: x}\n", "GROUP/VERSION"),
    ] {
        let error = names(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    let error = names("password: hunter2\nfoo: [hunter2\n").unwrap_err();
    assert!(!error.contains("hunter2"), "{error}");
    assert!(read(&[0xff, 0xfe]).unwrap_err().contains("no text"));
}

#[test]
fn dependencies_may_stand_on_any_object() {
    let text = "apiVersion: v1\nkind: A\nmetadata: {name: a, annotations: {keelson.dev/depends-on: 'x, y'}}\n---\napiVersion: v1\nkind: A\nmetadata: {name: b, annotations: {keelson.dev/depends-on: 'x'}}\n";
    assert_eq!(depends_on(&read(text.as_bytes()).unwrap()), ["x", "y"]);
}
