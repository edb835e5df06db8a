//! The supervisor's loop.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::manager::{Held, ServiceManager, hide_from};
use super::{Channel, HINT, Holding, Order, Report};
use crate::types::VeId;

/// Waited before the third start in a row when none before it got as far as to answer requests; doubled each time, up to [`MAX_PATIENCE`]. One that
/// did is followed at once: programs wait.
const PATIENCE: Duration = Duration::from_millis(50);
const MAX_PATIENCE: Duration = Duration::from_secs(5);

/// How to start the daemon.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file; looked at anew for each start, so that a new version takes over.
    pub file: PathBuf,
    /// Arguments of the daemon.
    pub daemon: Vec<OsString>,
    /// Arguments with which it says whether it can read the store: exits with 0, or writes why not.
    pub probe: Vec<OsString>,
}

/// The mounts that the supervisor holds, and who goes on holding them if it dies.
struct Mounts {
    held: BTreeMap<VeId, Held>,
    manager: Option<ServiceManager>,
}

impl Mounts {
    fn keep(&mut self, holding: Holding, device: OwnedFd, ledger: OwnedFd) {
        // The one before has ended, or the daemon would not have made another.
        self.forget(holding.ve);
        let told =
            self.manager.as_ref().map(|manager| manager.keep(&holding, device.as_fd(), ledger.as_fd()));
        let name = told.transpose().unwrap_or_else(|error| {
            warn!(ve = %holding.ve, %error, "the mount will not outlive this supervisor");
            None
        });
        self.held.insert(holding.ve, Held { holding, device, ledger, name });
    }

    fn forget(&mut self, ve: VeId) {
        let held = self.held.remove(&ve);
        if let (Some(manager), Some(name)) = (&self.manager, held.and_then(|held| held.name)) {
            manager.forget(&name);
        }
    }
}

/// A running daemon.
struct Daemon {
    child: Child,
    channel: Arc<Channel>,
    /// What it says, in order; ends with it.
    reports: mpsc::UnboundedReceiver<(Report, Vec<OwnedFd>)>,
    /// Requests are answered.
    ready: bool,
    /// Why it said that it cannot start.
    failed: Option<String>,
    /// It was told to make room for its successor.
    leaving: bool,
}

/// Runs daemons one after the other until one ends in order, or a signal asks for it. `ready` is called once, when the first one answers requests.
/// A service manager is told too, and keeps the mounts for the supervisor after this one.
///
/// # Errors
/// The first daemon did not start; with what it said, if anything.
pub fn supervise(program: &Program, manager: Option<ServiceManager>, ready: impl FnOnce()) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = manager.as_ref().map(ServiceManager::take_up).unwrap_or_default();
    if !held.is_empty() {
        info!(mounts = held.len(), "going on with what another supervisor has left");
    }
    let held = held.into_iter().map(|held| (held.holding.ve, held)).collect();
    runtime.block_on(watch(program, Mounts { held, manager }, ready))
}

async fn watch(program: &Program, mut mounts: Mounts, ready: impl FnOnce()) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ready = Some(ready);
    let (mut restarts, mut failures) = (0, 0);
    let mut stopping = false;
    let mut daemon = start(program, &mounts, restarts)?;
    loop {
        tokio::select! {
            // What a daemon said before it died comes before its death.
            biased;
            report = daemon.reports.recv() => match report {
                Some((report, descriptors)) => {
                    if matches!(report, Report::Ready)
                        && let Some(ready) = ready.take()
                    {
                        ready();
                        mounts.manager.iter().for_each(ServiceManager::ready);
                    }
                    obey(program, &mut daemon, &mut mounts, report, descriptors).await;
                }
                None => {
                    let status = daemon.child.wait().await?;
                    if stopping || status.success() {
                        return Ok(());
                    }
                    if ready.is_some() {
                        let why = daemon.failed.unwrap_or_else(|| format!("the daemon ended at its start ({})", ended(status)));
                        return Err(io::Error::other(why));
                    }
                    restarts += 1;
                    if daemon.leaving {
                        info!(mounts = mounts.held.len(), restarts, "the daemon has made room for its successor");
                        failures = 0;
                    } else {
                        failures = if daemon.ready { 0 } else { failures + 1 };
                        let why = daemon.failed.unwrap_or_else(|| ended(status));
                        let (why, hint) = why.split_once(HINT).map_or((&*why, None), |(why, hint)| (why, Some(hint)));
                        error!(why, hint, mounts = mounts.held.len(), restarts, "the daemon is gone and is started again");
                    }
                    if failures > 1 {
                        let patience = PATIENCE.saturating_mul(1 << (failures - 2).min(10)).min(MAX_PATIENCE);
                        tokio::select! {
                            () = tokio::time::sleep(patience) => {}
                            _ = terminate.recv() => return Ok(()),
                            _ = interrupt.recv() => return Ok(()),
                        }
                    }
                    daemon = start(program, &mounts, restarts)?;
                }
            },
            _ = terminate.recv() => stopping = stop(&daemon, &mounts),
            _ = interrupt.recv() => stopping = stop(&daemon, &mounts),
        }
    }
}

/// The program, without what the service manager means for this process.
fn command(program: &Program) -> Command {
    let mut command = Command::new(&program.file);
    hide_from(command.as_std_mut());
    command
}

/// Starts a daemon and tells it of the mounts that are held.
fn start(program: &Program, mounts: &Mounts, restarts: u64) -> io::Result<Daemon> {
    let (ours, theirs) = Channel::pair()?;
    let child = command(program)
        .args(&program.daemon)
        .stdin(Stdio::from(theirs.into_socket()))
        // Only the supervisor's own readiness is told there.
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", program.file.display()))
        })?;
    for Held { holding, device, ledger, .. } in mounts.held.values() {
        // A daemon that dies while it is told is started again.
        let _ = ours.send(&Order::Held(holding.clone()), &[device.as_fd(), ledger.as_fd()]);
    }
    let all = Order::AllHeld { restarts, notifies: true, outlived: mounts.manager.is_some() };
    let _ = ours.send(&all, &[]);
    let channel = Arc::new(ours);
    let reports = listen(Arc::clone(&channel), child.id())?;
    Ok(Daemon { child, channel, reports, ready: false, failed: None, leaving: false })
}

/// Receives in a thread of its own until the daemon is gone. One that says what is no report is killed.
fn listen(
    channel: Arc<Channel>,
    pid: Option<u32>,
) -> io::Result<mpsc::UnboundedReceiver<(Report, Vec<OwnedFd>)>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("reports".to_owned()).spawn(move || {
        loop {
            match channel.receive() {
                Ok(Some(report)) => {
                    // Nobody listens only when the supervisor ends.
                    let _ = sender.send(report);
                }
                Ok(None) => return,
                Err(error) => {
                    error!(%error, "the daemon says what nobody understands");
                    send_signal(pid, Signal::KILL);
                    return;
                }
            }
        }
    })?;
    Ok(receiver)
}

async fn obey(
    program: &Program,
    daemon: &mut Daemon,
    mounts: &mut Mounts,
    report: Report,
    descriptors: Vec<OwnedFd>,
) {
    match report {
        Report::Keep(holding) => match <[OwnedFd; 2]>::try_from(descriptors) {
            Ok([device, ledger]) => mounts.keep(holding, device, ledger),
            Err(_) => error!(ve = %holding.ve, "a mount came without its descriptors"),
        },
        Report::Drop(ve) => mounts.forget(ve),
        Report::Notify { ve, number } => {
            let device = mounts.held.get(&ve).and_then(|held| held.device.try_clone().ok());
            notify(device, descriptors.into_iter().next(), number, Arc::clone(&daemon.channel));
        }
        Report::Ready => daemon.ready = true,
        Report::Failed(why) => daemon.failed = Some(why),
        Report::Replace => {
            let order = match probe(program).await {
                Ok(()) => {
                    daemon.leaving = true;
                    Order::Leave
                }
                Err(why) => {
                    warn!(why, "the daemon stays: its successor would not work");
                    Order::Refused(why)
                }
            };
            let _ = daemon.channel.send(&order, &[]);
        }
    }
}

/// Writes notices in a thread of its own: it may have to wait for the daemon, or for the next.
fn notify(device: Option<OwnedFd>, sheet: Option<OwnedFd>, number: u64, channel: Arc<Channel>) {
    let answer = Arc::clone(&channel);
    let write = move || {
        if let Some((device, sheet)) = device.zip(sheet)
            && let Err(error) = write_notices(&device, &mut File::from(sheet))
        {
            error!(%error, "the kernel is not told of changed names");
        }
        // One that died meanwhile asks no more.
        let _ = channel.send(&Order::Notified(number), &[]);
    };
    if let Err(error) = std::thread::Builder::new().name("notices".to_owned()).spawn(write) {
        error!(%error, "the kernel is not told of changed names");
        let _ = answer.send(&Order::Notified(number), &[]);
    }
}

/// Writes each notice of a sheet, whose first 32 bits say how long it is.
fn write_notices(device: &OwnedFd, sheet: &mut File) -> io::Result<()> {
    let mut bytes = Vec::new();
    sheet.rewind()?;
    sheet.read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    while let Some(len) = rest.first_chunk().map(|len| u32::from_ne_bytes(*len) as usize) {
        let (notice, others) = rest.split_at_checked(len.max(1)).ok_or(io::ErrorKind::InvalidData)?;
        // Refused when the kernel does not know the name, or the mount is gone.
        let _ = rustix::io::write(device, notice);
        rest = others;
    }
    Ok(())
}

/// Asks the program that would be started whether it can read the store.
async fn probe(program: &Program) -> Result<(), String> {
    let output = command(program).args(&program.probe).stdin(Stdio::null()).output().await;
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(if text.is_empty() { format!("it {}", ended(output.status)) } else { text })
        }
        Err(error) => Err(format!("cannot start {}: {error}", program.file.display())),
    }
}

/// Asks the daemon to end in order.
fn stop(daemon: &Daemon, mounts: &Mounts) -> bool {
    mounts.manager.iter().for_each(ServiceManager::stopping);
    send_signal(daemon.child.id(), Signal::TERM);
    true
}

/// To a child that was not waited for, so that the number is still its own.
fn send_signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = kill_process(pid, signal);
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, code) => format!("exited with {}", code.unwrap_or(-1)),
    }
}
