//! Both sides together: a case is run and compared.

use std::cell::Cell;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::detach::{self, Prepared};
use super::execute::{Answer, Seen, execute, perform};
use super::generate::step;
use super::known;
use super::ops::{Op, Step};
use super::side::Side;
use super::snapshot::{Depth, Snapshot};
use super::stat::{Key, Relation, Stat};
use super::tree;
use crate::host::{host_sh, run};
use crate::{Host, HostFs, Setup};

/// Steps between two looks at everything, in cases that do not look after every step.
const LOOK_EVERY: usize = 8;

/// A sequence of operations.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Both trees are compared after every step. Otherwise seldom, so that the kernel's caches are cold more often.
    #[serde(default)]
    pub watched: bool,
    /// The operations.
    pub steps: Vec<Step>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.steps.iter().map(|step| format!("  {step:?}")).collect();
        write!(f, "{{\"watched\": {}, \"steps\": [\n{}\n]}}", self.watched, steps.join(",\n"))
    }
}

impl Case {
    /// Cases of up to so many steps.
    pub fn any(most: usize) -> impl Strategy<Value = Case> {
        (any::<bool>(), vec(step(), 1..most)).prop_map(|(watched, steps)| Case { watched, steps })
    }
}

/// A host with the tree as a template, on which cases are run one after the other.
pub struct Ground {
    host: Host,
    fs: HostFs,
    passthrough: bool,
    source: PathBuf,
    cases: Cell<u32>,
}

impl Ground {
    /// Makes the host.
    pub fn new(fs: HostFs, passthrough: bool) -> Ground {
        let off = ["--passthrough", "off"].map(str::to_owned);
        let daemon_args = if passthrough { Vec::new() } else { off.to_vec() };
        let host = Host::with(Setup { fs, size_mib: 2048, daemon_args, ..Setup::default() });
        run(Command::new("mount").args(["-o", "remount,noatime"]).arg(host.disk()));
        let source = host.disk().join("tree");
        tree::make(&source);
        host.vzfs(["template", "import", "tree@1", source.to_str().expect("text")]).ok();
        Ground { host, fs, passthrough, source, cases: Cell::new(0) }
    }

    /// Runs a case. The error says after which step what differs.
    pub fn run(&self, case: &Case) -> Result<(), String> {
        let number = self.cases.replace(self.cases.get() + 1);
        let ve = format!("case{number}");
        let plain = self.host.disk().join(format!("plain-{ve}"));
        tree::copy(&self.source, &plain);
        self.host.mounted("tree", &[&ve]);
        let pair = Pair {
            ground: self,
            plain: Side::enter(&plain),
            inside: Side::enter(&self.host.root(&ve)),
            ve: ve.clone(),
            relation: Relation::new(),
        };
        let outcome = pair.run(case);
        host_sh("rm -rf \"$1\"", [plain]);
        self.host.vzfs(["ve", "umount", &ve]).ok();
        self.host.vzfs(["ve", "rm", &ve]).ok();
        outcome
    }
}

/// A case under way.
struct Pair<'g> {
    ground: &'g Ground,
    plain: Side,
    inside: Side,
    ve: String,
    relation: Relation,
}

impl Pair<'_> {
    fn run(mut self, case: &Case) -> Result<(), String> {
        let start = self.plain.run(|inner| Snapshot::take(inner, Depth::Everything));
        self.relation.on_blob.extend(start.regular_files().map(Stat::key));
        self.look(Depth::Everything).map_err(|difference| format!("at the start: {difference}"))?;
        for (number, step) in case.steps.iter().enumerate() {
            let failed = |difference| format!("step {number}, {step:?}: {difference}");
            self.step(step).map_err(failed)?;
            if case.watched {
                self.look(Depth::Attributes).map_err(failed)?;
            }
            if number % LOOK_EVERY == LOOK_EVERY - 1 {
                self.look(Depth::Everything).map_err(failed)?;
            }
        }
        self.look(Depth::Everything).map_err(|difference| format!("at the end: {difference}"))?;
        self.remount();
        self.look(Depth::Everything).map_err(|difference| format!("after a remount: {difference}"))
    }

    fn look(&mut self, depth: Depth) -> Result<(), String> {
        let plain = self.plain.run(move |inner| Snapshot::take(inner, depth));
        let inside = self.inside.run(move |inner| Snapshot::take(inner, depth));
        let differences = plain.compare(&inside, &mut self.relation);
        if differences.is_empty() {
            Ok(())
        } else {
            Err(format!("(plain / VE)\n    {}", differences.join("\n    ")))
        }
    }

    fn remount(&mut self) {
        let (host, ve) = (&self.ground.host, self.ve.clone());
        self.around(|| {
            host.vzfs(["ve", "umount", &ve]).ok();
            host.vzfs(["ve", "mount", &ve]).ok();
        });
    }

    /// Does something while nobody is in the trees.
    fn around(&mut self, work: impl FnOnce()) {
        let Pair { plain, inside, .. } = self;
        plain.reenter(|| inside.reenter(work));
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let host = &self.ground.host;
        match &step.op {
            Op::Compare => self.look(Depth::Everything),
            Op::DropCaches => {
                host_sh("echo 2 > /proc/sys/vm/drop_caches", [""; 0]);
                Ok(())
            }
            Op::Remount => {
                self.remount();
                Ok(())
            }
            Op::Restart => {
                self.around(|| {
                    host.stop();
                    host.start();
                });
                Ok(())
            }
            Op::Kill => {
                self.around(|| {
                    host.kill();
                    host.start();
                });
                Ok(())
            }
            _ => self.operation(step),
        }
    }

    fn operation(&mut self, step: &Step) -> Result<(), String> {
        let asked = step.clone();
        if self.plain.run(move |inner| known::left_out(inner, &asked)) {
            return Ok(());
        }
        let (target, prepared) = self.prepare(step)?;
        if let Some(prepared) = &prepared {
            // Making the copy moved its ctime.
            self.relation.forget_times(prepared.root);
        }
        let plain = self.on_plain(step);
        if plain.is_ok() {
            if let Some(prepared) = prepared {
                self.detach(prepared);
            }
            if let Some(key) = target {
                detach::note_copy_up(&mut self.relation, key);
            }
        }
        let inside = {
            let step = step.clone();
            self.inside.run(move |inner| execute(inner, &step))
        };
        self.compare(&plain, &inside)
    }

    /// The file that the step may copy up, and a copy for its descriptors if it will be relabelled.
    fn prepare(&self, step: &Step) -> Result<(Option<Key>, Option<Prepared>), String> {
        let (step, on_blob, passthrough) =
            (step.clone(), self.relation.on_blob.clone(), self.ground.passthrough);
        self.plain.run(move |inner| {
            let key = detach::candidate(inner, &step, &on_blob);
            let prepared = match key.filter(|_| passthrough) {
                Some(key) => {
                    detach::prepare(inner, &step, key).map_err(|error| format!("no copy: {error}"))?
                }
                None => None,
            };
            Ok((key, prepared))
        })
    }

    fn detach(&mut self, prepared: Prepared) {
        let detached = self.plain.run(|inner| {
            let detached = detach::detach(inner, prepared);
            detach::let_go(inner, &detached.slots);
            detached
        });
        self.relation.detach(detached.key, detached.copy);
        self.inside.run(move |inner| detach::let_go(inner, &detached.slots));
    }

    fn on_plain(&mut self, step: &Step) -> Answer {
        let (step, fs) = (step.clone(), self.ground.fs);
        let (answer, moved) = self.plain.run(move |inner| {
            let before = known::before(inner, &step, fs);
            let answer = inner.within(step.by, step.umask, step.cwd, |inner| {
                if detach::refused_by_the_kernel(inner, &step.op) {
                    Err(Errno::OPNOTSUPP)
                } else {
                    perform(inner, &step.op)
                }
            });
            known::after(inner, &step, fs, before, answer)
        });
        for key in moved {
            self.relation.forget_times(key);
        }
        answer
    }

    fn compare(&mut self, plain: &Answer, inside: &Answer) -> Result<(), String> {
        match (plain, inside) {
            (Ok(Seen::Stat(plain)), Ok(Seen::Stat(inside))) => self.relation.compare(plain, inside),
            (Ok(Seen::Wrong(text)), _) => Err(format!("plain: {text}")),
            (_, Ok(Seen::Wrong(text))) => Err(format!("VE: {text}")),
            _ if plain == inside => Ok(()),
            _ => Err(format!("{} / {}", shown(plain), shown(inside))),
        }
    }
}

fn shown(answer: &Answer) -> String {
    match answer {
        Ok(Seen::Bytes(bytes)) if bytes.len() > 60 => {
            format!("{} bytes: {}...", bytes.len(), bytes[..60].escape_ascii())
        }
        Ok(Seen::Bytes(bytes)) => format!("{} bytes: {}", bytes.len(), bytes.escape_ascii()),
        Ok(Seen::Names(names)) => {
            format!("{:?}", names.iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>())
        }
        Ok(seen) => format!("{seen:?}"),
        Err(error) => format!("{error}"),
    }
}
