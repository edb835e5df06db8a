//! The daemon is killed again and again under working VEs: no program may see an error, and every operation happens once.
//!
//! `VZFS_CRASHES` sets how often it is killed (12 in the short form), `VZFS_CRASH_VES` how many VEs work (6).

#![allow(clippy::panic)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

use std::time::{Duration, Instant};

use vzfs_tests::Host;
use vzfs_tests::host::Setup;
use vzfs_tests::measure::{ms, report};
use vzfs_tests::torture::load::{kill_again_and_again, under_load};
use vzfs_tests::torture::program::Program;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn data_files(host: &Host) -> usize {
    let folders = fs::read_dir(host.store().join("data")).expect("listed");
    folders.map(|folder| fs::read_dir(folder.expect("entry").path()).expect("listed").count()).sum()
}

fn killed_under_load(host: &Host) {
    let (kills, ves) = (setting("VZFS_CRASHES", 12), setting("VZFS_CRASH_VES", 6));
    let names: Vec<String> = (0..ves).map(|number| format!("w{number}")).collect();
    host.mounted("sample", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let programs = under_load(host, &names, 0, |failed| {
        kill_again_and_again(host, kills, failed);
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
    let in_the_making = kills * ves * std::thread::available_parallelism().map_or(1, usize::from);
    // Removed files go a moment later, when that is durable.
    let begin = Instant::now();
    let mut left = data_files(host);
    while left > files + in_the_making && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
        left = data_files(host);
    }
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
