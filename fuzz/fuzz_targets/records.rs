//! Arbitrary bytes as private records: they decode to what encodes to the same bytes, or are refused; and a volume over whatever decodes
//! answers every question without a panic.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vzfs::meta::{EntryRecord, InodeRecord};
use vzfs::types::{FileKind, Ino, NameRef};
use vzfs::volume::{Caller, NewNode, RenameMode, SetAttr, SetTime, Sharing, Volume, XattrMode};
use vzfs_fuzz::{World, name};

static WORLD: LazyLock<World> = LazyLock::new(World::new);

// The input is records, each after its length in two bytes; the first bit of the length says which table.
fuzz_target!(|bytes: &[u8]| {
    let world = &*WORLD;
    let (base, ve) = (&world.base, world.next_ve());
    let inos: Vec<Ino> = base.inodes().map(|view| view.ino()).collect();
    let mut rest = bytes;
    let mut changes = world.meta.changes(ve);
    let mut inodes = 0usize;
    while let [low, high, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high & 0x7f])).min(tail.len());
        let (record, after) = tail.split_at(length);
        rest = after;
        if high & 0x80 == 0 {
            let Ok(decoded) = InodeRecord::decode(record) else { continue };
            assert_eq!(InodeRecord::decode(&decoded.encode()).as_ref(), Ok(&decoded));
            // The first records are of the base's inodes, so that there are ways to reach them; then private ones follow.
            let ino = inos.get(inodes).copied().or(Ino::private(inodes as u64)).expect("few");
            inodes += 1;
            changes.put_inode(ino, &decoded);
        } else if let Ok(entry) = EntryRecord::decode(record) {
            assert_eq!(EntryRecord::decode(&entry.encode()), Ok(entry));
            let names = ["etc", "new", "sub", "passwd"];
            changes.put_entry(inos[inodes % inos.len()], name(names[length % names.len()]), entry);
        }
    }
    changes.commit().expect("the database works");
    let Ok(volume) = world.open(ve) else { return };
    ask(&volume, &inos);
    let _ = volume.check();
    change(&volume, &inos);
    drop(volume);
    world.remove_data(ve);
});

fn ask(volume: &Volume, inos: &[Ino]) {
    let all = inos.iter().copied().chain((0..4).filter_map(Ino::private));
    for ino in all {
        let _ = (volume.attr(ino), volume.read_link(ino), volume.parent(ino), volume.is_orphan(ino));
        let _ = volume.read(ino, 0, &mut [0; 100]);
        let _ = volume.read(ino, u64::MAX - 5, &mut [0; 100]);
        for name in volume.xattr_names(ino).unwrap_or_default() {
            let _ = volume.xattr(ino, &name);
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        let _ = volume.read_dir(ino, 0, |entry| {
            names.push(entry.name.to_vec());
            true
        });
        for found in &names {
            let _ = NameRef::new(found).map(|found| volume.lookup(ino, found));
        }
    }
    let _ = (volume.changes(), volume.usage());
}

fn change(volume: &Volume, inos: &[Ino]) {
    for (ino, next) in inos.iter().copied().zip(inos.iter().copied().cycle().skip(1)) {
        let set =
            SetAttr { perm: Some(0o7777), uid: Some(3), mtime: Some(SetTime::Now), ..SetAttr::default() };
        let _ = volume.set_attr(ino, set, Caller::ROOT);
        let _ = volume.set_attr(ino, SetAttr { size: Some(10), ..SetAttr::default() }, Caller::ROOT);
        let _ = volume.set_xattr(ino, b"user.x", b"y", XattrMode::Any, Caller::ROOT);
        let _ = volume.create(ino, name("made"), NewNode::new(FileKind::Dir, 0o777), Caller::ROOT);
        let _ = volume.link(next, ino, name("link"));
        let _ = volume.rename(ino, name("made"), next, name("sub"), RenameMode::Exchange);
        let _ = volume.rename(ino, name("sub"), next, name("moved"), RenameMode::Replace);
        let _ = (
            volume.unlink(ino, name("etc")),
            volume.rmdir(ino, name("sub")),
            volume.rmdir(ino, name("made")),
        );
        if volume.open_file(ino, true, Sharing::Passthrough).is_ok() {
            let _ = volume.write(ino, 3, b"written", false);
            volume.release(ino, Sharing::Passthrough);
        }
        let _ = volume.forget(ino);
    }
}
