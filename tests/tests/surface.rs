//! The command surface: every command once, its JSON, its exit codes.

use std::fs;
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::Value;
use vzfs_tests::host::{finish, host_sh};
use vzfs_tests::{Host, Setup, sample};

fn sample_host() -> Host {
    let host = Host::with(Setup { size_mib: 2048, ..Setup::default() });
    sample::make(&host.scratch().join("source"));
    host
}

fn import(host: &Host, template: &str) {
    let source = host.scratch().join("source");
    host.vzfs(["template", "import", template, source.to_str().expect("text")]).ok();
}

fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn templates_from_import_to_removal() {
    let host = sample_host();
    let source = host.scratch().join("source");
    assert_eq!(host.json(["template", "list"]), serde_json::json!([]));
    import(&host, "sample@1");
    let shown = host.json(["template", "show", "sample"]);
    assert_eq!((shown["name"].as_str(), shown["version"].as_str()), (Some("sample"), Some("1")));
    assert_eq!(shown["kind"], "os");
    assert_eq!(shown["used_by"], serde_json::json!([]));
    assert_eq!(shown["digest"].as_str().map(str::len), Some(64));
    assert!(shown["stats"]["inodes"].as_u64().is_some_and(|inodes| inodes > 30), "{shown}");

    // Every table form prints something for people, and quiet commands say nothing.
    for command in
        [&["template", "list"][..], &["template", "show", "sample"], &["store", "info"], &["store", "doctor"]]
    {
        assert!(!host.vzfs(command).ok().stdout.is_empty(), "{command:?} prints nothing");
    }

    // An export holds what was imported, and its import is the same template.
    let tar = host.disk().join("sample.tar");
    host.vzfs(["template", "export", "sample@1", tar.to_str().expect("text")]).ok();
    let out = host.scratch().join("out");
    let unpack = "mkdir \"$2\"; tar --numeric-owner --xattrs --xattrs-include='*' -xpf \"$1\" -C \"$2\"";
    host_sh(unpack, [&tar, &out]);
    assert_eq!(sample::differences(&source, &out), "");
    host.vzfs(["template", "import", "again@1", tar.to_str().expect("text")]).ok();
    assert_eq!(host.digest("again"), host.digest("sample"));
    // The same through every compression.
    for (name, program) in [("gz", "gzip"), ("zst", "zstd"), ("xz", "xz -T0 -0")] {
        let packed = host.disk().join(format!("sample.tar.{name}"));
        if !program.starts_with("zstd") || finish(std::process::Command::new("which").arg("zstd")).code == 0 {
            host_sh(&format!("{program} -c \"$1\" > \"$2\""), [&tar, &packed]);
            host.vzfs(["template", "import", &format!("{name}@1"), packed.to_str().expect("text")]).ok();
            assert_eq!(host.digest(name), host.digest("sample"), "{name}");
        }
    }

    // The same from XFS, which shows ACLs once more as attributes of its own.
    let on_xfs = host.disk().join("source");
    host_sh("cp -a \"$1\" \"$2\"", [&source, &on_xfs]);
    host.vzfs(["template", "import", "xfs@1", on_xfs.to_str().expect("text")]).ok();
    assert_eq!(host.digest("xfs"), host.digest("sample"));

    // A second version; NAME means the newest, and the difference is exactly what was done.
    host_sh("cd \"$1\"; echo new > etc/new; rm etc/conf.d/one; echo x >> etc/hostname", [&source]);
    import(&host, "sample@2");
    assert_eq!(host.json(["template", "show", "sample"])["version"], "2");
    let diff = host.json(["template", "diff", "sample@1", "sample@2"]);
    let diff: Vec<(&str, &str)> = (diff["files"].as_array().expect("a list").iter())
        .map(|change| (change["path"].as_str().unwrap_or(""), change["kind"].as_str().unwrap_or("")))
        .collect();
    for expected in [("etc/new", "added"), ("etc/conf.d/one", "deleted"), ("etc/hostname", "changed")] {
        assert!(diff.contains(&expected), "{expected:?} not in {diff:?}");
    }
    let report = host.json(["template", "verify", "sample@1"]);
    assert_eq!(report["damaged"], serde_json::json!([]));

    host.vzfs(["template", "rm", "sample@1"]).ok();
    host.vzfs(["template", "show", "sample@1"]).refused(3, &["sample"]);
    assert!(!names(&host.json(["template", "list"])).is_empty());
}

#[test]
fn ves_from_making_to_removal() {
    let host = sample_host();
    import(&host, "sample@1");
    let made = host.json(["ve", "create", "web", "-t", "sample"]);
    assert_eq!(names(&made), ["web"]);
    let many = host.json(["ve", "create", "many", "-t", "sample@1", "--count", "3"]);
    assert_eq!(names(&many), ["many-1", "many-2", "many-3"]);
    assert_eq!(names(&host.json(["ve", "list"])), ["many-1", "many-2", "many-3", "web"]);
    assert!(!host.vzfs(["ve", "list"]).ok().stdout.is_empty());

    let shown = host.json(["ve", "show", "web"]);
    assert_eq!(shown["mounted"], false);
    let mounted = host.json(["ve", "mount", "web"]);
    assert_eq!(mounted["mounted"], true);
    assert_eq!(mounted["mountpoint"].as_str(), host.root("web").to_str());
    host.vzfs(["ve", "mount", "web"]).ok(); // it is there already: fine
    let elsewhere = host.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).expect("writable");
    host.vzfs(["ve", "mount", "many-1", elsewhere.to_str().expect("text")]).ok();
    assert_eq!(fs::read_to_string(elsewhere.join("etc/conf.d/one")).expect("read"), "one\n");

    fs::write(host.root("web").join("etc/added"), "twelve bytes").expect("writable");
    // What the kernel asked for is counted; what it served itself is not.
    let requests = || host.json(["ve", "stats", "web"])["requests"].clone();
    let before = requests();
    assert_eq!(before["create"], 1, "{before}");
    for _ in 0..5 {
        fs::metadata(host.root("web").join("etc/added")).expect("it is there");
    }
    assert_eq!(requests()["lookup"], before["lookup"]);
    fs::remove_file(host.root("web").join("etc/conf.d/one")).expect("writable");
    assert_eq!(requests()["unlink"], 1);
    assert_eq!(host.json(["ve", "stats", "many-2"])["requests"], serde_json::json!({}));
    let diff = host.json(["ve", "diff", "web"]);
    let added = diff.as_array().expect("a list").iter().find(|change| change["path"] == "etc/added");
    let added = added.unwrap_or_else(|| unreachable!("no etc/added in {diff}"));
    assert_eq!(
        (&added["kind"], &added["type"], &added["size"]),
        (&"added".into(), &"file".into(), &12.into())
    );
    let shown = host.json(["ve", "show", "web"]);
    assert!(shown["private_inodes"].as_u64().is_some_and(|n| n > 0), "{shown}");

    // An export is what is mounted.
    let (tar, out) = (host.disk().join("web.tar"), host.scratch().join("out"));
    host.vzfs(["ve", "export", "web", tar.to_str().expect("text")]).ok();
    let unpack = "mkdir \"$2\"; tar --numeric-owner --xattrs --xattrs-include='*' -xpf \"$1\" -C \"$2\"";
    host_sh(unpack, [&tar, &out]);
    assert_eq!(sample::differences(&host.root("web"), &out), "");

    // What it changed becomes an application template, and a VE on the stack has it.
    host.vzfs(["ve", "commit", "web", "extra@1"]).ok();
    let app = host.json(["template", "show", "extra"]);
    assert_eq!((&app["kind"], &app["os"]["name"]), (&"app".into(), &"sample".into()));
    host.vzfs(["ve", "create", "stacked", "-t", "sample", "-t", "extra"]).ok();
    host.vzfs(["ve", "mount", "stacked"]).ok();
    assert_eq!(fs::read_to_string(host.root("stacked").join("etc/added")).expect("read"), "twelve bytes");
    assert_eq!(host.diff("stacked"), Vec::new());
    assert!(host.json(["template", "show", "extra"])["used_by"].as_array().is_some_and(|ves| ves.len() == 1));

    host.vzfs(["ve", "umount", "web"]).ok();
    assert!(!host.root("web").join("etc").exists(), "still mounted");
    host.vzfs(["ve", "rename", "web", "www"]).ok();
    host.vzfs(["ve", "show", "web"]).refused(3, &["web"]);
    host.vzfs(["ve", "rm", "www"]).ok();
    host.vzfs(["ve", "rm", "stacked"]).refused(4, &["stacked", "mount"]);
    for ve in ["stacked", "many-1"] {
        host.vzfs(["ve", "umount", ve]).ok();
    }
    for ve in ["stacked", "many-1", "many-2", "many-3"] {
        host.vzfs(["ve", "rm", ve]).ok();
    }
    assert_eq!(host.json(["ve", "list"]), serde_json::json!([]));
    host.vzfs(["template", "rm", "extra"]).ok();
    host.vzfs(["template", "rm", "sample"]).ok();
}

#[test]
fn store_tells_about_itself_and_its_host() {
    let host = sample_host();
    import(&host, "sample@1");
    host.mounted("sample", &["one"]);
    let info = host.json(["store", "info"]);
    assert_eq!(info["store"].as_str(), host.store().to_str());
    assert_eq!(info["pid"].as_u64(), Some(u64::from(host.daemon_pid())));
    assert_eq!((&info["templates"], &info["ves"], &info["mounted"]), (&1.into(), &1.into(), &1.into()));
    let doctor = host.json(["store", "doctor"]);
    let checks = doctor["checks"].as_array().expect("checks");
    assert!(checks.len() >= 3, "{doctor}");
    for check in checks {
        let status = check["status"].as_str().unwrap_or("");
        assert!(["ok", "degraded", "missing"].contains(&status), "{check}");
        assert!(
            status == "ok" || check["cost"].as_str().is_some_and(|cost| !cost.is_empty()),
            "no cost told: {check}"
        );
    }
}

#[test]
fn help_version_man_and_completions_need_no_daemon() {
    let host = Host::without_daemon(Setup { size_mib: 512, ..Setup::default() });
    host.vzfs(["--version"]).ok();
    let help = host.vzfs(["--help"]).ok().text();
    assert!(help.contains("Exit codes"), "{help}");
    for command in [&["template", "import", "--help"][..], &["ve", "exec", "--help"], &["store", "--help"]] {
        host.vzfs(command).ok();
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(host.vzfs(["completions", shell]).ok().text().contains("vzfs"));
    }
    let man = host.scratch().join("man");
    host.vzfs(["man", man.to_str().expect("text")]).ok();
    assert!(man.join("vzfs.1").exists());
}

/// One host with a Debian for the tests of `ve exec`, as long as this test process lives.
fn debian() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let host = Host::with_debian(Setup::default());
        host.vzfs(["ve", "create", "shell", "-t", "debian"]).ok();
        host
    })
}

#[test]
fn exec_passes_exit_codes_on() {
    let host = debian();
    host.sh("shell", "true").ok();
    host.sh("shell", "exit 42").expect_code(42);
    // In a shell below: the first process of a namespace is immune to its own signals.
    host.sh("shell", "sh -c 'kill -9 $$'").expect_code(128 + 9);
    host.vzfs(["ve", "exec", "shell", "--", "/no/such/program"]).expect_code(127);
    host.vzfs(["ve", "exec", "shell", "--", "/etc/passwd"]).expect_code(126);
    host.vzfs(["ve", "exec", "nobody", "--", "true"]).refused(125, &["nobody"]);
}

#[test]
fn exec_gives_a_namespace_of_its_own_and_a_clean_environment() {
    let host = debian();
    assert_eq!(
        host.sh("shell", "cat /proc/1/comm >/dev/null; ls /proc | grep -c '^[0-9]'").ok().text().trim().len(),
        1
    );
    assert_eq!(host.sh("shell", "hostname").ok().text().trim(), "shell");
    let script =
        "test -c /dev/null && test -d /sys/class && test -w /dev/shm && test -e /dev/pts && echo fine";
    assert_eq!(host.sh("shell", script).ok().text().trim(), "fine");
    let mut command = host.command(["ve", "exec", "shell", "--", "env"]);
    let environment = finish(command.env("LEAKED_FROM_OUTSIDE", "yes")).ok().text();
    assert!(!environment.contains("LEAKED"), "{environment}");
    assert!(environment.contains("PATH="), "{environment}");
    let inside = host.vzfs([
        "ve",
        "exec",
        "shell",
        "--env",
        "WANTED=1",
        "--workdir",
        "/tmp",
        "--",
        "sh",
        "-c",
        "echo $WANTED; pwd",
    ]);
    assert_eq!(inside.ok().text(), "1\n/tmp\n");
    let user = host.vzfs(["ve", "exec", "shell", "--user", "nobody", "--", "id", "-un"]).ok().text();
    assert_eq!(user, "nobody\n");
}

#[test]
fn exec_carries_standard_input_and_output() {
    use std::io::Write;
    let host = debian();
    let mut command = host.command(["ve", "exec", "shell", "--", "tr", "a-z", "A-Z"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    child.stdin.take().expect("asked for").write_all(b"through a pipe\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.stdout, b"THROUGH A PIPE\n");
    assert!(output.status.success());
}
