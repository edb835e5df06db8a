//! One private vzfsd with its store on a filesystem of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::Outcome;
use crate::manager::Manager;

/// How long a daemon may take to answer its first request, or to end.
const DAEMON_PATIENCE: Duration = Duration::from_secs(60);
/// Space in use that has not changed for so long is at rest.
const REST: Duration = Duration::from_millis(300);
/// And if it never rests.
const REST_PATIENCE: Duration = Duration::from_secs(10);

/// What `Host::drop`, and the end of the test process in whatever way, leads to. It gets the scratch folder as `$1`, and
/// the end of its standard input tells it to begin. Only what lives in that folder is touched.
const GUARDIAN: &str = r#"
cat >/dev/null
dir=$1
end() { # a process and at most five seconds of patience
    kill -TERM "$1" 2>/dev/null || return 0
    for _ in $(seq 50); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
    kill -KILL "$1" 2>/dev/null || true
    sleep 0.2
}
pid=$(cat "$dir/vzfsd.pid" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = vzfsd ] && end "$pid"
for _ in 1 2 3; do
    awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r mount; do
        umount "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null
    done
done
losetup --noheadings --output NAME,BACK-FILE | awk -v dir="$dir/" 'index($2, dir) == 1 { print $1 }' | xargs -r losetup --detach
rm -rf --one-file-system "$dir"
"#;

/// The filesystem under the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostFs {
    /// XFS with reflinks.
    Xfs,
    /// ext4, which has none.
    Ext4,
}

/// How a [`Host`] is to be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The filesystem under the store.
    pub fs: HostFs,
    /// The size of that filesystem, in MiB. The image is sparse.
    pub size_mib: u64,
    /// More arguments for the daemon.
    pub daemon_args: Vec<String>,
    /// A block device with a filesystem of that kind on it, in place of an image.
    pub device: Option<PathBuf>,
    /// Whether a service manager starts the daemon, as systemd does.
    pub managed: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { fs: HostFs::Xfs, size_mib: 12 * 1024, daemon_args: Vec::new(), device: None, managed: false }
    }
}

/// A "machine" with vzfs on it; see the crate's documentation.
pub struct Host {
    scratch: PathBuf,
    setup: Setup,
    manager: Option<Manager>,
    daemon: Mutex<Option<Child>>,
    guardian: Option<(Child, ChildStdin)>,
}

impl Host {
    /// A host as most tests want it: XFS, the daemon's defaults.
    pub fn new() -> Host {
        Host::with(Setup::default())
    }

    /// A host with the daemon started.
    pub fn with(setup: Setup) -> Host {
        let host = Host::without_daemon(setup);
        host.start();
        host
    }

    /// A host whose daemon is not running yet.
    pub fn without_daemon(setup: Setup) -> Host {
        crate::require_root();
        let parent = std::env::var_os("VZFS_TEST_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let scratch = tempfile::Builder::new().prefix("vzfs-test-").tempdir_in(&parent);
        let scratch = scratch.expect("the folder for images is writable (VZFS_TEST_DIR)").keep();
        let guardian = (std::env::var_os("VZFS_TEST_KEEP").is_none()).then(|| guard(&scratch));
        let manager = setup.managed.then(Manager::new);
        let host = Host { scratch, setup, manager, daemon: Mutex::new(None), guardian };
        host.make_disk();
        host
    }

    /// A host on a small disk with the sample as `sample@1` and these VEs mounted.
    pub fn with_sample(ves: &[&str]) -> Host {
        Host::with_sample_on(HostFs::Xfs, ves)
    }

    /// The same with the disk on either filesystem.
    pub fn with_sample_on(fs: HostFs, ves: &[&str]) -> Host {
        Host::with_sample_in(Setup { fs, size_mib: 2048, ..Setup::default() }, ves)
    }

    /// The same on a host of any kind.
    pub fn with_sample_in(setup: Setup, ves: &[&str]) -> Host {
        let host = Host::with(setup);
        host.import_sample(ves);
        host
    }

    /// Imports the sample tree as `sample@1`, and makes and mounts VEs on it.
    #[track_caller]
    pub fn import_sample(&self, ves: &[&str]) {
        let source = self.scratch().join("source");
        crate::sample::make(&source);
        self.vzfs(["template", "import", "sample@1", source.to_str().expect("text")]).ok();
        self.mounted("sample", ves);
    }

    /// A host with the Debian tree imported as `debian@12`.
    pub fn with_debian(setup: Setup) -> Host {
        let tree = crate::debian::tree();
        let host = Host::with(setup);
        host.vzfs([OsStr::new("template"), "import".as_ref(), "debian@12".as_ref(), tree.as_os_str()]).ok();
        host
    }

    fn make_disk(&self) {
        let (image, disk) = (self.scratch.join("image"), self.disk());
        fs::create_dir(&disk).expect("the scratch folder is writable");
        if self.setup.device.is_some() {
            return self.mount_disk();
        }
        let file = File::create(&image).expect("the scratch folder is writable");
        file.set_len(self.setup.size_mib << 20).expect("a sparse file can be made");
        drop(file);
        match self.setup.fs {
            HostFs::Xfs => run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image)),
            HostFs::Ext4 => {
                run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=1"]).arg(&image))
            }
        };
        self.mount_disk();
    }

    fn mount_disk(&self) {
        match &self.setup.device {
            Some(device) => run(Command::new("mount").args(["-o", "noatime"]).arg(device).arg(self.disk())),
            None => run(Command::new("mount")
                .args(["-o", "loop"])
                .arg(self.scratch.join("image"))
                .arg(self.disk())),
        };
    }

    /// Where the host's filesystem is: the store's parent.
    pub fn disk(&self) -> PathBuf {
        self.scratch.join("disk")
    }

    /// A folder outside that filesystem, removed with the host.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.disk().join("store")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("sock")
    }

    /// The default mount point of a VE.
    pub fn root(&self, ve: &str) -> PathBuf {
        self.disk().join("root").join(ve)
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The command line of a daemon for this host's store; not started.
    pub fn daemon_command(&self) -> Command {
        self.daemon_command_for(&self.store())
    }

    /// The command line of a daemon for another store; not started.
    pub fn daemon_command_for(&self, store: &Path) -> Command {
        let mut command = Command::new(binary("vzfsd"));
        command.arg("--store").arg(store).arg("--socket").arg(self.socket()).arg("--foreground");
        command
            .args(&self.setup.daemon_args)
            .env_remove("VZFS_STORE")
            .env_remove("VZFS_SOCKET")
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&self) {
        let mut daemon = self.daemon();
        assert!(daemon.is_none(), "the daemon of this host runs already");
        let log = File::options().create(true).append(true).open(self.scratch.join("vzfsd.log"));
        let log = log.expect("the scratch folder is writable");
        let plain = self.daemon_command();
        let mut command = match &self.manager {
            Some(manager) => manager.command(&plain),
            None => plain,
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be doubled"))
            .stderr(log)
            .spawn()
            .expect("vzfsd can be started");
        fs::write(self.scratch.join("vzfsd.pid"), child.id().to_string())
            .expect("the scratch folder is writable");
        let begin = Instant::now();
        while self.vzfs(["store", "info"]).code != 0 {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                panic!("vzfsd ended at its start ({status}):\n{}", self.log());
            }
            assert!(begin.elapsed() < DAEMON_PATIENCE, "vzfsd does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        *daemon = Some(child);
    }

    /// The process id of the supervisor, which is what was started.
    pub fn supervisor_pid(&self) -> u32 {
        self.daemon().as_ref().expect("the daemon runs").id()
    }

    /// The daemon's process id: the supervisor's child.
    pub fn daemon_pid(&self) -> u32 {
        let supervisor = self.supervisor_pid();
        let begin = Instant::now();
        loop {
            if let Some(pid) = child_of(supervisor) {
                return pid;
            }
            assert!(begin.elapsed() < DAEMON_PATIENCE, "the supervisor has no daemon:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the daemon and leaves the supervisor, which starts another. Returns the process id of the killed one.
    pub fn kill_daemon(&self) -> u32 {
        let pid = self.daemon_pid();
        kill_if_there(pid);
        pid
    }

    /// Waits until the supervisor has another daemon than this one, and it answers.
    pub fn wait_for_another(&self, killed: u32) {
        let begin = Instant::now();
        while self.daemon_pid() == killed || self.vzfs(["store", "info"]).code != 0 {
            assert!(begin.elapsed() < DAEMON_PATIENCE, "no other daemon comes:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks the daemon to end, and waits for it.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// Kills the daemon and its supervisor without a chance to tidy up.
    pub fn kill(&self) {
        let supervisor = Pid::from_raw(self.supervisor_pid().cast_signed()).expect("a process id");
        rustix::process::kill_process(supervisor, Signal::STOP).expect("the own child can be signalled");
        // There is none while the supervisor waits before it starts the next.
        child_of(self.supervisor_pid()).into_iter().for_each(kill_if_there);
        self.end(Signal::KILL);
    }

    /// The service manager of a host that has one.
    pub fn manager(&self) -> &Manager {
        self.manager.as_ref().expect("a managed host")
    }

    /// Kills the supervisor, whose daemon then ends: in order, or leaving its mounts if there is a service manager.
    pub fn kill_supervisor(&self) {
        self.end(Signal::KILL);
    }

    fn end(&self, signal: Signal) {
        let mut child = self.daemon().take().expect("the daemon runs");
        let pid = Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("the own child can be signalled");
        let begin = Instant::now();
        while child.try_wait().expect("a child can be waited for").is_none() {
            assert!(begin.elapsed() < DAEMON_PATIENCE, "vzfsd does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A power cut and the start after it: the disk has what was synced, and of the rest what happened to be written. No file of a VE may be
    /// open.
    pub fn cut_power(&self) {
        self.power_off();
        self.power_on();
    }

    /// The first half: afterwards nothing is mounted and nothing runs.
    pub fn power_off(&self) {
        self.shut_disk_down();
        self.unmount_disk();
    }

    /// From then on the host's filesystem gives errors, and writes nothing more, not even its log.
    pub fn shut_disk_down(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.disk()));
    }

    /// Kills the daemon and takes the mounts away, also from a disk whose filesystem has given up. [`Host::power_on`] is the way back.
    pub fn unmount_disk(&self) {
        self.kill();
        let unmount = "awk -v d=\"$1/\" 'index($2, d) == 1 { print $2 }' /proc/self/mounts | xargs -r umount -l; umount \"$1\"";
        host_sh(unmount, [self.disk()]);
    }

    /// The second half.
    pub fn power_on(&self) {
        self.mount_disk();
        self.start();
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.scratch.join("vzfsd.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A command `vzfs` that talks to this host's daemon; not started.
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Command {
        let mut command = Command::new(binary("vzfs"));
        command.env("VZFS_SOCKET", self.socket()).env_remove("VZFS_STORE").stdin(Stdio::null()).args(args);
        command
    }

    /// Runs `vzfs` with these arguments.
    pub fn vzfs<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Outcome {
        finish(&mut self.command(args))
    }

    /// Runs `vzfs --format json` with these arguments, which must succeed, and reads what it prints.
    #[track_caller]
    pub fn json<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Value {
        finish(self.command(["--format", "json"]).args(args)).ok().json()
    }

    /// Runs a shell script inside a VE.
    pub fn sh(&self, ve: &str, script: &str) -> Outcome {
        self.vzfs(["ve", "exec", ve, "--", "/bin/sh", "-ec", script])
    }

    /// Makes VEs on a template and mounts them.
    #[track_caller]
    pub fn mounted(&self, template: &str, names: &[&str]) {
        for name in names {
            self.vzfs(["ve", "create", name, "-t", template]).ok();
            self.vzfs(["ve", "mount", name]).ok();
        }
    }

    /// The paths that differ between a VE and its base, with what happened (`added`, `changed`, `deleted`).
    #[track_caller]
    pub fn diff(&self, ve: &str) -> Vec<(String, String)> {
        let changes = self.json(["ve", "diff", ve]);
        let text = |change: &Value, key: &str| change[key].as_str().unwrap_or_default().to_owned();
        let changes = changes.as_array().expect("a list of changes");
        changes.iter().map(|change| (text(change, "path"), text(change, "kind"))).collect()
    }

    /// The digest of a template's layer.
    #[track_caller]
    pub fn digest(&self, template: &str) -> String {
        self.json(["template", "show", template])["digest"]
            .as_str()
            .expect("a template has a digest")
            .to_owned()
    }

    /// The file of the store that has the content of this one.
    pub fn blob_of(&self, content: &Path) -> PathBuf {
        let found = host_sh(
            "size=$(stat -c %s \"$2\"); find \"$1\" -type f -size \"${size}c\" -exec cmp -s \"$2\" {} \\; -print",
            [self.store().join("blobs").as_path(), content],
        );
        PathBuf::from(found.text().trim())
    }

    /// Bytes in use on the host's filesystem, when they have come to rest: XFS frees the space of removed files some time after their removal.
    pub fn used_bytes(&self) -> u64 {
        let now = || {
            let _ = finish(Command::new("sync").arg("-f").arg(self.disk()));
            let stat = rustix::fs::statvfs(self.disk()).expect("the host's filesystem is mounted");
            (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        };
        let (begin, mut last, mut since) = (Instant::now(), now(), Instant::now());
        while since.elapsed() < REST && begin.elapsed() < REST_PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
            let used = now();
            if used != last {
                (last, since) = (used, Instant::now());
            }
        }
        last
    }
}

impl Default for Host {
    fn default() -> Host {
        Host::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            println!("--- the end of the daemon's log");
            tail.iter().rev().for_each(|line| println!("{line}"));
        }
        let Some((mut guardian, stdin)) = self.guardian.take() else {
            println!("kept: {}", self.scratch.display());
            return;
        };
        drop(stdin);
        // The daemon is this process's child: until it is waited for it stays a zombie, which looks alive to the guardian.
        if let Some(mut child) = self.daemon().take() {
            let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::TERM);
            let begin = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(8) {
                std::thread::sleep(Duration::from_millis(10));
            }
            if matches!(child.try_wait(), Ok(None)) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        let _ = guardian.wait();
    }
}

/// A process may be gone by itself.
fn kill_if_there(pid: u32) {
    let number = Pid::from_raw(pid.cast_signed()).expect("a process id");
    let _ = rustix::process::kill_process(number, Signal::KILL);
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let children = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .next()
}

fn guard(scratch: &Path) -> (Child, ChildStdin) {
    use std::os::unix::process::CommandExt;
    let mut guardian = Command::new("bash")
        .args(["-c", GUARDIAN, "guardian"])
        .arg(scratch)
        .stdin(Stdio::piped())
        // Not ended together with the tests by a terminal's interrupt; and its output must not keep a pipeline open.
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("bash can be started");
    let stdin = guardian.stdin.take().expect("it was asked for");
    (guardian, stdin)
}

/// Where a binary of vzfs is.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("VZFS_BIN_DIR").map_or_else(
        || {
            let program = std::env::current_exe().expect("a process knows its program");
            let folder = program.parent().expect("a program is in a folder");
            // Tests are in target/PROFILE/deps, programs one above.
            let above = folder.parent().filter(|_| folder.ends_with("deps"));
            above.unwrap_or(folder).to_owned()
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: `make e2e` builds what these tests run", path.display());
    path
}

/// Runs a program to its end.
#[track_caller]
pub fn finish(command: &mut Command) -> Outcome {
    let line = format!("{command:?}");
    match command.output() {
        Ok(output) => Outcome::new(line, output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            panic!("{line}: the program is not installed (scripts/setup build run test)")
        }
        Err(error) => panic!("{line}: {error}"),
    }
}

/// Runs a program that must succeed.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    finish(command.stdin(Stdio::null())).ok()
}

/// Runs a shell script on the host with arguments `$1`, `$2` and so on; it must succeed.
#[track_caller]
pub fn host_sh<I: IntoIterator<Item: AsRef<OsStr>>>(script: &str, args: I) -> Outcome {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", script, "script"]).args(args))
}
