//! A store that is worked with and looked at as people do it: a real daemon, the command `vzfs`, and system calls on mounts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use super::inside::{Failure, Seen, write_back_some};
use super::model::{ATTRIBUTE, Kind, Node, line};
use super::plan::{Change, Op};
use super::random::Random;
use crate::Host;

/// A host at work.
pub struct Outside<'h> {
    host: &'h Host,
    sources: PathBuf,
    random: Random,
    held: Vec<(String, File)>,
    host_files: usize,
}

impl<'h> Outside<'h> {
    /// On a host whose daemon is not started yet.
    pub fn new(host: &'h Host, sources: &Path, seed: u64) -> Outside<'h> {
        Outside {
            host,
            sources: sources.to_owned(),
            random: Random::new(seed),
            held: Vec::new(),
            host_files: 0,
        }
    }

    fn vzfs(&self, args: &[&str]) -> Result<(), Failure> {
        let outcome = self.host.vzfs(args);
        if outcome.code == 0 {
            Ok(())
        } else {
            Err(format!("vzfs {}: {}", args.join(" "), String::from_utf8_lossy(&outcome.stderr)))
        }
    }

    /// Carries out an operation, which must succeed.
    pub fn apply(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Open => {
                self.host.start();
                Ok(())
            }
            Op::Import(spec) => {
                let source = self.sources.join(spec);
                self.vzfs(&["template", "import", spec, source.to_str().expect("a path of this test")])
            }
            Op::RemoveTemplate(spec) => self.vzfs(&["template", "rm", spec]),
            Op::CreateVe(ve) => {
                self.vzfs(&["ve", "create", ve, "-t", "os@1"])?;
                self.vzfs(&["ve", "mount", ve])
            }
            Op::RemoveVe(ve) => {
                self.held.retain(|(of, _)| of != ve);
                self.vzfs(&["ve", "umount", ve])?;
                self.vzfs(&["ve", "rm", ve])
            }
            Op::Update(ve, version) => self.vzfs(&["update", ve, "-t", &format!("os@{version}"), "--yes"]),
            Op::Collect => self.vzfs(&["store", "gc"]),
            Op::Restart { killed: false } => self.vzfs(&["daemon", "restart"]),
            Op::Restart { killed: true } => {
                let killed = self.host.kill_daemon();
                self.host.wait_for_another(killed);
                Ok(())
            }
            Op::In(ve, change) => {
                self.change(ve, change).map_err(|error| format!("VE {ve}: {change:?}: {error}"))
            }
            Op::HostSyncs => {
                self.host_files += 1;
                let path = self.host.disk().join(format!("host{}", self.host_files));
                let synced = File::create(path).and_then(|file| file.sync_all());
                synced.map_err(|error| format!("the host's own file: {error}"))
            }
            Op::HostWritesLog | Op::HostWritesData => {
                let part = if matches!(op, Op::HostWritesLog) { "meta" } else { "data" };
                write_back_some(&self.host.store().join(part), &mut self.random)
            }
        }
    }

    fn change(&mut self, ve: &str, change: &Change) -> io::Result<()> {
        let root = self.host.root(ve);
        let at = |path: &str| root.join(path);
        match change {
            Change::Make(path) => File::create_new(at(path)).map(drop),
            Change::MakeDir(path) => fs::create_dir(at(path)),
            Change::Symlink(path, target) => std::os::unix::fs::symlink(target, at(path)),
            Change::Link(path, new) => fs::hard_link(at(path), at(new)),
            Change::Rename(old, new) => fs::rename(at(old), at(new)),
            Change::Remove(path) => fs::remove_file(at(path)),
            Change::RemoveDir(path) => fs::remove_dir(at(path)),
            Change::Mode(path, perm) => {
                fs::set_permissions(at(path), fs::Permissions::from_mode((*perm).into()))
            }
            Change::Attribute(path, value) => {
                Ok(rustix::fs::setxattr(at(path), ATTRIBUTE, value.as_bytes(), XattrFlags::empty())?)
            }
            Change::Sync(path) => OpenOptions::new().read(true).open(at(path))?.sync_all(),
            Change::SyncDir(path) => File::open(at(path))?.sync_all(),
            Change::Truncate(path, size) => {
                // By path, as the kernel then has no file open.
                let path = std::ffi::CString::new(at(path).into_os_string().into_encoded_bytes())?;
                let size = libc::off_t::try_from(*size).map_err(io::Error::other)?;
                // SAFETY: the path ends with a zero byte and lives as long as the call.
                match unsafe { libc::truncate(path.as_ptr(), size) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
            Change::Write { path, offset, bytes } => {
                OpenOptions::new().write(true).open(at(path))?.write_all_at(bytes, *offset as u64)
            }
            Change::Hold(path) => {
                self.held.push((ve.to_owned(), File::open(at(path))?));
                Ok(())
            }
            Change::Release => {
                self.held.clear();
                Ok(())
            }
        }
    }
}

/// What a host's daemon and its mounts show.
pub fn observe(host: &Host) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    let names = |args: &[&str], field: &dyn Fn(&serde_json::Value) -> String| -> Vec<String> {
        let listed = host.json(args);
        let mut names: Vec<_> = listed.as_array().into_iter().flatten().map(field).collect();
        names.sort_unstable();
        names
    };
    let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let templates =
        names(&["template", "list"], &|item| format!("{}@{}", text(item, "name"), text(item, "version")));
    let ves = names(&["ve", "list"], &|item| text(item, "name"));
    for template in templates {
        seen.text.push_str(&format!("template {template}\n"));
    }
    for ve in ves {
        seen.text.push_str(&format!("VE {ve}\n"));
        // One that was made and not mounted yet when the power failed.
        if host.json(["ve", "show", &ve])["mounted"] != true {
            host.vzfs(["ve", "mount", &ve]).ok();
        }
        look(host, &ve, &mut seen).map_err(|error| format!("VE {ve}: {error}"))?;
    }
    Ok(seen)
}

fn look(host: &Host, ve: &str, seen: &mut Seen) -> io::Result<()> {
    let root = host.root(ve);
    let mut paths = std::collections::BTreeSet::from([String::new()]);
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if entry.file_type()?.is_dir() {
                folders.push(path.clone());
            }
            paths.insert(path);
        }
    }
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    for path in &paths {
        let place = root.join(path);
        let metadata = fs::symlink_metadata(&place)?;
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => Kind::Dir,
            kind if kind.is_file() => Kind::File,
            _ => Kind::Symlink(fs::read_link(&place)?.to_string_lossy().into_owned()),
        };
        let mut value = [0; 256];
        let attribute = match rustix::fs::lgetxattr(&place, ATTRIBUTE, &mut value) {
            Ok(len) => Some(String::from_utf8_lossy(&value[..len]).into_owned()),
            // Symbolic links have no such attributes.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM) => None,
            Err(error) => return Err(error.into()),
        };
        if kind == Kind::File {
            seen.contents.insert((ve.to_owned(), path.clone()), fs::read(&place)?);
        }
        let first = first.entry(metadata.ino()).or_insert_with(|| path.clone());
        // The lower 12 bits fit.
        let node = Node { kind, perm: (metadata.mode() & 0o7777) as u16, attribute };
        seen.text.push_str(&line(ve, path, first, &node, metadata.nlink() as usize));
    }
    Ok(())
}
