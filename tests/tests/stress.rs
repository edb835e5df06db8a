//! stress-ng, a suite that nobody here wrote: its classes of stressors for filesystems and for I/O, one stressor after the other, each checking
//! what it reads and what it is answered (`--verify`); by root and by an ordinary user, at the same time in one VE.
//!
//! The short form (part of `make test`) gives each stressor a second, the long one (`make suites-long`) ten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use vzfs_tests::host::{finish, host_sh};
use vzfs_tests::measure::report;
use vzfs_tests::suites::{let_others_in, long, mounted};
use vzfs_tests::{Host, HostFs, Outcome, Setup, sample};

const CLASSES: [&str; 2] = ["filesystem", "io"];

/// Stressors that are left out, each with its reason.
const LEFT_OUT: [(&str, &str); 6] = [
    (
        "bind-mount",
        "stress-ng itself keeps it for --pathological; it mounts / on itself and never uses its folder",
    ),
    ("binderfs", "it mounts Android's binder filesystem, which is nothing of the VE's"),
    ("fiemap", "Linux has no fiemap for FUSE: FS_IOC_FIEMAP is refused before the filesystem is asked"),
    ("io-uring", "this version of it fails on ext4 too, in the same way: its IORING_OP_STATX finds no file"),
    ("rawdev", "it reads a block device, below any filesystem"),
    (
        "verity",
        "fs-verity needs a kernel and a filesystem made with it; ext4 as mkfs makes it refuses as well",
    ),
];

/// The time of each stressor.
fn seconds() -> u8 {
    if long() { 10 } else { 1 }
}

/// Who runs them.
struct User {
    name: &'static str,
    uid: u32,
    /// What only root may do.
    refused: &'static [&'static str],
}

const USERS: [User; 2] =
    [User { name: "root", uid: 0, refused: &[] }, User { name: "user", uid: 1234, refused: &["fanotify"] }];

impl User {
    /// Runs all stressors below `root`, and removes what they leave. Results go to a folder in `scratch`.
    fn stress(&self, root: &Path, scratch: &Path) -> Result<BTreeMap<String, Work>, String> {
        let (folder, results) = (root.join(self.name), scratch.join(self.name));
        for path in [&folder, &results] {
            fs::create_dir(path).expect("mkdir");
            chown(path, Some(self.uid), Some(self.uid)).expect("chown");
        }
        let metrics = results.join("metrics.yaml");
        let excluded: Vec<&str> = LEFT_OUT.map(|(name, _)| name).to_vec();
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={}", self.uid), format!("--regid={}", self.uid)])
            .args(["--clear-groups", "stress-ng", "--verify", "--metrics", "--oomable", "--sequential", "2"])
            .args(["--class", &CLASSES.join(","), "--exclude", &excluded.join(",")])
            .args(["--timeout", &seconds().to_string()])
            // Their preparations (8,192 folders, a file of 64 MiB) would take the short form's time.
            .args(["--chdir-dirs", "256", "--readahead-bytes", "4m", "--yaml"])
            .arg(&metrics)
            .arg("--temp-path")
            .arg(&folder)
            .current_dir(&folder);
        let outcome = finish(&mut command);
        let said = complaints(&outcome, self.refused);
        if outcome.code != 0 || !said.is_empty() {
            return Err(format!(
                "stress-ng by {} ended with {}:\n{}",
                self.name,
                outcome.code,
                said.join("\n")
            ));
        }
        Ok(work(&fs::read_to_string(metrics).expect("stress-ng writes its metrics")))
    }
}

/// What stress-ng says of failures, and of stressors that it leaves out beside those that are known to be.
fn complaints(outcome: &Outcome, refused: &[&str]) -> Vec<String> {
    let words = ["fail:", "error:", "skipping", "will be skipped", "aborted", "not supported"];
    let known = |line: &str| {
        let names = LEFT_OUT.iter().map(|(name, _)| name).chain(refused);
        let said = line.split_once("] ").map_or(line, |(_, said)| said);
        said.contains("stressor will be skipped") && names.into_iter().any(|name| said.starts_with(name))
    };
    let output = outcome.text() + &outcome.error();
    let lines = output.lines().filter(|line| words.iter().any(|word| line.contains(word)));
    lines.filter(|line| !known(line)).map(str::to_owned).collect()
}

/// What a stressor has done.
#[derive(Default)]
struct Work {
    operations: u64,
    seconds: f64,
}

/// The work of each stressor in stress-ng's YAML.
fn work(yaml: &str) -> BTreeMap<String, Work> {
    let mut found: BTreeMap<String, Work> = BTreeMap::new();
    let mut stressor = String::new();
    for line in yaml.lines() {
        let Some((key, value)) = line.split_once(": ") else { continue };
        match key.trim() {
            "- stressor" => value.clone_into(&mut stressor),
            "bogo-ops" => {
                found.entry(stressor.clone()).or_default().operations = value.parse().expect("a number")
            }
            "wall-clock-time" => {
                found.entry(stressor.clone()).or_default().seconds = value.parse().expect("a number");
            }
            _ => {}
        }
    }
    found
}

/// The stressors that this version of stress-ng has in the classes.
fn stressors() -> BTreeSet<String> {
    let names = CLASSES.map(|class| {
        let outcome = finish(Command::new("stress-ng").args(["--class", &format!("{class}?")])).ok();
        let output = outcome.text() + &outcome.error();
        let (_, names) = output.split_once("stressors: ").expect("stress-ng names the stressors of a class");
        names.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    });
    names.into_iter().flatten().collect()
}

#[test]
fn all_stressors_of_filesystems_verify() {
    let host = Host::with_sample_in(Setup { size_mib: 8 << 10, ..Setup::default() }, &["stress", "other"]);
    let root = mounted(&host, "stress");
    let before = host.diff("stress");
    let results = std::thread::scope(|scope| {
        let runs = USERS.each_ref().map(|user| scope.spawn(|| user.stress(&root, host.scratch())));
        runs.map(|run| run.join().expect("no panic"))
    });
    for (user, result) in USERS.iter().zip(results) {
        let failure = result.as_ref().err().map(|failure| format!("{failure}\n{}", control(user)));
        assert!(failure.is_none(), "{}", failure.unwrap_or_default());
        let done = result.unwrap_or_default();
        let expected: BTreeSet<String> = stressors()
            .into_iter()
            .filter(|name| !LEFT_OUT.iter().any(|(left_out, _)| left_out == name))
            .filter(|name| !user.refused.contains(&name.as_str()))
            .collect();
        assert_eq!(done.keys().cloned().collect::<BTreeSet<_>>(), expected, "stressors run by {}", user.name);
        // One that gives up silently ends before its time. (To count nothing all the time only means that its rounds are long.)
        let idle: Vec<&String> = (done.iter())
            .filter(|(_, work)| work.operations == 0 && work.seconds < f64::from(seconds()))
            .map(|(name, _)| name)
            .collect();
        assert!(idle.is_empty(), "{idle:?} run by {} did nothing", user.name);
        report("stress-ng", format_args!("{} stressors by {} found nothing", done.len(), user.name));
        let folder: PathBuf = root.join(user.name);
        host_sh("rm -rf \"$1\"; ! test -e \"$1\"", [&folder]);
    }
    assert_eq!(host.diff("stress"), before, "nothing is left");
    // What was removed while it was open is freed when the VE is opened again.
    host.vzfs(["ve", "umount", "stress"]).ok();
    host.vzfs(["ve", "mount", "stress"]).ok();
    // The files themselves go a moment later, when that is durable.
    let script =
        "for i in $(seq 300); do [ -n \"$(find \"$1\" -type f)\" ] || exit 0; sleep 0.1; done; exit 1";
    host_sh(script, [host.store().join("data")]);
    host.vzfs(["template", "verify", "sample"]).ok();
    let source = host.scratch().join("source");
    assert_eq!(sample::differences(&source, &host.root("other")), "");
}

/// The same on ext4, to tell whose failure it is.
fn control(user: &User) -> String {
    let ext4 = Host::without_daemon(Setup { fs: HostFs::Ext4, size_mib: 8 << 10, ..Setup::default() });
    let_others_in(&ext4);
    fs::set_permissions(ext4.disk(), fs::Permissions::from_mode(0o755)).expect("chmod");
    match user.stress(&ext4.disk(), ext4.scratch()) {
        Ok(_) => "on ext4 it finds nothing".to_owned(),
        Err(failure) => format!("on ext4: {failure}"),
    }
}
