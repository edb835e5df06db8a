//! The power is cut after every single step of a rollout; what the next daemons make of it is what an undisturbed one makes.

use std::collections::BTreeMap;

use super::*;
use crate::api::StackItem;

/// What must be the same whether or not the power was cut.
#[derive(PartialEq, Eq, Debug)]
struct Outcome {
    stacks: BTreeMap<String, Vec<StackItem>>,
    /// State of each rollout, and of its VEs with what moving them did.
    rollouts: Vec<(RolloutState, Vec<VeOutcome>)>,
    shadowed: Vec<(String, String)>,
    mounted: Vec<String>,
}

/// Name, state, how many files it does not show.
type VeOutcome = (String, &'static str, Option<u64>);

fn outcome(fakes: &Fakes, updates: &Updates) -> Outcome {
    let mut rollouts = Vec::new();
    for listed in updates.rollouts().into_iter().rev() {
        let rollout = updates.rollout(listed.head.id).expect("known");
        let told =
            |ve: &RolloutVe| (ve.ve.to_string(), ve.state.as_str(), ve.summary.map(|sum| sum.shadowed));
        let mut ves: Vec<_> = rollout.ves.iter().map(told).collect();
        ves.sort();
        rollouts.push((rollout.head.state, ves));
    }
    let shadowed = updates.shadowed().expect("known").into_iter();
    let shadowed = shadowed.flat_map(|ve| {
        let name = ve.ve.to_string();
        ve.files.into_iter().map(move |file| (name.clone(), file.shadowed.path))
    });
    Outcome { stacks: fakes.stacks(), rollouts, shadowed: shadowed.collect(), mounted: fakes.mounted() }
}

/// Does the work that a test is about: whatever of it is not done yet.
type Work = fn(&Arc<Updates>);

/// Works until all is done, with the power cut after `steps` steps the first time.
fn run_with_a_cut(world: fn() -> Fakes, work: Work, steps: Option<usize>) -> (Outcome, bool) {
    let fakes = world();
    fakes.power(steps);
    let updates = fakes.open();
    work(&updates);
    settle(&updates);
    let cut = fakes.is_dark();
    if cut {
        // The old daemon is gone with all its threads before the next one starts.
        updates.close();
    }
    drop(updates);
    fakes.power(None);
    let updates = fakes.open();
    settle(&updates);
    work(&updates);
    settle(&updates);
    (outcome(&fakes, &updates), cut)
}

/// Waits until nothing is running.
fn settle(updates: &Arc<Updates>) {
    loop {
        let running = updates.rollouts().into_iter().find(|r| r.head.state == RolloutState::Running);
        match running {
            Some(rollout) => drop(finished(updates, rollout.head.id)),
            // One that takes itself back may be about to begin with that.
            None if updates.state.lock().rollouts.values().any(|live| live.driven) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            None => {
                std::thread::sleep(Duration::from_millis(3));
                if updates.rollouts().iter().all(|r| r.head.state != RolloutState::Running) {
                    return;
                }
            }
        }
    }
}

fn cut_everywhere(world: fn() -> Fakes, work: Work) {
    let (undisturbed, _) = run_with_a_cut(world, work, None);
    let mut steps = 0;
    loop {
        let (outcome, cut) = run_with_a_cut(world, work, Some(steps));
        assert_eq!(outcome, undisturbed, "the power was cut after {steps} steps");
        if !cut {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20, "only {steps} steps");
}

fn world() -> Fakes {
    let fakes = Fakes::with(5, &["os@1"]);
    fakes.shadow("ve-2", "etc/motd");
    fakes.generate(&[("etc/ld.so.cache", "ldconfig")]);
    fakes.mount("ve-3");
    fakes
}

fn start_once(updates: &Arc<Updates>, request: &UpdateRequest) {
    if updates.rollouts().is_empty() {
        // Without power it is refused.
        let _ = updates.start(request);
    }
}

#[test]
fn regardless_of_when_the_power_is_cut_a_rollout_comes_to_its_end() {
    cut_everywhere(world, |updates| {
        start_once(updates, &UpdateRequest { batch: 2, check: Some("true".to_owned()), ..all() });
    });
}

#[test]
fn regardless_of_when_the_power_is_cut_a_way_back_comes_to_its_end() {
    cut_everywhere(world, |updates| {
        start_once(updates, &UpdateRequest { batch: 3, ..all() });
        settle(updates);
        if updates.rollouts().len() == 1 {
            let _ = updates.roll_back(1.max(updates.rollouts()[0].head.id), &[]);
        }
    });
}

#[test]
fn regardless_of_when_the_power_is_cut_a_failed_rollout_takes_itself_back() {
    let world = || {
        let fakes = world();
        fakes.answer("ve-4", 1, "");
        // A derived file of that VE cannot be made anew either.
        fakes
    };
    cut_everywhere(world, |updates| {
        let check = Some("true".to_owned());
        start_once(updates, &UpdateRequest { batch: 1, check, rollback_on_failure: true, ..all() });
    });
}

#[test]
fn the_report_of_a_move_that_nobody_heard_of_is_kept() {
    let fakes = Fakes::with(1, &["os@1"]);
    fakes.shadow("ve-1", "etc/motd");
    // A number, the VE, the head, `moving`, the move itself: and then no power.
    fakes.power(Some(5));
    let updates = fakes.open();
    updates.start(&all()).expect("begins");
    settle(&updates);
    updates.close();
    drop(updates);
    assert_eq!(fakes.stack("ve-1"), [item("os@2")]);
    fakes.power(None);
    let updates = fakes.open();
    settle(&updates);
    let detail = updates.rollout_ve(1, &ve_name("ve-1")).expect("known");
    assert_eq!(detail.ve.state, RolloutVeState::Done);
    let report = detail.report.expect("a report");
    assert_eq!((report.from, report.to), (vec![item("os@1")], vec![item("os@2")]));
    assert_eq!(report.shadowed[0].path, "etc/motd");
    assert_eq!(fakes.moved().len(), 1, "it is not moved twice");
}

#[test]
fn a_paused_rollout_stays_paused_and_a_pause_between_batches_goes_on() {
    let fakes = Fakes::with(3, &["os@1"]);
    let updates = fakes.open();
    let id = updates.start(&UpdateRequest { pause_secs: 1000, ..all() }).expect("begins").head.id;
    let wait = fakes.until(|| updates.rollout(id).expect("known").head.wait);
    updates.close();
    drop(updates);
    fakes.advance(500);
    let updates = fakes.open();
    assert_eq!(updates.rollout(id).expect("known").head.wait, Some(wait));
    updates.pause(id).expect("pauses");
    updates.close();
    drop(updates);
    fakes.advance(1001);
    let updates = fakes.open();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(updates.rollout(id).expect("known").head.state, RolloutState::Paused);
    assert_eq!(fakes.moved().len(), 1);
    updates.resume(id).expect("resumes");
    assert_eq!(finished(&updates, id).counts.done, 3);
}
