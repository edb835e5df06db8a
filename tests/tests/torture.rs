//! The short form of `make torture`: every scenario once, with a seed that stays, so that a failure is one of what was changed.

#![allow(clippy::panic)]

use std::sync::{Mutex, PoisonError};

use vzfs_tests::HostFs;
use vzfs_tests::measure::report;
use vzfs_tests::torture::{Effort, Scenario};

/// Any will do.
const SEED: u64 = 20;

/// One scenario at a time. Two at once in one process have failed as one alone never did; that a command which one starts has, for a moment, the
/// locks of another's store may be the reason, and it is not known to be the only one.
static ALONE: Mutex<()> = Mutex::new(());

#[track_caller]
fn nothing_is_lost(scenario: Scenario) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let tried = scenario.run(SEED, Effort::Short);
    match tried {
        Ok(tried) => {
            report(scenario.name(), format!("{} {}: {}", tried.faults, scenario.fault(), tried.detail));
        }
        Err(lost) => panic!("{}: {lost}\nagain: make torture SEED={SEED} SCENARIO={0}", scenario.name()),
    }
}

#[test]
fn the_power_fails_on_xfs() {
    nothing_is_lost(Scenario::Power(HostFs::Xfs));
}

#[test]
fn the_power_fails_on_ext4() {
    nothing_is_lost(Scenario::Power(HostFs::Ext4));
}

#[test]
fn the_power_fails_under_a_daemon_on_xfs() {
    nothing_is_lost(Scenario::PowerWithDaemon(HostFs::Xfs));
}

#[test]
fn the_power_fails_under_a_daemon_on_ext4() {
    nothing_is_lost(Scenario::PowerWithDaemon(HostFs::Ext4));
}

#[test]
fn the_daemon_is_replaced() {
    nothing_is_lost(Scenario::Restarts);
}

#[test]
fn the_supervisor_is_killed() {
    nothing_is_lost(Scenario::SupervisorKills);
}

#[test]
fn the_supervisor_is_killed_under_a_service_manager() {
    nothing_is_lost(Scenario::ManagedKills);
}

#[test]
fn the_daemon_is_killed_while_it_updates_ves() {
    nothing_is_lost(Scenario::UpdatesUnderKills);
}

#[test]
fn the_disk_is_full_on_xfs() {
    nothing_is_lost(Scenario::Full(HostFs::Xfs));
}

#[test]
fn the_disk_is_full_on_ext4() {
    nothing_is_lost(Scenario::Full(HostFs::Ext4));
}

#[test]
fn the_disk_fails_on_xfs() {
    nothing_is_lost(Scenario::FailingDisk(HostFs::Xfs));
}

#[test]
fn the_disk_fails_on_ext4() {
    nothing_is_lost(Scenario::FailingDisk(HostFs::Ext4));
}
