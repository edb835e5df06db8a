//! The daemon: one process that owns a store, its mounts and the control interface.
//!
//! Life: [`Args`] are resolved once into a [`Config`]; [`start`] opens the store, listens, mounts what was mounted before, tells
//! whoever waits that it is ready, and then answers requests until SIGTERM or SIGINT. It then stops accepting, gives running requests a
//! moment, and takes all mounts away; they come back at the next start.
//!
//! Requests are answered on one asynchronous thread that does no work: whatever touches the store runs on blocking threads
//! ([`routes`]), and what takes long tells how far it is through a stream ([`streams`]). No request takes a lock here.

mod config;
mod doctor;
mod error;
mod mounter;
mod process;
mod routes;
mod scrub;
mod server;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

pub use config::{Args, Config, LogFormat, PassthroughChoice, Scrub, ScrubInterval};
pub use process::{detach, start_in_background, start_logging, tell_ready};
pub use routes::router;
pub use server::Listener;

use crate::store::{Store, StoreError};
use mounter::FuseMounter;

/// How long running requests may go on after the signal to end. Then the mounts are taken away under them.
const GRACE: Duration = Duration::from_secs(10);

/// Why the daemon did not start, or ended.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another daemon listens there.
    #[error("another daemon listens on {}", .0.display())]
    SocketTaken(PathBuf),
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

impl DaemonError {
    fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> DaemonError {
        let action = action.into();
        move |source| DaemonError::Io { action, source }
    }

    /// What can be done about it, if that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            DaemonError::Store(error) => error::api_error(error).hint,
            DaemonError::SocketTaken(_) => {
                Some("stop it, or give this one another --socket and --store".to_owned())
            }
            _ => None,
        }
    }
}

/// Runs the daemon until a signal ends it. `ready` is called once, when requests are answered and the wanted mounts are made.
pub fn start(config: &Config, ready: impl FnOnce()) -> Result<(), DaemonError> {
    process::set_up()?;
    let mounter = FuseMounter::new(config.passthrough, config.threads);
    let store = Arc::new(Store::create_or_open(&config.store, Box::new(mounter))?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::io("start the runtime"))?;
    let result = runtime.block_on(serve(config, &store, ready));
    // Requests that are still running are cut off: whatever they did not finish, the next start cleans up.
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config, store: &Arc<Store>, ready: impl FnOnce()) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::io("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::io("handle SIGINT"))?;
    // Before the mounts, so that a client that comes meanwhile waits in the queue instead of being refused.
    let listener = Listener::bind(&config.socket)?;

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let for_mounts = Arc::clone(store);
    let mounts = tokio::task::spawn_blocking(move || for_mounts.mount_wanted());
    let signals = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        }
        let _ = stop.send(true);
    };
    let wait_for_stop = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let service = async {
        tokio::select! {
            _ = mounts => {}
            () = wait_for_stop(stopped.clone()) => return Ok(()),
        }
        tracing::info!(store = %store.dir().display(), socket = %config.socket.display(), "ready");
        ready();
        let served = axum::serve(listener, router(Arc::clone(store)));
        let served = served.with_graceful_shutdown(wait_for_stop(stopped.clone()));
        let scrub = async {
            match config.scrub {
                Some(scrub) => scrub::run(Arc::clone(store), scrub).await,
                None => std::future::pending().await,
            }
            // It ends before the daemon does only because the daemon is ending.
            std::future::pending::<()>().await;
        };
        let deadline = async {
            wait_for_stop(stopped.clone()).await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            () = scrub => Ok(()),
            result = served => result.map_err(DaemonError::io("serve requests")),
            () = deadline => {
                tracing::warn!("requests are still running and are cut off");
                Ok(())
            }
        }
    };
    let ((), result) = tokio::join!(signals, service);
    let closing = Arc::clone(store);
    let closed = tokio::task::spawn_blocking(move || closing.close()).await;
    if let Err(error) = closed {
        tracing::error!(%error, "closing the store failed");
    }
    server::remove_socket(&config.socket);
    result
}

#[cfg(test)]
mod tests;
