//! Versions of templates: merge rules that they carry, tags, histories, patches.

use super::*;
use crate::api::{GcRequest, How, MergeRule, Origin, Package, PackageChange, ReapplyTemplate, VerifyStore};
use crate::merge::Rule;
use crate::store::records::{BaseRecord, TemplateRecord};
use crate::types::{Ino, Tag};
use crate::volume::{Caller, NewNode};

fn rule(path: &str, rule: &str) -> MergeRule {
    MergeRule { path: path.to_owned(), rule: rule.to_owned(), generate: None }
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
            .import(&ImportRequest { merge: merge.to_vec(), ..import_request(spec, source, os) }, &())
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
    let other = ImportRequest {
        merge: vec![rule("etc/list", "keep")],
        ..import_request("low2@1", source, Some("debian"))
    };
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
    let repair = VerifyStore { repair: Some(source), ..VerifyStore::default() };
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
        let request = ImportRequest {
            merge: vec![merge],
            ..import_request("debian@12", place.source("os", &BASE), None)
        };
        let error = store.import(&request, &()).expect_err("refused");
        assert!(matches!(error, StoreError::Invalid(_)) && error.to_string().contains(part), "{error}");
    }
    assert!(store.templates().is_empty());
}

fn tag(text: &str) -> Tag {
    text.parse().expect("legal")
}

/// Writes a file of a VE, new or not.
fn write(store: &Store, ve: &str, path: &str, content: &str) {
    let volume = store.volume(&store.slot(&ve_name(ve)).expect("there")).expect("opens");
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir =
        if dir.is_empty() { Some(Ino::ROOT) } else { volume.resolve(dir.as_bytes()).expect("resolves") };
    let (dir, name) = (dir.expect("there"), NameRef::new(name.as_bytes()).expect("legal"));
    let _ = volume.unlink(dir, name);
    let new = NewNode::new(FileKind::File, 0o644);
    let ino = volume.create(dir, name, new, Caller::ROOT).expect("creates").ino;
    volume.write(ino, 0, content.as_bytes(), true).expect("writes");
}

/// What is at a path of a template's layer.
fn in_layer(store: &Store, template: &str, path: &str) -> Option<Ino> {
    let layer = store.template(&reference(template)).expect("there").digest;
    store.trees.open(&layer).expect("opens").resolve(path.as_bytes()).map(|view| view.attr().ino)
}

#[test]
fn a_tag_is_a_reference_that_moves_with_one_record() {
    let place = Place::new();
    let store = store_with_templates(&place);
    import(&store, "debian@13", place.source("os13", &BASE), None).expect("imports");
    let stable = tag("stable");
    let tagged = store.tag_template(&reference("debian@12"), &stable).expect("tags");
    assert_eq!((tagged.tag.to_string().as_str(), tagged.before), ("debian@stable", None));
    store.tag_template(&reference("debian@12"), &tag("candidate")).expect("tags");
    assert_eq!(store.template(&reference("debian@stable")).expect("there").version.as_str(), "12");
    assert_eq!(
        store.template(&reference("debian")).expect("there").version.as_str(),
        "13",
        "a tag is not newer"
    );
    assert_eq!(
        store.template(&reference("debian@12")).expect("there").tags,
        ["candidate", "stable"].map(tag)
    );
    assert!(matches!(store.template(&reference("nginx@stable")), Err(StoreError::UnknownTemplate(_))));
    // Wherever a template is named.
    let ve = create(&store, "a", &["debian@stable", "nginx"], None).expect("makes").remove(0);
    assert_eq!(ve.templates[0].to_string(), "debian@12");
    import(&store, "app@1", place.source("app", &BASE), Some("debian@stable")).expect("imports");
    assert_eq!(store.template(&reference("app")).expect("there").os.expect("on it").version.as_str(), "12");

    let moved = store.tag_template(&reference("debian@13"), &stable).expect("tags");
    assert_eq!(
        (moved.before, moved.now),
        (Some("12".parse().expect("legal")), Some("13".parse().expect("legal")))
    );
    drop(store);
    let store = place.open();
    assert_eq!(store.template(&reference("debian@stable")).expect("there").version.as_str(), "13");
    // The VE is on what the tag was when it was made.
    assert_eq!(store.ve(&ve_name("a")).expect("there").templates[0].to_string(), "debian@12");

    assert!(matches!(
        store.untag_template(&reference("debian@12"), &stable),
        Err(StoreError::UnknownTag { .. })
    ));
    store.untag_template(&reference("debian"), &stable).expect("takes it away");
    assert!(matches!(store.template(&reference("debian@stable")), Err(StoreError::UnknownTemplate(_))));
}

#[test]
fn a_tag_is_no_version_and_keeps_its_version_from_removal() {
    let place = Place::new();
    let store = store_with_templates(&place);
    import(&store, "debian@again", place.source("os", &BASE), None).expect("imports");
    let refused = store.tag_template(&reference("debian@12"), &tag("again"));
    assert!(matches!(refused, Err(StoreError::TagIsVersion(_))));
    store.tag_template(&reference("debian@again"), &tag("old")).expect("tags");
    let refused = import(&store, "debian@old", place.source("os", &BASE), None);
    assert!(matches!(refused, Err(StoreError::VersionIsTag(_))));
    let refused = store.remove_template(&reference("debian@again"), false);
    assert!(matches!(refused, Err(StoreError::Tagged { .. })));
    store.remove_template(&reference("debian@again"), true).expect("removes");
    drop(store);
    let store = place.open();
    assert!(matches!(store.template(&reference("debian@old")), Err(StoreError::UnknownTemplate(_))));
    import(&store, "debian@old", place.source("os", &BASE), None).expect("the tag went with the version");
}

#[test]
fn a_patched_os_is_a_whole_tree_in_which_unchanged_files_are_the_same_inodes() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "old", &["debian"], None).expect("makes");
    create(&store, "work", &["debian"], None).expect("makes");
    write(&store, "work", "etc/motd", "patched\n");
    write(&store, "work", "etc/new", "new\n");
    let volume = store.volume(&store.slot(&ve_name("work")).expect("there")).expect("opens");
    let bin = volume.resolve(b"usr/bin").expect("resolves").expect("there");
    volume.unlink(bin, NameRef::new(b"tool").expect("legal")).expect("unlinks");
    drop(volume);
    let old: TemplateSpec = "debian@12".parse().expect("legal");
    let steps = vec!["place /etc/motd".to_owned()];
    let patch =
        CommitVe { version_of: Some(old.clone()), steps: steps.clone(), ..commit_request("debian@12.1") };
    let made = store.commit(&ve_name("work"), &patch, &()).expect("commits");
    assert_eq!((made.kind, made.os.is_none()), (TemplateKind::Os, true));
    assert_eq!(made.origin, Origin { how: How::Patched, from: Some(old), steps });
    assert_eq!(
        in_layer(&store, "debian@12.1", "etc/hostname"),
        in_layer(&store, "debian@12", "etc/hostname")
    );
    assert_ne!(in_layer(&store, "debian@12.1", "etc/motd"), in_layer(&store, "debian@12", "etc/motd"));
    assert_eq!(in_layer(&store, "debian@12.1", "usr/bin/tool"), None);
    create(&store, "new", &["debian"], None).expect("makes");
    let shown = ["old", "new"].map(|ve| read(&store, ve, "etc/motd"));
    assert_eq!(shown, ["hello\n", "patched\n"], "who is on the old version stays on it");

    // Of the topmost template only, and under its own name.
    let wrong = CommitVe { version_of: Some("nginx@1".parse().expect("legal")), ..commit_request("nginx@2") };
    assert!(matches!(store.commit(&ve_name("work"), &wrong, &()), Err(StoreError::Invalid(_))));
    let wrong = CommitVe { version_of: patch.version_of, ..commit_request("other@1") };
    assert!(matches!(store.commit(&ve_name("work"), &wrong, &()), Err(StoreError::Invalid(_))));
}

#[test]
fn a_patched_application_is_a_layer_on_what_the_old_one_was_on() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "low", &["debian", "nginx"], None).expect("makes");
    write(&store, "low", "etc/site", "one\n");
    store.commit(&ve_name("low"), &commit_request("site@1"), &()).expect("commits");
    create(&store, "work", &["debian", "nginx", "site"], None).expect("makes");
    write(&store, "work", "etc/extra", "two\n");
    let patch = CommitVe { version_of: Some("site@1".parse().expect("legal")), ..commit_request("site@2") };
    let made = store.commit(&ve_name("work"), &patch, &()).expect("commits");
    assert_eq!(made.kind, TemplateKind::App);
    assert_eq!(made.requires, ["nginx@1".parse().expect("legal")]);
    assert_eq!(made.os.expect("on it").version.as_str(), "12");
    for (path, expected) in
        [("etc/site", true), ("etc/extra", true), ("etc/nginx/nginx.conf", false), ("etc/motd", false)]
    {
        assert_eq!(in_layer(&store, "site@2", path).is_some(), expected, "{path}");
    }
    create(&store, "new", &["debian", "nginx", "site"], None).expect("makes");
    assert_eq!(read(&store, "new", "etc/site") + &read(&store, "new", "etc/extra"), "one\ntwo\n");
    assert_eq!(store.versions(&reference("site")).expect("there").len(), 2);
}

const STATUS: &str = "var/lib/dpkg/status";

fn packages(list: &[(&str, &str)]) -> String {
    let stanza = |(name, version): &(&str, &str)| {
        format!("Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n\n")
    };
    list.iter().map(stanza).collect()
}

/// debian@12 with a package database, an application on it, and debian@12.1 with a newer package.
fn store_to_reapply(place: &Place, app: &[(&str, &str)]) -> Store {
    let store = place.open();
    let [old, new, with_app] = [
        packages(&[("base", "1"), ("lib", "1")]),
        packages(&[("base", "1"), ("lib", "2")]),
        packages(&[("app", "7"), ("base", "1"), ("lib", "1")]),
    ];
    let os = |status, lib| [("usr/lib/lib.so", lib), ("etc/conf", "a\nb\nc\nd\ne\n"), (STATUS, status)];
    import(&store, "debian@12", place.source("os", &os(&old, "1")), None).expect("imports");
    import(&store, "debian@12.1", place.source("os1", &os(&new, "2")), None).expect("imports");
    let files = [&os(&with_app, "1")[..], &[("usr/bin/app", "app")], app].concat();
    import(&store, "app@7", place.source("app", &files), Some("debian@12")).expect("imports");
    store
}

fn reapply(store: &Store, template: &str) -> Result<Template, StoreError> {
    let request = ReapplyTemplate {
        template: template.parse().expect("legal"),
        os: reference("debian@12.1"),
        requires: Vec::new(),
    };
    store.reapply(&reference("app@7"), &request, &())
}

#[test]
fn a_layer_is_put_on_a_newer_os_with_what_both_sides_changed() {
    let place = Place::new();
    let store = store_to_reapply(&place, &[("etc/conf", "a\nb\nc\nd\nE\n")]);
    let made = reapply(&store, "app@7+debian12.1").expect("puts it there");
    assert_eq!((made.origin.how, made.origin.from), (How::Reapplied, Some("app@7".parse().expect("legal"))));
    assert_eq!(made.packages, [Package { name: "app".into(), version: "7".into() }]);
    assert!(in_layer(&store, "app@7+debian12.1", "usr/lib/lib.so").is_none(), "the fix is the OS's");
    create(&store, "a", &["debian@12.1", "app"], None).expect("stands");
    assert_eq!(read(&store, "a", STATUS), packages(&[("app", "7"), ("base", "1"), ("lib", "2")]));
    assert_eq!(read(&store, "a", "usr/lib/lib.so") + &read(&store, "a", "usr/bin/app"), "2app");
    assert_eq!(read(&store, "a", "etc/conf"), "a\nb\nc\nd\nE\n");
    let diff = store.diff_templates(&reference("debian@12"), &reference("debian@12.1")).expect("compares");
    let changed = PackageChange { name: "lib".into(), from: Some("1".into()), to: Some("2".into()) };
    assert_eq!(diff.packages, [changed]);
}

#[test]
fn a_layer_that_would_hide_what_the_newer_os_fixed_is_not_put_there() {
    let place = Place::new();
    let store = store_to_reapply(&place, &[("usr/lib/lib.so", "1 with a patch of the application's")]);
    match reapply(&store, "app@8") {
        Err(StoreError::Reapply { losses, .. }) => {
            assert!(losses[0].contains("/usr/lib/lib.so"), "{losses:?}")
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(store.template(&reference("app@8")), Err(StoreError::UnknownTemplate(_))));
    let request = ReapplyTemplate {
        template: "debian@13".parse().expect("legal"),
        os: reference("debian@12.1"),
        requires: vec![],
    };
    assert!(matches!(store.reapply(&reference("debian@12"), &request, &()), Err(StoreError::Invalid(_))));
}

#[test]
fn what_a_template_was_built_of_is_kept_as_long_as_it() {
    let place = Place::new();
    let store = place.open();
    let recipe = place.dir.path().join("recipe.tar");
    fs::write(&recipe, vec![7; 50_000]).expect("writes");
    let build = ImportRequest {
        recipe: Some(recipe),
        ..import_request("debian@12", place.source("os", &BASE), None)
    };
    let made = store.import(&build, &()).expect("imports");
    assert_eq!(made.origin.how, How::Built);
    let df = store.df().expect("counts");
    assert!(df.templates[0].unique_bytes >= 50_000, "{df:?}");
    store.collect(GcRequest { dry_run: false }, &()).expect("collects");
    drop(store);
    let store = place.open();
    let mut archive = Vec::new();
    store.export_recipe(&reference("debian"), &mut archive).expect("exports");
    assert_eq!(archive, vec![7; 50_000]);

    import(&store, "other@1", place.source("os", &BASE), None).expect("imports");
    assert_eq!(store.template(&reference("other")).expect("there").origin.how, How::Imported);
    let none = store.export_recipe(&reference("other"), &mut archive);
    assert!(matches!(none, Err(StoreError::NoRecipe(_))));

    // Damage of it is told with the template's name.
    let blob = store.blobs.path(&made.recipe.expect("kept"));
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).expect("chmod");
    fs::write(&blob, vec![8; 50_000]).expect("damages");
    let report =
        store.verify_store(&VerifyStore::default(), crate::store::Pace::Full, &()).expect("verifies");
    assert_eq!(report.damaged[0].users[0].to_string(), "template debian@12 /(recipe)");
    assert_eq!(store.verify(&reference("debian"), &()).expect("verifies").damaged[0].path, "(recipe)");
    store.remove_template(&reference("debian"), false).expect("removes");
    assert!(!blob.exists());
}

#[test]
fn records_without_histories_are_read() {
    let place = Place::new();
    let store = place.open();
    import(&store, "debian@12", place.source("os", &BASE), None).expect("imports");
    let (key, record) = store.meta.list::<serde_json::Value>(Table::Template).expect("lists").remove(0);
    let mut old = record;
    for field in ["origin", "merge", "recipe"] {
        old.as_object_mut().expect("a record").remove(field);
    }
    store.meta.put(Table::Template, &key, &old).expect("writes");
    drop(store);
    let store = place.open();
    assert_eq!(store.template(&reference("debian")).expect("there").origin.how, How::Unknown);
    assert_eq!(
        store.meta.get::<TemplateRecord>(Table::Template, &key).expect("reads").expect("there").merge,
        []
    );
}
