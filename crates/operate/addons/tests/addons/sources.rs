//! What servers tell.

use keelson_addons::source::{Content, LONGEST, Source, addon_name, hash};

#[test]
fn names_can_be_read_and_are_no_other_files() {
    assert_eq!(addon_name("web.yaml"), "web");
    assert_eq!(addon_name("shop/web-1.yaml"), "shop.web-1");
    let long = format!("{}.yaml", "x".repeat(90));
    let odd = [
        "web.yml",
        "web.json",
        "shop.web-1.yaml",
        "Web.yaml",
        "ä.yaml",
        "a b.yaml",
        "-x.yaml",
        &long,
    ];
    let mut names: Vec<String> = odd.iter().map(|p| addon_name(p)).collect();
    assert!(
        names[0].starts_with("web-") && names[2].starts_with("shop.web-1-"),
        "{names:?}"
    );
    for name in &names {
        assert!(
            name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_alphanumeric()),
            "{name}"
        );
        assert!(name.ends_with(|c: char| c.is_ascii_alphanumeric()), "{name}");
    }
    names.extend([addon_name("web.yaml"), addon_name("shop/web-1.yaml")]);
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn a_source_is_its_secret_and_back() {
    let text = b"apiVersion: v1\nkind: Secret\n".to_vec();
    let source = Source {
        server: "s1".into(),
        file: "/a/b/web.yaml".into(),
        path: "b/web.yaml".into(),
        directory: "/a".into(),
        place: "1:2".into(),
        hash: hash(&text),
        content: Content::of(&text),
    };
    let mut secret = source.to_secret();
    assert_eq!(Source::of(&secret).unwrap(), source);
    assert_eq!(Source::of(&secret).unwrap().content.text().unwrap(), text);
    // Under another name it would be a second one of the same file.
    secret.metadata.name = Some("addon-other".into());
    assert_eq!(Source::of(&secret), None);
    let ill = Source {
        content: Content::Error("why".into()),
        ..source
    };
    assert_eq!(Source::of(&ill.to_secret()).unwrap().content.text().unwrap_err(), "why");
    assert!(matches!(Content::of(&vec![b'a'; LONGEST + 1]), Content::Error(_)));
    assert!(Content::Packed(b"no gzip".to_vec()).text().is_err());
}
