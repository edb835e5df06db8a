//! Runs programs in a root filesystem under crun: `ve exec`, and the steps of a template build.
//!
//! The program gets its own mounts, processes, host name and IPC, in a private copy of the mount table: nothing that
//! is mounted for it or by it appears on the host. This is a convenience for administrators, not a jail for hostile
//! programs: the network is the host's, and no cgroup limits it. Disks are out of reach all the same: block devices can
//! be neither made (seccomp) nor mounted (capabilities).

mod bundle;
mod stdio;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;

use rustix::fs::FileType;
use rustix::process::Signal;
use rustix::termios::Winsize;
use tempfile::TempDir;
use vzfs::types::IdShift;

use crate::error::{Exit, Failure, Result};
use crate::interrupt;
use crate::rootfs::{Rootfs, User};

/// A part of the host that the program sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bind {
    /// What is shown.
    pub(crate) source: PathBuf,
    /// Where, absolute in the VE.
    pub(crate) target: PathBuf,
    /// Whether the program may only read it.
    pub(crate) read_only: bool,
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Bind, String> {
        let (text, read_only) = match text.strip_suffix(":ro") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let Some((source, target)) = text.split_once(':') else {
            return Err("write SRC:DST or SRC:DST:ro".into());
        };
        if source.is_empty() {
            return Err("SRC is empty".into());
        }
        if !target.starts_with('/') || target.trim_matches('/').is_empty() || target.contains(':') {
            return Err("DST must be an absolute path in the VE".into());
        }
        Ok(Bind { source: source.into(), target: target.into(), read_only })
    }
}

/// Which network the program has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Network {
    /// The host's.
    Host,
    /// A loopback of its own.
    None,
}

/// What to run, and how.
#[derive(Clone, Debug)]
pub(crate) struct ExecSpec {
    /// The root filesystem.
    pub(crate) root: PathBuf,
    /// The host name that the program sees.
    pub(crate) hostname: String,
    /// `USER[:GROUP]`.
    pub(crate) user: String,
    /// Where the program starts.
    pub(crate) workdir: PathBuf,
    /// Variables besides the usual ones; they win.
    pub(crate) env: Vec<(String, String)>,
    /// Parts of the host.
    pub(crate) binds: Vec<Bind>,
    /// The host's ids that the program has in place of its own, in a user namespace; `None` for no namespace.
    pub(crate) id_shift: Option<IdShift>,
    /// The network.
    pub(crate) network: Network,
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
}

/// A bundle on the disk; removed when dropped.
struct Prepared {
    dir: TempDir,
    id: String,
}

impl Prepared {
    fn new(spec: &ExecSpec, terminal: Option<Winsize>, quiet: bool) -> Result<Prepared> {
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::new(Exit::ExecFailed, "cannot run a program in a VE: only root can")
                .with_hint("run this with sudo"));
        }
        need("crun", "crun")?;
        let root = Rootfs::open(&spec.root)?;
        let mut spec = spec.clone();
        for bind in &mut spec.binds {
            bind.source = bind
                .source
                .canonicalize()
                .map_err(|e| Failure::io(format!("cannot bind {}", bind.source.display()), &e))?;
        }
        if spec.network == Network::Host {
            bind_names(&root, &mut spec, quiet);
        }
        look_first(&root, &spec)?;
        let user = root.user(&spec.user)?;
        check_ids(&spec, &user)?;
        let config = bundle::config(&spec, &user, terminal)?;
        let what = |e: &io::Error| Failure::io("cannot make a folder for crun", e);
        // Mode 0700: the environment may hold secrets.
        let dir = tempfile::Builder::new().prefix("vzfs-exec-").tempdir().map_err(|e| what(&e))?;
        std::fs::write(dir.path().join("config.json"), config.to_string()).map_err(|e| what(&e))?;
        let id = format!("vzfs-{}-{}", spec.hostname, std::process::id());
        Ok(Prepared { dir, id })
    }

    fn crun(&self) -> Command {
        let mut command = Command::new("crun");
        if cgroups_are_mixed() {
            command = Command::new("unshare");
            command.args([
                "--mount",
                "--propagation",
                "private",
                "--",
                "/bin/sh",
                "-c",
                HIDE_MIXED_CGROUPS,
                "sh",
            ]);
        }
        // Hosts may have no cgroup v2 that can be used, and nothing is limited here.
        command.arg("--cgroup-manager=disabled").arg("--root").arg(self.dir.path().join("state"));
        // crun itself needs nothing of the caller's environment but where programs are.
        command.env_clear().env("PATH", host_path());
        command
    }

    fn command(&self) -> Command {
        let mut command = self.crun();
        command.arg("--log").arg(self.log()).args(["--log-format", "json", "run", "--bundle"]);
        command.arg(self.dir.path()).arg(&self.id);
        command
    }

    fn kill(&self) -> Command {
        let mut command = self.crun();
        command.args(["delete", "--force"]).arg(&self.id).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Runs the command to its end; each signal is passed on, the second kills everything inside.
    fn run(&self, mut command: Command, at_once: bool) -> Result<u8> {
        let mut child = command.spawn().map_err(|e| Failure::io("cannot run crun", &e))?;
        let mut kill = self.kill();
        let status = interrupt::wait(&mut child, move |pid, signal, count| {
            // A failure means that it is gone already.
            if count == 1 && !at_once {
                let _ = rustix::process::kill_process(pid, signal);
            } else if !kill.status().is_ok_and(|status| status.success()) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        });
        let status = status.map_err(|e| Failure::io("cannot wait for crun", &e))?;
        self.verdict(status)
    }

    /// Tells the program's exit code from a failure of crun, which has an exit code as well: only crun writes the log.
    fn verdict(&self, status: ExitStatus) -> Result<u8> {
        let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(125);
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        match (code, last_error(&log)) {
            (0, _) | (_, None) => Ok(u8::try_from(code).unwrap_or(125)),
            (_, Some(message)) => Err(crun_failure(&message)),
        }
    }
}

/// Refuses a user whom the VE's range of ids does not reach.
fn check_ids(spec: &ExecSpec, user: &User) -> Result<()> {
    let Some(shift) = spec.id_shift else { return Ok(()) };
    let ids = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
    match ids.into_iter().find(|id| shift.to_host(*id).is_none()) {
        None => Ok(()),
        Some(id) => {
            let what = format!(
                "user {} has the id {id}, and the VE has the ids below {} only",
                spec.user,
                shift.count()
            );
            Err(Failure::new(Exit::Refused, what))
        }
    }
}

/// The host's resolver configuration in place of the VE's, for as long as the program runs. Only where the VE has such
/// a file: crun would make a missing one, and so change the VE. (A link that leads nowhere counts as missing.)
fn bind_names(root: &Rootfs, spec: &mut ExecSpec, quiet: bool) {
    for name in ["/etc/resolv.conf", "/etc/hosts"] {
        let path = Path::new(name);
        let Ok(source) = path.canonicalize() else { continue };
        if spec.binds.iter().any(|bind| bind.target == path) {
            continue;
        }
        if root.file_type(path) == Some(FileType::RegularFile) {
            spec.binds.push(Bind { source, target: path.to_owned(), read_only: true });
        } else if name == "/etc/resolv.conf" && !quiet && io::stderr().is_terminal() {
            eprintln!("vzfs: the VE has no /etc/resolv.conf: programs in it cannot look up names");
        }
    }
}

/// Refuses what could only fail, in our words and before crun makes anything in the VE (it makes a missing working
/// directory). What a bind shows is not looked at.
fn look_first(root: &Rootfs, spec: &ExecSpec) -> Result<()> {
    let covered = |path: &Path| {
        let own = ["/proc", "/sys", "/dev"].iter().any(|dir| path.starts_with(dir));
        own || spec.binds.iter().any(|bind| path.starts_with(&bind.target) || bind.target.starts_with(path))
    };
    let workdir = &spec.workdir;
    if !workdir.is_absolute() {
        return Err(Failure::new(Exit::ExecFailed, format!("{} is no absolute path", workdir.display())));
    }
    if !covered(workdir) && root.file_type(workdir) != Some(FileType::Directory) {
        let what = format!("there is no directory {} in {}", workdir.display(), root.path().display());
        return Err(Failure::new(Exit::ExecFailed, what));
    }
    let Some(program) = spec.command.first().map(Path::new) else { return Ok(()) };
    let path = spec.env.iter().rev().find(|(name, _)| name == "PATH").map_or(host_path(), |(_, value)| value);
    let places: Vec<PathBuf> = if program.as_os_str().as_bytes().contains(&b'/') {
        vec![workdir.join(program)]
    } else {
        path.split(':').map(|dir| workdir.join(dir).join(program)).collect()
    };
    if places.iter().any(|place| covered(place)) {
        return Ok(());
    }
    let modes: Vec<u32> = places.iter().filter_map(|place| root.mode(place)).collect();
    let runs = |mode: &u32| FileType::from_raw_mode(*mode) == FileType::RegularFile && mode & 0o111 != 0;
    match modes.first() {
        _ if modes.iter().any(runs) => Ok(()),
        None => {
            let what = format!("cannot run {}: there is no such program in the VE", program.display());
            Err(Failure::new(Exit::ProgramNotFound, what))
        }
        Some(_) => {
            let what = format!("cannot run {}: it is no executable file", program.display());
            Err(Failure::new(Exit::NotExecutable, what))
        }
    }
}

/// Where the host's programs are.
pub(crate) fn host_path() -> &'static str {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

/// Fails unless the host has this program, with the Debian package that brings it.
pub(crate) fn need(program: &str, package: &str) -> Result<()> {
    if host_path().split(':').any(|dir| Path::new(dir).join(program).is_file()) {
        return Ok(());
    }
    Err(Failure::new(Exit::ExecFailed, format!("this needs the program {program}, which is not installed"))
        .with_hint(format!("apt-get install {package}")))
}

/// With its cgroups disabled, crun still refuses a host that has controllers in cgroup v2 beside those of v1. On
/// such a host it runs where the v2 hierarchy is not mounted, which needs no right that it does not have anyway.
fn cgroups_are_mixed() -> bool {
    std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers")
        .is_ok_and(|names| !names.trim().is_empty())
}

/// Runs in a mount namespace of its own, before crun takes the process over.
const HIDE_MIXED_CGROUPS: &str = "umount -l /sys/fs/cgroup/unified && exec crun \"$@\"";

/// The last error in crun's log.
fn last_error(log: &str) -> Option<String> {
    let records = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let errors = records.filter(|record| record["level"] == "error");
    errors.filter_map(|record| Some(record["msg"].as_str()?.to_owned())).next_back()
}

fn crun_failure(message: &str) -> Failure {
    let exit = if !message.contains("executable") && !message.contains("exec") {
        Exit::ExecFailed
    } else if message.contains("No such file") || message.contains("not found") {
        Exit::ProgramNotFound
    } else if message.contains("ermission denied")
        || message.contains("format error")
        || message.contains("directory")
    {
        Exit::NotExecutable
    } else {
        Exit::ExecFailed
    };
    Failure::new(exit, format!("cannot run the program: {message}"))
}

/// Runs a program with the caller's stdin, stdout and stderr, and returns its exit code.
pub(crate) fn run_interactive(spec: &ExecSpec, quiet: bool) -> Result<u8> {
    // Only when both are: a pseudo-terminal would change the line ends of what is written to a file or a pipe.
    let both = io::stdin().is_terminal() && io::stdout().is_terminal();
    let terminal = both.then(|| rustix::termios::tcgetwinsize(io::stdin())).transpose();
    let terminal = terminal.map_err(|e| Failure::io("cannot ask for the terminal's size", &e.into()))?;
    // Before anything is made that somebody would have to take away.
    interrupt::install()?;
    let prepared = Prepared::new(spec, terminal, quiet)?;
    interrupt::check()?;
    let mut command = prepared.command();
    let relays = stdio::Relays::start(&mut command);
    let relays = relays.map_err(|e| Failure::io("cannot pass the program's input and output on", &e))?;
    let code = prepared.run(command, false);
    relays.finish();
    code
}

/// Runs a program without input; what it prints goes to stderr, or with `quiet` nowhere unless it fails.
pub(crate) fn run_step(spec: &ExecSpec, what: &str, quiet: bool) -> Result<()> {
    let prepared = Prepared::new(spec, None, true)?;
    let mut command = prepared.command();
    let printed = capture(&mut command, quiet)?;
    let code = prepared.run(command, true);
    interrupt::check()?;
    match code {
        Ok(0) => Ok(()),
        Ok(code) => Err(failed_step(what, &format!("exit code {code}"), printed)),
        Err(failure) => Err(failure.during(what)),
    }
}

/// Sets where a tool's output goes: our stderr, or a file that is shown only when the tool fails.
pub(crate) fn capture(command: &mut Command, quiet: bool) -> Result<Option<File>> {
    command.stdin(Stdio::null());
    let what = |e: io::Error| Failure::io("cannot keep the output of a tool", &e);
    if quiet {
        let file = tempfile::tempfile().map_err(what)?;
        command.stdout(file.try_clone().map_err(what)?).stderr(file.try_clone().map_err(what)?);
        return Ok(Some(file));
    }
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(what)?;
    command.stdout(stderr).stderr(Stdio::inherit());
    Ok(None)
}

/// The failure of a step, with the last lines it printed if nobody saw them.
pub(crate) fn failed_step(what: &str, why: &str, printed: Option<File>) -> Failure {
    const LAST_LINES: usize = 20;
    let mut text = String::new();
    if let Some(mut file) = printed {
        let mut bytes = Vec::new();
        // What cannot be read is not shown; the failure itself is told all the same.
        let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
        let all = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = all.lines().collect();
        for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
            text.push_str("\n  | ");
            text.push_str(line);
        }
    }
    Failure::new(Exit::Failure, format!("{what} failed: {why}{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds() {
        let bind = |text: &str| text.parse::<Bind>();
        let expected = Bind { source: "a".into(), target: "/b".into(), read_only: true };
        assert_eq!(bind("a:/b:ro"), Ok(expected.clone()));
        assert_eq!(bind("a:/b"), Ok(Bind { read_only: false, ..expected }));
        for bad in ["", "a", "a:b", ":/b", "a:/", "a:/b:rw"] {
            assert!(bind(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_crun_writes_the_log() {
        let log = "{\"msg\":\"executable file `x` not found in $PATH: No such file or directory\",\"level\":\"error\"}\n";
        assert_eq!(crun_failure(&last_error(log).expect("an error")).exit, Exit::ProgramNotFound);
        assert_eq!(crun_failure("open executable: Permission denied").exit, Exit::NotExecutable);
        assert_eq!(crun_failure("mount `proc`: Operation not permitted").exit, Exit::ExecFailed);
        assert_eq!(last_error(""), None);
    }

    /// Runs programs for real when root and a root filesystem are there: `VZFS_TEST_ROOTFS=DIR`.
    #[test]
    fn programs_run_in_a_rootfs() {
        let Some(root) = std::env::var_os("VZFS_TEST_ROOTFS") else { return };
        let run = |user: &str, script: &str| {
            let spec = ExecSpec {
                root: root.clone().into(),
                hostname: "test-ve".into(),
                user: user.into(),
                workdir: "/".into(),
                env: vec![("EXTRA".into(), "1".into())],
                binds: Vec::new(),
                id_shift: None,
                network: Network::Host,
                command: ["/bin/sh", "-ec", script].map(Into::into).to_vec(),
            };
            run_interactive(&spec, true)
        };
        assert_eq!(run("root", "exit 7").ok(), Some(7));
        assert_eq!(run("root", "kill -9 $$; kill -TERM $$; exit 9").ok(), Some(9), "process 1 is immune");
        assert_eq!(run("root", "sh -c 'kill -9 $$'").ok(), Some(137));
        assert_eq!(
            run("root", "test $(hostname) = test-ve && test $$ = 1 && test \"$EXTRA\" = 1").ok(),
            Some(0)
        );
        assert_eq!(
            run("root", "! touch /sys/x 2>/dev/null; touch /dev/shm/x; test -c /dev/null").ok(),
            Some(0)
        );
        assert_eq!(run("www-data", "test $(id -u) = 33 && test $HOME = /var/www").ok(), Some(0));
        assert_eq!(
            run(
                "root",
                "env | cut -d= -f1 | sort | tr '\\n' ' ' | grep -qx 'EXTRA HOME LANG PATH PWD TERM '"
            )
            .ok(),
            Some(0)
        );
        let code = |command: &str, workdir: &str| {
            let spec = ExecSpec {
                root: root.clone().into(),
                hostname: "test-ve".into(),
                user: "root".into(),
                workdir: workdir.into(),
                env: Vec::new(),
                binds: Vec::new(),
                id_shift: None,
                network: Network::None,
                command: vec![command.into()],
            };
            run_interactive(&spec, true).map_err(|failure| failure.exit)
        };
        assert_eq!(code("true", "/usr"), Ok(0));
        assert_eq!(code("./true", "/usr/bin"), Ok(0));
        assert_eq!(code("no-such-program", "/"), Err(Exit::ProgramNotFound));
        assert_eq!(code("/etc/passwd", "/"), Err(Exit::NotExecutable));
        assert_eq!(code("/etc", "/"), Err(Exit::NotExecutable));
        assert_eq!(code("true", "/no-such-dir"), Err(Exit::ExecFailed));
        assert!(!Path::new(&root).join("no-such-dir").exists());
        assert_eq!(
            run("root", "! mknod /tmp/disk b 8 0 2>/dev/null; mknod /tmp/zero c 1 5; rm /tmp/zero").ok(),
            Some(0)
        );
        assert_eq!(run("nobody-here", "true").expect_err("no such user").exit, Exit::NotFound);
    }
}
