//! How a daemon is replaced by its successor while VEs stay mounted, and what its supervisor has to do with it.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use rustix::process::{Signal, getpid, getppid, kill_process};
use tokio::sync::watch;

use super::error::Refusal;
use super::{Config, DaemonError, process};
use crate::api::{ApiError, DaemonStatus, ErrorCode, SandboxStatus};
use crate::sandbox::{self, Confinement, Role};
use crate::store::Store;
use crate::supervisor::{Channel, Link, Orders, Program, Report, ServiceManager};
use crate::types::Timestamp;

/// How the daemon is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Mounts are taken away.
    Close,
    /// Mounts stay for the successor.
    Leave,
}

/// The daemon as one in a row.
pub(super) struct Supervised {
    link: Arc<Link>,
    started: Timestamp,
    /// What became of the last request for a successor.
    verdict: watch::Sender<Option<Result<(), String>>>,
}

/// The supervisor: runs this program's other role until that ends. `ready` is called once. A service manager that the environment names is told, too.
///
/// # Errors
/// The daemon did not start; the error says what it said.
pub fn supervise(config: &Config, ready: impl FnOnce()) -> Result<(), DaemonError> {
    let file = std::env::current_exe().map_err(DaemonError::io("find this program"))?;
    // What the kernel calls a file that was replaced since: its successor has the name.
    let name = file.to_string_lossy();
    let file = name.strip_suffix(" (deleted)").map_or(file.clone(), PathBuf::from);
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let with = |more: &str| arguments.iter().cloned().chain([more.into()]).collect();
    let program = Program { file, daemon: with("--supervised"), probe: with("--probe") };
    process::raise_limits();
    let manager = ServiceManager::find(|name| std::env::var_os(name), &config.store);
    let manager = manager.map_err(DaemonError::io("reach the service manager at $NOTIFY_SOCKET"))?;
    if config.sandbox {
        sandbox::enter(Role::Supervisor);
    }
    crate::supervisor::supervise(&program, manager, ready)
        .map_err(|error| DaemonError::Background(error.to_string()))
}

/// The daemon's link to its supervisor, which is its standard input.
///
/// # Errors
/// This process was not started by a supervisor.
pub fn link() -> Result<Arc<Link>, DaemonError> {
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let link = socket.and_then(|socket| Link::take_up(Channel::from_socket(socket)));
    link.map_err(DaemonError::io("take up the link to the supervisor"))
}

/// Whether this version can read the store.
///
/// # Errors
/// It cannot, for this reason.
pub fn probe(config: &Config) -> Result<(), DaemonError> {
    Ok(Store::probe(&config.store)?)
}

/// Ends this process at once, in the one way that takes no mount away and that the successor must be ready for in any case.
pub(super) fn leave() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    // Not reached: a process cannot outlive that signal.
    std::process::abort()
}

impl Supervised {
    /// Follows the supervisor's orders; `ending` is told when the daemon is to end.
    pub(super) fn follow(
        link: Arc<Link>,
        ending: watch::Sender<Option<Ending>>,
    ) -> io::Result<Arc<Supervised>> {
        let (verdict, _) = watch::channel(None);
        let supervised = Arc::new(Supervised { link, started: Timestamp::now(), verdict });
        let (granted, refused) = (Arc::clone(&supervised), Arc::clone(&supervised));
        let for_end = ending.clone();
        supervised.link.follow(Orders {
            leave: move || {
                granted.verdict.send_replace(Some(Ok(())));
                ending.send_replace(Some(Ending::Leave));
            },
            refused: move |why| {
                refused.verdict.send_replace(Some(Err(why)));
            },
            end: move |outlived| {
                tracing::error!(outlived, "the supervisor is gone: ending");
                for_end.send_replace(Some(if outlived { Ending::Leave } else { Ending::Close }));
            },
        })?;
        Ok(supervised)
    }

    /// Its part of the control interface, from when all mounts are answered: so long after the start.
    pub(super) fn router(self: Arc<Supervised>, ready_after: Duration) -> Router {
        Router::new()
            .route("/v1/daemon", get(status))
            .route("/v1/daemon/restart", post(restart))
            .with_state(Ready { supervised: self, after: ready_after })
    }
}

/// A daemon that answers, and how long after its start it did.
#[derive(Clone)]
struct Ready {
    supervised: Arc<Supervised>,
    after: Duration,
}

async fn status(State(Ready { supervised, after }): State<Ready>) -> Response {
    Json(DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        supervisor_pid: getppid().map_or(0, |pid| pid.as_raw_nonzero().get().cast_unsigned()),
        started: Some(supervised.started),
        ready_after_ms: after.as_millis().try_into().ok(),
        restarts: supervised.link.restarts(),
        sandbox: Some(sandbox_status(sandbox::confinement())),
    })
    .into_response()
}

fn sandbox_status(found: Confinement) -> SandboxStatus {
    SandboxStatus { capabilities_limited: found.spare().is_empty(), system_calls_filtered: found.filtered }
}

/// Answered before the daemon ends, and only if it will.
async fn restart(State(ready): State<Ready>) -> Result<Response, Refusal> {
    let supervised = &ready.supervised;
    let mut verdict = supervised.verdict.subscribe();
    supervised.verdict.send_replace(None);
    supervised.link.report(&Report::Replace);
    let outcome = verdict.wait_for(Option::is_some).await.ok().and_then(|verdict| verdict.clone());
    match outcome {
        Some(Ok(())) => Ok(status(State(ready)).await),
        Some(Err(why)) => {
            let error = ApiError::new(ErrorCode::Unsupported, format!("the daemon was not replaced: {why}"));
            Err(Refusal(error.with_hint("install a version that can read this store, and try again")))
        }
        None => Err(Refusal(ApiError::new(ErrorCode::Internal, "the supervisor does not answer"))),
    }
}
