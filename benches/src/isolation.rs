//! What a VE that does its worst costs another one.
//!
//! A neighbour does four small things in its own VE, over and over, and notes how long each takes: while nothing else runs, while a hostile program works on a
//! plain folder of the same disk (the control: what the processors, the disk and its journal cost anyway), and while the same program works in another VE.

pub mod open_files;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use open_files::Held;
use serde::{Deserialize, Serialize};

use crate::memory::resident_bytes;
use crate::report::About;
use crate::stats::{median, ratio, time, times};
use crate::system::{System, Touches};

/// Threads of a hostile program.
const THREADS: usize = 4;
/// Names that fill a directory before the neighbour is measured; it goes on being filled.
const NAMES: usize = 2_000;

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
    /// Holds many files open, a million if nobody says otherwise, and waits.
    OpenFiles,
}

impl Load {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Does it in a folder until the process is ended, [`Load::OpenFiles`] with `most` files until the end of standard input; says so on standard
    /// output when it is under way.
    ///
    /// # Errors
    /// Something was refused.
    pub fn run(self, folder: &Path, most: u64) -> Result<()> {
        fs::create_dir_all(folder)?;
        if self == Load::OpenFiles {
            return open_files::hold(folder, most, |held| say(&serde_json::to_string(&held)?));
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
            say(&serde_json::to_string(&Held::default())?)
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

/// Tells who started this that it is under way, in a line.
///
/// # Errors
/// Nobody listens any more.
pub fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// A running hostile program. Dropping it ends it.
struct Hostile {
    load: Load,
    child: Child,
    /// What it said when it was under way.
    held: Held,
    /// How long that took.
    secs: f64,
}

impl Hostile {
    fn start(load: Load, folder: &Path, most: u64) -> Result<Hostile> {
        let begin = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--hostile", &load.name(), "--open-files", &most.to_string(), "--folder"]).arg(folder);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("it has no output")?;
        let mut hostile = Hostile { load, child, held: Held::default(), secs: 0.0 };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let held = serde_json::from_str(&line);
        hostile.held = held.with_context(|| format!("the load {} did not come under way", load.name()))?;
        hostile.secs = begin.elapsed().as_secs_f64();
        Ok(hostile)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // One that has other processes ends when its input does, after them: nobody may have a file open when the VE is unmounted.
        drop(self.child.stdin.take());
        if self.load != Load::OpenFiles {
            // It may have ended by itself.
            let _ = self.child.kill();
        }
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
    /// What [`Load::OpenFiles`] came to in the VE.
    pub open_files: Option<OpenFiles>,
}

/// Many open files of a VE.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct OpenFiles {
    /// How many there were to be.
    pub most: u64,
    /// What was held.
    pub held: Held,
    /// Until it was.
    pub under_way_secs: f64,
    /// Memory that the daemon has more than before, for all of them.
    pub daemon_bytes: u64,
}

/// Measures these loads, each for so long in each situation, [`Load::OpenFiles`] with `most` files.
///
/// # Errors
/// A VE cannot be made; an operation of the neighbour failed.
pub fn measure(
    system: &mut dyn System,
    about: About,
    loads: &[Load],
    long: Duration,
    most: u64,
    told: &mut dyn FnMut(&Cost),
) -> Result<Report> {
    let mut report = Report { about, costs: Vec::new(), open_files: None };
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
            let _hostile = Hostile::start(*load, &places[0], most)?;
            neighbour(&folder, long, &mut turn)?
        };
        let before = memory(system);
        let hostile = {
            let hostile = Hostile::start(*load, &places[1], most)?;
            if *load == Load::OpenFiles {
                report.open_files = Some(OpenFiles {
                    most,
                    held: hostile.held,
                    under_way_secs: hostile.secs,
                    daemon_bytes: memory(system).saturating_sub(before),
                });
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
    system.processes().into_iter().filter_map(resident_bytes).sum()
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
    if let Some(OpenFiles { most, held, under_way_secs, daemon_bytes }) = report.open_files {
        text += &format!("\n{}", open_files::sentence(held, most, under_way_secs, daemon_bytes));
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
        let held = Held { open: 10, distinct: 10, processes: 1 };
        let open_files = Some(OpenFiles { most: 10, held, under_way_secs: 0.1, daemon_bytes: 644 });
        let report = Report { about: About::example(), costs: vec![cost], open_files };
        let text = table(&report);
        assert!(text.contains("| open-files | read | 10.0 us | 20.0 us | 30.0 us | 3.00 | 1.50 |"), "{text}");
        assert!(text.contains("64 bytes of memory for each of 10 "), "{text}");
    }
}
