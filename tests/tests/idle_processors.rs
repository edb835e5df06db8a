//! While a VE's programs send many requests, the processors of this machine are kept from halting, and not for longer.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vzfs_tests::{Host, Setup};

/// What the least of all programs of this machine demands, in microseconds.
const DEMAND: &str = "/dev/cpu_dma_latency";

fn demanded() -> i32 {
    let mut bytes = [0; 4];
    File::open(DEMAND).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("a number");
    i32::from_ne_bytes(bytes)
}

fn host_with(choice: &str) -> Host {
    let args = vec!["--idle-processors".into(), choice.into()];
    Host::with_sample_in(Setup { size_mib: 2048, daemon_args: args, ..Setup::default() }, &["one"])
}

/// Sends requests until processors are kept awake; whether it comes to that.
fn requests_keep_awake(host: &Host, patience: Duration) -> bool {
    let root = host.root("one");
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        for _ in 0..100 {
            fs::write(root.join("file"), b"text").expect("written");
        }
        if demanded() == 0 {
            return true;
        }
    }
    false
}

#[test]
fn they_are_kept_awake_as_long_as_requests_come() {
    if !Path::new(DEMAND).exists() {
        return eprintln!("SKIPPED: this kernel has no {DEMAND}");
    }
    let long = Duration::from_secs(20);
    let host = host_with("awake");
    let at_rest = demanded();
    assert!(at_rest > 0, "nobody else keeps them awake");
    assert!(requests_keep_awake(&host, long));
    let deadline = Instant::now() + Duration::from_secs(60);
    while demanded() != at_rest {
        assert!(Instant::now() < deadline, "they may halt again when nothing is asked any more");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The next daemon does the same, and the end of one is the end of what it demands.
    host.vzfs(["daemon", "restart"]).ok();
    assert!(requests_keep_awake(&host, long));
    drop(host);
    assert_eq!(demanded(), at_rest);

    assert!(!requests_keep_awake(&host_with("halt"), Duration::from_secs(2)));
}
