//! Suites that nobody here wrote, on a mounted VE: pjdfstest (POSIX semantics) and fsx (data integrity).
//!
//! `scripts/suites` installs them; `VZFS_FSX_OPERATIONS` sets the length of each fsx run (20,000 in the short form).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use vzfs_tests::Host;
use vzfs_tests::host::{binary, finish};
use vzfs_tests::measure::report;

/// Seeds of the fsx runs: fixed, so that a failure can be seen again.
const SEEDS: [&str; 2] = ["1", "20261124"];

fn suite(name: &str) -> PathBuf {
    // The programs under test are in <build folder>/<profile>, the suites in <build folder>/suites/bin.
    let vzfsd = binary("vzfsd");
    let folder = vzfsd.parent().and_then(|profile| profile.parent()).expect("programs are in a folder");
    let path = folder.join("suites/bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/suites {}",
        path.display(),
        folder.join("suites").display()
    );
    path
}

#[test]
fn pjdfstest_passes() {
    let host = Host::with_sample(&["posix"]);
    // A short path, as a socket's has 107 bytes at most; and one that other users, whom the suite takes on, can reach.
    let short = tempfile::Builder::new().prefix("p").tempdir_in("/run").expect("a folder in /run");
    fs::set_permissions(short.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    host.vzfs(["ve", "umount", "posix"]).ok();
    host.vzfs(["ve", "mount", "posix", short.path().to_str().expect("text")]).ok();
    let folder = short.path().join("p");
    fs::create_dir(&folder).expect("mkdir");
    let configuration = host.scratch().join("pjdfstest.toml");
    let text = concat!(
        "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n",
        "[settings]\nnaptime = 0.001\nallow_remount = false\n",
        "[dummy_auth]\n",
        "entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"games\", \"games\"]]\n",
    );
    fs::write(&configuration, text).expect("write");
    let mut command = Command::new(suite("pjdfstest"));
    command.arg("-c").arg(&configuration).arg("-p").arg(&folder);
    let outcome = finish(&mut command).text();
    host.vzfs(["ve", "umount", "posix"]).ok();
    let summary = outcome.lines().find(|line| line.starts_with("Summary:")).expect("pjdfstest sums up");
    report("pjdfstest", summary);
    let silent = |line: &&str| !line.ends_with(" ok") && !line.ends_with("skipped");
    let findings: Vec<&str> = outcome.lines().filter(silent).collect();
    assert!(summary.starts_with("Summary: 0 failed,"), "{}", findings.join("\n"));
}

#[test]
fn fsx_finds_no_difference_in_template_files_and_new_files() {
    let host = Host::with_sample(&["data"]);
    let operations = std::env::var("VZFS_FSX_OPERATIONS").unwrap_or_else(|_| "20000".to_owned());
    let artifacts = host.scratch().to_owned();
    for seed in SEEDS {
        for path in ["var/lib/app/data", "new-file"] {
            let mut command = Command::new(suite("fsx"));
            command
                .args(["-N", &operations, "-S", seed, "-P"])
                .arg(&artifacts)
                .arg(host.root("data").join(path));
            finish(&mut command).ok();
            report("fsx", format_args!("{operations} operations on {path}, seed {seed}: no difference"));
        }
    }
}
