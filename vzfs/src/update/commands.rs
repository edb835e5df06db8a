//! Commands inside VEs: the program `vzfs ve exec`, started by the daemon, with a limit of time and of output.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::Ran;
use crate::types::VeName;

/// How much of the end of a command's output is kept. It becomes part of a record.
const OUTPUT_BYTES: usize = 8 << 10;
/// `ve exec` passes the first signal on, and at the second kills all that runs inside. Signals closer together could be taken for one.
const BETWEEN_SIGNALS: Duration = Duration::from_millis(500);
/// How long it may take for that. Then it is killed itself.
const KILLING: Duration = Duration::from_secs(10);
/// How long output may come after the end: what was left behind in the VE may hold the pipe for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Runs commands in VEs by way of the command line, which knows how to enter one.
#[derive(Clone, Debug)]
pub struct CommandRunner {
    /// The program `vzfs`.
    pub program: PathBuf,
    /// The daemon's socket.
    pub socket: PathBuf,
}

impl CommandRunner {
    /// Whether the program is there.
    ///
    /// # Errors
    /// It is not, or is no file.
    pub fn look(&self) -> io::Result<()> {
        let named =
            |why: &dyn std::fmt::Display| io::Error::other(format!("{}: {why}", self.program.display()));
        match std::fs::metadata(&self.program) {
            Ok(metadata) if metadata.is_file() => Ok(()),
            Ok(_) => Err(named(&"it is not a file")),
            Err(error) => Err(named(&error)),
        }
    }

    /// Runs a shell command in a VE; at the limit, and when `give_up` says so, it is ended with all that it started.
    ///
    /// # Errors
    /// It could not be started.
    pub fn run(
        &self,
        ve: &VeName,
        command: &str,
        limit: Duration,
        give_up: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Ran> {
        let started = Instant::now();
        let (reader, writer) = io::pipe()?;
        let mut child = Command::new(&self.program)
            .arg("--socket")
            .arg(&self.socket)
            .args(["--quiet", "ve", "exec", ve.as_str(), "--", "/bin/sh", "-c", command])
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        let (output, end) = collect(reader)?;
        let ended = wait(&mut child, started + limit, give_up);
        let code = match ended? {
            // As a shell counts an end by a signal.
            Some(status) => {
                use std::os::unix::process::ExitStatusExt;
                Some(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1))
            }
            None => {
                end_all(&mut child)?;
                None
            }
        };
        let _ = end.recv_timeout(LAST_WORDS);
        let output = String::from_utf8_lossy(output.lock().make_contiguous()).into_owned();
        Ok(Ran { code, output, took: started.elapsed() })
    }
}

type Output = Arc<Mutex<VecDeque<u8>>>;

/// Keeps the end of what comes, on a thread of its own. The receiver is told when nothing comes any more.
fn collect(mut reader: impl Read + Send + 'static) -> io::Result<(Output, Receiver<()>)> {
    let (output, (done, end)) = (Output::default(), channel());
    let kept = Arc::clone(&output);
    std::thread::Builder::new().name("update-output".to_owned()).spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut chunk) {
            let mut kept = kept.lock();
            kept.extend(&chunk[..count]);
            let surplus = kept.len().saturating_sub(OUTPUT_BYTES);
            kept.drain(..surplus);
        }
        let _ = done.send(());
    })?;
    Ok((output, end))
}

/// Waits for the end; `None` at the deadline, or when nobody wants to wait any more.
fn wait(
    child: &mut Child,
    deadline: Instant,
    give_up: &(dyn Fn() -> bool + Sync),
) -> io::Result<Option<ExitStatus>> {
    let mut nap = Duration::from_millis(2);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let now = Instant::now();
        if now >= deadline || give_up() {
            return Ok(None);
        }
        std::thread::sleep(nap.min(deadline - now));
        nap = (nap * 2).min(Duration::from_millis(50));
    }
}

fn end_all(child: &mut Child) -> io::Result<()> {
    let pid = Pid::from_child(child);
    let deadline = Instant::now() + KILLING;
    // Again and again: one that comes while the program inside is being started finds nobody to be passed on to.
    while Instant::now() < deadline {
        // It may be gone already, and is not waited for yet, so the number is nobody else's.
        let _ = kill_process(pid, Signal::TERM);
        if wait(child, Instant::now() + BETWEEN_SIGNALS, &|| false)?.is_some() {
            return Ok(());
        }
    }
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that runs the command on the host, as `vzfs ve exec` does in a VE.
    fn runner(dir: &tempfile::TempDir) -> CommandRunner {
        let program = dir.path().join("vzfs");
        fs::write(&program, "#!/bin/sh\nshift 7\nexec \"$@\"\n").expect("writable");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("settable");
        CommandRunner { program, socket: "/nowhere".into() }
    }

    fn run(command: &str, limit: Duration) -> Ran {
        let dir = tempfile::tempdir().expect("a folder");
        runner(&dir).run(&"web".parse().expect("legal"), command, limit, &|| false).expect("started")
    }

    #[test]
    fn code_and_the_end_of_the_output_are_told() {
        let long = Duration::from_secs(30);
        let ran = run("echo one; echo two >&2; exit 3", long);
        assert_eq!((ran.code, ran.output.as_str()), (Some(3), "one\ntwo\n"));
        let ran = run("head -c 100000 /dev/zero; echo; echo last", long);
        assert!(ran.output.len() == OUTPUT_BYTES && ran.output.ends_with("\nlast\n"));
        assert_eq!(run("kill -9 $$", long).code, Some(137));
    }

    #[test]
    fn at_the_limit_everything_is_ended() {
        let started = Instant::now();
        let ran =
            run("trap '' TERM; echo begun; sleep 1000 & echo $!; wait; wait", Duration::from_millis(300));
        assert_eq!(ran.code, None);
        assert!(started.elapsed() < Duration::from_secs(60));
        let mut lines = ran.output.lines();
        assert_eq!(lines.next(), Some("begun"));
        let pid = lines.next().expect("a number");
        // It was killed; on a busy machine it takes a moment until it is gone.
        let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_gone = |state: &str| state.is_empty() || state.contains(") Z ");
        let patience = Instant::now();
        while !is_gone(&state()) && patience.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(is_gone(&state()), "it still runs: {}", state());
    }

    #[test]
    fn what_is_left_behind_is_not_waited_for() {
        let started = Instant::now();
        let ran = run("sleep 20 & exit 0", Duration::from_secs(30));
        assert!(ran.code == Some(0) && started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut runner = runner(&dir);
        assert!(runner.look().is_ok());
        runner.program = dir.path().join("absent");
        assert!(runner.look().expect_err("missing").to_string().contains("absent"));
    }
}
