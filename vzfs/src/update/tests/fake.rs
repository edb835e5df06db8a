//! VEs and records in memory that fail on demand, and a power that can be cut at every step.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

use super::super::*;
use crate::api::{
    ChangeKind, Generate, RebaseReport, RolloutHead, RolloutState, RolloutVe, Shadowed, ShadowedBy,
    ShadowedFile, StackItem, StaleProcess,
};
use crate::meta::MetaError;
use crate::store::{Rebase, StoreError, VeStanding};
use crate::types::{Digest, TemplateRef, Timestamp, VeId, VeName};

pub(super) fn item(spec: &str) -> StackItem {
    StackItem { spec: spec.parse().expect("legal"), layer: Digest::of(spec.as_bytes()) }
}

pub(super) fn reference(text: &str) -> TemplateRef {
    text.parse().expect("legal")
}

pub(super) fn ve_name(text: &str) -> VeName {
    text.parse().expect("legal")
}

/// Everything outside the engine.
#[derive(Default)]
pub(super) struct World {
    members: BTreeMap<VeId, VeStanding>,
    /// What templates there are, the newest of a name last.
    released: Vec<String>,
    /// Why moves fail, by VE; "panic" panics.
    failures: BTreeMap<String, String>,
    blocked: BTreeMap<String, String>,
    /// What is shadowed at the next move, and what the VE has of its own.
    shadowed: BTreeSet<(String, String)>,
    own: BTreeSet<(String, String)>,
    generate: Vec<Generate>,
    /// Code and output of commands, by VE or by command.
    answers: BTreeMap<String, (i32, String)>,
    /// VEs in which commands do not end.
    hanging: BTreeSet<String>,
    pub(super) ran: Vec<(String, String)>,
    pub(super) moved: Vec<String>,
    slow: Duration,
    now_secs: i64,
    now_nanos: u32,
    next: u64,
    /// The last number of a rollout.
    taken: u64,
    pub(super) heads: BTreeMap<u64, Value>,
    pub(super) ves: BTreeMap<(u64, VeId), Value>,
    pub(super) reports: BTreeMap<String, Value>,
    pub(super) shadows: BTreeMap<VeId, Value>,
    writes: usize,
    broken_disk: bool,
    /// Steps that are still done; `None`: the power is on for good.
    power: Option<usize>,
}

impl World {
    /// Whether a step with effects may be taken. When the power is gone, nothing happens any more.
    fn step(&mut self) -> bool {
        match &mut self.power {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    fn by_name(&mut self, name: &str) -> &mut VeStanding {
        self.members.values_mut().find(|member| member.name.as_str() == name).expect("there is such a VE")
    }
}

/// The world, as tests change and look at it.
#[derive(Clone, Default)]
pub(super) struct Fakes(pub(super) Arc<Mutex<World>>);

impl Fakes {
    /// `ve-1` to `ve-COUNT` with these templates, and the second version of both templates released.
    pub(super) fn with(count: usize, stack: &[&str]) -> Fakes {
        let fakes = Fakes::default();
        for spec in ["os@1", "nginx@1", "os@2", "nginx@2"] {
            fakes.release(spec);
        }
        for number in 1..=count {
            fakes.add(&format!("ve-{number}"), stack);
        }
        fakes
    }

    pub(super) fn open(&self) -> Arc<Updates> {
        let updates = Updates::open(Box::new(self.clone()), Box::new(self.clone())).expect("opens");
        updates.go_on();
        updates
    }

    pub(super) fn add(&self, name: &str, stack: &[&str]) {
        let mut world = self.0.lock();
        world.next += 1;
        let id = VeId(u32::try_from(world.next).expect("few") + 100);
        let stack = stack.iter().map(|spec| item(spec)).collect();
        let member = VeStanding {
            id,
            name: ve_name(name),
            labels: BTreeMap::new(),
            stack,
            mounted: None,
            wanted: false,
        };
        world.members.insert(id, member);
    }

    pub(super) fn release(&self, spec: &str) {
        self.0.lock().released.push(spec.to_owned());
    }

    pub(super) fn label(&self, name: &str, key: &str, value: &str) {
        self.0.lock().by_name(name).labels.insert(key.to_owned(), value.to_owned());
    }

    pub(super) fn mount(&self, name: &str) {
        self.0.lock().by_name(name).mounted = Some("/absent".into());
    }

    pub(super) fn mounted(&self) -> Vec<String> {
        let world = self.0.lock();
        world.members.values().filter(|m| m.mounted.is_some()).map(|m| m.name.to_string()).collect()
    }

    pub(super) fn remove(&self, name: &str) {
        let mut world = self.0.lock();
        let id = world.by_name(name).id;
        world.members.remove(&id);
    }

    pub(super) fn rename(&self, name: &str, new: &str) {
        self.0.lock().by_name(name).name = ve_name(new);
    }

    pub(super) fn put(&self, name: &str, stack: &[&str]) {
        self.0.lock().by_name(name).stack = stack.iter().map(|spec| item(spec)).collect();
    }

    pub(super) fn fail(&self, name: &str, why: &str) {
        self.0.lock().failures.insert(name.to_owned(), why.to_owned());
    }

    pub(super) fn block(&self, name: &str, why: &str) {
        self.0.lock().blocked.insert(name.to_owned(), why.to_owned());
    }

    pub(super) fn shadow(&self, name: &str, path: &str) {
        let mut world = self.0.lock();
        world.shadowed.insert((name.to_owned(), path.to_owned()));
        world.own.insert((name.to_owned(), path.to_owned()));
    }

    pub(super) fn unshadow(&self, name: &str, path: &str) {
        self.0.lock().shadowed.remove(&(name.to_owned(), path.to_owned()));
    }

    pub(super) fn give_up(&self, name: &str, path: &str) {
        self.0.lock().own.remove(&(name.to_owned(), path.to_owned()));
    }

    pub(super) fn generate(&self, files: &[(&str, &str)]) {
        let file = |(path, command): &(&str, &str)| Generate {
            path: (*path).to_owned(),
            command: (*command).to_owned(),
        };
        self.0.lock().generate = files.iter().map(file).collect();
    }

    /// What every command in a VE answers.
    pub(super) fn answer(&self, name: &str, code: i32, output: &str) {
        self.0.lock().answers.insert(name.to_owned(), (code, output.to_owned()));
    }

    /// Lets commands in a VE last until they are given up.
    pub(super) fn hang(&self, name: &str) {
        self.0.lock().hanging.insert(name.to_owned());
    }

    /// What a command answers in every VE.
    pub(super) fn answer_to(&self, command: &str, code: i32, output: &str) {
        self.answer(command, code, output);
    }

    pub(super) fn slow(&self, by: Duration) {
        self.0.lock().slow = by;
    }

    pub(super) fn break_disk(&self, broken: bool) {
        self.0.lock().broken_disk = broken;
    }

    pub(super) fn power(&self, steps: Option<usize>) {
        self.0.lock().power = steps;
    }

    pub(super) fn is_dark(&self) -> bool {
        self.0.lock().power == Some(0)
    }

    /// Sets the clock, in seconds from the beginning.
    pub(super) fn advance(&self, to_secs: u64) {
        self.0.lock().now_secs = i64::try_from(to_secs).expect("small");
    }

    pub(super) fn stacks(&self) -> BTreeMap<String, Vec<StackItem>> {
        self.0.lock().members.values().map(|m| (m.name.to_string(), m.stack.clone())).collect()
    }

    pub(super) fn stack(&self, name: &str) -> Vec<StackItem> {
        self.0.lock().by_name(name).stack.clone()
    }

    pub(super) fn id(&self, name: &str) -> VeId {
        self.0.lock().by_name(name).id
    }

    pub(super) fn moved(&self) -> Vec<String> {
        self.0.lock().moved.clone()
    }

    pub(super) fn ran(&self) -> Vec<(String, String)> {
        self.0.lock().ran.clone()
    }

    pub(super) fn writes(&self) -> usize {
        self.0.lock().writes
    }

    pub(super) fn rows(&self) -> usize {
        let world = self.0.lock();
        world.heads.len() + world.ves.len() + world.reports.len()
    }

    /// Asks until there is an answer.
    #[track_caller]
    pub(super) fn until<T>(&self, ask: impl Fn() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "it takes too long");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Lets time pass until a rollout with pauses is not running any more.
    pub(super) fn keep_advancing(&self, updates: &Updates, id: u64) {
        self.until(|| {
            self.0.lock().now_secs += 100;
            (updates.rollout(id).expect("known").head.state != RolloutState::Running).then_some(())
        });
    }

    fn write(&self, change: impl FnOnce(&mut World)) -> Result<(), MetaError> {
        let mut world = self.0.lock();
        if world.broken_disk || !world.step() {
            return Err(MetaError::Damaged { table: "fake", key: "x".into(), why: "no power".into() });
        }
        world.writes += 1;
        change(&mut world);
        Ok(())
    }
}

fn value<T: serde::Serialize + ?Sized>(record: &T) -> Value {
    serde_json::to_value(record).expect("serializes")
}

fn record<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("deserializes")
}

impl Fleet for Fakes {
    fn members(&self) -> Vec<VeStanding> {
        let mut members: Vec<_> = self.0.lock().members.values().cloned().collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
    }

    fn member(&self, id: VeId) -> Option<VeStanding> {
        self.0.lock().members.get(&id).cloned()
    }

    fn next_stack(&self, ve: &VeName, wanted: &[TemplateRef]) -> Result<Vec<StackItem>, StoreError> {
        let mut world = self.0.lock();
        if let Some(why) = world.blocked.get(ve.as_str()) {
            return Err(StoreError::Invalid(why.clone()));
        }
        let stack = world.by_name(ve.as_str()).stack.clone();
        let next = |had: &StackItem| {
            let named = wanted.iter().find(|wanted| wanted.name == had.spec.name);
            let fits = |spec: &&String| match named.and_then(|wanted| wanted.version.as_ref()) {
                Some(version) => **spec == format!("{}@{version}", had.spec.name),
                None => spec.starts_with(&format!("{}@", had.spec.name)),
            };
            match world.released.iter().rev().find(fits) {
                Some(spec) => Ok(item(spec)),
                None => Err(StoreError::UnknownTemplate(named.cloned().unwrap_or_else(|| reference("?")))),
            }
        };
        stack.iter().map(next).collect()
    }

    fn rebase(&self, ve: &VeName, to: &[StackItem], how: Rebase<'_>) -> Result<RebaseReport, StoreError> {
        let slow = self.0.lock().slow;
        std::thread::sleep(slow);
        let mut world = self.0.lock();
        match world.failures.get(ve.as_str()).map_or("", |why| why.as_str()) {
            "" => {}
            "panic" => {
                drop(world);
                panic!("a fault, for the test");
            }
            why => return Err(StoreError::Invalid(why.to_owned())),
        }
        if !how.dry_run && !world.step() || how.dry_run && world.power == Some(0) {
            return Err(StoreError::Closing);
        }
        let from = world.by_name(ve.as_str()).stack.clone();
        let shadowed = world.shadowed.iter().filter(|(name, _)| name == ve.as_str());
        let shadowed = shadowed.map(|(_, path)| Shadowed {
            path: path.clone(),
            change: ChangeKind::Changed,
            by: ShadowedBy::Changed,
            beside: None,
            package: None,
            from: None,
            to: None,
        });
        let report = RebaseReport {
            ve: ve.clone(),
            from,
            to: to.to_vec(),
            from_base: Digest::of(b"from"),
            to_base: Digest::of(b"to"),
            dry_run: how.dry_run,
            added: 0,
            changed: 5,
            removed: 0,
            shadowed: shadowed.collect(),
            merged: Vec::new(),
            notes: Vec::new(),
            stale_processes: Vec::new(),
            generate: world.generate.clone(),
            micros: 1000,
            pause_micros: 10,
        };
        if !how.dry_run {
            world.by_name(ve.as_str()).stack = to.to_vec();
            world.moved.push(ve.to_string());
            if let Some(key) = how.report_key {
                world.reports.insert(key.to_owned(), value(&report));
            }
        }
        Ok(report)
    }

    fn can_run(&self) -> io::Result<()> {
        Ok(())
    }

    fn run(
        &self,
        ve: &VeName,
        command: &str,
        _: Duration,
        give_up: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Ran> {
        let hangs = self.0.lock().hanging.contains(ve.as_str());
        if hangs {
            self.0.lock().ran.push((ve.to_string(), command.to_owned()));
            self.until(|| give_up().then_some(()));
            return Ok(Ran { code: None, output: String::new(), took: Duration::ZERO });
        }
        let mut world = self.0.lock();
        if !world.step() {
            return Err(io::Error::other("no power"));
        }
        world.by_name(ve.as_str()).mounted.get_or_insert("/absent".into());
        world.ran.push((ve.to_string(), command.to_owned()));
        let answer = world.answers.get(ve.as_str()).or_else(|| world.answers.get(command)).cloned();
        let (code, output) = answer.unwrap_or((0, String::new()));
        Ok(Ran { code: Some(code), output, took: Duration::from_millis(3) })
    }

    fn unmount(&self, ve: &VeName) -> Result<(), StoreError> {
        let mut world = self.0.lock();
        if !world.step() {
            return Err(StoreError::Closing);
        }
        world.by_name(ve.as_str()).mounted = None;
        Ok(())
    }

    fn stale_processes(&self, _: &[(VeId, PathBuf)]) -> BTreeMap<VeId, Vec<StaleProcess>> {
        BTreeMap::new()
    }

    fn own_paths(&self, ve: &VeName) -> Result<HashSet<String>, StoreError> {
        let world = self.0.lock();
        let own = world.own.iter().filter(|(name, _)| name == ve.as_str());
        Ok(own.map(|(_, path)| path.clone()).collect())
    }

    fn now(&self) -> Timestamp {
        // From one look to the next a little time passes, so that what comes later is later.
        let mut world = self.0.lock();
        world.now_nanos = (world.now_nanos + 1).min(999_999_999);
        Timestamp::new(world.now_secs, world.now_nanos)
    }
}

impl Journal for Fakes {
    fn take_number(&self) -> Result<u64, MetaError> {
        let mut number = 0;
        self.write(|world| {
            world.taken += 1;
            number = world.taken;
        })?;
        Ok(number)
    }

    fn load(&self) -> Result<Vec<Kept>, MetaError> {
        let world = self.0.lock();
        let ids: BTreeSet<u64> =
            world.heads.keys().copied().chain(world.ves.keys().map(|(id, _)| *id)).collect();
        let kept = |id| Kept {
            id,
            head: world.heads.get(&id).map(record),
            ves: world
                .ves
                .iter()
                .filter(|((rollout, _), _)| *rollout == id)
                .map(|(_, ve)| record(ve))
                .collect(),
        };
        Ok(ids.into_iter().map(kept).collect())
    }

    fn put_head(&self, head: &RolloutHead) -> Result<(), MetaError> {
        self.write(|world| drop(world.heads.insert(head.id, value(head))))
    }

    fn put_ve(&self, rollout: u64, ve: &RolloutVe, report: Option<&RebaseReport>) -> Result<(), MetaError> {
        self.write(|world| {
            world.ves.insert((rollout, ve.id), value(ve));
            if let Some(report) = report {
                world.reports.insert(journal::report_key(rollout, ve.id), value(report));
            }
        })
    }

    fn report(&self, rollout: u64, ve: VeId) -> Result<Option<RebaseReport>, MetaError> {
        Ok(self.0.lock().reports.get(&journal::report_key(rollout, ve)).map(record))
    }

    fn forget(&self, rollout: u64, ves: &[VeId]) -> Result<(), MetaError> {
        self.write(|world| {
            world.heads.remove(&rollout);
            for ve in ves {
                world.reports.remove(&journal::report_key(rollout, *ve));
                world.ves.remove(&(rollout, *ve));
            }
        })
    }

    fn put_shadowed(&self, ve: VeId, files: &[ShadowedFile]) -> Result<(), MetaError> {
        self.write(|world| {
            if files.is_empty() {
                world.shadows.remove(&ve);
            } else {
                world.shadows.insert(ve, value(files));
            }
        })
    }

    fn shadowed(&self, ve: VeId) -> Result<Vec<ShadowedFile>, MetaError> {
        Ok(self.0.lock().shadows.get(&ve).map(record).unwrap_or_default())
    }

    fn shadowing(&self) -> Result<Vec<VeId>, MetaError> {
        Ok(self.0.lock().shadows.keys().copied().collect())
    }
}
