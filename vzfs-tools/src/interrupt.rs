//! Signals that ask the command to stop, while it runs other programs.
//!
//! A thread of its own receives them, so that the main thread can block in a wait. What to do is told for the time
//! of one child; a child is reaped only after its action is gone, so a signal never meets a stranger with its number.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Failure, Result};

/// What is done with the `n`th signal (from 1) during one child.
type Action = Box<dyn FnMut(Signal, u32) + Send>;

struct Watch {
    seen: AtomicU32,
    action: Mutex<Option<(u32, Action)>>,
}

fn watch() -> io::Result<&'static Watch> {
    static WATCH: OnceLock<Watch> = OnceLock::new();
    if let Some(watch) = WATCH.get() {
        return Ok(watch);
    }
    let watch = WATCH.get_or_init(|| Watch { seen: AtomicU32::new(0), action: Mutex::new(None) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async move {
            loop {
                let signal = tokio::select! {
                    _ = interrupt.recv() => Signal::INT,
                    _ = terminate.recv() => Signal::TERM,
                    _ = hangup.recv() => Signal::HUP,
                };
                watch.seen.fetch_add(1, Ordering::SeqCst);
                if let Some((count, action)) =
                    watch.action.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
                {
                    *count += 1;
                    action(signal, *count);
                }
            }
        });
    })?;
    Ok(watch)
}

/// From now on such signals are noticed instead of ending the process.
pub(crate) fn install() -> Result<()> {
    watch().map(drop).map_err(|e| Failure::io("cannot watch for signals", &e))
}

/// Fails when a signal has come since the start.
pub(crate) fn check() -> Result<()> {
    let seen = watch().is_ok_and(|watch| watch.seen.load(Ordering::SeqCst) > 0);
    if seen { Err(Failure::interrupted()) } else { Ok(()) }
}

/// Waits for a child; meanwhile each signal calls `action` with the child's number, the signal and how many came.
pub(crate) fn wait(
    child: &mut Child,
    mut action: impl FnMut(Pid, Signal, u32) + Send + 'static,
) -> io::Result<ExitStatus> {
    let watch = watch()?;
    let pid = Pid::from_child(child);
    let set = |new| *watch.action.lock().unwrap_or_else(PoisonError::into_inner) = new;
    set(Some((0, Box::new(move |signal, count| action(pid, signal, count)))));
    let exited = loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    set(None);
    exited?;
    child.wait()
}
