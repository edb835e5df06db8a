//! The harness itself: what the other tests trust must be able to see a difference.

use std::fs;
use std::process::Command;

use vzfs_tests::host::run;
use vzfs_tests::{Host, Setup, sample};

#[test]
fn a_faithful_copy_has_no_difference_and_a_change_is_seen() {
    let host = Host::without_daemon(Setup { size_mib: 512, ..Setup::default() });
    let (one, two) = (host.disk().join("one"), host.disk().join("two"));
    sample::make(&one);
    run(Command::new("cp").arg("-a").args([&one, &two]));
    assert_eq!(sample::differences(&one, &two), "");
    assert_eq!(sample::fingerprint(&one), sample::fingerprint(&two));

    fs::write(two.join("etc/hostname"), "Hostname\n").expect("writable");
    assert!(sample::differences(&one, &two).contains("etc/hostname"));
    assert_ne!(sample::fingerprint(&one), sample::fingerprint(&two));
}
