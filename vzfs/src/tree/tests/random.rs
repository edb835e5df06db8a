//! Random trees against a naive model, and random damage.
//!
//! The model is a flat map from paths to things, merged by the words of the overlay rules with no thought of
//! speed.

use std::collections::{BTreeMap, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What is at a path. Files with one `group` in one layer are hard links of each other.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Thing {
    File { group: (usize, u8) },
    Symlink(u8),
    Dir { perm: u16, opaque: bool },
    Whiteout,
}

type Model = BTreeMap<Vec<u8>, Thing>;
type Change = (Vec<u8>, Thing);

/// Short paths over few names, so that they meet; '!' and 'b' are on both sides of the slash.
fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(vec!["a", "a!", "b", "\u{e9}"]), 1..4)
        .prop_map(|names| names.join("/").into_bytes())
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        4 => (0u8..5).prop_map(|group| Thing::File { group: (0, group) }),
        1 => (0u8..3).prop_map(Thing::Symlink),
        2 => (0u16..4, any::<bool>()).prop_map(|(perm, opaque)| Thing::Dir { perm, opaque }),
        1 => Just(Thing::Whiteout),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    vec((path(), thing()), 0..25)
}

fn remove_below(model: &mut Model, path: &[u8]) {
    let prefix = [path, b"/"].concat();
    model.retain(|other, _| !other.starts_with(&prefix));
}

/// The rule of `TreeBuilder::insert`, on the model.
fn put(model: &mut Model, path: &[u8], thing: Thing) {
    let old = model.get(path).cloned();
    let thing = match (thing, &old) {
        (Thing::Dir { perm, opaque }, Some(Thing::Dir { opaque: was, .. })) => {
            Thing::Dir { perm, opaque: opaque || *was }
        }
        (Thing::Dir { perm, .. }, Some(Thing::Whiteout)) => Thing::Dir { perm, opaque: true },
        (thing, _) => thing,
    };
    if !matches!(thing, Thing::Dir { .. }) {
        remove_below(model, path);
    }
    model.insert(path.to_vec(), thing);
}

fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

/// A layer as a model; makes the parents that a change needs.
fn model_of(layer: usize, changes: &[Change]) -> Model {
    let mut model = Model::new();
    for (path, thing) in changes {
        for parent in parents(path) {
            if !matches!(model.get(parent), Some(Thing::Dir { .. })) {
                put(&mut model, parent, Thing::Dir { perm: 0, opaque: false });
            }
        }
        let thing = match thing {
            Thing::File { group: (_, group) } => Thing::File { group: (layer, *group) },
            other => other.clone(),
        };
        put(&mut model, path, thing);
    }
    model
}

/// The same layer through the builder.
fn builder_of(layer: usize, changes: &[Change]) -> TreeBuilder {
    let mut b = new();
    let mut groups: HashMap<u8, NodeId> = HashMap::new();
    let make_dir = |b: &mut TreeBuilder, dir, name: NameRef<'_>, perm| {
        b.insert(dir, name, Meta::new(FileKind::Dir, perm), Content::None).expect("fits")
    };
    for (path, thing) in changes {
        let mut names: Vec<_> =
            path.split(|byte| *byte == b'/').map(|n| NameRef::new(n).expect("legal")).collect();
        let last = names.pop().expect("a path has a name");
        let mut dir = ROOT;
        for name in names {
            dir = match b.get(dir, name) {
                Some(Entry::Node(node)) if b.meta(node).kind == FileKind::Dir => node,
                _ => make_dir(&mut b, dir, name, 0),
            };
        }
        match thing {
            Thing::Whiteout => b.whiteout(dir, last).expect("a directory"),
            Thing::Dir { perm, opaque } => {
                let node = make_dir(&mut b, dir, last, *perm);
                let opaque = *opaque || b.is_opaque(node);
                b.set_opaque(node, opaque);
            }
            Thing::Symlink(target) => drop(add_at(&mut b, dir, last, symlink(&format!("t{target}")))),
            Thing::File { group: (_, group) } => match groups.get(group) {
                Some(node) => b.link(dir, last, *node).expect("a file"),
                None => {
                    let (mut meta, content) = file(&format!("{layer} {group}"));
                    if *group > 2 {
                        meta.xattrs.insert(b"user.group"[..].into(), vec![*group].into());
                    }
                    groups.insert(*group, add_at(&mut b, dir, last, (meta, content)));
                }
            },
        }
    }
    b
}

fn add_at(b: &mut TreeBuilder, dir: NodeId, name: NameRef<'_>, (meta, content): (Meta, Content)) -> NodeId {
    b.insert(dir, name, meta, content).expect("fits")
}

/// Puts a layer on top of a base, on the model.
fn merge(base: &mut Model, layer: &Model) {
    for (path, thing) in layer {
        match thing {
            Thing::Whiteout => {
                remove_below(base, path);
                base.remove(path);
            }
            Thing::Dir { perm, opaque } => {
                if *opaque {
                    remove_below(base, path);
                }
                base.insert(path.clone(), Thing::Dir { perm: *perm, opaque: false });
            }
            other => {
                remove_below(base, path);
                base.insert(path.clone(), other.clone());
            }
        }
    }
}

/// Reads a tree into a model. Group numbers come from the content, so hard links are checked against it by
/// inode number.
fn read(tree: &Tree) -> Model {
    let mut model = Model::new();
    let mut group_of_ino = HashMap::new();
    for (path, entry) in tree.walk().skip(1) {
        let thing = match entry {
            WalkEntry::Whiteout => Thing::Whiteout,
            WalkEntry::Node(node) => {
                assert_eq!(tree.resolve(&path).expect("walked, so there").ino(), node.ino());
                match node.content() {
                    ContentRef::None => Thing::Dir { perm: node.attr().perm, opaque: node.is_opaque() },
                    ContentRef::Symlink(target) => Thing::Symlink(target[1] - b'0'),
                    ContentRef::Blob { digest, .. } => {
                        let groups = (0..4).flat_map(|layer| (0..5).map(move |group| (layer, group)));
                        let of = |(l, g): &(usize, u8)| Digest::of(format!("{l} {g}").as_bytes()) == digest;
                        let group = groups.into_iter().find(of).expect("one of ours");
                        assert_eq!(node.has_xattrs(), group.1 > 2);
                        assert_eq!(*group_of_ino.entry(node.ino()).or_insert(group), group);
                        Thing::File { group }
                    }
                }
            }
        };
        model.insert(path, thing);
    }
    let groups = group_of_ino.values().collect::<std::collections::HashSet<_>>();
    assert_eq!(groups.len(), group_of_ino.len(), "hard links of one group have one inode");
    model
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_round_trip(changes in changes()) {
        let tree = finish(builder_of(0, &changes));
        prop_assert_eq!(read(&tree), model_of(0, &changes));
        let copy = TreeBuilder::from_tree(&tree).expect("sound").finish().expect("fit");
        prop_assert_eq!(copy.digest, tree.digest());
    }

    #[test]
    fn layers_merge_as_the_model_says(layers in vec(changes(), 1..4)) {
        let mut model = Model::new();
        let mut base = new();
        for (number, changes) in layers.iter().enumerate() {
            merge(&mut model, &model_of(number, changes));
            base.apply_layer(&finish(builder_of(number, changes))).expect("sound");
        }
        let tree = finish(base);
        prop_assert!(tree.is_base());
        prop_assert_eq!(read(&tree), model);
    }

    #[test]
    fn comparison_finds_exactly_the_differences(old in changes(), new in changes()) {
        let (a, b) = (finish(builder_of(0, &old)), finish(builder_of(0, &new)));
        let (old, new) = (model_of(0, &old), model_of(0, &new));
        let mut expected: Vec<_> =
            old.keys().chain(new.keys()).filter(|path| old.get(*path) != new.get(*path)).cloned().collect();
        expected.sort();
        expected.dedup();
        let mut found: Vec<_> = diff(&a, &b).into_iter().map(|change| change.path).collect();
        found.sort();
        prop_assert_eq!(found, expected);
    }

    /// Invariants 1 and 5: no damage makes a reader panic, and what the validator lets pass is canonical.
    #[test]
    fn damage_is_survived(
        changes in changes(),
        hits in vec((any::<prop::sample::Index>(), prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()]), 1..4),
    ) {
        let mut bytes = builder_of(0, &changes).finish().expect("fit").bytes;
        for (place, value) in &hits {
            let place = place.index(bytes.len());
            bytes[place] = *value;
        }
        damage::survive(bytes);
    }

    #[test]
    fn any_bytes_are_survived(tail in vec(any::<u8>(), 0..400), cut in any::<prop::sample::Index>()) {
        let mut bytes = sample().finish().expect("fit").bytes;
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(Tree::from_bytes(bytes.clone()).is_err());
        bytes.extend(tail);
        damage::survive(bytes);
    }
}
