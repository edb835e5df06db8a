//! The daemon has what the tables of `vzfs::sandbox` leave it, and no more.

use std::collections::BTreeMap;
use std::fs;

use rustix::thread::CapabilitySet;
use serde_json::json;
use vzfs::sandbox::capabilities::{BOUNDING, DAEMON, Kept, SESSION, SUPERVISOR, set};
use vzfs_tests::{Host, Setup};

/// What the kernel says of a thread.
#[derive(Debug)]
struct Thread {
    name: String,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    bounding: CapabilitySet,
    filters: u64,
    no_new_privileges: bool,
}

fn threads(pid: u32) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    tasks
        .filter_map(|task| fs::read_to_string(task.expect("listed").path().join("status")).ok())
        .map(|status| {
            let fields: BTreeMap<&str, &str> =
                status.lines().filter_map(|line| line.split_once(":\t")).collect();
            let bits = |name: &str| u64::from_str_radix(fields[name].trim(), 16).expect("a set");
            let set = |name: &str| CapabilitySet::from_bits_retain(bits(name));
            Thread {
                name: fields["Name"].to_owned(),
                effective: set("CapEff"),
                permitted: set("CapPrm"),
                inheritable: set("CapInh"),
                bounding: set("CapBnd"),
                filters: fields["Seccomp_filters"].trim().parse().expect("a number"),
                no_new_privileges: fields["NoNewPrivs"].trim() == "1",
            }
        })
        .collect()
}

/// What of a table this machine gave the daemon in the first place.
fn here(table: &[Kept]) -> CapabilitySet {
    set(table) & threads(std::process::id())[0].bounding
}

#[test]
fn every_thread_has_what_its_table_says() {
    let host = Host::with_sample(&["one", "two"]);
    let look = |host: &Host| {
        // Filters add up: what these tests run under, the supervisor's, the daemon's, a session's.
        let filters = threads(std::process::id())[0].filters;
        let mut all = threads(host.supervisor_pid());
        for thread in &all {
            assert_eq!((thread.effective, thread.filters), (here(&SUPERVISOR), filters + 1), "{thread:?}");
        }
        let daemon = threads(host.daemon_pid());
        let answering = |thread: &Thread| thread.name.starts_with("fuser-") || thread.name.starts_with("ve-");
        assert!(daemon.iter().filter(|thread| answering(thread)).count() >= 4, "{daemon:?}");
        for thread in &daemon {
            // The database may start threads from those that answer.
            let of_session =
                answering(thread) || (thread.name.starts_with("rocksdb") && thread.filters == filters + 3);
            let (table, more) = if of_session { (here(&SESSION), 3) } else { (here(&DAEMON), 2) };
            assert_eq!((thread.effective, thread.filters), (table, filters + more), "{thread:?}");
        }
        all.extend(daemon);
        for thread in all {
            assert_eq!(thread.permitted, thread.effective, "{thread:?}");
            assert_eq!(thread.bounding, here(&BOUNDING), "{thread:?}");
            assert!(thread.inheritable.is_empty() && !thread.no_new_privileges, "{thread:?}");
        }
    };
    look(&host);
    // Also of a daemon that has taken mounts over.
    let killed = host.kill_daemon();
    host.wait_for_another(killed);
    look(&host);
    let doctor = host.json(["store", "doctor"]);
    let check = doctor["checks"]
        .as_array()
        .and_then(|all| all.iter().find(|check| check["name"] == "sandbox").cloned());
    let check = check.expect("it is looked at");
    assert_eq!(check["status"], "ok", "{check}");
    let status = host.json(["daemon", "status"]);
    assert_eq!(status["sandbox"], json!({"capabilities_limited": true, "system_calls_filtered": true}));
}

#[test]
fn it_can_be_switched_off() {
    let setup =
        Setup { size_mib: 2048, daemon_args: vec!["--sandbox".into(), "off".into()], ..Setup::default() };
    let host = Host::with_sample_in(setup, &["one"]);
    let all = threads(host.daemon_pid());
    assert!(all.iter().all(|thread| thread.filters == 0 && thread.effective == thread.bounding), "{all:?}");
    let doctor = host.json(["store", "doctor"]);
    let check = doctor["checks"]
        .as_array()
        .and_then(|all| all.iter().find(|check| check["name"] == "sandbox").cloned());
    assert_eq!(check.expect("it is looked at")["status"], "degraded");
    let status = host.json(["daemon", "status"]);
    assert_eq!(status["sandbox"], json!({"capabilities_limited": false, "system_calls_filtered": false}));
    assert!(
        host.vzfs(["daemon", "status"])
            .ok()
            .text()
            .lines()
            .any(|line| { line.starts_with("sandbox") && line.ends_with("off") })
    );
}
