//! Copies a folder over a root filesystem.
//!
//! What is copied keeps its mode, owner, times, extended attributes and hard links. Directories that are there already keep what they have: an
//! overlay is often a checkout whose folders belong to a developer. Links of the template are followed as inside it, so that `lib/x` comes into
//! `usr/lib` where `lib` is a link to it, and nothing comes out of the template.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Exit, Failure, Result};
use crate::rootfs::Rootfs;

/// Copies what is in `from` over `root`.
pub(super) fn copy(root: &Rootfs, from: &Path) -> Result<()> {
    let mut linked: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut made = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for name in names(&from.join(&dir))? {
            let path = dir.join(&name);
            let source = from.join(&path);
            let what = |e: io::Error| failure(root, &path, &e);
            let meta = source.symlink_metadata().map_err(what)?;
            if meta.is_dir() {
                if make_dir(root, &path, &source, &meta).map_err(what)? {
                    made.push((path.clone(), meta));
                }
                dirs.push(path);
                continue;
            }
            let place = root.dir(&dir).map_err(what)?;
            match rustix::fs::unlinkat(&place, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(what(e.into())),
            }
            let inode = (meta.dev(), meta.ino());
            if let Some(first) = linked.get(&inode) {
                link(root, first, &place, &name).map_err(what)?;
                continue;
            }
            copy_one(&place, &name, &source, &meta).map_err(what)?;
            if meta.nlink() > 1 {
                linked.insert(inode, path);
            }
        }
    }
    // Last, since what was put into a directory has changed its time.
    for (path, meta) in made {
        let set = root.dir(&path).and_then(|dir| Ok(rustix::fs::futimens(&dir, &times(&meta))?));
        set.map_err(|e| failure(root, &path, &e))?;
    }
    Ok(())
}

fn failure(root: &Rootfs, path: &Path, e: &io::Error) -> Failure {
    let what = format!("cannot copy /{} over {}", path.display(), root.path().display());
    match e.kind() {
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            Failure::new(Exit::Refused, format!("{what}: one is a directory and the other is not"))
                .with_hint(format!("take away what the template has: --remove /{}", path.display()))
        }
        _ => Failure::io(what, e),
    }
}

/// The names in a folder, in one order on all hosts.
fn names(dir: &Path) -> Result<Vec<OsString>> {
    let entries = std::fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect());
    let mut names: Vec<_> =
        entries.map_err(|e: io::Error| Failure::io(format!("cannot read {}", dir.display()), &e))?;
    names.sort();
    Ok(names)
}

/// Tells whether the directory is new.
fn make_dir(root: &Rootfs, path: &Path, source: &Path, meta: &Metadata) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    let place = root.dir(parent)?;
    match rustix::fs::mkdirat(&place, name, Mode::from_raw_mode(0o700)) {
        // Fails if it is no directory, nor a link to one.
        Err(Errno::EXIST) => return root.dir(path).map(|_| false),
        made => made?,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = File::from(rustix::fs::openat(&place, name, flags, Mode::empty())?);
    give_attributes(&dir, &File::open(source)?, meta)?;
    Ok(true)
}

fn link(root: &Rootfs, first: &Path, place: &impl std::os::fd::AsFd, name: &OsString) -> io::Result<()> {
    let (parent, first) = (first.parent().unwrap_or(Path::new("")), first.file_name().unwrap_or_default());
    Ok(rustix::fs::linkat(root.dir(parent)?, first, place, name, AtFlags::empty())?)
}

fn copy_one(
    place: &impl std::os::fd::AsFd,
    name: &OsString,
    source: &Path,
    meta: &Metadata,
) -> io::Result<()> {
    let kind = meta.file_type();
    let (owner, group) = (Some(Uid::from_raw(meta.uid())), Some(Gid::from_raw(meta.gid())));
    if kind.is_file() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut to = File::from(rustix::fs::openat(place, name, flags, Mode::from_raw_mode(0o600))?);
        let mut from = File::open(source)?;
        io::copy(&mut from, &mut to)?;
        give_attributes(&to, &from, meta)?;
        return Ok(rustix::fs::futimens(&to, &times(meta))?);
    }
    if kind.is_symlink() {
        rustix::fs::symlinkat(std::fs::read_link(source)?, place, name)?;
    } else {
        let kind = match () {
            () if kind.is_char_device() => FileType::CharacterDevice,
            () if kind.is_block_device() => FileType::BlockDevice,
            () if kind.is_fifo() => FileType::Fifo,
            () => return Err(io::Error::new(io::ErrorKind::Unsupported, "a socket cannot be copied")),
        };
        rustix::fs::mknodat(place, name, kind, Mode::from_raw_mode(0o600), meta.rdev())?;
        rustix::fs::chmodat(place, name, Mode::from_raw_mode(meta.mode() & 0o7777), AtFlags::empty())?;
    }
    rustix::fs::chownat(place, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(place, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, mode and extended attributes. In this order: a new owner clears setuid and capabilities, and an ACL follows the mode.
fn give_attributes(to: &File, from: &File, meta: &Metadata) -> io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(meta.uid())), Some(Gid::from_raw(meta.gid())))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(meta.mode() & 0o7777))?;
    // The largest list and value that Linux has.
    let (mut list, mut value) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let length = match rustix::fs::flistxattr(from, &mut list[..]) {
        // The folder is on a filesystem without attributes.
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // Labels of the host's security module mean nothing in a template.
            Err(Errno::OPNOTSUPP) => {}
            set => set?,
        }
    }
    Ok(())
}

fn times(meta: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_is_copied_over_a_root_and_not_out_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to, outside) =
            (dir.path().join("from"), dir.path().join("to"), dir.path().join("outside"));
        for path in
            [&from.join("lib"), &from.join("new/deep"), &to.join("usr/lib"), &to.join("etc"), &outside]
        {
            fs::create_dir_all(path).expect("made");
        }
        symlink("usr/lib", to.join("lib")).expect("linked");
        symlink(&outside, to.join("out")).expect("linked");
        fs::set_permissions(to.join("usr/lib"), PermissionsExt::from_mode(0o711)).expect("chmod");
        fs::write(from.join("lib/x"), "library").expect("written");
        fs::write(from.join("one"), "linked").expect("written");
        fs::hard_link(from.join("one"), from.join("two")).expect("linked");
        symlink("one", from.join("link")).expect("linked");
        fs::set_permissions(from.join("new"), PermissionsExt::from_mode(0o700)).expect("chmod");
        fs::set_permissions(from.join("one"), PermissionsExt::from_mode(0o4755)).expect("chmod");
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        fs::File::open(from.join("new")).and_then(|dir| dir.set_modified(long_ago)).expect("set");
        fs::write(to.join("two"), "old").expect("written");
        let root = Rootfs::open(&to).expect("opens");
        copy(&root, &from).expect("copies");
        assert_eq!(fs::read(to.join("usr/lib/x")).expect("there"), b"library");
        let mode = |path: &str| to.join(path).symlink_metadata().expect("there").mode() & 0o7777;
        assert_eq!((mode("usr/lib"), mode("new"), mode("one")), (0o711, 0o700, 0o4755));
        let ino = |path: &str| to.join(path).symlink_metadata().expect("there").ino();
        assert_eq!(ino("one"), ino("two"));
        assert_eq!(fs::read_link(to.join("link")).expect("a link"), Path::new("one"));
        assert_eq!(to.join("new").symlink_metadata().expect("there").mtime(), 1000);

        // A link that leads out of the root leads nowhere.
        fs::create_dir(from.join("out")).expect("made");
        fs::write(from.join("out/evil"), "x").expect("written");
        assert!(copy(&root, &from).is_err());
        assert_eq!(fs::read_dir(&outside).expect("readable").count(), 0);
        fs::remove_dir_all(from.join("out")).expect("removed");
        fs::write(from.join("etc"), "no directory").expect("written");
        let refused = copy(&root, &from).expect_err("a directory is there");
        assert_eq!(
            (refused.exit, refused.hint.as_deref()),
            (Exit::Refused, Some("take away what the template has: --remove /etc"))
        );
    }
}
