//! The daemon is killed again and again under working VEs: no program may see an error, and every operation happens once.
//!
//! `VZFS_CRASHES` sets how often it is killed (12 in the short form), `VZFS_CRASH_VES` how many VEs work (6).

#![allow(clippy::panic)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use vzfs_tests::Host;
use vzfs_tests::host::Setup;
use vzfs_tests::measure::{ms, report};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A program in a VE: it does one operation after the other, each of which fails if it is carried out twice or not at all, and knows what its folder must
/// hold.
struct Program {
    folder: PathBuf,
    template: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
    /// Open files without a name, with their content.
    nameless: Vec<(File, Vec<u8>)>,
    state: u64,
    count: u64,
    slowest: Duration,
}

impl Program {
    fn new(root: &Path, seed: u64) -> Program {
        let folder = root.join("work");
        fs::create_dir(&folder).expect("mkdir");
        Program {
            folder,
            template: root.join("var/lib/app/data"),
            files: BTreeMap::new(),
            nameless: Vec::new(),
            state: seed,
            count: 0,
            slowest: Duration::ZERO,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    fn some_file(&mut self) -> Option<String> {
        let at = self.random(self.files.len().max(1) as u64) as usize;
        self.files.keys().nth(at).cloned()
    }

    fn run(mut self, stop: &AtomicBool) -> Program {
        while !stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            let operation = self.random(12);
            if let Err(error) = self.step(operation) {
                panic!("{}: operation {operation}, the {}th: {error}", self.folder.display(), self.count);
            }
            self.slowest = self.slowest.max(begin.elapsed());
            self.count += 1;
        }
        self
    }

    fn step(&mut self, operation: u64) -> std::io::Result<()> {
        let new = format!("f{}", self.count);
        let path = self.folder.join(&new);
        let old = self.some_file();
        let old_path = old.as_ref().map(|old| self.folder.join(old));
        match (operation, old, old_path) {
            (0 | 1, ..) => {
                let content = format!("content of {new}").into_bytes();
                File::create_new(&path)?.write_all(&content)?;
                self.files.insert(new, content);
            }
            (2, Some(old), Some(from)) => {
                fs::rename(from, path)?;
                let content = self.files.remove(&old).expect("known");
                self.files.insert(new, content);
            }
            (3, Some(old), Some(from)) => {
                fs::hard_link(&from, &path)?;
                fs::remove_file(from)?;
                let content = self.files.remove(&old).expect("known");
                self.files.insert(new, content);
            }
            (4, Some(old), Some(from)) => {
                fs::remove_file(from)?;
                self.files.remove(&old);
            }
            (5, ..) => {
                fs::create_dir(&path)?;
                fs::create_dir(path.join("inner"))?;
                fs::remove_dir(path.join("inner"))?;
                fs::remove_dir(path)?;
            }
            (6, Some(old), Some(from)) => {
                OpenOptions::new().append(true).open(from)?.write_all(b", more")?;
                self.files.get_mut(&old).expect("known").extend_from_slice(b", more");
            }
            (7, Some(old), Some(from)) => {
                assert_eq!(fs::read(from)?, self.files[&old]);
            }
            (8, ..) => {
                std::os::unix::fs::symlink("somewhere", &path)?;
                assert_eq!(fs::read_link(&path)?, Path::new("somewhere"));
                fs::remove_file(path)?;
            }
            (9, Some(_), Some(from)) => {
                rustix::fs::setxattr(&from, "user.once", b"v", XattrFlags::CREATE)?;
                rustix::fs::removexattr(&from, "user.once")?;
            }
            (10, ..) => {
                let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
                fs::remove_file(&path)?;
                let content = format!("nameless {new}").into_bytes();
                file.write_all(&content)?;
                self.nameless.push((file, content));
                if self.nameless.len() > 8 {
                    let at = self.random(8) as usize;
                    let (file, content) = self.nameless.swap_remove(at);
                    check_nameless(file, &content)?;
                }
            }
            _ => {
                assert_eq!(fs::metadata(&self.template)?.len(), 3_000_000);
                let mut listed: Vec<_> = fs::read_dir(&self.folder)?
                    .map(|entry| Ok(entry?.file_name().into_string().expect("text")))
                    .collect::<std::io::Result<_>>()?;
                listed.sort();
                assert!(listed.iter().eq(self.files.keys()), "{listed:?} is not {:?}", self.files.keys());
            }
        }
        Ok(())
    }

    /// What is there at the end is what the operations left.
    fn check(self) {
        for (file, content) in self.nameless {
            check_nameless(file, &content).expect("still open");
        }
        let listed = fs::read_dir(&self.folder).expect("listed").count();
        assert_eq!(listed, self.files.len(), "{}", self.folder.display());
        for (name, content) in &self.files {
            let path = self.folder.join(name);
            assert_eq!(&fs::read(&path).expect("read"), content, "{}", path.display());
            assert_eq!(fs::metadata(&path).expect("stat").nlink(), 1);
        }
    }
}

fn check_nameless(mut file: File, content: &[u8]) -> std::io::Result<()> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    assert_eq!(text, content);
    assert_eq!(file.metadata()?.nlink(), 0);
    Ok(())
}

fn data_files(host: &Host) -> usize {
    let folders = fs::read_dir(host.store().join("data")).expect("listed");
    folders.map(|folder| fs::read_dir(folder.expect("entry").path()).expect("listed").count()).sum()
}

fn killed_under_load(host: &Host) {
    let (kills, ves) = (setting("VZFS_CRASHES", 12), setting("VZFS_CRASH_VES", 6));
    let names: Vec<String> = (0..ves).map(|number| format!("w{number}")).collect();
    host.mounted("sample", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let stop = AtomicBool::new(false);
    let programs: Vec<Program> = std::thread::scope(|scope| {
        let start = |(seed, name): (usize, &String)| {
            let program = Program::new(&host.root(name), seed as u64);
            scope.spawn(|| program.run(&stop))
        };
        let threads: Vec<_> = names.iter().enumerate().map(start).collect();
        for round in 0..kills {
            // From the middle of the next daemon's start to long after it.
            std::thread::sleep(Duration::from_millis([5, 150, 700][round % 3]));
            let killed = host.kill_daemon();
            while host.daemon_pid() == killed {
                std::thread::sleep(Duration::from_millis(1));
            }
            if threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("a program saw an error")).collect()
    });
    let operations: u64 = programs.iter().map(|program| program.count).sum();
    let slowest = programs.iter().map(|program| program.slowest).max().unwrap_or_default();
    report(
        "killed under load",
        format!(
            "{kills} kills, {ves} VEs, {operations} operations, none failed; longest pause {}",
            ms(slowest)
        ),
    );
    let files: usize = programs.iter().map(|program| program.files.len()).sum();
    programs.into_iter().for_each(Program::check);
    // Every file without a name is closed: after an unmount nothing but the named ones is left on the disk, and what was in the making or
    // being removed at a kill: at most one file for each thread that serves a VE.
    for name in &names {
        host.vzfs(["ve", "umount", name]).ok();
        host.vzfs(["ve", "mount", name]).ok();
    }
    let left = data_files(host);
    let in_the_making = kills * ves * std::thread::available_parallelism().map_or(1, usize::from);
    assert!((files..=files + in_the_making).contains(&left), "{left} data files for {files} files");
    report("data files left by kills", left - files);
}

#[test]
fn no_program_notices_that_the_daemon_is_killed() {
    killed_under_load(&Host::with_sample(&[]));
}

#[test]
fn nor_without_passthrough() {
    let setup =
        Setup { size_mib: 2048, daemon_args: vec!["--passthrough".into(), "off".into()], ..Setup::default() };
    let host = Host::with(setup);
    let source = host.scratch().join("source");
    vzfs_tests::sample::make(&source);
    host.vzfs(["template", "import", "sample@1", source.to_str().expect("text")]).ok();
    killed_under_load(&host);
}

#[test]
fn open_files_keep_meaning_the_same_when_the_daemon_is_replaced() {
    let host = Host::with_sample(&["one"]);
    let root = host.root("one");
    let mut reader = File::open(root.join("etc/passwd")).expect("open");
    let mut writer = OpenOptions::new().append(true).open(root.join("etc/conf.d/one")).expect("open");
    let number = fs::metadata(root.join("etc/conf.d/one")).expect("stat").ino();
    let before = host.json(["daemon", "status"]);

    let after = host.json(["daemon", "restart"]);
    assert_ne!(before["pid"], after["pid"]);
    assert_eq!(before["supervisor_pid"], after["supervisor_pid"]);
    assert_eq!(after["restarts"], 1);

    writer.write_all(b"written after\n").expect("the descriptor works");
    assert_eq!(fs::read_to_string(root.join("etc/conf.d/one")).expect("read"), "one\nwritten after\n");
    assert_eq!(fs::metadata(root.join("etc/conf.d/one")).expect("stat").ino(), number);
    // The new daemon knows that the blob is open: writing gives the name another inode, the reader keeps the old content.
    fs::write(root.join("etc/passwd"), "new").expect("written");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, "root:x:0:0:root:/root:/bin/sh\n");
    assert_eq!(fs::read_to_string(root.join("etc/passwd")).expect("read"), "new");
}

#[test]
fn a_version_that_cannot_read_the_store_does_not_take_over() {
    let host = Host::with_sample(&["one"]);
    let pid = host.daemon_pid();
    let format = host.store().join("format");
    let text = fs::read_to_string(&format).expect("read");
    // To the program that would be started, the store is of another version.
    fs::write(&format, "vzfs store 999\n").expect("written");
    let refused = host.vzfs(["daemon", "restart"]);
    fs::write(&format, text).expect("written");
    refused.refused(1, &["not replaced", "999"]);
    assert_eq!(host.daemon_pid(), pid);
    assert_eq!(fs::read_to_string(host.root("one").join("etc/conf.d/one")).expect("read"), "one\n");
}

#[test]
fn mounts_end_with_the_supervisor_and_come_back_with_the_next() {
    let host = Host::with_sample(&["one", "two"]);
    fs::write(host.root("one").join("made"), "text").expect("written");
    host.kill_supervisor();
    host.start();
    assert_eq!(fs::read_to_string(host.root("one").join("made")).expect("read"), "text");
    assert_eq!(fs::read_to_string(host.root("two").join("etc/conf.d/one")).expect("read"), "one\n");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("read");
    let here = host.root("one");
    let count = mounts.lines().filter(|line| line.split(' ').nth(1) == here.to_str()).count();
    assert_eq!(count, 1, "one mount on top of another");
}
