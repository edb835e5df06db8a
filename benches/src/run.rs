//! Running programs: on the host, and inside a tree.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program that takes longer than this has failed.
const PATIENCE: &str = "900";

/// Runs a program that must succeed.
///
/// # Errors
/// It cannot be started, or it failed; then the error has the end of what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    bail!("{} ({}): {last}", command.get_program().display(), output.status)
}

/// A program of the host with arguments, which must succeed.
///
/// # Errors
/// As [`run`].
pub fn host(words: &[&str], paths: &[&Path]) -> Result<String> {
    let [program, arguments @ ..] = words else { bail!("no program to run") };
    run(Command::new(program).args(arguments).args(paths))
}

/// A shell script in a tree, as root and with nothing of the host's environment; not started.
pub fn inside(root: &Path, script: &str) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["-k", "5", PATIENCE, "chroot"])
        .arg(root)
        .args(["/bin/sh", "-ec", script])
        .env_clear()
        .envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LC_ALL", "C"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("TMPDIR", "/srv/work"),
        ]);
    command
}

/// Runs a shell script in a tree.
///
/// # Errors
/// As [`run`].
pub fn sh(root: &Path, script: &str) -> Result<()> {
    run(&mut inside(root, script)).map(drop)
}

/// Writes everything that is waiting to be written.
pub fn sync() {
    rustix::fs::sync();
}

/// Empties the kernel's caches.
///
/// # Errors
/// Only root may.
pub fn drop_caches() -> Result<()> {
    sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches")
}

/// Progress on stderr, for who watches.
pub fn say(text: &str) {
    if std::io::stderr().is_terminal() || std::env::var_os("VZFS_BENCH_PROGRESS").is_some() {
        eprintln!("{text}");
    }
}
