//! Packages that both sides move to and fro.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::packages::{Deb, borrowed, deb, table, tree};
use super::*;

/// What a VE does to a package.
#[derive(Clone, Copy, Debug)]
enum Did {
    Nothing,
    Upgraded,
    Purged,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn files(name: &str, version: u8) -> Vec<(String, String)> {
    let mut files = vec![
        (format!("usr/bin/{name}"), format!("{name} {version}")),
        (format!("usr/share/{name}/same"), "same".to_owned()),
    ];
    // Every second version has a file more, and one that is called after it.
    if version.is_multiple_of(2) {
        files.push((format!("usr/share/{name}/even/x"), version.to_string()));
    }
    files.push((format!("usr/share/{name}/v{version}"), version.to_string()));
    files
}

type Versions = [Option<u8>; 4];

/// Calls `with` with the packages in these versions.
fn with_debs<T>(versions: Versions, with: impl FnOnce(&[Deb<'_>]) -> T) -> T {
    let all: Vec<_> = NAMES
        .iter()
        .zip(versions)
        .filter_map(|(name, version)| Some((*name, version?.to_string(), files(name, version?))))
        .collect();
    let borrowed: Vec<Vec<(&str, &str)>> = all
        .iter()
        .map(|(_, _, files)| files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect())
        .collect();
    let debs: Vec<Deb<'_>> =
        all.iter().zip(&borrowed).map(|((name, version, _), files)| deb(name, version, files)).collect();
    with(&debs)
}

fn versions() -> impl Strategy<Value = Versions> {
    prop::array::uniform4(prop::option::weighted(0.8, 1_u8..4))
}

fn did() -> impl Strategy<Value = (Did, u8)> {
    (prop_oneof![Just(Did::Nothing), Just(Did::Upgraded), Just(Did::Purged)], 1_u8..6)
}

/// Without the directories.
fn files_of(entries: Vec<(String, String)>) -> BTreeMap<String, String> {
    entries.into_iter().filter(|(path, _)| !path.ends_with('/')).collect()
}

/// Does to the VE what makes its packages be these.
fn act(scene: Scene, before: Versions, after: Versions, at: usize) -> Scene {
    with_debs(before, |before| {
        with_debs(after, |after| {
            let find = |debs: &[Deb<'_>]| debs.iter().position(|deb| deb.name == NAMES[at]);
            let (old, own) = (find(before).map(|at| before[at]), find(after).map(|at| after[at]));
            match (old, own) {
                (old, Some(own)) => scene.install(old, own, &table(after)),
                (Some(old), None) => scene.purge(old, &table(after)),
                (None, None) => scene,
            }
        })
    })
}

fn run(fixture: &Arc<Fixture>, old: Versions, new: Versions, acts: [(Did, u8); 4]) {
    let [before, update] = [old, new].map(|versions| with_debs(versions, |debs| tree(debs, &[])));
    let mut scene = Scene::within(fixture, &borrowed(&before), &borrowed(&update));
    let mut own = old;
    for (at, (did, version)) in acts.into_iter().enumerate() {
        let before = own;
        own[at] = match did {
            Did::Nothing => own[at],
            Did::Upgraded => Some(version),
            Did::Purged => None,
        };
        if before != own {
            scene = act(scene, before, own, at);
        }
    }
    let mut expected = new;
    for at in (0..NAMES.len()).filter(|at| own[*at] != old[*at]) {
        expected[at] = own[at];
    }
    let shown = scene.go().shown();
    assert_eq!(shown, with_debs(expected, |debs| files_of(tree(debs, &[]))));
}

/// Whatever versions both sides have: afterwards each package is installed once, from one side, and all its files are of that version, and there are
/// no others.
#[test]
fn every_package_is_whole() {
    let fixture = Arc::new(Fixture::new());
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    let cases = (versions(), versions(), prop::array::uniform4(did()));
    let outcome = TestRunner::new(config).run(&cases, |(old, new, acts)| {
        run(&fixture, old, new, acts);
        Ok(())
    });
    outcome.map_err(|error| error.to_string()).expect("no counterexample");
}
