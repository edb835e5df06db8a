//! `vzfs update`: many VEs, real mounts, real programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vzfs::types::VeId;
use vzfs::update::processes::stale_processes;
use vzfs_tests::{Host, Setup, tiny};

/// A host with `tiny@1`.
fn tiny_host() -> Host {
    let host = Host::with(Setup { size_mib: 1024, ..Setup::default() });
    import(&host, "1", |_| ());
    host
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
