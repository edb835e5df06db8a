//! Rollouts of VEs that are only numbers, with everything that can go wrong.

#![allow(clippy::panic)]

mod crash;
mod fake;
mod records;

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::api::{Portion, Rollout, RolloutVe, Selector, ShadowedBy, UpdateMode, UpdateRequest};
use crate::store::{Events, StoreError};
use fake::{Fakes, item, reference, ve_name};

fn all() -> UpdateRequest {
    UpdateRequest { all: true, ..UpdateRequest::default() }
}

/// Waits until a rollout is not running.
fn finished(updates: &Updates, id: u64) -> Rollout {
    loop {
        let rollout = updates.rollout(id).expect("known");
        if rollout.head.state != RolloutState::Running {
            return rollout;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn run(updates: &Arc<Updates>, request: &UpdateRequest) -> Rollout {
    let id = updates.start(request).expect("begins").head.id;
    finished(updates, id)
}

/// The states of the VEs by name, as in JSON.
fn states(rollout: &Rollout) -> BTreeMap<&str, &'static str> {
    rollout.ves.iter().map(|ve| (ve.ve.as_str(), ve.state.as_str())).collect()
}

fn ve<'a>(rollout: &'a Rollout, name: &str) -> &'a RolloutVe {
    rollout.ves.iter().find(|ve| ve.ve.as_str() == name).expect("part of it")
}

#[test]
fn canaries_go_first_and_then_batches() {
    let fakes = Fakes::with(10, &["os@1"]);
    let updates = fakes.open();
    let request = UpdateRequest { canary: Some(Portion::Percent(20)), batch: 3, ..all() };
    let rollout = run(&updates, &request);
    assert_eq!((rollout.head.state, rollout.batches, rollout.batch), (RolloutState::Done, 4, None));
    assert_eq!((rollout.counts.to_move, rollout.counts.done), (10, 10));
    let batches: Vec<_> = rollout.ves.iter().map(|ve| ve.batch.expect("in a batch")).collect();
    assert_eq!(batches, [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]);
    // No VE of a batch is moved before the last of the batch before it.
    let order = fakes.moved();
    let rank = |name: &str| batches[rollout.ves.iter().position(|ve| ve.ve.as_str() == name).expect("there")];
    assert!(order.windows(2).all(|pair| rank(&pair[0]) <= rank(&pair[1])), "{order:?}");
    assert!(fakes.stacks().values().all(|stack| *stack == vec![item("os@2")]));
    let detail = updates.rollout_ve(rollout.head.id, &ve_name("ve-3")).expect("known");
    assert_eq!(detail.report.map(|report| report.changed), Some(5));
    assert_eq!(updates.rollouts().len(), 1);
    assert!(updates.rollouts()[0].ves.is_empty());
}

#[test]
fn what_needs_no_move_or_cannot_move_is_told_and_not_touched() {
    let fakes = Fakes::with(1, &["os@1"]);
    fakes.add("app", &["os@1", "nginx@1"]);
    fakes.add("current", &["os@2"]);
    fakes.block("app", "nginx@1 does not fit os@2");
    let updates = fakes.open();
    let rollout = run(&updates, &all());
    assert_eq!(states(&rollout), [("app", "blocked"), ("current", "current"), ("ve-1", "done")].into());
    assert_eq!(ve(&rollout, "app").why.as_deref(), Some("nginx@1 does not fit os@2"));
    assert_eq!(rollout.counts.blocked, 1);
    assert_eq!(fakes.moved(), ["ve-1"]);
    let refused = updates.start(&UpdateRequest { ves: vec![ve_name("current")], ..UpdateRequest::default() });
    assert!(refused.expect_err("nothing to do").to_string().contains("VE current has os@2 already"));
}

#[test]
fn templates_that_are_named_choose_among_the_vs_templates() {
    let fakes = Fakes::with(1, &["os@1"]);
    fakes.add("app", &["os@1", "nginx@1"]);
    let updates = fakes.open();
    let request = UpdateRequest { templates: vec![reference("nginx@2")], ..all() };
    let plan = updates.plan(&request, &()).expect("a plan");
    let by_name: BTreeMap<_, _> = plan.ves.iter().map(|detail| (detail.ve.ve.as_str(), &detail.ve)).collect();
    assert_eq!(by_name["ve-1"].state, RolloutVeState::Left);
    assert_eq!(by_name["app"].to, [item("os@2"), item("nginx@2")]);
    // Named one by one, a VE that does not have the template is a slip of the finger.
    let request = UpdateRequest { all: false, ves: vec![ve_name("ve-1"), ve_name("app")], ..request };
    let refused = updates.plan(&request, &()).expect_err("refused");
    assert_eq!(refused.to_string(), "VE ve-1 has no template nginx");
    let request = UpdateRequest { templates: vec![reference("debain@1")], ..all() };
    assert!(updates.plan(&request, &()).is_err());
}

#[test]
fn labels_choose() {
    let fakes = Fakes::with(3, &["os@1"]);
    fakes.label("ve-2", "tier", "web");
    let updates = fakes.open();
    let selector = |text: &str| Some(text.parse::<Selector>().expect("legal"));
    let request = UpdateRequest { selector: selector("tier=web"), ..UpdateRequest::default() };
    assert_eq!(states(&run(&updates, &request)), [("ve-2", "done")].into());
    let request = UpdateRequest { selector: selector("tier=db"), ..UpdateRequest::default() };
    assert!(matches!(updates.start(&request), Err(UpdateError::Invalid(_))));
}

#[test]
fn a_dry_run_changes_nothing_and_tells_all() {
    let fakes = Fakes::with(3, &["os@1"]);
    fakes.shadow("ve-2", "etc/motd");
    fakes.fail("ve-3", "its disk is full");
    let updates = fakes.open();
    let before = fakes.stacks();
    let plan = updates.plan(&UpdateRequest { mode: UpdateMode::DryRun, ..all() }, &()).expect("a plan");
    let report = plan.ves[1].report.as_ref().expect("a report");
    assert_eq!((report.shadowed[0].path.as_str(), report.dry_run), ("etc/motd", true));
    assert_eq!(plan.ves[2].ve.state, RolloutVeState::Failed);
    assert_eq!(fakes.stacks(), before);
    assert!(fakes.writes() == 0 && updates.rollouts().is_empty());
    // The plan that was agreed to is the one that is begun with, or none.
    fakes.fail("ve-3", "");
    let agreed = UpdateRequest { plan: Some(plan.digest), ..all() };
    fakes.release("os@3");
    assert!(matches!(updates.start(&agreed), Err(UpdateError::OtherPlan)));
}

#[test]
fn a_failed_canary_stops_before_any_batch() {
    for how in ["move", "check"] {
        let fakes = Fakes::with(10, &["os@1"]);
        if how == "move" {
            fakes.fail("ve-1", "its disk is full");
        } else {
            fakes.answer("ve-1", 3, "nginx is down\n");
        }
        let updates = fakes.open();
        let request = UpdateRequest { max_failures: 9, check: Some("true".to_owned()), ..all() };
        let rollout = run(&updates, &request);
        assert_eq!(rollout.head.state, RolloutState::Stopped);
        let why = rollout.head.why.as_deref().unwrap_or_default();
        assert!(why.starts_with("the canary ve-1 failed: "), "{why}");
        assert_eq!((rollout.counts.failed, rollout.counts.pending), (1, 9));
        assert_eq!(fakes.moved().len(), usize::from(how == "check"));
        if how == "check" {
            // It stays as it is, and what the check said is known.
            assert_eq!(fakes.stack("ve-1"), [item("os@2")]);
            assert!(why.ends_with("the check ended with code 3: nginx is down"), "{why}");
            let check = ve(&rollout, "ve-1").check.clone().expect("it was checked");
            assert_eq!((check.code, check.output.as_str()), (Some(3), "nginx is down\n"));
        }
        // Whoever resumes it accepts that.
        updates.resume(rollout.head.id).expect("resumed");
        let rollout = finished(&updates, rollout.head.id);
        assert_eq!((rollout.head.state, rollout.counts.done), (RolloutState::Done, 9));
    }
}

#[test]
fn too_many_failures_stop_it_and_as_many_as_may_do_not() {
    let fakes = Fakes::with(12, &["os@1"]);
    for name in ["ve-3", "ve-4", "ve-9"] {
        fakes.fail(name, "no");
    }
    let updates = fakes.open();
    let rollout = run(&updates, &UpdateRequest { canary: None, batch: 1, max_failures: 1, ..all() });
    assert_eq!(rollout.head.state, RolloutState::Stopped);
    assert_eq!(rollout.head.why.as_deref(), Some("2 VEs failed, and 1 may"));
    assert_eq!(rollout.counts.failed, 2);
    assert!(rollout.counts.pending > 0);
    assert!(fakes.stack("ve-3") == [item("os@1")], "a VE that could not be moved is as it was");
    let fakes = Fakes::with(12, &["os@1"]);
    fakes.fail("ve-3", "no");
    let rollout = run(&fakes.open(), &UpdateRequest { max_failures: 1, ..all() });
    assert_eq!((rollout.head.state, rollout.counts.done), (RolloutState::Done, 11));
}

#[test]
fn it_takes_itself_back_when_it_was_told_to() {
    let fakes = Fakes::with(6, &["os@1"]);
    fakes.answer("ve-4", 1, "");
    let updates = fakes.open();
    let check = Some("true".to_owned());
    let request = UpdateRequest { canary: None, batch: 2, check, rollback_on_failure: true, ..all() };
    let rollout = run(&updates, &request);
    assert_eq!(rollout.head.state, RolloutState::Stopped);
    let back = fakes.until(|| updates.rollouts().into_iter().find(|other| other.head.rolls_back.is_some()));
    let back = finished(&updates, back.head.id);
    assert_eq!((back.head.rolls_back, back.head.state), (Some(rollout.head.id), RolloutState::Done));
    assert!(fakes.stacks().values().all(|stack| *stack == vec![item("os@1")]));
    assert_eq!(updates.rollout(rollout.head.id).expect("known").rolled_back_by, [back.head.id]);
}

#[test]
fn pause_resume_and_stop() {
    let fakes = Fakes::with(9, &["os@1"]);
    let updates = fakes.open();
    // A pause between batches that lasts until it is cut short.
    let request = UpdateRequest { batch: 4, pause_secs: 3600, ..all() };
    let id = updates.start(&request).expect("begins").head.id;
    fakes.until(|| updates.rollout(id).expect("known").head.wait);
    assert_eq!(updates.pause(id).expect("pauses").head.state, RolloutState::Paused);
    assert!(matches!(updates.pause(id), Err(UpdateError::State { .. })));
    assert_eq!(fakes.moved().len(), 1);
    // Its VEs are not free for another.
    let other = UpdateRequest { ves: vec![ve_name("ve-9")], ..UpdateRequest::default() };
    assert!(matches!(updates.start(&other), Err(UpdateError::Taken { id: 1, .. })));
    assert!(matches!(updates.forget(id), Err(UpdateError::State { .. })));
    // After the pause it goes on by itself.
    updates.resume(id).expect("resumes");
    fakes.advance(3601);
    fakes.until(|| (fakes.moved().len() == 5).then_some(()));
    fakes.until(|| updates.rollout(id).expect("known").head.wait.filter(|wait| wait.before_batch == 2));
    let stopped = updates.stop(id).expect("stops");
    assert_eq!((stopped.head.state, stopped.counts.pending), (RolloutState::Stopped, 4));
    // Now they are, and a VE that another rollout has moved is left alone by this one.
    run(&updates, &other);
    updates.resume(id).expect("resumes");
    fakes.advance(7300);
    let rollout = finished(&updates, id);
    assert_eq!(rollout.head.state, RolloutState::Done);
    assert_eq!(ve(&rollout, "ve-9").state, RolloutVeState::Current);
    assert!(matches!(updates.resume(id), Err(UpdateError::State { .. })));
}

#[test]
fn ves_that_others_removed_renamed_or_moved_are_left_alone() {
    let fakes = Fakes::with(5, &["os@1"]);
    let updates = fakes.open();
    let request = UpdateRequest { pause_secs: 3600, ..all() };
    let id = updates.start(&request).expect("begins").head.id;
    fakes.until(|| updates.rollout(id).expect("known").head.wait);
    fakes.remove("ve-2");
    fakes.rename("ve-3", "www");
    fakes.put("ve-4", &["os@9"]);
    // A new VE is not part of it, whatever its name.
    fakes.add("ve-2", &["os@1"]);
    fakes.advance(3601);
    let rollout = finished(&updates, id);
    assert_eq!(rollout.head.state, RolloutState::Done);
    let why = |name: &str| {
        assert_eq!(ve(&rollout, name).state, RolloutVeState::Left);
        ve(&rollout, name).why.clone().unwrap_or_default()
    };
    assert_eq!(why("ve-2"), "it was removed meanwhile");
    assert_eq!(why("ve-3"), "it was renamed to www meanwhile");
    assert_eq!(why("ve-4"), "it was moved to os@9 meanwhile, by somebody else");
    assert_eq!(fakes.stack("ve-5"), [item("os@2")]);
    assert_eq!((fakes.stack("ve-2"), fakes.stack("www")), (vec![item("os@1")], vec![item("os@1")]));
    // The same for the way back.
    fakes.put("ve-1", &["os@9"]);
    let back = updates.roll_back(id, &[]).expect("begins").head.id;
    let back = finished(&updates, back);
    assert_eq!(states(&back), [("ve-1", "left"), ("ve-5", "done")].into());
    assert_eq!(fakes.stack("ve-1"), [item("os@9")]);
}

#[test]
fn one_ve_or_all_are_brought_back_to_what_they_had() {
    let fakes = Fakes::with(4, &["os@1"]);
    fakes.add("app", &["os@1", "nginx@1"]);
    let updates = fakes.open();
    let before = fakes.stacks();
    let id = run(&updates, &all()).head.id;
    let back = updates.roll_back(id, &[ve_name("ve-2")]).expect("begins").head.id;
    assert_eq!(states(&finished(&updates, back)), [("ve-2", "done")].into());
    assert_eq!(fakes.stack("ve-2"), [item("os@1")]);
    assert_eq!(fakes.stack("ve-1"), [item("os@2")]);
    let rest = updates.roll_back(id, &[]).expect("begins").head.id;
    let rest = finished(&updates, rest);
    assert_eq!(ve(&rest, "ve-2").state, RolloutVeState::Current);
    assert_eq!(fakes.stacks(), before);
    // A way back can be taken back, which leads forward again.
    let forward = updates.roll_back(back, &[]).expect("begins").head.id;
    finished(&updates, forward);
    assert_eq!(fakes.stack("ve-2"), [item("os@2")]);
    assert!(matches!(updates.roll_back(id, &[ve_name("ve-9")]), Err(UpdateError::UnknownVe { .. })));
    assert!(matches!(updates.roll_back(99, &[]), Err(UpdateError::Unknown(99))));
}

#[test]
fn what_was_not_moved_cannot_be_brought_back() {
    let fakes = Fakes::with(3, &["os@1"]);
    fakes.fail("ve-1", "no");
    let updates = fakes.open();
    let id = run(&updates, &all()).head.id;
    assert!(matches!(updates.roll_back(id, &[]), Err(UpdateError::NotMoved { .. })));
    assert!(matches!(updates.roll_back(id, &[ve_name("ve-2")]), Err(UpdateError::NotMoved { .. })));
}

#[test]
fn a_running_rollout_is_ended_before_it_is_taken_back() {
    let fakes = Fakes::with(20, &["os@1"]);
    fakes.slow(Duration::from_millis(20));
    let updates = fakes.open();
    let id = updates.start(&UpdateRequest { batch: 2, ..all() }).expect("begins").head.id;
    fakes.until(|| (fakes.moved().len() > 3).then_some(()));
    let back = updates.roll_back(id, &[]).expect("begins").head.id;
    let back = finished(&updates, back);
    assert_eq!(back.head.state, RolloutState::Done);
    assert!(fakes.stacks().values().all(|stack| *stack == vec![item("os@1")]));
    assert_eq!(updates.rollout(id).expect("known").head.state, RolloutState::Stopped);
    let resumed = updates.resume(id);
    assert!(resumed.expect_err("refused").to_string().contains("took it back"));
}

#[test]
fn templates_that_a_way_back_needs_are_named() {
    let fakes = Fakes::with(1, &["os@1"]);
    let updates = fakes.open();
    let id = run(&updates, &all()).head.id;
    let needs = |spec: &str| updates.ways_back(&spec.parse().expect("legal"));
    let ways = needs("os@1");
    assert_eq!(ways, [WayBack { update: id, ve: fakes.id("ve-1"), at: vec![item("os@2")] }]);
    assert_eq!(needs("os@2"), []);
    updates.forget(id).expect("forgotten");
    assert_eq!(needs("os@1"), []);
    assert!(updates.rollouts().is_empty());
    assert_eq!(fakes.rows(), 0, "nothing is left of it");
    // Its number is not used again.
    fakes.release("os@3");
    assert_eq!(run(&updates, &all()).head.id, id + 1);
}

#[test]
fn derived_files_are_made_anew_and_failures_are_told() {
    let fakes = Fakes::with(2, &["os@1"]);
    fakes.generate(&[("etc/ld.so.cache", "ldconfig"), ("etc/ld.so.aux", "ldconfig"), ("x", "make-x")]);
    fakes.answer_to("make-x", 2, "no x\n");
    let updates = fakes.open();
    let rollout = run(&updates, &all());
    assert_eq!(rollout.counts.done, 2);
    let ran = fakes.ran();
    assert_eq!(ran.iter().filter(|(_, command)| command == "ldconfig").count(), 2, "{ran:?}");
    let report = updates.rollout_ve(rollout.head.id, &ve_name("ve-1")).expect("known").report;
    assert_eq!(report.expect("a report").notes, ["/x may be out of date: `make-x` ended with code 2: no x"]);
    // The way back makes them anew as well.
    let back = updates.roll_back(rollout.head.id, &[]).expect("begins").head.id;
    finished(&updates, back);
    assert_eq!(fakes.ran().iter().filter(|(_, command)| command == "ldconfig").count(), 4);
}

#[test]
fn a_ve_that_was_not_mounted_is_not_mounted_afterwards() {
    let fakes = Fakes::with(2, &["os@1"]);
    fakes.mount("ve-2");
    let updates = fakes.open();
    let rollout = run(&updates, &UpdateRequest { check: Some("true".to_owned()), ..all() });
    assert_eq!(rollout.counts.done, 2);
    assert_eq!(fakes.ran().len(), 2);
    assert_eq!(fakes.mounted(), ["ve-2"]);
}

#[test]
fn shadowed_files_are_found_until_they_are_not() {
    let fakes = Fakes::with(2, &["os@1"]);
    fakes.shadow("ve-1", "etc/motd");
    let updates = fakes.open();
    let id = run(&updates, &all()).head.id;
    let shadowed = updates.shadowed().expect("known");
    assert_eq!(shadowed.len(), 1);
    let file = &shadowed[0].files[0];
    assert_eq!((file.shadowed.path.as_str(), file.shadowed.by), ("etc/motd", ShadowedBy::Changed));
    assert_eq!(
        (file.rollout, file.from[0].to_string(), file.to[0].to_string()),
        (id, "os@1".into(), "os@2".into())
    );
    // The next update does not touch it: it is shadowed still.
    fakes.unshadow("ve-1", "etc/motd");
    fakes.release("os@3");
    run(&updates, &all());
    assert_eq!(updates.shadowed_in(&ve_name("ve-1")).expect("known").files.len(), 1);
    // The rollout that brought it is forgotten: it is shadowed still, also for the next daemon.
    updates.forget(id).expect("forgotten");
    drop(updates);
    let updates = fakes.open();
    assert_eq!(updates.shadowed().expect("known").len(), 1);
    // The VE has given its own file up.
    fakes.give_up("ve-1", "etc/motd");
    assert!(updates.shadowed().expect("known").is_empty());
}

#[test]
fn what_is_taken_back_shadows_nothing() {
    let fakes = Fakes::with(1, &["os@1"]);
    fakes.shadow("ve-1", "etc/motd");
    let updates = fakes.open();
    let id = run(&updates, &all()).head.id;
    assert_eq!(updates.shadowed().expect("known").len(), 1);
    let back = updates.roll_back(id, &[]).expect("begins").head.id;
    finished(&updates, back);
    assert!(updates.shadowed().expect("known").is_empty());
    let forward = updates.roll_back(back, &[]).expect("begins").head.id;
    finished(&updates, forward);
    assert_eq!(updates.shadowed().expect("known").len(), 1);
}

#[test]
fn old_rollouts_are_forgotten() {
    let fakes = Fakes::with(1, &["os@1"]);
    let updates = fakes.open();
    for version in 0..KEPT_ROLLOUTS + 3 {
        fakes.release(&format!("os@{}", version + 10));
        run(&updates, &all());
    }
    // The last was begun with before it was finished.
    let kept: Vec<u64> = updates.rollouts().iter().map(|rollout| rollout.head.id).collect();
    assert_eq!((kept.len(), kept[0]), (KEPT_ROLLOUTS + 1, KEPT_ROLLOUTS as u64 + 3));
}

#[test]
fn a_record_that_cannot_be_written_pauses_it() {
    let fakes = Fakes::with(6, &["os@1"]);
    let updates = fakes.open();
    let id = updates.start(&UpdateRequest { batch: 1, pause_secs: 60, ..all() }).expect("begins").head.id;
    fakes.until(|| updates.rollout(id).expect("known").head.wait);
    fakes.break_disk(true);
    fakes.advance(61);
    let rollout = fakes.until(|| {
        Some(updates.rollout(id).expect("known")).filter(|rollout| rollout.head.state == RolloutState::Paused)
    });
    assert!(rollout.head.why.as_deref().is_some_and(|why| why.contains("cannot be written")));
    fakes.break_disk(false);
    updates.resume(id).expect("resumes");
    for minute in 2..10 {
        fakes.advance(61 * minute);
        std::thread::sleep(Duration::from_millis(20));
    }
    fakes.keep_advancing(&updates, id);
    assert_eq!(finished(&updates, id).counts.done, 6);
}

#[test]
fn a_panic_pauses_it_and_holds_nobody_up() {
    let fakes = Fakes::with(3, &["os@1"]);
    fakes.fail("ve-2", "panic");
    let updates = fakes.open();
    let id = updates.start(&all()).expect("begins").head.id;
    let rollout = finished(&updates, id);
    assert_eq!(rollout.head.state, RolloutState::Paused);
    assert!(rollout.head.why.as_deref().is_some_and(|why| why.contains("log")));
    fakes.fail("ve-2", "");
    updates.resume(id).expect("resumes");
    assert_eq!(finished(&updates, id).counts.done, 3);
}

/// Keeps what is told.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Events for Heard {
    fn progress(&self, _: u64, _: Option<u64>, _: &'static str, _: &'static str) {}
    fn log(&self, message: &str) {
        self.0.lock().push(message.to_owned());
    }
}

#[test]
fn each_ve_is_told_of_once() {
    let fakes = Fakes::with(5, &["os@1"]);
    fakes.shadow("ve-1", "etc/motd");
    fakes.fail("ve-5", "its disk is full");
    let updates = fakes.open();
    let id = updates.start(&UpdateRequest { max_failures: 1, ..all() }).expect("begins").head.id;
    let heard = Heard::default();
    updates.follow(id, &heard).expect("followed");
    let lines = heard.0.into_inner();
    assert_eq!(lines[0], "ve-1: done, 5 taken, 1 SHADOWED");
    assert!(lines.contains(&"ve-5: failed, its disk is full".to_owned()), "{lines:?}");
    assert_eq!(lines.len(), 5);
    // Whoever comes later hears of all of them too.
    let again = Heard::default();
    updates.follow(id, &again).expect("followed");
    assert_eq!(again.0.into_inner(), lines);
}

#[test]
fn requests_that_contradict_themselves_are_refused() {
    let fakes = Fakes::with(1, &["os@1"]);
    let updates = fakes.open();
    let named = |name: &str| UpdateRequest { ves: vec![ve_name(name)], ..UpdateRequest::default() };
    for request in [
        UpdateRequest::default(),
        UpdateRequest { all: true, ..named("ve-1") },
        UpdateRequest { batch: 0, ..all() },
        UpdateRequest { check: Some("  ".to_owned()), ..all() },
        UpdateRequest { check_timeout_secs: 0, ..all() },
        UpdateRequest { pause_secs: u64::MAX, ..all() },
        UpdateRequest { templates: vec![reference("os"), reference("os@2")], ..all() },
    ] {
        assert!(matches!(updates.plan(&request, &()), Err(UpdateError::Invalid(_))), "{request:?}");
    }
    let unknown = updates.plan(&named("nobody"), &());
    assert!(matches!(unknown, Err(UpdateError::Store(StoreError::UnknownVe(_)))));
}

#[test]
fn checks_are_not_waited_for_when_it_is_stopped() {
    let fakes = Fakes::with(4, &["os@1"]);
    // The check of the canary lasts until somebody gives it up.
    fakes.hang("ve-1");
    let updates = fakes.open();
    let request = UpdateRequest { check: Some("true".to_owned()), ..all() };
    let id = updates.start(&request).expect("begins").head.id;
    fakes.until(|| (!fakes.ran().is_empty()).then_some(()));
    let back = updates.roll_back(id, &[]).expect("begins").head.id;
    assert_eq!(states(&finished(&updates, back)), [("ve-1", "done")].into());
    let rollout = updates.rollout(id).expect("known");
    assert_eq!(ve(&rollout, "ve-1").why.as_deref(), Some("not checked, as the update was stopped"));
    assert!(fakes.stacks().values().all(|stack| *stack == vec![item("os@1")]));
}

#[test]
fn a_ve_that_was_moved_without_a_record_is_brought_back_too() {
    let fakes = Fakes::with(1, &["os@1"]);
    // A number, the VE, the head, `moving`, the move itself: and then the disk is full.
    fakes.power(Some(5));
    let updates = fakes.open();
    let id = updates.start(&all()).expect("begins").head.id;
    assert_eq!(finished(&updates, id).head.state, RolloutState::Paused);
    fakes.power(None);
    let back = updates.roll_back(id, &[]).expect("begins").head.id;
    assert_eq!(states(&finished(&updates, back)), [("ve-1", "done")].into());
    assert_eq!(fakes.stack("ve-1"), [item("os@1")]);
}
