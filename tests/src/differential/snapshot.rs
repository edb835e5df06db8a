//! Everything that one side shows, and how two such pictures are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::execute::{content, xattr_names};
use super::side::Inner;
use super::stat::{Relation, Stat};

/// How much to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Names and attributes.
    Attributes,
    /// Content, targets and extended attributes too.
    Everything,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    bytes: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// One file.
#[derive(Clone, Debug)]
struct File {
    stat: Stat,
    held: Option<Held>,
}

/// One side, all paths and all open descriptors.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    files: BTreeMap<Vec<u8>, File>,
    /// What contradicts itself.
    wrong: Vec<String>,
}

impl Snapshot {
    /// Looks at everything below the root and at the descriptors.
    pub(super) fn take(inner: &Inner, depth: Depth) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (number, slot) in inner.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let name = format!("slot {number}");
            let file = Stat::of(&slot.fd, c"", AtFlags::EMPTY_PATH).map(|stat| {
                let readable = stat.kind == FileType::RegularFile
                    && !slot.flags.intersects(OFlags::PATH | OFlags::WRONLY);
                let held = (readable && depth == Depth::Everything)
                    .then(|| content(slot.fd.as_fd()).map(|bytes| Held { bytes, ..Held::default() }));
                (stat, held)
            });
            match file {
                Ok((stat, None)) => drop(snapshot.files.insert(name.into_bytes(), File { stat, held: None })),
                Ok((stat, Some(Ok(held)))) => {
                    snapshot.files.insert(name.into_bytes(), File { stat, held: Some(held) });
                }
                Ok((_, Some(Err(error)))) | Err(error) => snapshot.wrong.push(format!("{name}: {error}")),
            }
        }
        match Stat::of(CWD, "/", AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => snapshot.add(b"/".to_vec(), stat, depth),
            Err(error) => snapshot.wrong.push(format!("/: {error}")),
        }
        snapshot
    }

    fn add(&mut self, path: Vec<u8>, stat: Stat, depth: Depth) {
        let kind = stat.kind;
        let number = stat.ino;
        let held = (depth == Depth::Everything).then(|| held(&path, kind));
        match held.transpose() {
            Ok(held) => drop(self.files.insert(path.clone(), File { stat, held })),
            Err(error) => self.wrong.push(format!("{}: {error}", path.escape_ascii())),
        }
        if kind == FileType::Directory
            && let Err(error) = self.below(&path, number).and_then(|children| {
                children.into_iter().try_for_each(|(path, stat)| {
                    self.add(path, stat, depth);
                    Ok(())
                })
            })
        {
            self.wrong.push(format!("listing {}: {error}", path.escape_ascii()));
        }
    }

    fn below(&mut self, path: &[u8], number: u64) -> Result<Vec<(Vec<u8>, Stat)>, Errno> {
        let dir = fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut names = BTreeSet::new();
        let mut found = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let shown = || format!("{}/{}", path.escape_ascii(), name.escape_ascii());
            if !names.insert(name.to_vec()) {
                self.wrong.push(format!("{} is listed twice", shown()));
            }
            if name == b".." {
                continue;
            }
            if name == b"." {
                if entry.ino() != number {
                    self.wrong.push(format!("{}: d_ino {} / {number}", shown(), entry.ino()));
                }
                continue;
            }
            let slash: &[u8] = if path == b"/" { b"" } else { b"/" };
            let child = [path, slash, name].concat();
            let stat = Stat::of(CWD, &child[..], AtFlags::SYMLINK_NOFOLLOW)?;
            if entry.ino() != stat.ino || entry.file_type() != stat.kind {
                let listed = (entry.ino(), entry.file_type());
                self.wrong.push(format!(
                    "{}: listed as {listed:?}, but it is {:?}",
                    shown(),
                    (stat.ino, stat.kind)
                ));
            }
            found.push((child, stat));
        }
        for dot in [&b"."[..], b".."] {
            if !names.contains(dot) {
                self.wrong.push(format!("{} has no {}", path.escape_ascii(), dot.escape_ascii()));
            }
        }
        Ok(found)
    }

    /// The numbers of all regular files.
    pub(super) fn regular_files(&self) -> impl Iterator<Item = &Stat> {
        self.files.values().map(|file| &file.stat).filter(|stat| stat.kind == FileType::RegularFile)
    }

    /// Says what differs, a line each.
    pub(super) fn compare(&self, ve: &Snapshot, relation: &mut Relation) -> Vec<String> {
        let side = |name: &str, wrong: &[String]| -> Vec<String> {
            wrong.iter().map(|text| format!("{name}: {text}")).collect()
        };
        let mut differences = side("plain", &self.wrong);
        differences.extend(side("VE", &ve.wrong));
        let paths: BTreeSet<_> = self.files.keys().chain(ve.files.keys()).collect();
        let mut compared = BTreeSet::new();
        for path in paths {
            let text = path.escape_ascii();
            let (plain, ve) = match (self.files.get(path), ve.files.get(path)) {
                (Some(plain), Some(ve)) => (plain, ve),
                (Some(_), None) => {
                    differences.push(format!("{text} is missing in the VE"));
                    continue;
                }
                _ => {
                    differences.push(format!("{text} is in the VE only"));
                    continue;
                }
            };
            // One of several names: its times were compared already, and count as not moved since.
            let _first = compared.insert(plain.stat.key());
            if let Err(difference) = relation.compare(&plain.stat, &ve.stat) {
                differences.push(format!("{text}: {difference}"));
            }
            if let (Some(plain), Some(ve)) = (&plain.held, &ve.held) {
                if plain.xattrs != ve.xattrs {
                    let shown = |held: &Held| -> Vec<String> {
                        let show = |(name, value): (&Vec<u8>, &Vec<u8>)| {
                            format!("{}={}", name.escape_ascii(), value.escape_ascii())
                        };
                        held.xattrs.iter().map(show).collect()
                    };
                    differences.push(format!("{text}: xattrs {:?} / {:?}", shown(plain), shown(ve)));
                }
                if plain.bytes != ve.bytes {
                    let at = plain.bytes.iter().zip(&ve.bytes).position(|(a, b)| a != b);
                    let at = at.unwrap_or(plain.bytes.len().min(ve.bytes.len()));
                    let near = |bytes: &[u8]| bytes.iter().skip(at).take(20).copied().collect::<Vec<u8>>();
                    differences.push(format!(
                        "{text}: content differs from byte {at} on: {} / {} bytes; {} / {}",
                        plain.bytes.len(),
                        ve.bytes.len(),
                        near(&plain.bytes).escape_ascii(),
                        near(&ve.bytes).escape_ascii()
                    ));
                }
            }
        }
        differences
    }
}

fn held(path: &[u8], kind: FileType) -> Result<Held, Errno> {
    let bytes = match kind {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            content(fs::openat(CWD, path, flags, Mode::empty())?.as_fd())?
        }
        FileType::Symlink => fs::readlinkat(CWD, path, Vec::new())?.into_bytes(),
        _ => Vec::new(),
    };
    let mut list = vec![0; 1 << 16];
    let len = fs::llistxattr(path, &mut list[..])?;
    let mut xattrs = BTreeMap::new();
    for name in xattr_names(&list[..len]) {
        let mut value = vec![0; 1 << 16];
        // What is no capability at all can be set, but not read.
        match fs::lgetxattr(path, &name[..], &mut value[..]) {
            Ok(len) => value.truncate(len),
            Err(error) => value = format!("unreadable: {error}").into_bytes(),
        }
        xattrs.insert(name, value);
    }
    Ok(Held { bytes, xattrs })
}
