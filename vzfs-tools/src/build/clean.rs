//! Takes out of a tree what differs between two builds of the same thing: files by name, times by the epoch.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
use vzfs::api::{ChangeKind, VolumeChange, path_bytes};
use vzfs::types::FileKind;

use crate::error::{Failure, Result};
use crate::rootfs::Rootfs;

/// What a build made or changed: everything in a new tree, the differences in a VE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Touched {
    /// Path without a leading slash; empty for the root.
    path: PathBuf,
    /// What became of it.
    kind: ChangeKind,
}

/// What becomes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Keep,
    /// It is made again when it is needed.
    Remove,
    /// Programs expect it to be there, with its owner and mode.
    Empty,
}

/// The verdict on what is no directory.
fn action(path: &Path) -> Action {
    let text = path.as_os_str().as_bytes();
    let name = path.file_name().map_or(&b""[..], OsStr::as_bytes);
    let below = |dir: &str| path.starts_with(dir);
    match text {
        b"etc/machine-id" | b"var/log/wtmp" | b"var/log/btmp" | b"var/log/lastlog" | b"var/log/faillog" => {
            Action::Empty
        }
        b"var/cache/ldconfig/aux-cache"
        | b"var/lib/dbus/machine-id"
        | b"var/lib/systemd/random-seed"
        | b"var/lib/systemd/credential.secret"
        | b"etc/apt/apt.conf.d/99mmdebstrap"
        | b"root/.bash_history" => Action::Remove,
        _ if ["var/log", "var/cache/apt", "var/lib/apt/lists", "var/cache/man", "var/cache/fontconfig"]
            .into_iter()
            .any(below) =>
        {
            Action::Remove
        }
        _ if ["tmp", "var/tmp", "run"].into_iter().any(below) => Action::Remove,
        _ if below("etc/ssh") && name.starts_with(b"ssh_host_") => Action::Remove,
        // Where dpkg and debconf keep what was before the last change.
        _ if (below("var/cache/debconf") || below("var/lib/dpkg")) && name.ends_with(b"-old") => {
            Action::Remove
        }
        _ => Action::Keep,
    }
}

/// Everything in a tree, parents first.
pub(super) fn whole_tree(root: &Path) -> Result<Vec<Touched>> {
    let mut found = vec![Touched { path: PathBuf::new(), kind: ChangeKind::Added }];
    let mut next = 0;
    while let Some(dir) = found.get(next).map(|touched| touched.path.clone()) {
        next += 1;
        let full = root.join(&dir);
        let what = |e: &io::Error| Failure::io(format!("cannot read {}", full.display()), e);
        if !full.symlink_metadata().map_err(|e| what(&e))?.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&full).map_err(|e| what(&e))? {
            let path = dir.join(entry.map_err(|e| what(&e))?.file_name());
            found.push(Touched { path, kind: ChangeKind::Added });
        }
    }
    Ok(found)
}

/// What a VE's list of changes tells.
pub(super) fn changed(changes: &[VolumeChange]) -> Vec<Touched> {
    let paths = changes.iter().filter_map(|change| Some((path_bytes(&change.path)?, change)));
    paths
        .filter(|(_, change)| change.kind != ChangeKind::Deleted || change.file_type != FileKind::Dir)
        .map(|(path, change)| Touched { path: PathBuf::from(OsStr::from_bytes(&path)), kind: change.kind })
        .collect()
}

/// Removes and empties what differs from build to build. What belongs to the OS template below is not the build's to
/// remove: those paths come back, for the template to leave out as if they had not changed.
pub(super) fn remove_volatile(root: &Path, touched: &[Touched]) -> Result<Vec<String>> {
    let mut leave_out = Vec::new();
    for Touched { path, kind } in touched {
        let verdict = action(path);
        if verdict == Action::Keep {
            continue;
        }
        let full = root.join(path);
        let what = |e: &io::Error| Failure::io(format!("cannot clean {}", full.display()), e);
        match (kind, full.symlink_metadata()) {
            // Directories stay: packages made them for their services.
            (ChangeKind::Added | ChangeKind::Changed, Ok(meta)) if meta.is_dir() => {}
            (ChangeKind::Added, Ok(meta)) => match verdict {
                Action::Empty if meta.is_file() => {
                    let file = std::fs::File::options().write(true).truncate(true).open(&full);
                    file.map(drop).map_err(|e| what(&e))?;
                }
                _ => std::fs::remove_file(&full).map_err(|e| what(&e))?,
            },
            (ChangeKind::Added, Err(e)) if e.kind() == io::ErrorKind::NotFound => {}
            (ChangeKind::Added, Err(e)) => return Err(what(&e)),
            (ChangeKind::Changed | ChangeKind::Deleted, _) => leave_out.extend(exact_glob(path)),
        }
    }
    // What somebody left in the places for temporary files: deepest first, while they are empty.
    for Touched { path, kind } in touched.iter().rev() {
        let temporary =
            ["tmp", "var/tmp"].into_iter().any(|dir| path.starts_with(dir) && path != Path::new(dir));
        if temporary && *kind == ChangeKind::Added {
            // Files are gone already, and a directory with something in it is not ours.
            let _ = std::fs::remove_dir(root.join(path));
        }
    }
    Ok(leave_out)
}

/// A glob that matches one path, or `None` for a path that is not UTF-8.
fn exact_glob(path: &Path) -> Option<String> {
    let mut glob = String::new();
    for c in path.to_str()?.chars() {
        if "*?[]{}\\!".contains(c) && c != '!' {
            glob.push('[');
            glob.push(c);
            glob.push(']');
        } else {
            glob.push(c);
        }
    }
    Some(glob)
}

/// The date of the last password change (a day's number) is no newer than the epoch either.
pub(super) fn clamp_passwords(root: &Rootfs, touched: &[Touched], epoch: i64) -> Result<()> {
    for name in ["etc/shadow", "etc/shadow-"] {
        let path = Path::new(name);
        if !touched.iter().any(|touched| touched.path == path && touched.kind != ChangeKind::Deleted) {
            continue;
        }
        let Some(text) = root.read(path)? else { continue };
        let clamped = clamp_shadow(&text, epoch.div_euclid(86_400));
        if clamped != text {
            let full = root.path().join(path);
            let meta = full
                .symlink_metadata()
                .map_err(|e| Failure::io(format!("cannot read {}", full.display()), &e))?;
            root.write(path, clamped.as_bytes(), meta.mode() & 0o7777, (meta.uid(), meta.gid()))?;
        }
    }
    Ok(())
}

/// Lines are `name:password:day:...`.
fn clamp_shadow(text: &str, last_day: i64) -> String {
    let mut clamped = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut fields: Vec<&str> = line.split(':').collect();
        let newest = last_day.to_string();
        if let Some(day) = fields.get_mut(2)
            && day.parse::<i64>().is_ok_and(|day| day > last_day)
        {
            *day = &newest;
        }
        clamped.push_str(&fields.join(":"));
    }
    clamped
}

/// Gives everything newer than the epoch exactly the epoch. Directories above a change are looked at as well when they
/// are newer than `started_secs`: a removal changes them.
pub(super) fn clamp_times(root: &Path, touched: &[Touched], epoch: i64, started_secs: i64) -> Result<()> {
    let paths: BTreeSet<&Path> = touched.iter().map(|touched| touched.path.as_path()).collect();
    let above: BTreeSet<&Path> = paths.iter().flat_map(|path| path.ancestors().skip(1)).collect();
    for path in paths.iter().rev() {
        clamp(&root.join(path), epoch, |_| true)?;
    }
    for path in above.difference(&paths) {
        clamp(&root.join(path), epoch, |meta| meta.mtime() >= started_secs)?;
    }
    Ok(())
}

fn clamp(full: &Path, epoch: i64, wanted: impl FnOnce(&Metadata) -> bool) -> Result<()> {
    let what = |e: &io::Error| Failure::io(format!("cannot set the time of {}", full.display()), e);
    let meta = match full.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(what(&e)),
    };
    if (meta.mtime(), meta.mtime_nsec()) <= (epoch, 0) || !wanted(&meta) {
        return Ok(());
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: epoch, tv_nsec: 0 },
    };
    rustix::fs::utimensat(CWD, full, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| what(&e.into()))
}

/// The time of the newest file that packages brought: their documentation, which nothing else writes. What is newer
/// than `started_secs` was made by a build.
pub(super) fn newest_package(root: &Path, started_secs: i64) -> Option<i64> {
    let packages = std::fs::read_dir(root.join("usr/share/doc")).ok()?.flatten();
    // The type of the entry itself: a link would lead out of the tree.
    let folders = packages.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let files = folders
        .filter_map(|entry| std::fs::read_dir(entry.path()).ok())
        .flat_map(|entries| entries.flatten());
    let times =
        files.filter_map(|entry| entry.metadata().ok()).filter(Metadata::is_file).map(|meta| meta.mtime());
    times.filter(|time| *time < started_secs).max()
}

/// The time of the newest file of a tree. What is newer than `started_secs` was made by a build.
pub(super) fn newest_file(root: &Path, started_secs: i64) -> Option<i64> {
    let paths = whole_tree(root).ok()?;
    let metas = paths.iter().filter_map(|touched| root.join(&touched.path).symlink_metadata().ok());
    metas.filter(Metadata::is_file).map(|meta| meta.mtime()).filter(|time| *time < started_secs).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let verdict = |path: &str| action(Path::new(path));
        assert_eq!(verdict("etc/machine-id"), Action::Empty);
        for gone in [
            "var/log/apt/term.log",
            "var/lib/apt/lists/x_InRelease",
            "var/cache/debconf/config.dat-old",
            "var/lib/dpkg/status-old",
            "etc/ssh/ssh_host_rsa_key.pub",
            "tmp/x",
        ] {
            assert_eq!(verdict(gone), Action::Remove, "{gone}");
        }
        for kept in ["etc/passwd-", "var/lib/dpkg/status", "etc/ssh/sshd_config", "var/logs", "usr/tmp/x", ""]
        {
            assert_eq!(verdict(kept), Action::Keep, "{kept}");
        }
    }

    #[test]
    fn password_days() {
        assert_eq!(
            clamp_shadow("a:*:20000:0:::\nb:!::\nc:x:100:\n", 19_000),
            "a:*:19000:0:::\nb:!::\nc:x:100:\n"
        );
    }

    #[test]
    fn globs_match_one_path() {
        assert_eq!(exact_glob(Path::new("a[b*")).as_deref(), Some("a[[]b[*]"));
    }

    #[test]
    fn a_tree_is_cleaned_and_clamped() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        for sub in ["var/log/apt", "etc", "tmp/a/b", "usr/share/doc/less"] {
            std::fs::create_dir_all(root.join(sub)).expect("made");
        }
        for file in [
            "var/log/apt/term.log",
            "var/log/wtmp",
            "etc/machine-id",
            "tmp/a/b/c",
            "etc/kept",
            "usr/share/doc/less/copyright",
        ] {
            std::fs::write(root.join(file), "x").expect("written");
        }
        std::os::unix::fs::symlink("nowhere", root.join("etc/link")).expect("linked");
        let old = std::fs::File::options()
            .write(true)
            .open(root.join("usr/share/doc/less/copyright"))
            .expect("opens");
        old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(500)).expect("set");
        assert_eq!(newest_package(root, 1_000), Some(500));
        let touched = whole_tree(root).expect("walks");
        assert!(remove_volatile(root, &touched).expect("cleans").is_empty());
        clamp_times(root, &touched, 500, 0).expect("clamps");
        assert!(root.join("var/log/apt").is_dir() && !root.join("var/log/apt/term.log").exists());
        assert!(root.join("tmp").is_dir() && !root.join("tmp/a").exists());
        assert_eq!(std::fs::read(root.join("etc/machine-id")).expect("there"), b"");
        for touched in whole_tree(root).expect("walks") {
            let meta = root.join(&touched.path).symlink_metadata().expect("there");
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (500, 0), "{}", touched.path.display());
        }
    }

    #[test]
    fn what_the_os_template_has_is_left_out_instead_of_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("var/log")).expect("made");
        std::fs::write(dir.path().join("var/log/dpkg.log"), "x").expect("written");
        let change =
            |path: &str, kind| VolumeChange { path: path.into(), kind, file_type: FileKind::File, size: 1 };
        let touched = changed(&[
            change("var/log/dpkg.log", ChangeKind::Changed),
            change("var/lib/apt/lists/x", ChangeKind::Deleted),
            change("etc/x", ChangeKind::Deleted),
        ]);
        let left_out = remove_volatile(dir.path(), &touched).expect("cleans");
        assert_eq!(left_out, ["var/log/dpkg.log", "var/lib/apt/lists/x"]);
        assert!(dir.path().join("var/log/dpkg.log").exists());
    }
}
