//! Damage: what must never panic, what must be noticed, and what the store does with it.

use zerocopy::FromBytes;

use super::super::format::{EntryRecord, InodeRecord, Layout, parse};
use super::*;

/// Invariants 1 and 5 on any bytes: no reader panics, every reader ends, and what the validator lets pass is
/// canonical.
pub(super) fn survive(bytes: Vec<u8>) {
    let Ok(tree) = Tree::from_bytes(bytes) else { return };
    read_everything(&tree);
    if tree.validate().is_ok() {
        let copy = TreeBuilder::from_tree(&tree).expect("valid").finish().expect("valid");
        assert!(copy.bytes == tree.bytes(), "valid, but not canonical");
    }
}

/// Calls everything that reads, with numbers and names that are there and that are not.
pub(super) fn read_everything(tree: &Tree) {
    let strange = [name("a"), name("zzz")];
    let inos: Vec<Ino> =
        tree.inodes().map(|node| node.ino()).chain([Ino::ROOT]).chain(Ino::new(Ino::END - 1)).collect();
    for ino in inos {
        if let Some(node) = tree.node(ino) {
            let _ =
                (node.attr(), node.meta(), node.parent(), node.names().count(), node.xattr(b"user.group"));
            let _ = format!("{node:?}");
        }
        for entry in tree.entries(ino, None).take(100) {
            let _ = tree.lookup(ino, entry.name);
            let _ = tree.entries(ino, Some((entry.hash57, entry.name))).count();
        }
        for name in strange {
            let _ = (tree.lookup(ino, name), tree.entries(ino, Some((name.hash57(), name))).count());
        }
    }
    for (path, _) in tree.walk() {
        let _ = tree.resolve(&path);
    }
    let _ = (tree.stats(), tree.is_base(), tree.blobs().count(), diff(tree, &finish(sample())));
    let _ = TreeBuilder::from_tree(tree);
    let _ = sample().apply_layer(tree);
}

/// Flips every bit of a tree with one of everything.
#[test]
fn every_flipped_bit_is_survived() {
    let good = sample().finish().expect("fit").bytes;
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        survive(bytes);
    }
}

/// A tree's bytes with its inode and entry tables changed.
fn tamper(image: &TreeImage, change: impl FnOnce(&mut [InodeRecord], &mut [EntryRecord])) -> Tree {
    let mut bytes = image.bytes.clone();
    let (_, Layout { inodes, entries, .. }) = parse(image.digest, &bytes).expect("a tree");
    let (left, right) = bytes.split_at_mut(entries.start);
    change(
        <[InodeRecord]>::mut_from_bytes(&mut left[inodes]).expect("whole records"),
        <[EntryRecord]>::mut_from_bytes(&mut right[..entries.len()]).expect("whole records"),
    );
    Tree::from_bytes(bytes).expect("the header is as it was")
}

fn complaint(tree: &Tree) -> String {
    tree.validate().expect_err("damaged").to_string()
}

#[test]
fn a_directory_inside_itself_is_noticed_and_ends() {
    // a/x, with x moved into itself: the root no longer leads to it, but every local rule holds.
    let mut b = new();
    let a = add(&mut b, ROOT, "a", dir());
    add(&mut b, a, "x", dir());
    let image = b.finish().expect("fit");
    let tree = Tree::from_bytes(image.bytes.clone()).expect("a tree");
    let index = |path: &[u8]| tree.resolve(path).expect("there").index() as usize;
    let (a, x) = (index(b"a"), index(b"a/x"));
    let tree = tamper(&image, |inodes, entries| {
        let entry = inodes[x].name.get() as usize;
        entries[entry].parent = (x as u32).into();
        (inodes[x].first, inodes[x].count) = (inodes[a].first, inodes[a].count);
        (inodes[a].first, inodes[a].count) = (0.into(), 0.into());
        (inodes[a].nlink, inodes[x].nlink) = (2.into(), 3.into());
    });
    assert!(complaint(&tree).contains("out of place") || complaint(&tree).contains("not reached"));
    read_everything(&tree);
    assert_eq!(tree.walk().count(), 2);
}

#[test]
fn a_number_that_is_not_a_function_of_the_content_is_noticed() {
    let mut b = new();
    add(&mut b, ROOT, "only", file("x"));
    let tree = tamper(&b.finish().expect("fit"), |inodes, entries| {
        // The lowest bit of the number: order and index stay as they are.
        inodes[1].ino = (inodes[1].ino.get() ^ 1).into();
        entries[0].ino = inodes[1].ino;
    });
    assert!(complaint(&tree).contains("inode number"), "{}", complaint(&tree));
}

/// The index has a place for every number up to the greatest; of 2^64 - 1, no machine has the memory.
#[test]
fn a_number_past_all_trees_is_noticed_before_an_index_is_made_for_it() {
    let mut b = new();
    for index in 0..1000 {
        add(&mut b, ROOT, &format!("{index}"), file("x"));
    }
    let tree = tamper(&b.finish().expect("fit"), |inodes, _| {
        inodes.last_mut().expect("many").ino = u64::MAX.into();
    });
    assert!(complaint(&tree).contains("range of private"), "{}", complaint(&tree));
}

#[test]
fn entries_shared_by_two_directories_are_noticed_and_end() {
    let mut b = new();
    let a = add(&mut b, ROOT, "a", dir());
    add(&mut b, a, "f", file("1"));
    add(&mut b, ROOT, "b", dir());
    let image = b.finish().expect("fit");
    let tree = tamper(&image, |inodes, _| {
        let full = inodes[1..].iter().position(|i| i.count.get() == 1).expect("a has one entry") + 1;
        let (first, count) = (inodes[full].first, inodes[full].count);
        for inode in &mut inodes[1..] {
            if inode.kind == FileKind::Dir as u8 {
                (inode.first, inode.count) = (first, count);
            }
        }
    });
    assert!(complaint(&tree).contains("another directory"), "{}", complaint(&tree));
    read_everything(&tree);
}

#[test]
fn damaged_trees_do_not_enter_the_store_or_are_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = TreeStore::at(folder.path()).expect("opens");
    let good = sample().finish().expect("fit");
    let mut bytes = good.bytes.clone();
    *bytes.last_mut().expect("not empty") ^= 1;
    let lie = TreeImage { digest: good.digest, bytes: bytes.clone() };
    assert!(matches!(store.put(&lie), Err(TreeError::WrongDigest { .. })));
    bytes.truncate(bytes.len() - 1);
    assert!(matches!(store.put(&TreeImage::from_bytes(bytes.clone())), Err(TreeError::Damaged { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0, "nothing is left of them");

    std::fs::write(folder.path().join(good.digest.to_hex()), &bytes).expect("written");
    assert!(matches!(store.open(&good.digest), Err(TreeError::Damaged { .. })), "truncation shows at once");
    std::fs::write(folder.path().join(good.digest.to_hex()), b"").expect("written");
    assert!(matches!(store.open(&good.digest), Err(TreeError::Damaged { .. })), "even to nothing");
}

#[test]
fn storing_a_tree_again_replaces_a_damaged_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = TreeStore::at(folder.path()).expect("opens");
    let image = sample().finish().expect("fit");
    let path = folder.path().join(image.digest.to_hex());
    for damage in [&b""[..], b"vzfstree", &image.bytes[1..]] {
        std::fs::write(&path, damage).expect("written");
        store.put(&image).expect("stored");
        store.open(&image.digest).expect("opens").validate().expect("valid");
        std::fs::remove_file(&path).expect("removed");
    }
}
