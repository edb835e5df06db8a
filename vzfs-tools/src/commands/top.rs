//! `vzfs top`: what VEs ask of the daemon, and what that costs it, again and again.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use serde::Serialize;
use vzfs::api::Metric;

use super::Context;
use crate::cli::{Format, TopArgs};
use crate::error::Result;
use crate::output::{Column, NOTHING, count, plural, print, size, table};

/// Cursor to the top left, and everything below it gone.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// The columns of a VE's row: kinds of requests that belong together for who looks at them. What is in none is in the sum alone.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "LOOKUP",
        &["lookup", "getattr", "readdir", "readdirplus", "readlink", "getxattr", "listxattr", "statfs"],
    ),
    ("OPEN", &["open", "opendir"]),
    ("READ", &["read", "lseek"]),
    ("WRITE", &["write", "fallocate", "copy_file_range"]),
    ("SYNC", &["fsync", "fsyncdir", "flush"]),
    (
        "CHANGE",
        &[
            "create",
            "mknod",
            "mkdir",
            "symlink",
            "link",
            "unlink",
            "rmdir",
            "rename",
            "setattr",
            "setxattr",
            "removexattr",
        ],
    ),
];

/// What happened between two looks.
#[derive(Serialize, Debug, PartialEq)]
struct View {
    /// Between them.
    seconds: f64,
    daemon: DaemonLoad,
    store_free_bytes: u64,
    store_size_bytes: u64,
    ves: u64,
    ves_mounted: u64,
    updates_active: u64,
    /// All VEs together.
    requests_per_second: f64,
    /// The mounted ones, the busiest first.
    load: Vec<VeLoad>,
}

#[derive(Serialize, Debug, PartialEq)]
struct DaemonLoad {
    version: String,
    /// Of one CPU.
    cpu_percent: f64,
    resident_bytes: u64,
    threads: u64,
    restarts: u64,
}

#[derive(Serialize, Debug, PartialEq)]
struct VeLoad {
    ve: String,
    requests_per_second: f64,
    /// By kind, without those that there were none of.
    by_kind: BTreeMap<String, f64>,
    /// Requests that failed because of the host, since this daemon serves the mount.
    failures: u64,
}

/// Runs the command.
pub(crate) fn run(context: &Context, args: &TopArgs) -> Result<()> {
    let on_terminal = stdout().is_terminal() && context.output.format == Format::Table;
    let times = args.times.unwrap_or(if on_terminal { u32::MAX } else { 1 });
    let mut before = Reading::take(context)?;
    for _ in 0..times {
        std::thread::sleep(args.interval);
        let now = Reading::take(context)?;
        let mut view = view(&before, &now);
        view.load.truncate(args.rows);
        if on_terminal {
            print(CLEAR)?;
        }
        context.output.show(&view, text)?;
        before = now;
    }
    Ok(())
}

/// All numbers at one moment.
struct Reading {
    at: Instant,
    metrics: Vec<Metric>,
}

impl Reading {
    fn take(context: &Context) -> Result<Reading> {
        Ok(Reading { metrics: context.client.get("/v1/metrics")?, at: Instant::now() })
    }

    fn samples(&self, name: &str) -> impl Iterator<Item = (&BTreeMap<String, String>, f64)> {
        let metric = self.metrics.iter().find(|metric| metric.name == name);
        metric
            .into_iter()
            .flat_map(|metric| metric.samples.iter().map(|sample| (&sample.labels, sample.value)))
    }

    /// The number of what has just one.
    fn value(&self, name: &str) -> f64 {
        self.samples(name).next().map_or(0.0, |(_, value)| value)
    }

    fn whole(&self, name: &str) -> u64 {
        // What is not a number, or negative, becomes 0.
        self.value(name) as u64
    }
}

/// How far a counter went. One that is lower than before began anew.
fn grown(before: f64, now: f64) -> f64 {
    if now < before { now } else { now - before }
}

fn view(before: &Reading, now: &Reading) -> View {
    let seconds = (now.at - before.at).max(Duration::from_millis(1)).as_secs_f64();
    let rate = |from: f64, to: f64| grown(from, to) / seconds;
    let earlier: BTreeMap<_, _> = before.samples("vzfs_ve_requests_total").collect();
    let mut ves: BTreeMap<&str, VeLoad> = BTreeMap::new();
    for (labels, value) in now.samples("vzfs_ve_mounted") {
        if let (Some(ve), true) = (labels.get("ve"), value > 0.0) {
            let load =
                VeLoad { ve: ve.clone(), requests_per_second: 0.0, by_kind: BTreeMap::new(), failures: 0 };
            ves.insert(ve, load);
        }
    }
    let label = |labels: &BTreeMap<String, String>, name: &str| labels.get(name).cloned().unwrap_or_default();
    for (labels, value) in now.samples("vzfs_ve_requests_total") {
        let rate = rate(earlier.get(labels).copied().unwrap_or(0.0), value);
        if let Some(load) = ves.get_mut(label(labels, "ve").as_str())
            && rate > 0.0
        {
            load.requests_per_second += rate;
            load.by_kind.insert(label(labels, "kind"), rate);
        }
    }
    for (labels, value) in now.samples("vzfs_ve_failures_total") {
        if let Some(load) = ves.get_mut(label(labels, "ve").as_str()) {
            load.failures += value as u64;
        }
    }
    let mut load: Vec<_> = ves.into_values().collect();
    load.sort_by(|a, b| b.requests_per_second.total_cmp(&a.requests_per_second));
    let cpu = "process_cpu_seconds_total";
    let version = now.samples("vzfs_info").next().map(|(labels, _)| label(labels, "version"));
    View {
        seconds,
        daemon: DaemonLoad {
            version: version.unwrap_or_default(),
            cpu_percent: 100.0 * rate(before.value(cpu), now.value(cpu)),
            resident_bytes: now.whole("process_resident_memory_bytes"),
            threads: now.whole("process_threads"),
            restarts: now.whole("vzfs_daemon_restarts_total"),
        },
        store_free_bytes: now.whole("vzfs_store_free_bytes"),
        store_size_bytes: now.whole("vzfs_store_size_bytes"),
        ves: now.whole("vzfs_ves"),
        ves_mounted: now.whole("vzfs_ves_mounted"),
        updates_active: now.whole("vzfs_updates_active"),
        requests_per_second: load.iter().map(|load| load.requests_per_second).sum(),
        load,
    }
}

fn text(view: &View) -> String {
    let daemon = &view.daemon;
    let mut text = format!(
        "vzfsd {}: CPU {:.0} %, memory {}, {}, started again {}\n",
        daemon.version,
        daemon.cpu_percent,
        size(daemon.resident_bytes),
        plural(daemon.threads, "thread"),
        plural(daemon.restarts, "time"),
    );
    let (free, all) = (size(view.store_free_bytes), size(view.store_size_bytes));
    text += &format!(
        "store: {free} of {all} free; {}, {} mounted, {} under way\n",
        plural(view.ves, "VE"),
        count(view.ves_mounted),
        plural(view.updates_active, "update"),
    );
    text += &format!("requests: {} a second\n\n", per_second(view.requests_per_second));
    let mut columns = vec![Column::Text("VE"), Column::Number("REQUESTS/S")];
    columns.extend(GROUPS.iter().map(|(name, _)| Column::Number(name)));
    columns.push(Column::Number("FAILED"));
    let rows = view.load.iter().map(|load| {
        let mut row = vec![load.ve.clone(), per_second(load.requests_per_second)];
        row.extend(
            GROUPS
                .iter()
                .map(|(_, kinds)| per_second(kinds.iter().filter_map(|kind| load.by_kind.get(*kind)).sum())),
        );
        row.push(if load.failures == 0 { NOTHING.to_owned() } else { count(load.failures) });
        row
    });
    text + &table(&columns, rows)
}

fn per_second(rate: f64) -> String {
    match rate {
        0.0 => NOTHING.to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => count(rate.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use vzfs::api::MetricKind::{Counter, Gauge};

    use super::*;

    fn reading(at: Instant, cpu: f64, lookups: f64, writes: f64) -> Reading {
        let requests = Metric::new(Counter, "vzfs_ve_requests_total", "")
            .with(&[("ve", "a"), ("kind", "lookup")], lookups)
            .with(&[("ve", "b"), ("kind", "write")], writes)
            .with(&[("ve", "b"), ("kind", "poll")], 7.0);
        let mounted = Metric::new(Gauge, "vzfs_ve_mounted", "")
            .with(&[("ve", "a")], 1.0)
            .with(&[("ve", "b")], 1.0)
            .with(&[("ve", "c")], 0.0);
        let failures =
            Metric::new(Counter, "vzfs_ve_failures_total", "").with(&[("ve", "b"), ("errno", "EIO")], 3.0);
        let cpu = Metric::new(Counter, "process_cpu_seconds_total", "").with(&[], cpu);
        Reading { at, metrics: vec![requests, mounted, failures, cpu] }
    }

    #[test]
    fn rates_are_what_counters_grew_by() {
        let begin = Instant::now();
        let (before, now) =
            (reading(begin, 1.0, 100.0, 50.0), reading(begin + Duration::from_secs(2), 2.5, 100.0, 80.0));
        let seen = view(&before, &now);
        assert_eq!((seen.requests_per_second, seen.daemon.cpu_percent), (15.0, 75.0));
        let ves: Vec<_> = seen
            .load
            .iter()
            .map(|load| (load.ve.as_str(), load.requests_per_second, load.failures))
            .collect();
        assert_eq!(ves, [("b", 15.0, 3), ("a", 0.0, 0)], "the busiest first, and none that is not mounted");
        assert_eq!(seen.load[0].by_kind, BTreeMap::from([("write".to_owned(), 15.0)]));
        assert!(
            text(&seen).contains("b           15       -     -     -     15     -       -       3"),
            "{}",
            text(&seen)
        );

        // A daemon that was started again counts from 0.
        let later = reading(begin + Duration::from_secs(3), 0.5, 4.0, 0.0);
        let seen = view(&now, &later);
        assert_eq!((seen.requests_per_second, seen.daemon.cpu_percent), (4.0, 50.0));
    }

    #[test]
    fn every_kind_is_in_one_group() {
        let mut kinds: Vec<_> = GROUPS.iter().flat_map(|(_, kinds)| kinds.iter()).collect();
        let all = kinds.len();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), all);
    }
}
