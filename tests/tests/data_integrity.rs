//! fsx, a suite that nobody here wrote: random operations on one file, each read compared with what the file must hold.
//!
//! The short form is part of `make test`; the long one (`make suites-long`) makes a million operations of every plan, on each side.

use std::fs;
use std::process::Command;
use std::time::Instant;

use vzfs_tests::host::finish;
use vzfs_tests::measure::report;
use vzfs_tests::suites::{long, program};
use vzfs_tests::{Host, Setup, sample};

/// Every operation that fsx 0.3.2 has. (It has no direct I/O, and of fallocate's modes the plain one and holes.) At least a byte at a time: fsx takes the
/// `EINVAL` that Linux gives for an allocation of none for a missing feature.
const ALL: &str = "
[opsize]
min = 1

[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 3
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 3
punch_hole = 5
sendfile = 5
posix_fadvise = 3
copy_file_range = 5
";

/// As `ALL` with what a fixed size allows: fsx then does not truncate the file at first, but works on its first `flen` bytes.
const FIXED_SIZE: &str = "
flen = 1048576
blockmode = true

[opsize]
max = 131072
align = 512

[weights]
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 0
fsync = 0.2
fdatasync = 0.2
punch_hole = 5
sendfile = 5
posix_fadvise = 3
copy_file_range = 5
";
const FIXED_BYTES: usize = 1 << 20;

/// One run.
struct Plan {
    name: &'static str,
    path: &'static str,
    seed: &'static str,
    /// The first lines of the configuration.
    head: &'static str,
    rest: &'static str,
}

/// A template's file of 3,000,000 bytes.
const TEMPLATE_FILE: &str = "var/lib/app/data";

/// Fixed seeds, so that a failure can be seen again. Memory maps are left to the kernel to write back in some plans: a sync after each would
/// keep dirty pages from ever meeting the operations that follow.
const PLANS: [Plan; 5] = [
    Plan { name: "all", path: "new-file", seed: "1", head: "", rest: ALL },
    Plan { name: "late-msync", path: "etc/new-file", seed: "2", head: "nomsyncafterwrite = true", rest: ALL },
    Plan {
        name: "large",
        path: "tmp/large",
        seed: "20261124",
        head: "nomsyncafterwrite = true\nflen = 8388608",
        rest: ALL,
    },
    Plan {
        name: "fixed-size",
        path: TEMPLATE_FILE,
        seed: "4",
        head: "nomsyncafterwrite = true",
        rest: FIXED_SIZE,
    },
    // Last, because it truncates the template's file.
    Plan { name: "template", path: TEMPLATE_FILE, seed: "5", head: "nomsyncafterwrite = true", rest: ALL },
];

const SHORT_OPERATIONS: u64 = 20_000;
const LONG_OPERATIONS: u64 = 1_000_000;

fn exercise(host: &Host, side: &str) {
    let operations = if long() { LONG_OPERATIONS } else { SHORT_OPERATIONS };
    let root = host.root("data");
    let original = fs::read(root.join(TEMPLATE_FILE)).expect("read");
    for Plan { name, path, seed, head, rest } in PLANS {
        let configuration = host.scratch().join(format!("{name}.toml"));
        fs::write(&configuration, format!("{head}{rest}")).expect("write");
        let begin = Instant::now();
        let mut command = Command::new(program("fsx"));
        command.args(["-N", &operations.to_string(), "-S", seed, "-P"]).arg(host.scratch());
        let outcome = finish(command.arg("-f").arg(&configuration).arg(root.join(path))).ok();
        assert_eq!(outcome.text(), "All operations completed A-OK!\n", "{name}, {side}");
        let seconds = begin.elapsed().as_secs();
        report("fsx", format_args!("{name}, {side}: {operations} operations in {seconds} s, no difference"));
        if rest == FIXED_SIZE {
            let now = fs::read(root.join(path)).expect("read");
            assert_eq!(now.len(), original.len());
            assert_eq!(now[FIXED_BYTES..], original[FIXED_BYTES..], "what fsx left alone is the template's");
        }
    }
    host.vzfs(["template", "verify", "sample"]).ok();
    assert_eq!(sample::differences(&host.scratch().join("source"), &host.root("other")), "");
}

#[test]
fn fsx_finds_no_difference() {
    let host = Host::with_sample(&["data", "other"]);
    exercise(&host, "served by the kernel");
}

#[test]
fn fsx_finds_no_difference_without_passthrough() {
    let daemon_args = vec!["--passthrough".into(), "off".into()];
    let setup = Setup { size_mib: 2048, daemon_args, ..Setup::default() };
    let host = Host::with_sample_in(setup, &["data", "other"]);
    exercise(&host, "served by the daemon");
}
