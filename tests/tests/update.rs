//! `vzfs update`: many VEs, real mounts, real programs.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vzfs::types::VeId;
use vzfs::update::processes::stale_processes;
use vzfs_tests::{Host, Setup, tiny};

/// A host with `tiny@1`.
fn tiny_host() -> Host {
    let host = Host::with(Setup { size_mib: 1024, ..Setup::default() });
    import(&host, "1", |root| derived(root, "1"));
    host
}

/// A derived file, and the program that makes it anew.
fn derived(root: &Path, version: &str) {
    fs::write(root.join("etc/ld.so.cache"), format!("of the template {version}\n")).expect("written");
    let program = "#!/bin/sh\nread version < /etc/version\necho \"made for $version\" > /etc/ld.so.cache\n";
    fs::write(root.join("bin/ldconfig"), program).expect("written");
    fs::set_permissions(root.join("bin/ldconfig"), fs::Permissions::from_mode(0o755)).expect("set");
}

/// Imports the next version of the template, with these changes.
fn import(host: &Host, version: &str, change: impl FnOnce(&Path)) {
    let source = host.scratch().join("tiny");
    tiny::make(&source, version);
    change(&source);
    let template = format!("tiny@{version}");
    host.vzfs(["template", "import", &template, source.to_str().expect("text")]).ok();
}

/// A process that is ended with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Running {
        Running(command.stdin(Stdio::null()).spawn().expect("it can be started"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A second signal makes `ve exec` end all that runs inside, which a killed one would leave behind.
        let number = Pid::from_child(&self.0);
        for _ in 0..20 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            let _ = kill_process(number, Signal::TERM);
            std::thread::sleep(Duration::from_millis(300));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "it takes too long: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes whose program has this path in their own root.
fn running(program: &Path) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("readable").flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let runs = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    numbers.filter(runs).collect()
}

#[test]
fn programs_that_use_replaced_files_are_found_on_a_mount() {
    let host = tiny_host();
    host.mounted("tiny", &["ve"]);
    let root = host.root("ve");
    let stale =
        |root: &PathBuf| stale_processes(&[(VeId(1), root.clone())]).remove(&VeId(1)).unwrap_or_default();

    // On the host, in the VE, and with files open: one of the template, one of the VE's own, one that stays.
    fs::write(root.join("tmp/own"), "own").expect("written");
    let on_host = Running::start(Command::new(root.join("bin/sleep")).arg("1000"));
    let open = |path: &str| fs::File::open(root.join(path)).expect("there");
    let reads = Running::start(Command::new("sleep").arg("1000").stdout(open("etc/passwd")));
    let reads_own = Running::start(Command::new("sleep").arg("1000").stdout(open("tmp/own")));
    let keeps = Running::start(Command::new("sleep").arg("1000").stdout(open("etc/group")));
    let _inside = Running::start(&mut host.command(["ve", "exec", "ve", "--", "/bin/sleep", "1000"]));
    let inside = until("the program in the VE", || running(Path::new("/bin/sleep")).first().copied());
    assert!(stale(&root).is_empty(), "{:?}", stale(&root));

    let sleep = fs::read(root.join("bin/sleep")).expect("readable");
    fs::write(root.join("bin/new"), sleep).expect("written");
    let mode = fs::metadata(root.join("bin/sleep")).expect("there").permissions();
    fs::set_permissions(root.join("bin/new"), mode).expect("set");
    fs::rename(root.join("bin/new"), root.join("bin/sleep")).expect("replaced");
    fs::remove_file(root.join("etc/passwd")).expect("removed");
    fs::remove_file(root.join("tmp/own")).expect("removed");

    let found = stale(&root);
    let of =
        |pid: u32| found.iter().find(|process| process.pid == pid).map(|process| process.files.join(" "));
    assert_eq!(of(on_host.0.id()).as_deref(), Some("bin/sleep"), "{found:?}");
    assert_eq!(of(inside).as_deref(), Some("bin/sleep"), "{found:?}");
    assert_eq!(of(reads.0.id()).as_deref(), Some("etc/passwd"), "{found:?}");
    assert_eq!(of(reads_own.0.id()), None, "a program's own files come and go");
    assert_eq!(of(keeps.0.id()), None);
    assert!(found.iter().any(|process| process.command == "sleep"));

    // A library, which is mapped and not open.
    let maps = fs::read_to_string(format!("/proc/{inside}/maps")).expect("readable");
    let libc = maps.lines().find_map(|line| line.split_once('/').filter(|(_, path)| path.contains("libc")));
    let libc = libc.expect("it needs a C library").1;
    let content = fs::read(root.join(libc)).expect("readable");
    fs::write(root.join("new"), content).expect("written");
    fs::rename(root.join("new"), root.join(libc)).expect("replaced");
    let found = stale(&root);
    let inside = found.iter().find(|process| process.pid == inside).expect("found");
    assert!(inside.files.iter().any(|file| file == libc), "{inside:?}");
}

#[test]
fn what_is_planned_is_told_and_nobody_is_moved_without_being_asked() {
    let host = tiny_host();
    for (name, tier) in [("web-1", "web"), ("web-2", "web"), ("db", "db")] {
        host.vzfs(["ve", "create", name, "-t", "tiny@1", "--label", &format!("tier={tier}")]).ok();
    }
    let listed = host.json(["ve", "list", "--selector", "tier=web"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(host.json(["ve", "list", "--shadowed"]), serde_json::json!([]));
    assert_eq!(host.json(["update", "history"]), serde_json::json!([]));
    let nothing = host.vzfs(["update", "--all", "--yes"]).ok().text();
    assert!(nothing.contains("there is nothing to do"), "{nothing}");
    import(&host, "2", |_| ());
    host.vzfs(["update", "--all"]).refused(2, &["--yes", "terminal"]);
    host.vzfs(["update", "web-9", "--yes"]).refused(3, &["VE web-9"]);
    host.vzfs(["update", "--selector", "tier=none", "--yes"]).refused(5, &["tier=none"]);
    host.vzfs(["update", "--all", "-t", "tiny@3", "--yes"]).refused(3, &["tiny@3"]);
    host.vzfs(["update", "web-1", "-t", "nginx", "--yes"]).refused(5, &["nginx"]);
    for command in [&["update", "show", "1"][..], &["update", "rollback", "1"], &["update", "follow", "1"]] {
        host.vzfs(command).refused(3, &["update 1"]);
    }
    assert_eq!(host.json(["ve", "show", "db"])["templates"], serde_json::json!(["tiny@1"]));
}

/// Version 2: a changed program and file, and a new file.
fn import_fix(host: &Host) {
    import(host, "2", |root| {
        // An executable file may have anything behind its end.
        let mut sleep = fs::read(root.join("bin/sleep")).expect("readable");
        sleep.extend_from_slice(b"fixed");
        fs::write(root.join("bin/sleep"), sleep).expect("written");
        fs::write(root.join("etc/fixed"), "yes\n").expect("written");
        derived(root, "2");
    });
}

fn version(host: &Host, ve: &str) -> String {
    fs::read_to_string(host.root(ve).join("etc/version")).expect("readable").trim().to_owned()
}

fn text<'a>(value: &'a serde_json::Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn a_fix_reaches_every_ve_and_is_taken_back() {
    let host = tiny_host();
    let names = ["web-1", "web-2", "web-3", "web-4", "web-5"];
    host.mounted("tiny", &names);
    host.vzfs(["ve", "create", "cold", "-t", "tiny"]).ok();
    fs::write(host.root("web-2").join("etc/version"), "own\n").expect("written");
    fs::write(host.root("web-3").join("etc/mine"), "mine\n").expect("written");
    let _inside = Running::start(&mut host.command(["ve", "exec", "web-4", "--", "/bin/sleep", "1000"]));
    let inside = until("the program in the VE", || running(Path::new("/bin/sleep")).first().copied());
    fs::write(host.root("web-3").join("etc/ld.so.cache"), "own\n").expect("written");
    let cache = || fs::read_to_string(host.root("web-3").join("etc/ld.so.cache")).expect("there");
    import_fix(&host);

    // A dry run tells all and changes nothing.
    let plan = host.json(["update", "--all", "--dry-run"]);
    let of = |name: &str| {
        let ves = plan["ves"].as_array().expect("VEs");
        ves.iter().find(|ve| text(ve, "ve") == name).expect("planned").clone()
    };
    assert_eq!(text(&of("web-2")["report"]["shadowed"][0], "path"), "etc/version", "{plan}");
    assert_eq!(version(&host, "web-1"), "1");

    let check = [
        "update",
        "--all",
        "--yes",
        "--batch",
        "2",
        "--check",
        "test -e /etc/fixed && grep -q root /etc/passwd",
    ];
    let told = host.vzfs(check).ok().text();
    assert!(
        told.contains("web-2: SHADOWED /etc/version: tiny@2 changes it, and the VE has its own"),
        "{told}"
    );
    assert!(told.contains(&format!("web-4: to restart: sleep ({inside}) uses the old /bin/sleep")), "{told}");
    for name in ["web-1", "web-3", "web-4", "web-5"] {
        assert_eq!(version(&host, name), "2");
    }
    assert_eq!(version(&host, "web-2"), "own");
    assert_eq!(fs::read_to_string(host.root("web-3").join("etc/mine")).expect("there"), "mine\n");
    assert_eq!(cache(), "made for 2\n", "derived files are made anew");
    assert_eq!(host.sh("web-1", "cat /etc/fixed").text(), "yes\n");
    // The check mounted the one that was not mounted, and took that away.
    assert_eq!(host.json(["ve", "show", "cold"])["mounted"], false);
    assert_eq!(host.json(["ve", "show", "cold"])["templates"], serde_json::json!(["tiny@2"]));
    let shadowed = host.json(["ve", "list", "--shadowed"]);
    assert_eq!((text(&shadowed[0], "ve"), text(&shadowed[0]["files"][0], "path")), ("web-2", "etc/version"));
    assert!(
        host.vzfs(["ve", "show", "web-2"]).ok().text().contains("/etc/version (tiny@1 -> tiny@2, update 1)")
    );
    let shown = host.vzfs(["update", "show", "1", "web-2"]).ok().text();
    assert!(shown.contains("SHADOWED /etc/version") && shown.contains("check:"), "{shown}");
    host.vzfs(["update", "--all", "--yes"]).ok();

    // The old version is kept for the way back, which is taken.
    host.vzfs(["template", "rm", "tiny@1"]).refused(4, &["update 1", "forget"]);
    host.vzfs(["update", "rollback", "1", "web-1"]).ok();
    assert_eq!((version(&host, "web-1"), version(&host, "web-3")), ("1".to_owned(), "2".to_owned()));
    host.vzfs(["update", "rollback", "1"]).ok();
    for name in ["web-1", "web-3", "web-4", "web-5"] {
        assert_eq!(version(&host, name), "1");
        assert!(!host.root(name).join("etc/fixed").exists());
    }
    assert_eq!((version(&host, "web-2"), cache()), ("own".to_owned(), "made for 1\n".to_owned()));
    assert_eq!(host.json(["ve", "list", "--shadowed"]), serde_json::json!([]));
    assert_eq!(host.json(["update", "history"]).as_array().map(Vec::len), Some(3));
    host.vzfs(["update", "forget", "1"]).ok();
}

#[test]
fn a_failed_canary_stops_it_and_it_takes_itself_back() {
    let host = tiny_host();
    let names = ["web-1", "web-2", "web-3"];
    host.mounted("tiny", &names);
    import_fix(&host);
    let failing = ["update", "--all", "--yes", "--check", "echo broken >&2; exit 3"];
    host.vzfs(failing).refused(9, &["canary web-1", "code 3: broken"]);
    assert_eq!(names.map(|name| version(&host, name)), ["2", "1", "1"]);
    host.vzfs(["update", "rollback", "1"]).ok();
    host.vzfs([&failing[..], &["--rollback-on-failure"]].concat())
        .refused(9, &["canary web-1", "takes it back"]);
    assert_eq!(names.map(|name| version(&host, name)), ["1", "1", "1"]);
    // One that hangs is ended.
    let hanging = ["update", "web-2", "--yes", "--check", "sleep 1000", "--check-timeout", "2s"];
    host.vzfs(hanging).refused(9, &["took longer than 2 s"]);
    assert!(running(Path::new("/bin/sleep")).is_empty());
}

/// How a daemon ends.
enum Ending {
    Killed,
    Replaced,
    Stopped,
}

#[test]
fn an_update_goes_on_with_the_next_daemon_and_the_client_follows() {
    let host = tiny_host();
    host.vzfs(["ve", "create", "ve", "-t", "tiny", "--count", "24"]).ok();
    let names: Vec<String> = (1..=24).map(|number| format!("ve-{number}")).collect();
    for name in &names {
        host.vzfs(["ve", "mount", name]).ok();
    }
    import_fix(&host);
    let mut update =
        host.command(["update", "--all", "--yes", "--batch", "4", "--check", "test -e /etc/fixed"]);
    let update = update.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    for (round, end) in [Ending::Killed, Ending::Replaced, Ending::Stopped].iter().enumerate() {
        let moved = || names.iter().filter(|name| version(&host, name) == "2").count();
        until("VEs to be moved", || (moved() > round * 6).then_some(()));
        match end {
            Ending::Killed => drop(host.kill_daemon()),
            Ending::Replaced => drop(host.vzfs(["daemon", "restart"]).ok()),
            Ending::Stopped => {
                host.stop();
                host.start();
            }
        }
    }
    let output = update.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for name in &names {
        assert_eq!(version(&host, name), "2");
        assert_eq!(said.lines().filter(|line| line.starts_with(&format!("{name}: "))).count(), 1, "{said}");
    }
    let shown = host.json(["update", "show", "1"]);
    assert_eq!((text(&shown, "state"), &shown["counts"]["done"]), ("done", &serde_json::json!(24)));
}

/// What a package manager writes from what it has read must not undo what the move merged.
#[test]
fn a_move_waits_for_a_package_manager_in_the_ve() {
    let host = tiny_host();
    host.mounted("tiny", &["ve"]);
    import_fix(&host);
    let database = host.root("ve").join("var/lib/dpkg");
    fs::create_dir_all(&database).expect("made");
    let lock = fs::File::create(database.join("lock")).expect("made");
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    std::thread::scope(|scope| {
        let update = scope.spawn(|| host.json(["update", "ve", "--yes"]));
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(version(&host, "ve"), "1", "it was moved under a package manager");
        drop(lock);
        let done = update.join().expect("no panic");
        assert_eq!(text(&done, "state"), "done", "{done}");
    });
    assert_eq!(version(&host, "ve"), "2");
}

#[test]
fn a_program_in_a_directory_that_the_update_makes_too_stays_there() {
    let host = tiny_host();
    host.mounted("tiny", &["ve"]);
    let dir = host.root("ve").join("srv/app");
    fs::create_dir_all(dir.join("sub")).expect("made");
    fs::write(dir.join("own"), "mine").expect("written");
    // A descriptor is to the kernel what a working directory is.
    let inside = fs::File::open(&dir).expect("open");
    let here = PathBuf::from(format!("/proc/self/fd/{}", inside.as_raw_fd()));
    // The kernel remembers that there is no such name.
    assert!(fs::metadata(here.join("shipped")).is_err());
    import(&host, "2", |root| {
        fs::create_dir_all(root.join("srv/app/sub")).expect("made");
        fs::write(root.join("srv/app/shipped"), "theirs").expect("written");
        fs::write(root.join("srv/app/sub/deep"), "theirs").expect("written");
    });
    let done = host.json(["update", "ve", "--yes"]);
    assert_eq!(text(&done, "state"), "done", "{done}");
    for _ in 0..2 {
        for at in [&dir, &here] {
            assert_eq!(fs::read(at.join("own")).expect("there"), b"mine");
            assert_eq!(fs::read(at.join("shipped")).expect("there"), b"theirs");
            assert_eq!(fs::read(at.join("sub/deep")).expect("there"), b"theirs");
        }
        // What one makes the other sees, and what one removes the other misses.
        for (one, other) in [(&dir, &here), (&here, &dir)] {
            fs::write(one.join("later"), "later").expect("written");
            assert_eq!(fs::read(other.join("later")).expect("there"), b"later");
            fs::remove_file(other.join("later")).expect("removed");
            assert!(fs::metadata(one.join("later")).is_err());
        }
        let names = |at: &Path| {
            let entries = fs::read_dir(at).expect("readable").map(|entry| entry.expect("readable"));
            let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&dir), ["own", "shipped", "sub"]);
        assert_eq!(names(&here), names(&dir));
        // And so with the next daemon.
        host.kill_daemon();
    }
}
