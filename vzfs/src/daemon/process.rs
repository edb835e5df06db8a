//! The daemon as a process: limits, logs, and how it gets into the background.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use super::{Config, DaemonError, LogFormat};
use crate::supervisor::hide_from;
use crate::sys;

/// What the background process writes on its standard output when requests are answered.
const READY: &str = "ready";
/// Which log lines: the syntax of tracing's `EnvFilter`.
const LOG_VARIABLE: &str = "VZFS_LOG";
/// What fuser has to say (each mount, and a warning at each unmount that was not its own) is told here already.
const DEFAULT_FILTER: &str = "info,fuser=error";

/// Makes the process fit for hundreds of mounts. Called before threads are started.
pub(super) fn set_up() -> Result<(), DaemonError> {
    sys::map_large_allocations();
    // Modes come from the VEs' programs, which applied their own umask already.
    rustix::process::umask(rustix::fs::Mode::empty());
    raise_limits();
    // A working directory would keep its filesystem from being unmounted.
    std::env::set_current_dir("/").map_err(DaemonError::io("change to /"))
}

/// Allows as many descriptors as the administrator does: a mount needs some, and each open file of each VE one.
pub(super) fn raise_limits() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Sends log lines to standard error. Called once.
pub fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Fails only when a logger is there already, as in tests.
    let _ = started;
    // fuser logs through the other crate.
    let _ = tracing_log::LogTracer::init();
}

/// Starts this program again in a session of its own and returns when that says that it is ready.
///
/// A new program and not a fork: forking a process with threads leaves their locks as they were.
///
/// # Errors
/// [`DaemonError::Background`] with what the other process says, when it ends instead.
pub fn start_in_background(config: &Config) -> Result<(), DaemonError> {
    let program = std::env::current_exe().map_err(DaemonError::io("find this program"))?;
    let log = config.socket.with_extension("log");
    let open_log = |path: &Path| OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let log_file = open_log(&log).map_err(DaemonError::io(format!("open the log {}", log.display())))?;
    let mut command = Command::new(program);
    // A service manager that started this process knows it, and not the one in the background.
    hide_from(&mut command);
    let mut child = command
        // With its other arguments, in the same folder: relative paths mean the same there.
        .args(std::env::args_os().skip(1))
        .args(["--foreground", "--background-child"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .map_err(DaemonError::io("start the background process"))?;
    let Some(pipe) = child.stdout.take() else {
        return Err(DaemonError::Background("the background process has no pipe".to_owned()));
    };
    let mut pipe = BufReader::new(pipe);
    let mut text = String::new();
    pipe.read_line(&mut text).map_err(DaemonError::io("wait for the background process"))?;
    if text.trim_end() == READY {
        return Ok(());
    }
    let _ = pipe.read_to_string(&mut text);
    let _ = child.wait();
    let text = text.trim_end();
    Err(DaemonError::Background(if text.is_empty() {
        format!("the background process ended at once; its log is {}", log.display())
    } else {
        text.to_owned()
    }))
}

/// Leaves the session of whoever started the command, so that closing their terminal does not end the daemon.
pub fn detach() {
    // Refused for a group leader, which a process just started by us is not.
    let _ = rustix::process::setsid();
}

/// Tells the command that waits that the daemon is ready. It then goes away, and nothing else is ever written there.
pub fn tell_ready() {
    use std::io::Write;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{READY}").and_then(|()| out.flush());
}
