//! Programs that still use files which their VE does not have any more, found as needrestart finds them: in the host's `/proc`.
//!
//! A candidate is whatever a process runs, has mapped or has open on the VE's mount under a name that the kernel calls deleted. It counts when its
//! inode number is one of a base (a program's own temporary files are private inodes, and are removed while open all the time), and when another
//! inode or none has its name now: the kernel also calls a name deleted of which it was only told to forget what it knew.
//!
//! Nothing here waits for another filesystem: attributes are asked for without bringing them up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, fstat, openat2, statx};
use rustix::io::Errno;

use crate::api::{StaleProcess, path_text};
use crate::types::{Ino, VeId};

const DELETED: &[u8] = b" (deleted)";

/// A device number, as major and minor.
type Device = (u32, u32);

/// A mount that is looked at.
struct Mount {
    ve: VeId,
    place: PathBuf,
    root: OwnedFd,
}

/// A file that a process uses under a name that is called deleted.
struct Used {
    device: Device,
    ino: u64,
    /// With the mark that says so.
    name: Vec<u8>,
}

/// Which programs still use files that these mounted VEs do not have any more. One walk through the processes, whatever number of VEs. What cannot be
/// read (a process that ends meanwhile) counts as nothing.
pub fn stale_processes(mounts: &[(VeId, PathBuf)]) -> BTreeMap<VeId, Vec<StaleProcess>> {
    let mut by_device = BTreeMap::new();
    for (ve, place) in mounts {
        if let Some((device, mount)) = look_at(*ve, place) {
            by_device.insert(device, mount);
        }
    }
    let mut found: BTreeMap<VeId, Vec<StaleProcess>> = BTreeMap::new();
    if by_device.is_empty() {
        return found;
    }
    for (pid, dir) in processes() {
        let mut files: BTreeMap<VeId, BTreeSet<String>> = BTreeMap::new();
        for used in mapped(&dir).into_iter().chain(open(&dir)) {
            let Some(mount) = by_device.get(&used.device) else { continue };
            let is_base = Ino::new(used.ino).is_some_and(|ino| !ino.is_private());
            if is_base && let Some(path) = mount.replaced(&used) {
                files.entry(mount.ve).or_default().insert(path);
            }
        }
        for (ve, files) in files {
            let command = fs::read(dir.join("comm")).unwrap_or_default();
            let command = String::from_utf8_lossy(command.trim_ascii_end()).into_owned();
            let files = files.into_iter().collect();
            found.entry(ve).or_default().push(StaleProcess { pid, command, files });
        }
    }
    found
}

fn look_at(ve: VeId, place: &Path) -> Option<(Device, Mount)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(place, flags, Mode::empty()).ok()?;
    let device = device_of(&attributes(place)?);
    Some((device, Mount { ve, place: place.to_owned(), root }))
}

/// Without asking whoever has the filesystem.
fn attributes(path: &Path) -> Option<Statx> {
    statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()
}

fn device_of(attributes: &Statx) -> Device {
    (attributes.stx_dev_major, attributes.stx_dev_minor)
}

/// All but this one, in the order of their numbers.
fn processes() -> Vec<(u32, PathBuf)> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut all: Vec<(u32, PathBuf)> = numbers
        .filter(|pid| *pid != own)
        .map(|pid: u32| (pid, Path::new("/proc").join(pid.to_string())))
        .collect();
    all.sort();
    all
}

/// Deleted files that a process has mapped: its program and its libraries.
fn mapped(dir: &Path) -> Vec<Used> {
    let maps = fs::read(dir.join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').filter(|line| line.ends_with(DELETED)).filter_map(map_line).collect()
}

/// `ADDRESSES RIGHTS OFFSET MAJOR:MINOR INODE      NAME`
fn map_line(line: &[u8]) -> Option<Used> {
    let start = line.iter().position(|byte| *byte == b'/')?;
    let fields = std::str::from_utf8(&line[..start]).ok()?;
    let mut fields = fields.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = (number(major)?, number(minor)?);
    Some(Used { device, ino: fields.next()?.parse().ok()?, name: line[start..].to_vec() })
}

/// Deleted files that a process has open, and its program.
fn open(dir: &Path) -> Vec<Used> {
    let descriptors = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.map(|entry| entry.path()).chain([dir.join("exe")]);
    let used = |link: PathBuf| {
        let name = fs::read_link(&link).ok()?.into_os_string().into_vec();
        if !name.starts_with(b"/") || !name.ends_with(DELETED) {
            return None;
        }
        let attributes = attributes(&link)?;
        Some(Used { device: device_of(&attributes), ino: attributes.stx_ino, name })
    };
    links.filter_map(used).collect()
}

impl Mount {
    /// The path of a file in the VE, if the VE has another there, or none.
    fn replaced(&self, used: &Used) -> Option<String> {
        let name = used.name.strip_suffix(DELETED)?;
        let name = Path::new(OsStr::from_bytes(name));
        // A process whose root is the VE names its files from there, others from their own root.
        let path = name.strip_prefix(&self.place).or_else(|_| name.strip_prefix("/")).ok()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let now =
            openat2(&self.root, path, flags, Mode::empty(), within).and_then(|file| fstat(File::from(file)));
        let same = match now {
            Ok(now) => now.st_ino == used.ino,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => false,
            // It cannot be told.
            Err(_) => true,
        };
        (!same).then(|| path_text(path.as_os_str().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that has been started and is ended.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(command: &mut Command) -> Running {
        Running(command.stdin(Stdio::null()).spawn().expect("starts"))
    }

    #[test]
    fn lines_of_maps_are_understood() {
        let line =
            b"7f0000000000-7f0000001000 r-xp 00000000 fe:1a 4503599627370497    /usr/lib/a b.so (deleted)";
        let used = map_line(line).expect("understood");
        assert_eq!((used.device, used.ino), ((0xfe, 0x1a), 4_503_599_627_370_497));
        assert_eq!(used.name, b"/usr/lib/a b.so (deleted)");
        for other in [&b"7f00-7f01 rw-p 0 00:00 0 [stack]"[..], b"7f00-7f01 rw-p 0 00:00 0", b"/x (deleted)"]
        {
            assert!(map_line(other).is_none());
        }
    }

    #[test]
    fn replaced_programs_and_open_files_are_found_and_others_are_not() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let place = dir.path().canonicalize().expect("a path");
        let program = place.join("sleeper");
        fs::copy("/bin/sleep", &program).expect("copied");
        let (opened, kept) = (place.join("opened"), place.join("kept"));
        for file in [&opened, &kept] {
            fs::write(file, "text").expect("written");
        }
        let runs = start(Command::new(&program).arg("60"));
        let reads = start(Command::new("sleep").arg("60").stdout(File::open(&opened).expect("there")));
        let keeps = start(Command::new("sleep").arg("60").stdout(File::open(&kept).expect("there")));
        // One is replaced by another file, one is gone, and one is another name of the same inode.
        fs::copy("/bin/sleep", place.join("new"))
            .and_then(|_| fs::rename(place.join("new"), &program))
            .expect("replaced");
        fs::remove_file(&opened).expect("removed");
        fs::hard_link(&kept, place.join("link")).expect("linked");
        fs::remove_file(&kept).and_then(|()| fs::rename(place.join("link"), &kept)).expect("renamed");

        let found = stale_processes(&[(VeId(7), place)]).remove(&VeId(7)).unwrap_or_default();
        let of = |running: &Running| {
            let found = found.iter().find(|process| process.pid == running.0.id());
            found.map(|process| (process.command.as_str(), process.files.join(" ")))
        };
        assert_eq!(of(&runs), Some(("sleeper", "sleeper".to_owned())));
        assert_eq!(of(&reads), Some(("sleep", "opened".to_owned())));
        assert_eq!(of(&keeps), None);
    }
}
