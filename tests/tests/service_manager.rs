//! Under a service manager that keeps descriptors, as systemd does, mounts outlive the supervisor too.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use vzfs_tests::{Host, Setup, sample};

/// Of each mount.
const DESCRIPTORS: usize = 3;

fn managed(ves: &[&str]) -> Host {
    Host::with_sample_in(Setup { size_mib: 2048, managed: true, ..Setup::default() }, ves)
}

/// Waits until something is so that was begun before.
fn wait_until(what: &str, so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}: it does not come to that");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How the supervisor dies, and its daemon with it or after it.
type Death = fn(&Host);

#[test]
fn open_files_and_running_programs_outlive_the_supervisor() {
    let host = managed(&["one", "two"]);
    let root = host.root("one");
    let mut reader = File::open(root.join("var/lib/app/data")).expect("open");
    let mut first = vec![0; 1000];
    reader.read_exact(&mut first).expect("read");
    let mut log = File::options().append(true).create(true).open(root.join("log")).expect("open");
    let mut nameless =
        File::options().read(true).write(true).create_new(true).open(root.join("nameless")).expect("open");
    nameless.write_all(b"nameless").expect("write");
    fs::remove_file(root.join("nameless")).expect("removed");
    let folder = File::open(root.join("etc")).expect("open");
    let script = "cd \"$1\"; n=0; while [ ! -e stop ]; do n=$((n + 1)); echo $n > f$n; [ \"$(cat f$n)\" = $n ]; mv f$n g$n; done; echo $n";
    let program = host_sh_started(script, &root);
    let before = sample::fingerprint(&host.root("two"));

    let deaths: [(&str, Death); 4] = [
        ("the supervisor, whose daemon ends by itself", Host::kill_supervisor),
        ("both", Host::kill),
        ("the supervisor, and the daemon is told to end as all of a service's processes may be", |host| {
            let daemon = Pid::from_raw(host.daemon_pid().cast_signed()).expect("a process id");
            host.kill_supervisor();
            let _ = kill_process(daemon, Signal::TERM);
        }),
        ("the supervisor of a daemon that was replaced", |host| {
            host.vzfs(["daemon", "restart"]).ok();
            host.kill_supervisor();
        }),
    ];
    for (round, (death, die)) in deaths.into_iter().enumerate() {
        die(&host);
        host.start();
        assert_eq!(host.manager().kept(), 2 * DESCRIPTORS, "{death}");
        let mut again = vec![0; 1000];
        reader.read_exact_at(&mut again, 0).expect("read");
        assert_eq!(again, first, "{death}");
        writeln!(log, "{round}").expect("append");
        let mut text = String::new();
        nameless.seek(SeekFrom::Start(0)).expect("seek");
        nameless.read_to_string(&mut text).expect("read");
        assert_eq!(text, "nameless", "{death}");
        let listed = rustix::fs::Dir::read_from(&folder).expect("listed").filter(Result::is_ok).count();
        assert!(listed > 2, "{death}");
        assert_eq!(sample::fingerprint(&host.root("two")), before, "{death}");
    }
    fs::write(root.join("stop"), "").expect("written");
    let done = program.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read_to_string(root.join("log")).expect("read"), "0\n1\n2\n3\n");
    assert_eq!(host.json(["ve", "list"]).as_array().map(Vec::len), Some(2));
    drop((reader, log, nameless, folder));
    host.vzfs(["ve", "umount", "one"]).ok();
    wait_until("the manager keeps one mount", || host.manager().kept() == DESCRIPTORS);
}

fn host_sh_started(script: &str, root: &std::path::Path) -> std::process::Child {
    let mut command = std::process::Command::new("bash");
    command.args(["-euc", script, "script"]).arg(root);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started")
}

#[test]
fn a_stop_takes_mounts_away_and_leaves_nothing_with_the_manager() {
    let host = managed(&["one"]);
    let told = host.manager().told();
    assert_eq!(told.iter().filter(|told| *told == "READY=1").count(), 1, "{told:?}");
    assert_eq!(host.manager().kept(), DESCRIPTORS);
    host.stop();
    assert!(!host.root("one").join("etc").exists());
    wait_until("the manager keeps nothing", || host.manager().kept() == 0);
    assert_eq!(host.manager().told().iter().filter(|told| *told == "STOPPING=1").count(), 1);
    host.start();
    assert!(host.root("one").join("etc").exists());
    assert_eq!(host.manager().kept(), DESCRIPTORS);
}

#[test]
fn a_mount_that_has_ended_meanwhile_is_made_anew() {
    let host = managed(&["unmounted", "aborted", "kept"]);
    // From now on the kernel closes files without asking, as it does wherever a file was closed once: without a daemon, closing would wait for one.
    for ve in ["unmounted", "aborted", "kept"] {
        fs::read(host.root(ve).join("etc/hostname")).expect(ve);
    }
    let held = File::open(host.root("kept").join("etc/passwd")).expect("open");
    let names = |host: &Host| {
        let mut kept: Vec<String> =
            host.manager().told().iter().filter(|told| told.starts_with("FDSTORE=1")).cloned().collect();
        kept.sort();
        kept
    };
    let before = names(&host);
    assert_eq!(before.len(), 3);
    let in_use = File::open(host.root("aborted").join("etc/passwd")).expect("open");
    host.kill();
    rustix::mount::unmount(host.root("unmounted"), UnmountFlags::empty()).expect("unmounted");
    // The connection ends, and the mount stays, as it is in use.
    let forced = rustix::mount::unmount(host.root("aborted"), UnmountFlags::FORCE);
    assert_eq!(forced, Err(rustix::io::Errno::BUSY));
    drop(in_use);
    host.start();
    for ve in ["unmounted", "aborted", "kept"] {
        assert!(!fs::read_to_string(host.root(ve).join("etc/hostname")).expect(ve).is_empty());
    }
    let mut text = String::new();
    (&held).read_to_string(&mut text).expect("the file that was open");
    assert!(text.starts_with("root:"));
    wait_until("the manager keeps three mounts", || host.manager().kept() == 3 * DESCRIPTORS);
    assert_eq!(names(&host).len(), 5, "two were made anew");
}

#[test]
fn children_do_not_take_what_is_the_supervisors() {
    let host = managed(&["one"]);
    host.kill();
    host.start();
    let environment =
        fs::read(format!("/proc/{}/environ", host.daemon_pid())).expect("a process's environment");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains("PATH="), "{environment}");
    for variable in ["NOTIFY_SOCKET", "LISTEN_"] {
        assert!(!environment.contains(variable), "{environment}");
    }
    // Descriptors that were handed over are in the daemon once, for the mount: not by inheritance too.
    let open = |pid: u32, what: &str| {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process's descriptors");
        let links = all.filter_map(|entry| fs::read_link(entry.expect("listed").path()).ok());
        links.filter(|link| link.to_string_lossy().contains(what)).count()
    };
    assert_eq!(open(host.supervisor_pid(), "/dev/fuse"), 1);
    assert_eq!(open(host.daemon_pid(), "vzfs-mount"), 0);
}
