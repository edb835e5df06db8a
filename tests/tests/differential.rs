//! Random sequences of operations on a mounted VE and on a plain directory; see `vzfs_tests::differential`.
//!
//! The short form runs with all tests. The long form:
//!
//! ```sh
//! VZFS_DIFFERENTIAL_CASES=20000 cargo test --locked -p vzfs-tests --test differential -- --show-output
//! ```
//!
//! A failure prints a case; `VZFS_DIFFERENTIAL_REPLAY=FILE` runs the one in that file, and those in `tests/regressions` are always run.

#![allow(clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use proptest::test_runner::{Config, TestCaseError, TestRunner};
use vzfs_tests::HostFs;
use vzfs_tests::differential::{Case, Ground};
use vzfs_tests::measure::report;

/// Cases of each of the three tests in the short form.
const SHORT_FORM_CASES: u32 = 60;
const MOST_STEPS: usize = 60;
/// How many shorter cases are tried when one has failed.
const SHRINK_TRIES: u32 = 600;

/// The cases drop the whole machine's caches and are many: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn cases() -> u32 {
    std::env::var("VZFS_DIFFERENTIAL_CASES").map_or(SHORT_FORM_CASES, |text| text.parse().expect("a number"))
}

fn read(path: &Path) -> Case {
    let text = fs::read_to_string(path).expect("the case can be read");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn regressions() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("the folder of cases")
        .map(|entry| entry.expect("listed").path())
        .collect();
    paths.sort_unstable();
    paths
}

fn compare(fs: HostFs, passthrough: bool) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let ground = Ground::new(fs, passthrough);
    if let Some(path) = std::env::var_os("VZFS_DIFFERENTIAL_REPLAY") {
        return ground.run(&read(Path::new(&path))).expect("no difference");
    }
    for path in regressions() {
        ground.run(&read(&path)).unwrap_or_else(|difference| panic!("{}: {difference}", path.display()));
    }
    let config = Config {
        cases: cases(),
        // Seeds say nothing any more when the strategy changes: what fails is kept as a case.
        failure_persistence: None,
        max_shrink_iters: SHRINK_TRIES,
        ..Config::default()
    };
    let outcome = TestRunner::new(config)
        .run(&Case::any(MOST_STEPS), |case| ground.run(&case).map_err(TestCaseError::fail));
    outcome.unwrap_or_else(|error| panic!("{error}"));
    report(
        "differential",
        format_args!("{} cases on {fs:?}, passthrough {passthrough}: no difference", cases()),
    );
}

#[test]
fn a_ve_is_as_xfs() {
    compare(HostFs::Xfs, true);
}

#[test]
fn a_ve_without_passthrough_is_as_xfs() {
    compare(HostFs::Xfs, false);
}

#[test]
fn a_ve_on_ext4_is_as_ext4() {
    compare(HostFs::Ext4, true);
}
