//! pjdfstest, a suite that nobody here wrote: what POSIX says of each system call, in 398 cases.
//!
//! All cases run, in two goes, because one go cannot pass on any filesystem: cases leave files open for writing in the suite's process, and
//! then the cases that remount the filesystem read-only get `EBUSY`. So the first go leaves those out, and the second runs them alone. ext4
//! runs in the same way beside the VE and must pass the same cases: a failure there is the machine's or the suite's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::{fs, iter};

use vzfs_tests::host::{finish, run};
use vzfs_tests::measure::report;
use vzfs_tests::suites::{let_others_in, mounted, program};
use vzfs_tests::{Host, HostFs, Setup};

/// The cases of pjdfstest 0.2.2 on Linux. It has more for other systems, which are not compiled here: `chflags`, `lchmod` and NFSv4 ACLs are
/// system calls and attributes that Linux does not have.
const CASES: usize = 398;

/// The features that the suite does not expect of every filesystem. Of those it knows these four exist on Linux; `chflags`, `nfsv4_acls`,
/// `stat_st_birthtime` and `chflags_sf_snapshot` select cases of other systems only.
/// `naptime` is longer than the ticks (1 to 10 ms) in which kernels stamp times.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.02
allow_remount = REMOUNT

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["games", "games"]]
"#;

/// glibc answers `pathconf(_PC_LINK_MAX)` from a table of filesystem types, in which FUSE has no number (it says 127, "unknown"); the suite then
/// leaves its case of `EMLINK` out. This tells it the limit that vzfs promises.
const LINK_MAX: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

long pathconf(const char *path, int name)
{
    if (name == _PC_LINK_MAX)
        return 65000;
    long (*next)(const char *, int) = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
    return next(path, name);
}
"#;

/// What a go has said of its cases.
#[derive(Default)]
struct Verdict {
    passed: BTreeSet<String>,
    skipped: BTreeSet<String>,
    /// Everything that is said of neither.
    findings: Vec<String>,
}

impl Verdict {
    fn read(output: &str) -> Verdict {
        let mut verdict = Verdict::default();
        for line in output.lines().filter(|line| !line.is_empty() && !line.starts_with("Summary:")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [case, "ok"] => assert!(verdict.passed.insert(case.to_owned()), "{case} came twice"),
                [case, "skipped"] => assert!(verdict.skipped.insert(case.to_owned()), "{case} came twice"),
                _ => verdict.findings.push(line.to_owned()),
            }
        }
        verdict
    }
}

/// Runs the suite in `folder`, the root of a filesystem, or in a folder there.
struct Suite<'a> {
    folder: &'a Path,
    /// Another filesystem, for links and renames between the two.
    other: &'a Path,
    scratch: &'a Path,
    preload: Option<&'a Path>,
}

impl Suite<'_> {
    /// Runs the cases that need no remount, or those that do.
    fn go(&self, remount: bool) -> Verdict {
        let configuration = self.scratch.join(format!("pjdfstest-{remount}.toml"));
        fs::write(&configuration, CONFIGURATION.replace("REMOUNT", &remount.to_string())).expect("write");
        let mut command = Command::new(program("pjdfstest"));
        command.arg("-c").arg(&configuration).arg("-s").arg(self.other).arg("-p").arg(self.folder);
        command
            .env("NO_COLOR", "1")
            .env("RUST_BACKTRACE", "0")
            .env("PATH", path_without_mount_helpers(self.scratch));
        if let Some(library) = self.preload {
            command.env("LD_PRELOAD", library);
        }
        if remount {
            command.arg("::erofs_");
        }
        Verdict::read(&finish(&mut command).text())
    }

    /// The cases that passed.
    fn cases(&self) -> BTreeSet<String> {
        let (most, read_only) = (self.go(false), self.go(true));
        let told = most.findings.iter().filter(|line| !line.contains("(allow_remount) are not allowed"));
        let told: Vec<&str> = told.chain(&read_only.findings).map(String::as_str).collect();
        assert!(told.is_empty(), "in {}:\n{}", self.folder.display(), told.join("\n"));
        assert_eq!(most.skipped, read_only.passed, "the second go has what the first left out");
        let mut passed = most.passed;
        passed.extend(read_only.passed);
        passed
    }
}

/// A search path with a `mount` that runs no helper: Debian's fuse3 has one for all FUSE filesystems (mount.fuse3(8)), which can start programs and not remount.
fn path_without_mount_helpers(scratch: &Path) -> OsString {
    let (folder, path) = (scratch.join("bin"), std::env::var_os("PATH").unwrap_or_default());
    fs::create_dir_all(&folder).expect("mkdir");
    fs::write(folder.join("mount"), "#!/bin/sh\nPATH=${PATH#*:} exec mount -i \"$@\"\n").expect("write");
    fs::set_permissions(folder.join("mount"), fs::Permissions::from_mode(0o755)).expect("chmod");
    std::env::join_paths(iter::once(folder).chain(std::env::split_paths(&path))).expect("no colon in it")
}

/// The cases that pass on a VE.
fn cases_on_a_ve(daemon_args: &[&str], ext4: &Path) -> BTreeSet<String> {
    let daemon_args = daemon_args.iter().copied().map(str::to_owned).collect();
    let host = Host::with_sample_in(Setup { size_mib: 2048, daemon_args, ..Setup::default() }, &["posix"]);
    let root = mounted(&host, "posix");
    let (source, library) = (host.scratch().join("link_max.c"), host.scratch().join("link_max.so"));
    fs::write(&source, LINK_MAX).expect("write");
    run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source));
    let suite = Suite { folder: &root, other: ext4, scratch: host.scratch(), preload: Some(&library) };
    let passed = suite.cases();
    host.vzfs(["ve", "umount", "posix"]).ok();
    passed
}

#[test]
fn all_of_pjdfstest_passes_as_on_ext4() {
    let ext4 = Host::without_daemon(Setup { fs: HostFs::Ext4, size_mib: 512, ..Setup::default() });
    let_others_in(&ext4);
    let disk = ext4.disk();
    let suite = Suite { folder: &disk, other: Path::new("/dev/shm"), scratch: ext4.scratch(), preload: None };
    let expected = suite.cases();
    assert_eq!(expected.len(), CASES, "on ext4");
    for daemon_args in [&[][..], &["--passthrough", "off"]] {
        assert_eq!(cases_on_a_ve(daemon_args, &disk), expected, "on a VE, {daemon_args:?}");
        report("pjdfstest", format_args!("{CASES} cases passed, none skipped, {daemon_args:?}"));
    }
}
