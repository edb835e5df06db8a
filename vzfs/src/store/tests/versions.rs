//! Versions of templates: merge rules that they carry, tags, histories, patches.

use super::*;
use crate::api::MergeRule;
use crate::merge::Rule;
use crate::store::records::BaseRecord;

fn rule(path: &str, rule: &str) -> MergeRule {
    MergeRule { path: path.to_owned(), rule: rule.to_owned(), generate: None }
}

fn request(spec: &str, source: PathBuf, os: Option<&str>) -> ImportRequest {
    ImportRequest {
        template: spec.parse().expect("legal"),
        source,
        kind: None,
        os: os.map(reference),
        summary: String::new(),
        labels: BTreeMap::new(),
        packages: None,
        exclude: Vec::new(),
        merge: Vec::new(),
    }
}

/// What a VE that is not mounted shows.
fn read(store: &Store, ve: &str, path: &str) -> String {
    let volume = store.volume(&store.slot(&ve_name(ve)).expect("there")).expect("opens");
    let ino = volume.resolve(path.as_bytes()).expect("resolves").expect("there");
    let mut file = volume.open_for_reading(ino).expect("opens");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).expect("text");
    text
}

/// debian@12 with a list that two applications add to, `low` with a rule for it and `high` with rules of its own.
fn store_with_rules(place: &Place, low: &[MergeRule], high: &[MergeRule]) -> Store {
    let store = place.open();
    let import = |spec, name, list: &str, os, merge: &[MergeRule]| {
        let source = place.source(name, &[("etc/list", list), ("etc/hostname", "base\n")]);
        store
            .import(&ImportRequest { merge: merge.to_vec(), ..request(spec, source, os) }, &())
            .expect("imports")
    };
    import("debian@12", "os", "a\n", None, &[rule("etc/**", "take")]);
    import("low@1", "low", "a\nlow\n", Some("debian"), low);
    import("high@1", "high", "a\nhigh\n", Some("debian"), high);
    store
}

#[test]
fn rules_of_templates_are_kept_and_in_effect() {
    let place = Place::new();
    let store = store_with_rules(&place, &[rule("etc/list", "lines")], &[rule("etc/other", "keep")]);
    let stack = store.catalog.read().stack(&["debian", "low", "high"].map(reference)).expect("stands");
    let rules = store.merge_rules(&stack).expect("known");
    let effective: Vec<_> = rules.own().iter().map(|rule| (rule.glob(), rule.rule())).collect();
    assert_eq!(
        effective,
        [("etc/other", Rule::Keep), ("etc/list", Rule::LineSet), ("etc/**", Rule::Take)],
        "the topmost template's first"
    );
    assert_eq!(rules.rule_for(b"var/lib/dpkg/status"), Rule::Stanzas);
    create(&store, "a", &["debian", "low", "high"], None).expect("makes");
    assert_eq!(read(&store, "a", "etc/list"), "a\nhigh\nlow\n");
    drop(store);
    let store = place.open();
    assert_eq!(store.template(&reference("low")).expect("there").merge, [rule("etc/list", "lines")]);
    assert_eq!(store.merge_rules(&stack).expect("known"), rules);
}

#[test]
fn keep_and_take_decide_for_a_side() {
    for (name, expected) in [("keep", "a\nlow\n"), ("take", "a\nhigh\n")] {
        let place = Place::new();
        let store = store_with_rules(&place, &[rule("etc/list", name)], &[]);
        create(&store, "a", &["debian", "low", "high"], None).expect("makes");
        assert_eq!(read(&store, "a", "etc/list"), expected, "{name}");
    }
}

#[test]
fn other_rules_are_another_base_and_a_lost_base_is_made_again_by_its_own() {
    let place = Place::new();
    let store = store_with_rules(&place, &[rule("etc/list", "lines")], &[]);
    create(&store, "a", &["debian", "low", "high"], None).expect("makes");
    // The same layer under another name, with another rule.
    let source = place.dir.path().join("low");
    let other =
        ImportRequest { merge: vec![rule("etc/list", "keep")], ..request("low2@1", source, Some("debian")) };
    let other = store.import(&other, &()).expect("imports");
    assert_eq!(other.digest, store.template(&reference("low")).expect("there").digest);
    create(&store, "b", &["debian", "low2", "high"], None).expect("makes");
    assert_eq!(
        (read(&store, "a", "etc/list"), read(&store, "b", "etc/list")),
        ("a\nhigh\nlow\n".into(), "a\nlow\n".into())
    );

    let bases = store.meta.list::<BaseRecord>(Table::Base).expect("lists");
    assert_eq!(bases.len(), 2);
    for (_, record) in &bases {
        store.trees.remove(&record.base).expect("removes");
    }
    let source = place.source("nothing", &[("x", "")]);
    let repair = crate::api::VerifyStore { repair: Some(source) };
    store.verify_store(&repair, crate::store::Pace::Full, &()).expect("verifies");
    for (_, record) in &bases {
        store.trees.open(&record.base).expect("it is there again");
    }
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let place = Place::new();
    let store = place.open();
    for (merge, part) in [
        (rule("etc/x", "words"), "stanzas"),
        (rule("/etc/x", "text"), "/etc/x"),
        (MergeRule { generate: Some("x".into()), ..rule("etc/x", "text") }, "derived"),
    ] {
        let request =
            ImportRequest { merge: vec![merge], ..request("debian@12", place.source("os", &BASE), None) };
        let error = store.import(&request, &()).expect_err("refused");
        assert!(matches!(error, StoreError::Invalid(_)) && error.to_string().contains(part), "{error}");
    }
    assert!(store.templates().is_empty());
}
