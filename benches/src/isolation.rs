//! What a VE that does its worst costs another one.
//!
//! A neighbour does four small things in its own VE, over and over, and notes how long each takes: while nothing else runs, while a hostile program works on a
//! plain folder of the same disk (the control: what the processors, the disk and its journal cost anyway), and while the same program works in another VE.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::report::About;
use crate::stats::{median, ratio, time, times};
use crate::system::{System, Touches};

/// Threads of a hostile program.
const THREADS: usize = 4;
/// Names that fill a directory before the neighbour is measured; it goes on being filled.
const NAMES: usize = 2_000;
/// The most files that are held open.
const MAX_OPEN: usize = 1_000_000;
/// Descriptors that a process needs besides.
const SPARE: u64 = 50;

/// What the hostile program does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Asks for names that are not there, each another one.
    Stat,
    /// Opens and closes a file.
    Open,
    /// Makes files and removes them.
    Create,
    /// Writes to a file and syncs it.
    Fsync,
    /// Fills a directory.
    Fill,
    /// Holds as many files open as it can, up to a million, and waits.
    OpenFiles,
}

impl Load {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Does it in a folder until the process is ended; says so on standard output when it is under way.
    ///
    /// # Errors
    /// Something was refused.
    pub fn run(self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        if self == Load::OpenFiles {
            return hold(folder);
        }
        let (under_way, wait) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let under_way = under_way.clone();
                scope.spawn(move || -> Result<()> {
                    let begin = if self == Load::Fill { NAMES } else { 1 };
                    for turn in 0.. {
                        self.once(folder, &format!("{thread}-{turn}"), thread)?;
                        if turn == begin {
                            under_way.send(())?;
                        }
                    }
                    Ok(())
                });
            }
            drop(under_way);
            for _ in 0..THREADS {
                wait.recv()?;
            }
            say(0)
        })
    }

    fn once(self, folder: &Path, name: &str, thread: usize) -> Result<()> {
        let path = folder.join(name);
        match self {
            Load::Stat => ensure!(fs::symlink_metadata(path).is_err(), "a name that nobody made"),
            Load::Open => drop(
                File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(folder.join(format!("f{thread}")))?,
            ),
            Load::Create => {
                fs::write(&path, "x")?;
                fs::remove_file(path)?;
            }
            Load::Fsync => {
                let file = File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(folder.join(format!("f{thread}")))?;
                file.write_all_at(&[1; 4096], 0)?;
                file.sync_all()?;
            }
            Load::Fill => drop(File::create_new(path)?),
            Load::OpenFiles => {}
        }
        Ok(())
    }
}

/// Tells who started this that it is under way, and how many files it holds.
fn say(held: usize) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{held}")?;
    Ok(out.flush()?)
}

/// Holds files of the folder open until the end of standard input.
fn hold(folder: &Path) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let count =
        maximum.map_or(MAX_OPEN, |limit| usize::try_from(limit.saturating_sub(SPARE)).unwrap_or(MAX_OPEN));
    let mut held = Vec::new();
    for number in 0..count.min(MAX_OPEN) {
        held.push(File::create(folder.join(number.to_string()))?);
    }
    say(held.len())?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A running hostile program. Dropping it kills it.
struct Hostile {
    child: Child,
    /// What it said when it was under way: how many files it holds.
    held: u64,
}

impl Hostile {
    fn start(load: Load, folder: &Path) -> Result<Hostile> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--hostile", &load.name(), "--folder"]).arg(folder);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("it has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let held = line.trim().parse();
        let mut hostile = Hostile { child, held: 0 };
        hostile.held = held.with_context(|| format!("the load {} did not come under way", load.name()))?;
        Ok(hostile)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds that each of the neighbour's operations took in the median.
type Latencies = BTreeMap<&'static str, f64>;

/// One operation of the neighbour.
type Operation = fn(&Path, usize) -> Result<()>;

/// By name. Each is at least one request that no cache answers, but for `read`, which opens and reads what others read too.
const OPERATIONS: [(&str, Operation); 4] = [
    ("lookup", |folder, turn| {
        ensure!(fs::symlink_metadata(folder.join(format!("no{turn}"))).is_err(), "a name that nobody made");
        Ok(())
    }),
    ("read", |folder, _| {
        File::open(folder.join("file"))?.read_exact_at(&mut [0; 4096], 0)?;
        Ok(())
    }),
    ("create", |folder, turn| {
        let path = folder.join(format!("new{turn}"));
        File::create_new(&path)?;
        Ok(fs::remove_file(path)?)
    }),
    ("fsync", |folder, _| {
        let file = File::options().write(true).open(folder.join("file"))?;
        file.write_all_at(&[2; 4096], 0)?;
        Ok(file.sync_all()?)
    }),
];

/// Lets the neighbour work for so long.
fn neighbour(folder: &Path, long: Duration, first: &mut usize) -> Result<Latencies> {
    let mut taken: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let end = Instant::now() + long;
    while Instant::now() < end {
        *first += 1;
        for (name, operation) in OPERATIONS {
            let begin = Instant::now();
            operation(folder, *first)?;
            taken.entry(name).or_default().push(begin.elapsed().as_secs_f64());
        }
    }
    Ok(taken.into_iter().filter_map(|(name, all)| Some((name, median(&all)?))).collect())
}

/// What one load cost one operation: medians in seconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cost {
    /// The hostile program's.
    pub load: Load,
    /// The neighbour's.
    pub operation: &'static str,
    /// Nothing else runs.
    pub idle_secs: f64,
    /// The hostile program works on a folder of the host.
    pub control_secs: f64,
    /// It works in another VE.
    pub hostile_secs: f64,
}

/// The results.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Where and when.
    pub about: About,
    /// What was measured.
    pub costs: Vec<Cost>,
    /// How many files a VE held open.
    pub open_files: u64,
    /// Memory of the daemon for each of them.
    pub open_file_bytes: f64,
}

/// Measures these loads, each for so long in each situation.
///
/// # Errors
/// A VE cannot be made; an operation of the neighbour failed.
pub fn measure(
    system: &mut dyn System,
    about: About,
    loads: &[Load],
    long: Duration,
    told: &mut dyn FnMut(&Cost),
) -> Result<Report> {
    let mut report = Report { about, costs: Vec::new(), open_files: 0, open_file_bytes: 0.0 };
    let folder = system.make("neighbour", Touches::Nothing)?.join("srv/neighbour");
    fs::create_dir_all(&folder)?;
    File::create(folder.join("file"))?.write_all(&[0; 8192])?;
    let mut turn = 0;
    for load in loads {
        let ve = format!("hostile-{}", load.name());
        let places: [PathBuf; 2] =
            [system.disk().join(&ve), system.make(&ve, Touches::Nothing)?.join("srv/hostile")];
        let idle = neighbour(&folder, long, &mut turn)?;
        let control = {
            let _hostile = Hostile::start(*load, &places[0])?;
            neighbour(&folder, long, &mut turn)?
        };
        let before = memory(system);
        let hostile = {
            let hostile = Hostile::start(*load, &places[1])?;
            if *load == Load::OpenFiles {
                report.open_files = hostile.held;
                report.open_file_bytes =
                    memory(system).saturating_sub(before) as f64 / hostile.held.max(1) as f64;
            }
            neighbour(&folder, long, &mut turn)?
        };
        for (operation, _) in OPERATIONS {
            let of = |all: &Latencies| all.get(operation).copied().unwrap_or(f64::NAN);
            let (idle_secs, control_secs, hostile_secs) = (of(&idle), of(&control), of(&hostile));
            let cost = Cost { load: *load, operation, idle_secs, control_secs, hostile_secs };
            told(&cost);
            report.costs.push(cost);
        }
        fs::remove_dir_all(&places[0])?;
        system.remove(&ve)?;
    }
    system.remove("neighbour")?;
    Ok(report)
}

/// Resident bytes of a system's processes.
fn memory(system: &dyn System) -> u64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    system.processes().into_iter().filter_map(of).sum::<u64>() << 10
}

/// The results as Markdown.
pub fn table(report: &Report) -> String {
    let mut text = String::from(
        "| hostile | neighbour | idle | beside a plain folder | beside a VE | VE : idle | VE : folder |\n|---|---|---|---|---|---|---|\n",
    );
    for cost in &report.costs {
        let Cost { load, operation, idle_secs, control_secs, hostile_secs } = cost;
        let of = |other: f64| ratio(*hostile_secs, other).map_or_else(|| "-".to_owned(), times);
        text += &format!(
            "| {} | {operation} | {} | {} | {} | {} | {} |\n",
            load.name(),
            time(*idle_secs),
            time(*control_secs),
            time(*hostile_secs),
            of(*idle_secs),
            of(*control_secs),
        );
    }
    if report.open_files > 0 {
        text += &format!(
            "\nThe daemon has {:.0} bytes of memory for each of {} open files of a VE.\n",
            report.open_file_bytes, report.open_files
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_and_neighbours_do_what_they_say() {
        let folder = tempfile::tempdir().expect("a folder");
        File::create(folder.path().join("file"))
            .and_then(|mut file| file.write_all(&[0; 8192]))
            .expect("written");
        let found = neighbour(folder.path(), Duration::from_millis(20), &mut 0).expect("it works");
        assert_eq!(found.len(), OPERATIONS.len());
        assert!(found.values().all(|secs| *secs > 0.0));
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1, "what it makes it removes");
        for load in [Load::Stat, Load::Open, Load::Create, Load::Fsync, Load::Fill] {
            load.once(folder.path(), "name", 7).expect("allowed");
        }
        let names = fs::read_dir(folder.path()).expect("listed").count();
        assert_eq!(names, 3, "the file, one that is opened and synced, one that fills");
    }

    #[test]
    fn tables_have_ratios() {
        let cost = Cost {
            load: Load::OpenFiles,
            operation: "read",
            idle_secs: 1e-5,
            control_secs: 2e-5,
            hostile_secs: 3e-5,
        };
        let report =
            Report { about: About::example(), costs: vec![cost], open_files: 10, open_file_bytes: 64.4 };
        let text = table(&report);
        assert!(text.contains("| open-files | read | 10.0 us | 20.0 us | 30.0 us | 3.00 | 1.50 |"), "{text}");
        assert!(text.contains("64 bytes of memory for each of 10 "), "{text}");
    }
}
