//! `compare`: vzfs beside its peers.
#![allow(clippy::print_stdout, reason = "a program that prints tables")]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use vzfs_benches::compare::{Systems, measure};
use vzfs_benches::options::Options;
use vzfs_benches::report::{About, Report, merge, read, tables};
use vzfs_benches::run::say;
use vzfs_benches::stats::time;
use vzfs_benches::system::{Kind, open};
use vzfs_benches::work::{ROWS, Row};

/// Shows the same Debian tree through several filesystems, has the same work done on each in turns, and prints medians and their ratios to the
/// kernel's overlayfs.
#[derive(Parser, Debug)]
#[command(name = "compare")]
struct Arguments {
    /// Only these rows, by name or a beginning of it; `list` lists them.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these systems.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<Kind>,
    /// How often each system does the work of a row.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// One round of everything.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Measure nothing: print what these files of earlier runs say, together.
    #[arg(long, num_args = 1.., conflicts_with_all = ["rows", "rounds", "quick"])]
    merge: Vec<PathBuf>,
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.rows == ["list"] {
        ROWS.iter().for_each(|row| println!("{:16} {}", row.name, row.what));
        return Ok(());
    }
    let report = if arguments.merge.is_empty() { run(&arguments)? } else { merge(read(&arguments.merge)?)? };
    print!("{}", arguments.options.tell(&report, tables)?);
    Ok(())
}

/// The rows that are meant by these names.
fn chosen(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let mut rows = Vec::new();
    for name in names {
        let exact = ROWS.iter().find(|row| row.name == name);
        let found: Vec<_> = match exact {
            Some(row) => vec![row],
            None => ROWS.iter().filter(|row| row.name.starts_with(name.as_str())).collect(),
        };
        if found.is_empty() {
            bail!("there is no row {name}; `--rows list` lists them");
        }
        rows.extend(found);
    }
    Ok(rows)
}

fn run(arguments: &Arguments) -> Result<Report> {
    let rows = chosen(&arguments.rows)?;
    let about = About::here(arguments.options.filesystem)?;
    let place = arguments.options.place(rows.iter().any(|row| row.huge))?;
    let kinds = if arguments.systems.is_empty() { Kind::value_variants() } else { &arguments.systems };
    let mut systems = Systems::new();
    for &kind in kinds {
        say(&format!("{}: a fresh filesystem with the tree", kind.name()));
        systems.push((kind, open(kind, &place).with_context(|| format!("cannot set {} up", kind.name()))?));
    }
    let rounds = if arguments.quick { 1 } else { arguments.rounds.into() };
    let mut done = Vec::new();
    for row in rows {
        let mut told = |kind: Kind, outcome: &Result<f64>| {
            let outcome =
                outcome.as_ref().map_or_else(|error| format!("failed: {error}"), |seconds| time(*seconds));
            say(&format!("{}: {} {outcome}", row.name, kind.name()));
        };
        done.push(measure(&mut systems, row, rounds, &mut told));
    }
    Ok(Report { about, rows: done })
}
