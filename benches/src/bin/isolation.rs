//! `isolation`: what a hostile VE costs its neighbour.
#![allow(clippy::print_stdout, reason = "a program that prints tables")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use vzfs_benches::isolation::open_files::{Again, MAX_OPEN, hold_again};
use vzfs_benches::isolation::{self, Load, measure, table};
use vzfs_benches::options::Options;
use vzfs_benches::report::About;
use vzfs_benches::run::say;
use vzfs_benches::stats::time;
use vzfs_benches::system::{Kind, open};

/// Has a program in one VE do its worst, and measures what another VE's operations then take: beside what they take when nothing else runs, and
/// when the same program works on a plain folder of the host.
#[derive(Parser, Debug)]
#[command(name = "isolation")]
struct Arguments {
    /// Only these loads.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<Load>,
    /// Seconds that the neighbour works in each situation.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Files that `open-files` holds. It stops before three quarters of the memory that is available are used up.
    #[arg(long, value_name = "COUNT", default_value_t = MAX_OPEN, value_parser = clap::value_parser!(u64).range(1..))]
    open_files: u64,
    /// Is the hostile program.
    #[arg(long, hide = true, requires = "folder")]
    hostile: Option<Load>,
    /// Where that works.
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
    /// Is a further process of it, which opens so many files again.
    #[arg(long, hide = true, requires_all = ["hostile", "least_available_bytes"])]
    again: Option<u64>,
    /// And stops before less memory is available.
    #[arg(long, hide = true)]
    least_available_bytes: Option<u64>,
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(load), Some(folder)) = (arguments.hostile, &arguments.folder) {
        return match (arguments.again, arguments.least_available_bytes) {
            (Some(files), Some(least_available_bytes)) => {
                let again = Again { files, least_available_bytes };
                hold_again(folder, again, |opened| isolation::say(&opened.to_string()))
            }
            _ => load.run(folder, arguments.open_files),
        };
    }
    let place = arguments.options.place(false)?;
    let about = About::here(arguments.options.filesystem)?;
    let mut system = open(Kind::Vzfs, &place).context("cannot set vzfs up")?;
    let loads = if arguments.loads.is_empty() { Load::value_variants() } else { &arguments.loads };
    let long = Duration::from_secs(arguments.seconds);
    let report = measure(system.as_mut(), about, loads, long, arguments.open_files, &mut |cost| {
        let (idle, control, hostile) =
            (time(cost.idle_secs), time(cost.control_secs), time(cost.hostile_secs));
        say(&format!("{:?}: {} {idle}, {control}, {hostile}", cost.load, cost.operation));
    })?;
    print!("{}", arguments.options.tell(&report, table)?);
    Ok(())
}
