//! What a monitoring system watches, and where it gets it.
//!
//! Nothing here walks blobs or private files: it is asked for every few seconds.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rustix::fs::StatVfs;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;

use super::DaemonError;
use super::routes::{Reply, blocking};
use crate::api::MetricKind::{Counter, Gauge};
use crate::api::{EXPOSITION_CONTENT_TYPE, Metric, exposition};
use crate::store::{Store, StoreError};
use crate::supervisor::Link;
use crate::types::Timestamp;
use crate::update::Updates;
use crate::volume::free_bytes;

/// How long the address may be another's at the start: a daemon that is being replaced lets go of it in a moment.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);

/// What the numbers are taken from.
#[derive(Clone)]
pub(super) struct Metrics {
    pub(super) store: Arc<Store>,
    pub(super) updates: Arc<Updates>,
    pub(super) link: Option<Arc<Link>>,
    /// How long the start took.
    pub(super) ready_after: Duration,
}

impl Metrics {
    /// The part of the control interface that is about them.
    pub(super) fn router(self) -> Router {
        Router::new().route("/v1/metrics", get(list)).route("/metrics", get(text)).with_state(self)
    }

    /// Serves whoever can connect: the numbers as text, and nothing else.
    pub(super) async fn serve(self, listener: TcpListener) -> Result<(), DaemonError> {
        let router = Router::new().route("/metrics", get(text)).with_state(self);
        axum::serve(listener, router).await.map_err(DaemonError::io("serve metrics"))
    }

    fn take(&self) -> Vec<Metric> {
        let mut metrics = self.process();
        metrics.extend(self.of_store());
        metrics.extend(self.of_ves());
        metrics
    }

    /// The daemon's process, by the names that monitoring systems know for any process.
    fn process(&self) -> Vec<Metric> {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        vec![
            Metric::new(Gauge, "vzfs_info", "The version of the daemon.")
                .with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0),
            gauge(
                "process_start_time_seconds",
                "When the daemon was started, since the epoch.",
                Some(seconds(self.store.started())),
            ),
            Metric::new(Counter, "process_cpu_seconds_total", "CPU time of the daemon.").with(&[], cpu),
            gauge(
                "vzfs_daemon_start_seconds",
                "From the daemon's start until it answered all mounts, for which programs wait if the one before was killed.",
                Some(self.ready_after.as_secs_f64()),
            ),
            gauge("process_resident_memory_bytes", "Memory of the daemon.", resident_bytes()),
            gauge("process_open_fds", "Descriptors that the daemon has open.", entries("/proc/self/fd")),
            gauge("process_threads", "Threads of the daemon.", entries("/proc/self/task")),
            Metric::new(
                Counter,
                "vzfs_daemon_restarts_total",
                "How often the supervisor has started the daemon again.",
            )
            .with(&[], self.link.as_ref().map_or(0, |link| link.restarts()) as f64),
        ]
    }

    fn of_store(&self) -> Vec<Metric> {
        let totals = self.store.totals();
        let space = self.store.space();
        let space = |of: fn(&StatVfs) -> u64| space.as_ref().map_or(0, of);
        let of = |name, help, value: u64| gauge(name, help, Some(value as f64));
        let active = self.updates.rollouts().iter().filter(|rollout| rollout.head.state.is_active()).count();
        let mut metrics = vec![
            of("vzfs_templates", "Templates in the store.", totals.templates),
            of("vzfs_ves", "VEs in the store.", totals.ves),
            of("vzfs_ves_mounted", "VEs that are mounted.", totals.mounted),
            of("vzfs_updates_active", "Updates that move VEs, or are paused.", active as u64),
            of(
                "vzfs_store_size_bytes",
                "Size of the filesystem that holds the store.",
                space(|space| space.f_blocks.saturating_mul(space.f_frsize)),
            ),
            of("vzfs_store_free_bytes", "What is free of it.", space(free_bytes)),
            of("vzfs_store_free_inodes", "Inodes that are free in it.", space(|space| space.f_favail)),
        ];
        if let Some(last) = self.store.verify_status().ok().and_then(|status| status.last) {
            let help = "When the last check of the whole store ended, since the epoch.";
            let finished = Some(seconds(last.finished));
            metrics.push(gauge("vzfs_store_verified_timestamp_seconds", help, finished));
            metrics.push(of(
                "vzfs_store_damaged",
                "Things that check found damaged and could not repair.",
                last.unrepaired() as u64,
            ));
        }
        metrics
    }

    fn of_ves(&self) -> Vec<Metric> {
        let mut mounted = Metric::new(Gauge, "vzfs_ve_mounted", "Whether the VE is mounted.");
        let mut requests = Metric::new(
            Counter,
            "vzfs_ve_requests_total",
            "Requests of the kernel for the VE, since this daemon serves its mount.",
        );
        let mut failures = Metric::new(
            Counter,
            "vzfs_ve_failures_total",
            "Requests that failed because of the host and not of the program.",
        );
        let mut waited = Metric::new(
            Counter,
            "vzfs_ve_waited_seconds_total",
            "How long what the VE changed has waited for syncs of other VEs.",
        );
        for stats in self.store.all_stats() {
            let ve = stats.ve.to_string();
            mounted.add(&[("ve", &ve)], f64::from(u8::from(stats.mounted)));
            waited.add(&[("ve", &ve)], stats.waited_us as f64 / 1e6);
            for (kind, number) in &stats.requests {
                requests.add(&[("ve", &ve), ("kind", kind)], *number as f64);
            }
            for (errno, number) in &stats.failures {
                failures.add(&[("ve", &ve), ("errno", errno)], *number as f64);
            }
        }
        vec![mounted, requests, failures, waited]
    }
}

/// Listens where metrics are to be served.
///
/// # Errors
/// Somebody else does, or it is no address of this host.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    let deadline = Instant::now() + ADDRESS_PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            bound => return bound.map_err(DaemonError::io(format!("serve metrics at {address}"))),
        }
    }
}

/// A gauge of one thing; without a number where that is not known.
fn gauge(name: &str, help: &str, value: Option<f64>) -> Metric {
    let mut metric = Metric::new(Gauge, name, help);
    if let Some(value) = value {
        metric.add(&[], value);
    }
    metric
}

fn seconds(time: Timestamp) -> f64 {
    time.secs as f64 + f64::from(time.nanos) / 1e9
}

/// By statm of proc(5), whose second number is in pages.
fn resident_bytes() -> Option<f64> {
    let pages: f64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}

fn entries(dir: &str) -> Option<f64> {
    fs::read_dir(dir).ok().map(|entries| entries.count() as f64)
}

async fn list(State(metrics): State<Metrics>) -> Reply {
    blocking(move || Ok::<_, StoreError>(metrics.take())).await
}

async fn text(State(metrics): State<Metrics>) -> Response {
    match tokio::task::spawn_blocking(move || exposition(&metrics.take())).await {
        Ok(text) => ([(CONTENT_TYPE, EXPOSITION_CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be taken");
            axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
