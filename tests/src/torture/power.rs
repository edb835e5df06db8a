//! The power fails: a workload on a recorded disk, and then the disk as it may be after a crash at one moment or another.

use std::path::{Path, PathBuf};

use super::crash::{CrashPoint, Replay, draw};
use super::disk::{Disk, Event, Image, Recording};
use super::inside::{Failure, Inside, Seen, write_sources};
use super::outside::{self, Outside};
use super::plan::{Op, Plan, plan};
use super::random::Random;
use crate::{Host, HostFs, Setup};

/// Notes in the recording: the numbers of operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// It begins.
    Begins(usize),
    /// It has succeeded.
    Acknowledged(usize),
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Operations of the workload.
    pub operations: usize,
    /// Moments at which the power fails.
    pub crashes: usize,
}

/// What was done.
#[derive(Clone, Copy, Default, Debug)]
pub struct Done {
    /// Operations.
    pub operations: usize,
    /// Writes of the disk.
    pub writes: usize,
    /// Flushes of the disk's cache.
    pub flushes: usize,
    /// Crashes that were looked at.
    pub crashes: usize,
    /// Those among them that came while the store recovered from another.
    pub crashes_in_recovery: usize,
    /// Operations that were begun and not synced, and that a crash kept or lost: what there was to go wrong.
    pub unsynced: usize,
}

const DISK_BYTES: u64 = 320 << 20;
/// Crashes after which the store is worked with, all garbage is collected, and everything is read again.
const THOROUGH: usize = 4;
/// Crashes after which there is another while the store recovers.
const TWICE: usize = 8;

/// The disk and folders of a scenario.
pub struct Scene {
    disk: Disk<Mark>,
    fs: HostFs,
    mounted: PathBuf,
    sources: PathBuf,
}

impl Scene {
    /// In a scratch folder.
    pub fn new(scratch: &Path, fs: HostFs) -> Scene {
        let (mounted, sources) = (scratch.join("disk"), scratch.join("sources"));
        std::fs::create_dir_all(&mounted).expect("the scratch folder is writable");
        write_sources(&sources);
        let disk = Disk::new(&scratch.join("block"), DISK_BYTES);
        Scene { disk, fs, mounted, sources }
    }

    fn mount(&self) -> Result<(), Failure> {
        self.disk
            .mount(self.fs, &self.mounted)
            .map_err(|error| format!("{:?} does not mount: {error}", self.fs))
    }

    /// Runs a workload and lets the power fail again and again.
    ///
    /// # Errors
    /// What was lost, with the number of the crash.
    pub fn run(&self, seed: u64, size: Size) -> Result<Done, Failure> {
        let plan = plan(seed, size.operations);
        let recording = self.record(&plan, seed)?;
        self.crash(&plan, &recording, seed, size.crashes)
    }

    fn crash(
        &self,
        plan: &Plan,
        recording: &Recording<Mark>,
        seed: u64,
        crashes: usize,
    ) -> Result<Done, Failure> {
        let mut random = Random::new(seed ^ 0x5eed);
        let points = draw(recording, crashes, &mut random);
        let count =
            |wanted: fn(&Event<Mark>) -> bool| recording.events.iter().filter(|event| wanted(event)).count();
        let mut done = Done {
            operations: plan.ops.len(),
            writes: count(|event| matches!(event, Event::Write { .. })),
            flushes: count(|event| matches!(event, Event::Flush)),
            ..Done::default()
        };
        let mut replay = Replay::new(recording);
        for (number, point) in points.into_iter().enumerate() {
            let bounds = Bounds::at(recording, plan, point);
            let checks = Checks { thorough: number % THOROUGH == 0, twice: number % TWICE == 1 };
            let checked = self.check(plan, bounds, replay.image(point), checks, &mut random);
            done.crashes_in_recovery += checked.map_err(|failure| {
                format!(
                    "crash {number} of {} (after {} of {} events, {:?}): {failure}",
                    crashes,
                    point.events,
                    recording.events.len(),
                    point.fate
                )
            })?;
            done.crashes += 1;
            done.unsynced += bounds.most - bounds.least;
        }
        done.crashes += done.crashes_in_recovery;
        Ok(done)
    }

    /// The same with a real daemon, mounts and the command `vzfs`: the workload goes through them, and after `by_daemon` of the crashes a daemon is
    /// started and what its mounts show is looked at. All other crashes are looked at in this process, as in [`Scene::run`].
    ///
    /// # Errors
    /// What was lost, with the number of the crash.
    pub fn run_with_daemon(fs: HostFs, seed: u64, size: Size, by_daemon: usize) -> Result<Done, Failure> {
        let plan = plan(seed, size.operations);
        let scratch =
            tempfile::tempdir_in("/var/tmp").map_err(|error| format!("a scratch folder: {error}"))?;
        let mut scene = Scene::new(scratch.path(), fs);
        scene.disk.format(fs);
        let from = scene.disk.record();
        let device = Some(PathBuf::from(scene.disk.device()));
        let host = Host::without_daemon(Setup { fs, device, ..Setup::default() });
        scene.mounted = host.disk();
        let mut outside = Outside::new(&host, &scene.sources, seed);
        scene.work(&plan, &mut |op| outside.apply(op))?;
        let recording = scene.disk.recorded(from);
        let seen = outside::observe(&host)?;
        drop(outside);
        host.power_off();
        judge(&plan, Bounds::end(&plan), &seen)?;

        let mut done = scene.crash(&plan, &recording, seed, size.crashes)?;
        let mut replay = Replay::new(&recording);
        // From when the store is there: what a daemon that makes one writes is looked at above.
        let first =
            recording.events.iter().position(|event| matches!(event, Event::Mark(Mark::Acknowledged(0))));
        let mut points = draw(&recording, by_daemon, &mut Random::new(seed ^ 0xdae_0000));
        points.retain(|point| Some(point.events) > first);
        for point in points {
            scene.disk.load(replay.image(point));
            host.power_on();
            let seen = outside::observe(&host);
            host.power_off();
            judge(&plan, Bounds::at(&recording, &plan, point), &seen?).map_err(|failure| {
                format!(
                    "crash after {} of {} events, {:?}, with a daemon: {failure}",
                    point.events,
                    recording.events.len(),
                    point.fate
                )
            })?;
            done.crashes += 1;
        }
        Ok(done)
    }

    fn work(&self, plan: &Plan, apply: &mut dyn FnMut(&Op) -> Result<(), Failure>) -> Result<(), Failure> {
        plan.ops.iter().enumerate().try_for_each(|(number, op)| {
            self.disk.mark(Mark::Begins(number));
            apply(op).map_err(|error| format!("operation {number}: {error}"))?;
            self.disk.mark(Mark::Acknowledged(number));
            Ok(())
        })
    }

    fn record(&self, plan: &Plan, seed: u64) -> Result<Recording<Mark>, Failure> {
        self.disk.format(self.fs);
        let from = self.disk.record();
        self.mount()?;
        let mut inside = Inside::new(&self.mounted, &self.sources, seed);
        let worked = self.work(plan, &mut |op| inside.apply(op));
        let recording = self.disk.recorded(from);
        // Without power cuts the model must be right, too.
        let seen = worked.and_then(|()| inside.observe());
        drop(inside);
        Disk::<Mark>::unmount(&self.mounted);
        judge(plan, Bounds::end(plan), &seen?)?;
        Ok(recording)
    }

    /// Looks at a disk after a crash. Returns how many crashes there were in the recovery.
    fn check(
        &self,
        plan: &Plan,
        bounds: Bounds,
        image: Image,
        checks: Checks,
        random: &mut Random,
    ) -> Result<usize, Failure> {
        self.disk.load(image);
        let from = self.disk.record();
        self.mount()?;
        let mut inside = Inside::new(&self.mounted, &self.sources, 0);
        let looked = inside.open().and_then(|()| inside.observe());
        let recovery = self.disk.recorded(from);
        let judged = looked.and_then(|seen| {
            judge(plan, bounds, &seen)?;
            if checks.thorough {
                inside.go_on()?;
                inside.collect()?;
                inside.verify()?;
                inside.end(false);
                inside.open()?;
                let again = inside.observe()?;
                if again != seen {
                    return Err(format!(
                        "it changes when the store is opened again:\n{}",
                        difference(&seen.text, &again.text)
                    ));
                }
            }
            Ok(())
        });
        drop(inside);
        Disk::<Mark>::unmount(&self.mounted);
        judged?;
        if !checks.twice {
            return Ok(0);
        }
        let points = draw(&recovery, 2, random);
        let mut replay = Replay::new(&recovery);
        for point in &points {
            let none = Checks { thorough: false, twice: false };
            self.check(plan, bounds, replay.image(*point), none, random).map_err(|failure| {
                format!(
                    "and again after {} of {} events of the recovery, {:?}: {failure}",
                    point.events,
                    recovery.events.len(),
                    point.fate
                )
            })?;
        }
        Ok(points.len())
    }
}

#[derive(Clone, Copy)]
struct Checks {
    thorough: bool,
    twice: bool,
}

/// What must be there after a crash.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// So many operations at least.
    least: usize,
    /// And so many at most.
    most: usize,
    /// The last operation that was acknowledged.
    acknowledged: Option<usize>,
    /// The last that was begun.
    begun: Option<usize>,
    /// Nothing is lost: contents are the last ones.
    settled: bool,
}

impl Bounds {
    /// Without a crash.
    fn end(plan: &Plan) -> Bounds {
        let last = plan.ops.len();
        let (acknowledged, begun) = (last.checked_sub(1), last.checked_sub(1));
        Bounds { least: last, most: last, acknowledged, begun, settled: true }
    }

    fn at(recording: &Recording<Mark>, plan: &Plan, point: CrashPoint) -> Bounds {
        let mut bounds = Bounds { least: 0, most: 0, acknowledged: None, begun: None, settled: false };
        for event in &recording.events[..point.events] {
            match event {
                Event::Mark(Mark::Begins(number)) => {
                    (bounds.begun, bounds.most) = (Some(*number), number + 1)
                }
                Event::Mark(Mark::Acknowledged(number)) => {
                    bounds.acknowledged = Some(*number);
                    bounds.least = bounds.least.max(plan.durable_at(*number));
                }
                _ => {}
            }
        }
        bounds
    }
}

/// Compares what is seen with what may be.
fn judge(plan: &Plan, bounds: Bounds, seen: &Seen) -> Result<(), Failure> {
    let possible = bounds.least..=bounds.most;
    let mut objection = None;
    // States may be alike; files tell them apart.
    for state in possible.clone().rev().filter(|state| plan.states[*state] == seen.text) {
        match contents(plan, bounds, state, seen) {
            Ok(()) => return Ok(()),
            Err(other) => objection = Some(other),
        }
    }
    if let Some(objection) = objection {
        return Err(objection);
    }
    if let Some(state) = plan.states.iter().rposition(|state| *state == seen.text) {
        return Err(format!("the state is that after {state} operations, and must be one of {possible:?}"));
    }
    let nearest =
        possible.min_by_key(|state| difference(&plan.states[*state], &seen.text).len()).unwrap_or(0);
    let last: Vec<String> = plan.ops[nearest.saturating_sub(4)..bounds.most].iter().map(short).collect();
    Err(format!(
        "there never was such a state; the nearest is after {nearest} operations (of {} to {}):\n{}last operations:\n{}",
        bounds.least,
        bounds.most,
        difference(&plan.states[nearest], &seen.text),
        last.join("\n")
    ))
}

/// An operation without what it writes.
fn short(op: &Op) -> String {
    let text = format!("{op:?}");
    text.chars().take(120).collect()
}

fn contents(plan: &Plan, bounds: Bounds, state: usize, seen: &Seen) -> Result<(), Failure> {
    for ((ve, path), found) in &seen.contents {
        let id = plan.worlds[state].ves[ve].names[path];
        let history = &plan.contents[&id];
        let objection = match bounds.settled {
            true => (**found != **history.now()).then(|| "it is not what was written last".to_owned()),
            false => history.objection(found, bounds.acknowledged, bounds.begun),
        };
        if let Some(objection) = objection {
            return Err(format!("VE {ve}: /{path}: {objection}"));
        }
    }
    Ok(())
}

/// The lines that only one of two texts has.
fn difference(expected: &str, found: &str) -> String {
    let only = |a: &str, b: &str, sign: &str| -> String {
        let other: std::collections::HashSet<&str> = b.lines().collect();
        a.lines().filter(|line| !other.contains(line)).map(|line| format!("{sign} {line}\n")).collect()
    };
    format!("{}{}", only(expected, found, "-"), only(found, expected, "+"))
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} crashes ({} in a recovery) in {} operations, {} writes and {} flushes of the disk",
            self.crashes, self.crashes_in_recovery, self.operations, self.writes, self.flushes
        )
    }
}

impl Done {
    /// Adds another's.
    pub fn add(&mut self, other: Done) {
        self.operations += other.operations;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.crashes += other.crashes;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.unsynced += other.unsynced;
    }
}
