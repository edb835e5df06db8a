//! Packages that both sides move to and fro.

use proptest::prelude::*;

use super::packages::{Deb, STATUS, deb, scene, table, tree};
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
    if version % 2 == 0 {
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    /// Whatever versions both sides have: afterwards each package is installed once, from one side, and all its files are of that version, and
    /// there are no others.
    #[test]
    fn every_package_is_whole(old in versions(), new in versions(), did in prop::array::uniform4(did())) {
        let mut scene = with_debs(old, |old| with_debs(new, |new| scene(old, new)));
        let mut own = old;
        for (at, (did, version)) in did.into_iter().enumerate() {
            let before = own;
            match did {
                Did::Nothing => continue,
                Did::Upgraded => own[at] = Some(version),
                Did::Purged => own[at] = None,
            }
            if before[at] == own[at] {
                continue;
            }
            scene = with_debs(before, |before| with_debs(own, |after| {
                let (before, own) = [before, after].map(|debs| debs.iter().copied().find(|deb| deb.name == NAMES[at])).into();
                match (before, own) {
                    (before, Some(own)) => scene.install(before, own, &table(after)),
                    (Some(before), None) => scene.purge(before, &table(after)),
                    (None, None) => scene,
                }
            }));
        }
        let mut expected = new;
        for at in 0..NAMES.len() {
            if own[at] != old[at] {
                expected[at] = own[at];
            }
        }
        let moved = scene.go();
        with_debs(expected, |debs| {
            let (mut shown, mut wanted) = (moved.shown(), BTreeMap::from_iter(tree(debs, &[])));
            // The order of packages may be another.
            let sorted = |text: String| {
                let mut stanzas: Vec<_> = text.split("\n\n").map(str::to_owned).collect();
                stanzas.sort();
                stanzas
            };
            let tables = [&mut shown, &mut wanted].map(|files| files.remove(STATUS).map(sorted));
            prop_assert_eq!(&tables[0], &tables[1]);
            prop_assert_eq!(shown, wanted);
            Ok(())
        })?;
    }
}
