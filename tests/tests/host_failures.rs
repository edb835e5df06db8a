//! Failures of the host under VEs at work: they reach whoever needs what has failed and nobody else, the daemon lives or comes back, and afterwards all is well.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vzfs_tests::host::{host_sh, run};
use vzfs_tests::measure::report;
use vzfs_tests::torture::disk::{Disk, Failing};
use vzfs_tests::{Host, HostFs, Setup, sample, text, write_synced};

/// How long something may take to be well again.
const PATIENCE: Duration = Duration::from_secs(90);

/// The host's caches are dropped, which is about all disks of the machine: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A host on a disk that can fail, with two templates and a VE on each.
struct Scene {
    host: Host,
    disk: Disk<()>,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(fs: HostFs) -> Scene {
        let folder = tempfile::tempdir_in("/var/tmp").expect("scratch folder");
        let disk = Disk::new(&folder.path().join("served"), 600 << 20);
        disk.format(fs);
        let device = Some(PathBuf::from(disk.device()));
        let daemon_args = vec!["--scrub-interval".to_owned(), "never".to_owned()];
        let host = Host::with(Setup { fs, device, daemon_args, ..Setup::default() });
        let source = host.scratch().join("os");
        sample::make(&source);
        // Enough for a tree of many pages.
        let more =
            "mkdir \"$1/many\"; for n in $(seq 600); do echo $n > \"$1/many/a-name-of-some-length-$n\"; done";
        host_sh(more, [&source]);
        host.vzfs(["template", "import", "sample@1", text(&source)]).ok();
        host_sh("rm -r \"$1/many\"; echo other > \"$1/etc/hostname\"", [&source]);
        host.vzfs(["template", "import", "other@1", text(&source)]).ok();
        host.mounted("sample@1", &["a"]);
        host.mounted("other@1", &["b"]);
        Scene { host, disk, _folder: folder }
    }

    /// The daemon's process, and how often it was started again.
    fn daemon(&self) -> (u32, u64) {
        let status = self.host.json(["daemon", "status"]);
        (self.host.daemon_pid(), status["restarts"].as_u64().expect("a number"))
    }
}

fn drop_caches() {
    // Dirty pages cannot be dropped, and a disk that fails takes none.
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may");
}

fn is_io_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(5)
}

/// Everything that a VE shows, or what went wrong.
fn everything(root: &Path) -> Result<String, String> {
    let script = "cd \"$1\" && find . -printf '%P %y %m %n %s %l\\n' | LC_ALL=C sort && find etc many usr -type f -exec sha256sum {} + | sort";
    let output = Command::new("bash").args(["-o", "pipefail", "-c", script, "x"]).arg(root).output();
    let output = output.expect("bash can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && said.is_empty() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(said)
    }
}

/// Tries until it succeeds.
#[track_caller]
fn in_time<T, E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{error:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_disk_that_cannot_be_read_fails_who_reads_it_and_works_again_when_it_does() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new(HostFs::Xfs);
    let (a, b) = (scene.host.root("a"), scene.host.root("b"));
    let kept = a.join("etc/kept");
    write_synced(&kept, b"kept").expect("works");
    let sound = everything(&a).expect("works");
    // Another process maps the trees anew, so that their pages can be dropped.
    scene.host.vzfs(["daemon", "restart"]).ok();
    host_sh("sync -f \"$1\"", [scene.host.disk()]);
    drop_caches();
    let hostname = fs::read(b.join("etc/hostname")).expect("works");
    let daemon = scene.daemon();

    scene.disk.fail(Failing { reads: true, writes: false });
    let failed = fs::read(a.join("var/lib/app/data")).expect_err("it is not in memory");
    assert!(is_io_error(&failed), "{failed}");
    let said = everything(&a).expect_err("its tree is not in memory");
    assert!(said.contains("Input/output error"), "{said}");
    let wrong = said.lines().find(|line| !line.contains("Input/output error"));
    assert_eq!(wrong, None, "nothing but EIO is told: not that something does not exist");
    assert_eq!(fs::read(b.join("etc/hostname")).expect("what is in memory can be read"), hostname);
    assert_eq!(scene.daemon(), daemon, "the daemon lives");

    scene.disk.fail(Failing::default());
    assert_eq!(in_time(|| everything(&a)), sound, "without a restart or a mount");
    assert_eq!(fs::read(&kept).expect("readable"), b"kept");
    fs::write(a.join("etc/new"), b"new").expect("writable");
    assert_eq!(scene.daemon(), daemon, "the daemon lives");
    assert_eq!(scene.host.vzfs(["store", "check"]).code, 0);
    let log = scene.host.log();
    let told = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert!(told("a part of the tree cannot be read") <= 2, "once for each tree");
    assert!((1..=20).contains(&told("request failed because of the host")), "{log}");
}

#[test]
fn a_disk_that_cannot_be_written_fails_who_writes_and_keeps_what_was_synced() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new(HostFs::Ext4);
    let a = scene.host.root("a");
    let write = |name: &str| write_synced(&a.join(name), name.as_bytes());
    for number in 0..50 {
        write(&format!("before-{number}")).expect("works");
    }
    let hostname = fs::read(a.join("etc/hostname")).expect("works");
    let daemon = scene.daemon();
    scene.disk.fail(Failing { reads: false, writes: true });
    let mut refused = 0;
    for number in 0..200 {
        match write(&format!("during-{number}")) {
            // EIO, or EROFS when the host's filesystem has given up.
            Err(error) => {
                assert!(matches!(error.raw_os_error(), Some(5 | 30)), "{error}");
                refused += 1;
            }
            Ok(()) => assert!(number < 5, "a sync is acknowledged on a disk that takes nothing"),
        }
    }
    assert!(refused >= 195);
    assert_eq!(fs::read(a.join("etc/hostname")).expect("reading goes on"), hostname);
    assert!(a.join("before-7").exists());
    assert!(scene.daemon().1 <= daemon.1 + 1, "it does not start again and again");

    // As an administrator does with a host filesystem that has made itself read-only.
    scene.host.power_off();
    scene.disk.fail(Failing::default());
    scene.host.power_on();
    for number in 0..50 {
        let name = format!("before-{number}");
        assert_eq!(fs::read(a.join(&name)).expect("synced"), name.as_bytes());
    }
    write("after").expect("works");
    assert_eq!(scene.host.vzfs(["store", "check"]).code, 0);
}

#[test]
fn a_database_that_could_not_write_for_a_moment_writes_again() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new(HostFs::Xfs);
    let a = scene.host.root("a");
    File::create(a.join("synced")).and_then(|file| file.sync_all()).expect("works");
    let synced = |name: &str| fs::create_dir(a.join(name)).and_then(|()| File::open(&a)?.sync_all());
    let restarts = scene.daemon().1;
    // The database's log cannot be synced, which it does not get over by itself. The host's filesystem writes its own log after that only.
    scene.disk.fail(Failing { reads: false, writes: true });
    let failed = synced("refused");
    scene.disk.fail(Failing::default());
    assert!(failed.as_ref().is_err_and(is_io_error), "{failed:?}");
    let mut number = 0;
    in_time(|| {
        number += 1;
        synced(&format!("made-{number}"))
    });
    assert_eq!(scene.daemon().1, restarts + 1, "by one start");
    assert!(a.join("synced").exists());
    assert_eq!(scene.host.vzfs(["store", "check"]).code, 0);
}

#[test]
fn a_daemon_that_cannot_start_on_a_filesystem_that_has_given_up_says_so() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new(HostFs::Xfs);
    let a = scene.host.root("a");
    write_synced(&a.join("synced"), b"text").expect("works");
    scene.host.shut_disk_down();
    assert!(write_synced(&a.join("refused"), b"text").is_err_and(|error| is_io_error(&error)));
    scene.host.kill_daemon();
    let log = in_time(|| Some(scene.host.log()).filter(|log| log.contains("dmesg")).ok_or("it says nothing"));
    let reason = log.lines().find(|line| line.contains("dmesg")).expect("it was found");
    assert!(reason.contains("Input/output error") && reason.contains("/store"), "{reason}");
    // The way that the message names.
    scene.host.unmount_disk();
    scene.host.power_on();
    assert_eq!(fs::read(a.join("synced")).expect("synced"), b"text");
    write_synced(&a.join("after"), b"text").expect("works");
    assert_eq!(scene.host.vzfs(["store", "check"]).code, 0);
}

#[test]
fn a_daemon_without_descriptors_lives_and_so_does_what_needs_none() {
    let host = Host::with_sample(&["a"]);
    let a = host.root("a");
    let pid = host.daemon_pid();
    let mut held = File::open(a.join("etc/hostname")).expect("works");
    let is_open = |number: &u32| Path::new(&format!("/proc/{pid}/fd/{number}")).is_symlink();
    let free = (0..).find(|number| !is_open(number)).expect("there is an end");
    let limit = |limit: &str| {
        run(Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={limit}:")]));
    };
    limit(&free.to_string());
    let mut refused = 0;
    for number in 0..50 {
        if let Err(error) = File::create(a.join(format!("new-{number}"))) {
            assert!(matches!(error.raw_os_error(), Some(23 | 24)), "{error}");
            assert!(!a.join(format!("new-{number}")).exists(), "what is refused is not made");
            refused += 1;
        }
    }
    assert!(refused > 0, "there are descriptors left");
    let mut content = String::new();
    held.read_to_string(&mut content).expect("what is open works");
    assert!(a.join("etc/passwd").exists() && fs::create_dir(a.join("dir")).is_ok(), "what needs none works");
    // Nobody is let in at the control socket.
    let mut waiting = host.command(["ve", "list"]).spawn().expect("it starts");
    std::thread::sleep(Duration::from_secs(1));
    limit("1024");
    assert!(waiting.wait().expect("it ends").success(), "who waited is served");
    for number in 0..50 {
        fs::write(a.join(format!("new-{number}")), b"new").expect("works, also where it was refused");
    }
    assert_eq!(host.daemon_pid(), pid, "the daemon lives");
    assert_eq!(host.vzfs(["store", "check"]).code, 0);
    let log = host.log();
    assert!(log.lines().filter(|line| line.contains("cannot accept")).count() <= 2, "{log}");
}

#[test]
fn a_daemon_without_memory_says_so_or_is_started_again_and_nothing_is_lost() {
    let host = Host::with_sample(&["a"]);
    let a = host.root("a");
    for round in 0..2 {
        let pid = host.daemon_pid();
        // Less than it has: whatever it asks for is refused.
        run(Command::new("prlimit").args(["--pid", &pid.to_string(), "--as=1000000:"]));
        let kept = a.join(format!("kept-{round}"));
        let synced = |path: &Path| write_synced(path, &[7; 100_000]);
        for number in 0..200 {
            let path = a.join(format!("file-{number}"));
            match synced(&path).and_then(|()| fs::remove_file(&path)) {
                Ok(()) => {}
                // It may get along without, and tell programs.
                Err(error) => assert!(matches!(error.raw_os_error(), Some(12 | 5)), "{error}"),
            }
        }
        let _started = host.vzfs(["ve", "list"]);
        if host.daemon_pid() == pid {
            run(Command::new("prlimit").args(["--pid", &pid.to_string(), "--as=unlimited:"]));
        }
        in_time(|| synced(&kept));
        assert_eq!(fs::read(&kept).expect("readable"), [7; 100_000]);
    }
    assert_eq!(host.vzfs(["store", "check"]).code, 0);
}

/// A host on a filesystem that enforces quotas, also on root: Btrfs does that unless it is told otherwise, whereas ext4 and XFS let whoever
/// has CAP_SYS_RESOURCE exceed them.
struct Limited {
    host: Host,
    _disk: Disk<()>,
    _folder: tempfile::TempDir,
}

impl Limited {
    /// With VEs `a` and `b`, and so much for what is written from now on.
    fn new(more_mib: u64) -> Limited {
        let folder = tempfile::tempdir_in("/var/tmp").expect("scratch folder");
        let disk = Disk::new(&folder.path().join("served"), 1 << 30);
        run(Command::new("mkfs.btrfs").args(["-q", "-f", "-K", disk.device()]));
        let host =
            Host::without_daemon(Setup { device: Some(PathBuf::from(disk.device())), ..Setup::default() });
        host_sh("btrfs quota enable \"$1\"", [host.disk()]);
        host.start();
        host.import_sample(&["a", "b"]);
        let limited = Limited { host, _disk: disk, _folder: folder };
        limited.limit(&(limited.referenced_bytes() + (more_mib << 20)).to_string());
        limited
    }

    fn limit(&self, bytes: &str) {
        host_sh("btrfs qgroup limit \"$2\" 0/5 \"$1\"", [self.host.disk().as_os_str(), bytes.as_ref()]);
    }

    fn referenced_bytes(&self) -> u64 {
        let script = "sync -f \"$1\"; btrfs qgroup show --raw \"$1\" | awk '$1 == \"0/5\" { print $2 }'";
        host_sh(script, [self.host.disk()]).text().trim().parse().expect("a number")
    }
}

fn is_over_quota(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded
}

/// Writes files until their content is refused, large ones first. Returns those that were synced with their lengths, and how many were refused.
fn fill(folder: &Path, content: &[u8]) -> (Vec<(PathBuf, usize)>, usize) {
    let (mut synced, mut refused, mut number) = (Vec::new(), 0, 0);
    for len in [1 << 20, 64 << 10, 4 << 10] {
        let mut in_a_row = 0;
        while in_a_row < 5 {
            number += 1;
            let path = folder.join(format!("f{number}"));
            match write_synced(&path, &content[..len]) {
                Ok(()) => {
                    in_a_row = 0;
                    synced.push((path, len));
                }
                Err(error) => {
                    assert!(is_over_quota(&error), "{}: {error}", path.display());
                    (in_a_row, refused) = (in_a_row + 1, refused + 1);
                }
            }
        }
    }
    (synced, refused)
}

#[test]
fn a_quota_that_is_used_up_is_told_as_one_and_removing_or_raising_it_helps() {
    // Loaded if it is a module.
    let _ = Command::new("modprobe").args(["-q", "btrfs"]).status();
    if !fs::read_to_string("/proc/filesystems").expect("readable").contains("btrfs") {
        return report("quota", "SKIPPED: this kernel has no Btrfs, whose quotas hold for root too");
    }
    let limited = Limited::new(120);
    let host = &limited.host;
    let (a, b) = (host.root("a"), host.root("b"));
    let content: Vec<u8> =
        (0..1_u32 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let kept = b.join("kept");
    write_synced(&kept, &content).expect("works");
    fs::create_dir(a.join("fill")).expect("works");
    let restarts = || host.json(["daemon", "status"])["restarts"].as_u64().expect("a number");
    let (mut synced, refused) = fill(&a.join("fill"), &content);
    assert!(refused > 0);

    // Others are told the same, and why.
    let source = host.scratch().join("large");
    fs::create_dir(&source).expect("works");
    fs::write(
        source.join("noise"),
        (0..1_u64 << 21)
            .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect::<Vec<_>>(),
    )
    .expect("works");
    let import = host.vzfs(["template", "import", "large@1", text(&source)]);
    let said = String::from_utf8_lossy(&import.stderr).into_owned();
    assert_eq!(import.code, 8, "{said}");
    assert!(said.contains("quota"), "{said}");
    // What is in the database alone, until it has no more room either.
    let mut in_database = 0;
    for number in 0..3000 {
        let value = vec![number as u8; 3000];
        match rustix::fs::setxattr(&kept, "user.changed", &value, rustix::fs::XattrFlags::empty()) {
            Ok(()) => in_database += 1,
            Err(errno) => assert!(matches!(errno.raw_os_error(), 122), "{errno}"),
        }
    }
    assert!(in_database > 0, "the reserve is for this");
    assert_eq!(fs::read(&kept).expect("readable"), content);
    assert_eq!(host.vzfs(["ve", "list"]).code, 0);
    assert!(restarts() <= 10, "it does not start again and again");

    // What is removed makes room.
    let half = synced.split_off(synced.len() / 2);
    for (path, _) in half {
        in_time(|| fs::remove_file(&path));
    }
    in_time(|| write_synced(&a.join("roomy"), &content));

    // And so does more.
    let (more, refused) = fill(&b, &content);
    assert!(refused > 0);
    limited.limit("none");
    in_time(|| write_synced(&a.join("raised"), &content));
    in_time(|| fs::create_dir(a.join("raised.d")));
    for (path, len) in synced.iter().chain(&more) {
        assert!(fs::read(path).expect("synced") == content[..*len], "{}", path.display());
    }
    assert_eq!(fs::read(&kept).expect("readable"), content);
    assert_eq!(host.vzfs(["store", "check"]).code, 0);
}
