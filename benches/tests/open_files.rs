//! The hostile program that holds more files open than one process may have.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vzfs_benches::isolation::open_files::Held;

/// Descriptors that a process may have here, of which 50 are not for files.
const LIMIT: u64 = 90;
/// How long processes may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts it, and waits until it is under way.
fn start(folder: &Path, most: u64) -> (Child, Held) {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={LIMIT}:{LIMIT}")).arg(env!("CARGO_BIN_EXE_isolation"));
    command.args(["--hostile", "open-files", "--open-files", &most.to_string(), "--folder"]).arg(folder);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("prlimit is installed");
    let mut line = String::new();
    let output = child.stdout.take().expect("it was asked for");
    BufReader::new(output).read_line(&mut line).expect("it says something");
    (child, serde_json::from_str(&line).expect("what it holds"))
}

/// How many files of a folder each process of this machine has open.
fn holders(folder: &Path) -> BTreeMap<String, u64> {
    let of = |process: &fs::DirEntry| {
        let open = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        Some(links.filter(|link| link.starts_with(folder)).count() as u64)
    };
    let processes = fs::read_dir("/proc").expect("listed").flatten();
    let held = processes.filter_map(|process| Some((process.file_name().into_string().ok()?, of(&process)?)));
    held.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn further_processes_hold_what_one_may_not_and_are_gone_when_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut child, held) = start(folder.path(), 100);
    assert_eq!(held, Held { open: 100, distinct: 40, processes: 3 });
    let counts: Vec<u64> = holders(folder.path()).into_values().collect();
    assert_eq!(counts.iter().sum::<u64>(), 100);
    assert_eq!(counts.iter().filter(|count| **count == 40).count(), 2, "{counts:?}");
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 40);
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
    assert_eq!(holders(folder.path()), BTreeMap::new(), "it ends after all others");
}

#[test]
fn no_process_is_left_behind_when_the_first_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut child, held) = start(folder.path(), 200);
    assert_eq!(held.processes, 5);
    assert_eq!(holders(folder.path()).len(), 5);
    child.kill().expect("it runs");
    let begin = Instant::now();
    while !holders(folder.path()).is_empty() {
        assert!(begin.elapsed() < PATIENCE, "{:?}", holders(folder.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait().expect("it has ended");
}
