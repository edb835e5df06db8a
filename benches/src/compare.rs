//! The same work on each system, in turns.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::report::{Measured, Outcome, RowReport};
use crate::run::{drop_caches, sh, sync};
use crate::system::{Kind, Requests, System, Touches};
use crate::work::{Caches, Row, Work};

/// The systems that are compared.
pub type Systems = Vec<(Kind, Box<dyn System>)>;

/// Which of `count` come when in a round: forwards and backwards in turns, so that what drifts hits all alike.
fn order(round: usize, count: usize) -> Vec<usize> {
    if round.is_multiple_of(2) { (0..count).collect() } else { (0..count).rev().collect() }
}

/// Measures a row. A system that fails is not asked again.
pub fn measure(
    systems: &mut Systems,
    row: &Row,
    rounds: usize,
    told: &mut dyn FnMut(Kind, &Result<f64>),
) -> RowReport {
    let mut report = RowReport::new(row);
    for round in 0..rounds {
        for index in order(round, systems.len()) {
            let (kind, system) = &mut systems[index];
            let outcome =
                report.systems.entry(*kind).or_insert_with(|| Outcome::Measured(Measured::default()));
            let Outcome::Measured(measured) = outcome else { continue };
            let once = once(system.as_mut(), row, round);
            told(*kind, &once.as_ref().map(|once| once.0).map_err(|error| anyhow::anyhow!("{error:#}")));
            match once {
                Ok((seconds, requests)) => {
                    measured.seconds.push(seconds);
                    measured.requests = requests;
                }
                Err(error) => *outcome = Outcome::Failed { failed: format!("{error:#}") },
            }
        }
    }
    report
}

/// Once: on VEs of its own, which are removed afterwards.
fn once(system: &mut dyn System, row: &Row, round: usize) -> Result<(f64, Requests)> {
    let name = |number: usize| format!("{}-{round}-{number}", row.name);
    if let Work::FirstUse = row.work {
        return first_use(system, &name(0), row.touches);
    }
    let names: Vec<String> = (0..row.work.ves()).map(name).collect();
    let mut roots: Vec<PathBuf> = Vec::new();
    for ve in &names {
        roots.push(system.make(ve, row.touches).context("cannot make a VE")?);
    }
    let roots: Vec<&Path> = roots.iter().map(PathBuf::as_path).collect();
    let timed = timed(system, row, &roots, &names);
    let finished = row.work.finish(&roots);
    for ve in &names {
        system.remove(ve).context("cannot remove a VE")?;
    }
    sync();
    finished.and(timed)
}

fn timed(system: &dyn System, row: &Row, roots: &[&Path], ves: &[String]) -> Result<(f64, Requests)> {
    let count = || -> Result<Requests> {
        let mut all = Requests::new();
        for ve in ves {
            for (kind, number) in system.requests(ve)? {
                *all.entry(kind).or_default() += number;
            }
        }
        Ok(all)
    };
    if row.caches == Caches::Warm {
        for _ in 0..2 {
            row.work.prepare(roots)?()?;
        }
    }
    let work = row.work.prepare(roots)?;
    sync();
    if row.caches == Caches::Cold {
        drop_caches()?;
    }
    let before = count()?;
    let begin = Instant::now();
    work()?;
    let seconds = begin.elapsed().as_secs_f64();
    let mut requests = count()?;
    requests.iter_mut().for_each(|(kind, number)| *number -= before.get(kind).copied().unwrap_or(0));
    requests.retain(|_, number| *number > 0);
    Ok((seconds, requests))
}

fn first_use(system: &mut dyn System, ve: &str, touches: Touches) -> Result<(f64, Requests)> {
    let begin = Instant::now();
    let root = system.make(ve, touches).context("cannot make a VE")?;
    let ran = sh(&root, "/bin/true");
    let seconds = begin.elapsed().as_secs_f64();
    let requests = system.requests(ve);
    system.remove(ve).context("cannot remove a VE")?;
    sync();
    ran.and(requests).map(|requests| (seconds, requests))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Notes what is asked of it.
    struct Noting {
        kind: Kind,
        asked: Rc<RefCell<Vec<String>>>,
        fails: bool,
        dir: tempfile::TempDir,
    }

    impl System for Noting {
        fn make(&mut self, ve: &str, _: Touches) -> Result<PathBuf> {
            self.asked.borrow_mut().push(format!("{} makes {ve}", self.kind.name()));
            anyhow::ensure!(!self.fails, "no VEs today");
            Ok(self.dir.path().to_owned())
        }

        fn remove(&mut self, ve: &str) -> Result<()> {
            self.asked.borrow_mut().push(format!("{} removes {ve}", self.kind.name()));
            Ok(())
        }

        fn requests(&self, _: &str) -> Result<Requests> {
            let so_far = self.asked.borrow().len() as u64;
            self.asked.borrow_mut().push("counted".to_owned());
            Ok(Requests::from([("lookup".to_owned(), so_far), ("open".to_owned(), 1)]))
        }

        fn disk(&self) -> &Path {
            self.dir.path()
        }
    }

    const ROW: Row = Row {
        name: "row",
        what: "nothing",
        caches: Caches::AsPrepared,
        touches: Touches::Nothing,
        work: Work::Calls(|_| Ok(Box::new(|| Ok(())))),
        goal: None,
        huge: false,
    };

    fn systems(fails: bool) -> (Systems, Rc<RefCell<Vec<String>>>) {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let new = |kind, fails| -> (Kind, Box<dyn System>) {
            let dir = tempfile::tempdir().expect("a folder");
            (kind, Box::new(Noting { kind, asked: Rc::clone(&asked), fails, dir }))
        };
        (vec![new(Kind::Overlayfs, false), new(Kind::Vzfs, fails)], asked)
    }

    #[test]
    fn systems_take_turns() {
        let (mut systems, asked) = systems(false);
        let report = measure(&mut systems, &ROW, 2, &mut |_, _| {});
        let made: Vec<_> = asked.borrow().iter().filter(|line| line.contains("makes")).cloned().collect();
        assert_eq!(
            made,
            [
                "overlayfs makes row-0-0",
                "vzfs makes row-0-0",
                "vzfs makes row-1-0",
                "overlayfs makes row-1-0"
            ]
        );
        let Some(Outcome::Measured(measured)) = report.systems.get(&Kind::Vzfs) else {
            unreachable!("measured")
        };
        assert_eq!(measured.seconds.len(), 2);
        // What was there before does not count.
        assert_eq!(measured.requests, Requests::from([("lookup".to_owned(), 1)]));
    }

    #[test]
    fn who_fails_is_not_asked_again() {
        let (mut systems, asked) = systems(true);
        let report = measure(&mut systems, &ROW, 3, &mut |_, _| {});
        assert_eq!(asked.borrow().iter().filter(|line| line.contains("vzfs makes")).count(), 1);
        let Some(Outcome::Failed { failed }) = report.systems.get(&Kind::Vzfs) else {
            unreachable!("failed")
        };
        assert_eq!(failed, "cannot make a VE: no VEs today");
        assert!(
            matches!(report.systems.get(&Kind::Overlayfs), Some(Outcome::Measured(m)) if m.seconds.len() == 3)
        );
    }
}
