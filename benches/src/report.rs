//! What was measured: as JSON, and as tables that are Markdown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vzfs::daemon::IdleDriver;

use crate::memory::field_bytes;
use crate::run::run;
use crate::stats::{median, ratio, time, times};
use crate::system::{Kind, Requests, Under};
use crate::work::Row;

/// Ratios are to this one.
const REFERENCE: Kind = Kind::Overlayfs;

/// A run, or some of them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where and when.
    pub about: About,
    /// What was measured.
    pub rows: Vec<RowReport>,
}

/// Where and when it was measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct About {
    /// The day.
    pub date: String,
    /// The kernel's version.
    pub kernel: String,
    /// Processors.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The filesystem under all systems.
    pub filesystem: Under,
    /// The commit of vzfs, where git knows it.
    pub commit: String,
    /// How long a processor that has become idle polls at most before it halts, in nanoseconds; see [`IdleDriver`]. To wake a halted processor of a virtual
    /// machine takes long, and each request to a daemon waits for it.
    #[serde(default)]
    pub halt_poll_ns: Option<u64>,
}

impl About {
    /// Some machine, for tests.
    #[cfg(test)]
    pub(crate) fn example() -> About {
        About {
            date: "2026-01-01".to_owned(),
            kernel: "6.18".to_owned(),
            cpus: 2,
            memory_bytes: 4 << 30,
            filesystem: Under::Ext4,
            commit: "abc".to_owned(),
            halt_poll_ns: None,
        }
    }

    /// This machine, now.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn here(filesystem: Under) -> Result<About> {
        let first_line = |program: &str, arguments: &[&str]| {
            run(Command::new(program).args(arguments))
                .map(|text| text.lines().next().unwrap_or("").to_owned())
        };
        let memory = fs::read_to_string("/proc/meminfo")?;
        Ok(About {
            date: first_line("date", &["+%Y-%m-%d"])?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            memory_bytes: field_bytes(&memory, "MemTotal").unwrap_or(0),
            filesystem,
            commit: first_line("git", &["log", "-1", "--format=%h"]).unwrap_or_default(),
            halt_poll_ns: IdleDriver::here().poll_ns,
        })
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let About { date, kernel, cpus, memory_bytes, filesystem, commit, halt_poll_ns } = self;
        let gib = *memory_bytes as f64 / f64::from(1 << 30);
        let filesystem = match filesystem {
            Under::Ext4 => "ext4",
            Under::Xfs => "XFS",
        };
        write!(
            f,
            "{date}, Linux {kernel}, {cpus} CPUs, {gib:.0} GiB, {filesystem} in loop images, vzfs {commit}"
        )?;
        match halt_poll_ns {
            None => Ok(()),
            Some(0) => write!(f, ", idle processors halt at once"),
            Some(limit) => write!(f, ", idle processors poll for up to {} us", limit / 1000),
        }
    }
}

/// What a program prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// A Markdown table.
    Table,
    /// JSON.
    Json,
}

/// Reads what earlier runs have written.
///
/// # Errors
/// A file is missing, or is something else.
pub fn read<T: DeserializeOwned>(files: &[PathBuf]) -> Result<Vec<T>> {
    let read = |path: &PathBuf| {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no report", path.display()))
    };
    files.iter().map(read).collect()
}

/// A row.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RowReport {
    /// Its name.
    pub row: String,
    /// What was done.
    pub what: String,
    /// The largest ratio that vzfs may have.
    pub goal: Option<f64>,
    /// What came out.
    pub systems: BTreeMap<Kind, Outcome>,
}

/// What came out for one system.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Times.
    Measured(Measured),
    /// Nothing that could be compared.
    Failed {
        /// Why.
        failed: String,
    },
}

/// Times, and what they cost.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// How long it took each time.
    pub seconds: Vec<f64>,
    /// FUSE requests by kind in one round, where they are counted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: Requests,
}

impl RowReport {
    /// Nothing measured yet.
    pub fn new(row: &Row) -> RowReport {
        RowReport {
            row: row.name.to_owned(),
            what: row.what.to_owned(),
            goal: row.goal,
            systems: BTreeMap::new(),
        }
    }

    fn median(&self, kind: Kind) -> Option<f64> {
        match self.systems.get(&kind)? {
            Outcome::Measured(measured) => median(&measured.seconds),
            Outcome::Failed { .. } => None,
        }
    }

    /// How long a system took, in times of the kernel's overlayfs.
    pub fn ratio(&self, kind: Kind) -> Option<f64> {
        ratio(self.median(kind)?, self.median(REFERENCE)?)
    }

    fn cell(&self, kind: Kind) -> String {
        match (self.systems.get(&kind), self.median(kind), self.ratio(kind)) {
            (Some(Outcome::Failed { .. }), ..) => "failed".to_owned(),
            (_, Some(median), Some(ratio)) if kind != REFERENCE => {
                format!("{} ({})", time(median), times(ratio))
            }
            (_, Some(median), _) => time(median),
            _ => "-".to_owned(),
        }
    }

    /// What to say of the goal.
    fn verdict(&self) -> String {
        match (self.goal, self.ratio(Kind::Vzfs)) {
            (Some(goal), Some(ratio)) => format!("{goal} {}", if ratio <= goal { "met" } else { "missed" }),
            (Some(goal), None) => goal.to_string(),
            (None, _) => "-".to_owned(),
        }
    }
}

/// Puts runs on the same kind of filesystem together; of a row that is in several, the last counts.
///
/// # Errors
/// The filesystems differ, or there is no run.
pub fn merge(reports: Vec<Report>) -> Result<Report> {
    let mut reports = reports.into_iter();
    let Some(mut all) = reports.next() else { anyhow::bail!("there is no report to read") };
    for Report { about, rows } in reports {
        ensure!(about.filesystem == all.about.filesystem, "the reports are of different filesystems");
        for row in rows {
            match all.rows.iter_mut().find(|known| known.row == row.row) {
                Some(known) => *known = row,
                None => all.rows.push(row),
            }
        }
        all.about = about;
    }
    let place = |row: &RowReport| crate::work::ROWS.iter().position(|known| known.name == row.row);
    all.rows.sort_by_key(|row| place(row).unwrap_or(usize::MAX));
    Ok(all)
}

/// The tables: times, requests, failures.
pub fn tables(report: &Report) -> String {
    let mut text = format!("{}\n\n", report.about);
    text.push_str(&times_table(&report.rows));
    text.push('\n');
    text.push_str(&requests_table(&report.rows));
    let failures: Vec<String> = report.rows.iter().flat_map(failures).collect();
    if !failures.is_empty() {
        text.push_str(&format!("\nFailed:\n\n{}\n", failures.join("\n")));
    }
    text
}

fn failures(row: &RowReport) -> Vec<String> {
    let failed = row.systems.iter().filter_map(|(kind, outcome)| match outcome {
        Outcome::Failed { failed } => Some(format!("- {} on {}: {failed}", row.row, kind.name())),
        Outcome::Measured(_) => None,
    });
    failed.collect()
}

fn times_table(rows: &[RowReport]) -> String {
    let kinds: std::collections::BTreeSet<Kind> =
        rows.iter().flat_map(|row| row.systems.keys().copied()).collect();
    let mut header = vec!["row", "what is done"];
    header.extend(kinds.iter().map(|kind| kind.name()));
    header.push("goal");
    let lines = rows.iter().map(|row| {
        let mut line = vec![row.row.clone(), row.what.clone()];
        line.extend(kinds.iter().map(|kind| row.cell(*kind)));
        line.push(row.verdict());
        line
    });
    markdown(&header, lines.collect(), 2)
}

/// Requests of vzfs: how many, what one costs beyond what the kernel's overlayfs takes for the work, and the most frequent kinds.
fn requests_table(rows: &[RowReport]) -> String {
    /// Kinds that are shown.
    const SHOWN: usize = 5;
    let lines = rows.iter().filter_map(|row| {
        let Some(Outcome::Measured(measured)) = row.systems.get(&Kind::Vzfs) else { return None };
        let all: u64 = measured.requests.values().sum();
        let more = row.median(Kind::Vzfs).zip(row.median(REFERENCE)).map(|(ours, theirs)| ours - theirs);
        let each = more
            .and_then(|more| ratio(more, all as f64))
            .map_or("-".to_owned(), |each| format!("{:.0} us", each * 1e6));
        let mut kinds: Vec<_> = measured.requests.iter().collect();
        kinds.sort_by_key(|(_, number)| std::cmp::Reverse(**number));
        let kinds: Vec<String> =
            kinds.into_iter().take(SHOWN).map(|(kind, number)| format!("{kind} {number}")).collect();
        Some(vec![row.row.clone(), all.to_string(), each, kinds.join(", ")])
    });
    markdown(
        &["row", "requests to vzfs", "time beyond overlayfs for each", "most frequent"],
        lines.collect(),
        1,
    )
}

/// A Markdown table with columns of one width: words to the left in the first columns, to the right in the others but for lists.
pub(crate) fn markdown(header: &[&str], rows: Vec<Vec<String>>, words: usize) -> String {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&header]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths.get(column).copied().unwrap_or(0);
            let list = column + 1 == widths.len();
            if column < words || list { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(column, width)| {
        let right = column >= words && column + 1 != widths.len();
        format!("{}{}", "-".repeat(width + 1), if right { ":" } else { "-" })
    });
    let rule = format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    line(&header) + &rule + &rows.iter().map(line).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, overlayfs: &[f64], vzfs: &[f64], goal: Option<f64>) -> RowReport {
        let measured = |seconds: &[f64], requests: Requests| {
            Outcome::Measured(Measured { seconds: seconds.to_vec(), requests })
        };
        let requests = Requests::from([("open".to_owned(), 10), ("lookup".to_owned(), 90)]);
        RowReport {
            row: name.to_owned(),
            what: "work".to_owned(),
            goal,
            systems: BTreeMap::from([
                (Kind::Overlayfs, measured(overlayfs, Requests::new())),
                (Kind::FuseOverlayfs2, Outcome::Failed { failed: "ENOENT".to_owned() }),
                (Kind::Vzfs, measured(vzfs, requests)),
            ]),
        }
    }

    fn report(rows: Vec<RowReport>) -> Report {
        let about = About::example();
        Report { about, rows }
    }

    #[test]
    fn what_idle_processors_do_is_told() {
        let told = |halt_poll_ns| About { halt_poll_ns, ..About::example() }.to_string();
        assert!(told(None).ends_with("vzfs abc"));
        assert!(told(Some(0)).ends_with(", idle processors halt at once"));
        assert!(told(Some(200_000)).ends_with(", idle processors poll for up to 200 us"));
    }

    #[test]
    fn tables_have_medians_ratios_requests_and_failures() {
        let text = tables(&report(vec![
            row("untar", &[1.0, 2.0, 9.0], &[3.0, 3.0, 3.0], Some(5.0)),
            row("write", &[0.010], &[0.012], Some(1.1)),
        ]));
        let expected = "\
2026-01-01, Linux 6.18, 2 CPUs, 4 GiB, ext4 in loop images, vzfs abc

| row   | what is done | overlayfs | fuse-overlayfs-2 |           vzfs | goal       |
|-------|--------------|----------:|-----------------:|---------------:|------------|
| untar | work         |    2.00 s |           failed |  3.00 s (1.50) | 5 met      |
| write | work         |   10.0 ms |           failed | 12.0 ms (1.20) | 1.1 missed |

| row   | requests to vzfs | time beyond overlayfs for each | most frequent      |
|-------|-----------------:|-------------------------------:|--------------------|
| untar |              100 |                       10000 us | lookup 90, open 10 |
| write |              100 |                          20 us | lookup 90, open 10 |

Failed:

- untar on fuse-overlayfs-2: ENOENT
- write on fuse-overlayfs-2: ENOENT
";
        assert_eq!(text, expected);
    }

    #[test]
    fn reports_survive_json_and_are_put_together() {
        let first = report(vec![row("write", &[1.0], &[1.0], None), row("untar", &[1.0], &[1.0], None)]);
        let again = report(vec![row("untar", &[2.0], &[1.0], None)]);
        let text = serde_json::to_string(&first).expect("JSON");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("read again"), first);
        let merged = merge(vec![first, again.clone()]).expect("alike");
        let names: Vec<_> = merged.rows.iter().map(|row| row.row.as_str()).collect();
        assert_eq!(names, ["untar", "write"]);
        assert_eq!(merged.rows[0], again.rows[0]);
        let mut xfs = report(Vec::new());
        xfs.about.filesystem = Under::Xfs;
        assert!(merge(vec![again, xfs]).is_err());
        assert!(merge(Vec::new()).is_err());
    }
}
