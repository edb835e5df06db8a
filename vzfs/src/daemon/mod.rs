//! The daemon: one process that owns a store, its mounts and the control interface.
//!
//! The process that is started is the supervisor ([`supervise`]), and the daemon is its child: see [`crate::supervisor`].
//!
//! Life: [`Args`] are resolved once into a [`Config`]; [`start`] opens the store, listens, mounts what was mounted before, tells
//! whoever waits that it is ready, and then answers requests until SIGTERM or SIGINT. It then stops accepting, gives running requests a
//! moment, and takes all mounts away; they come back at the next start. Rollouts that were running go on when the mounts are there ([`updates`]).
//!
//! Requests are answered on one asynchronous thread that does no work: whatever touches the store runs on blocking threads
//! ([`routes`]), and what takes long tells how far it is through a stream ([`streams`]). No request takes a lock here.

mod chores;
mod config;
mod doctor;
mod error;
mod handover;
mod idle;
mod metrics;
mod mounter;
mod process;
mod rights;
mod routes;
mod server;
mod streams;
mod updates;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use config::{
    Args, Config, Dedup, Every, IdleChoice, LogFormat, PassthroughChoice, SandboxChoice, Scrub,
};
pub use handover::{link, probe, supervise};
pub use idle::IdleDriver;
pub use process::{detach, start_in_background, start_logging, tell_ready};
pub use routes::router;
pub use server::Listener;

use crate::fuse::Gate;
use crate::meta::MetaError;
use crate::sandbox::{self, Role};
use crate::store::{DiskFailure, Store, StoreError};
use crate::supervisor::{HINT, Link};
use crate::update::{CommandRunner, UpdateError, Updates};
use handover::{Ending, Supervised};
use mounter::FuseMounter;

/// How long running requests may go on after the signal to end. Then the mounts are taken away under them.
const GRACE: Duration = Duration::from_secs(10);
/// How long a start waits for the last daemon to let go of the store.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Why the daemon did not start, or ended.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The rollouts cannot be read.
    #[error(transparent)]
    Updates(Box<UpdateError>),
    /// Another daemon listens there.
    #[error("another daemon listens on {}", .0.display())]
    SocketTaken(PathBuf),
    /// The group that may look is none of this host's.
    #[error("there is no group {0} on this host")]
    NoGroup(String),
    /// Something else has the socket's name.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What, with its object.
        action: String,
        /// Why.
        source: std::io::Error,
    },
    /// The background process said why it ended, or ended without a word.
    #[error("{0}")]
    Background(String),
}

impl From<UpdateError> for DaemonError {
    fn from(error: UpdateError) -> DaemonError {
        DaemonError::Updates(Box::new(error))
    }
}

impl DaemonError {
    fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> DaemonError {
        let action = action.into();
        move |source| DaemonError::Io { action, source }
    }

    /// The error for people, with what can be done about it.
    pub fn with_hint(&self) -> String {
        let hint = self.hint().map(|hint| format!("{HINT}{hint}")).unwrap_or_default();
        format!("{self}{hint}")
    }

    /// What can be done about it, if that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            DaemonError::Store(error) => error::reply(error).hint,
            DaemonError::Updates(error) => error::Told::told(&**error).hint,
            DaemonError::SocketTaken(_) => {
                Some("stop it, or give this one another --socket and --store".to_owned())
            }
            _ => None,
        }
    }
}

/// Runs the daemon until a signal ends it, or its supervisor says so. `ready` is called once, when requests are answered and the wanted mounts
/// are made or taken over.
pub fn start(config: &Config, link: Option<Arc<Link>>, ready: impl FnOnce()) -> Result<(), DaemonError> {
    let begin = Instant::now();
    process::set_up()?;
    if config.sandbox {
        sandbox::enter(Role::Daemon);
    }
    let gate = Arc::new(Gate::default());
    let mounter = FuseMounter::new(config, link.clone(), Arc::clone(&gate));
    let store = Arc::new(open_store(config, Box::new(mounter))?);
    if link.is_some() {
        // The supervisor starts this program again within moments, and the kernel asks it once more what it has not answered.
        store.when_stuck(|failure| {
            match failure {
                DiskFailure::Full => tracing::error!(
                    "the database cannot write, as the disk is full: starting again with the space that is kept for this"
                ),
                DiskFailure::Quota => tracing::error!(
                    "the database could not write, as a quota of the store's disk is used up: starting again to make it write"
                ),
                DiskFailure::Broken => {
                    tracing::warn!("the disk takes writes again: starting again to make the database write");
                }
            }
            handover::leave();
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::io("start the runtime"))?;
    let commands = CommandRunner { program: config.vzfs.clone(), socket: config.socket.clone() };
    let updates = Updates::of_store(&store, commands)?;
    let result = runtime.block_on(serve(config, &store, &updates, (link, gate), (begin, ready)));
    // Requests that are still running are cut off: whatever they did not finish, the next start cleans up.
    runtime.shutdown_background();
    result
}

/// Opens the store. A daemon that is ending lets go of it in a moment: of the store's lock first, and of the database's when the kernel has come to
/// that descriptor.
fn open_store(config: &Config, mounter: Box<FuseMounter>) -> Result<Store, DaemonError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Store::create_or_open(&config.store, mounter.clone()) {
            Err(StoreError::Locked { .. } | StoreError::Meta(MetaError::Locked { .. }))
                if Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return Ok(opened?),
        }
    }
}

async fn serve(
    config: &Config,
    store: &Arc<Store>,
    updates: &Arc<Updates>,
    (link, gate): (Option<Arc<Link>>, Arc<Gate>),
    (begin, ready): (Instant, impl FnOnce()),
) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::io("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::io("handle SIGINT"))?;
    // Before the mounts, so that a client that comes meanwhile waits in the queue instead of being refused.
    let listener = Listener::bind(&config.socket, config.readers)?;
    let for_metrics = match config.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };

    let (end, ending) = watch::channel(None);
    let supervised = link.clone().map(|link| Supervised::follow(link, end.clone())).transpose();
    let supervised = supervised.map_err(DaemonError::io("follow the supervisor"))?;
    let for_mounts = Arc::clone(store);
    let mounts = tokio::task::spawn_blocking(move || {
        for_mounts.mount_wanted();
        gate.open();
    });
    let mut by_order = ending.clone();
    let for_signals = link.clone();
    let signals = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
            _ = by_order.wait_for(Option::is_some) => return,
        }
        // A service manager may end what a dead supervisor has left in this way; the mounts are not meant.
        let outlived = for_signals.is_some_and(|link| link.is_outlived());
        end.send_replace(Some(if outlived { Ending::Leave } else { Ending::Close }));
    };
    let wait_for_end = |mut ending: watch::Receiver<Option<Ending>>| async move {
        let _ = ending.wait_for(Option::is_some).await;
    };
    let service = async {
        tokio::select! {
            _ = mounts => {}
            () = wait_for_end(ending.clone()) => return Ok(()),
        }
        if let Some(link) = &link {
            mounter::discard(link);
        }
        let ready_after = begin.elapsed();
        tracing::info!(
            store = %store.dir().display(), socket = %config.socket.display(), ms = ready_after.as_millis(), "ready"
        );
        ready();
        updates.go_on();
        let metrics =
            metrics::Metrics { store: Arc::clone(store), updates: Arc::clone(updates), link, ready_after };
        let mut routes = metrics.clone().router().merge(router(Arc::clone(store), Arc::clone(updates)));
        if let Some(supervised) = supervised {
            routes = supervised.router(ready_after).merge(routes);
        }
        let routes = routes.layer(axum::middleware::from_fn(rights::check));
        let served = axum::serve(listener, routes.into_make_service_with_connect_info::<rights::Peer>());
        let served = served.with_graceful_shutdown(wait_for_end(ending.clone()));
        let chores = async {
            let scrub = chores::run(Arc::clone(store), config.scrub);
            let dedup = chores::run(Arc::clone(store), config.dedup);
            tokio::join!(scrub, dedup);
        };
        let watched = async {
            match for_metrics {
                Some(listener) => metrics.serve(listener).await,
                None => std::future::pending().await,
            }
        };
        let deadline = async {
            wait_for_end(ending.clone()).await;
            // Whoever follows an update would be waited for otherwise.
            updates.end();
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            () = chores => Ok(()),
            failed = watched => failed,
            result = served => result.map_err(DaemonError::io("serve requests")),
            () = deadline => {
                tracing::warn!("requests are still running and are cut off");
                Ok(())
            }
        }
    };
    let ((), result) = tokio::join!(signals, service);
    let leaving = *ending.borrow() == Some(Ending::Leave);
    let (closing, rollouts) = (Arc::clone(store), Arc::clone(updates));
    let close = move || {
        // While VEs still answer: what is under way in them comes to an end or is given up.
        rollouts.close();
        if leaving { closing.leave() } else { closing.close() }
    };
    if let Err(error) = tokio::task::spawn_blocking(close).await {
        tracing::error!(%error, "closing the store failed");
    }
    if leaving {
        tracing::info!("leaving the mounts to the next daemon");
        handover::leave();
    }
    server::remove_socket(&config.socket);
    result
}

#[cfg(test)]
mod tests;
