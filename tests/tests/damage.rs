//! Every kind of damage to every kind of file in a store, while the daemon works and while it does not: found, named, and repaired where something
//! else has the same.
//!
//! Not found, as RocksDB takes it for a write that was cut off: a database's MANIFEST or log without its last bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use vzfs_tests::host::host_sh;
use vzfs_tests::{Host, Setup, sample, text};

/// What can happen to a file. `$1` is the file, `$2` another of its kind.
const DAMAGES: [(&str, &str); 5] = [
    ("delete", "rm \"$1\""),
    ("truncate", "truncate -s -1 \"$1\""),
    (
        "flip",
        "python3 -c 'import sys; f = open(sys.argv[1], \"r+b\"); f.seek(2); b = f.read(1)[0]; f.seek(2); f.write(bytes([b ^ 1]))' \"$1\"",
    ),
    ("swap", "mv \"$1\" \"$1.kept\"; mv \"$2\" \"$1\"; mv \"$1.kept\" \"$2\""),
    ("replace", "size=$(stat -c %s \"$1\"); rm \"$1\"; head -c \"$size\" /dev/zero > \"$1\""),
];

/// A VE on one template, one on two, and a file that a VE wrote.
struct Scene {
    host: Host,
    source: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        Scene::with("true")
    }

    /// With trees of many pages.
    fn with_many() -> Scene {
        Scene::with(
            "mkdir \"$1/many\"; for n in $(seq 600); do echo $n > \"$1/many/a-name-of-some-length-$n\"; done",
        )
    }

    /// With more in the OS, made by a script.
    fn with(more: &str) -> Scene {
        let daemon_args = vec!["--scrub-interval".to_owned(), "never".to_owned()];
        let host = Host::with(Setup { size_mib: 1024, daemon_args, ..Setup::default() });
        let (source, app) = (host.scratch().join("os"), host.scratch().join("app"));
        sample::make(&source);
        host_sh(more, [&source]);
        host_sh("cp -a \"$1\" \"$2\" && mkdir \"$2/opt\" && echo app > \"$2/opt/app\"", [&source, &app]);
        host.vzfs(["template", "import", "sample@1", text(&source)]).ok();
        host.vzfs(["template", "import", "app@1", text(&app), "--os", "sample@1"]).ok();
        host.mounted("sample@1", &["plain"]);
        host.vzfs(["ve", "create", "both", "-t", "sample@1", "-t", "app@1"]).ok();
        host.vzfs(["ve", "mount", "both"]).ok();
        for name in ["own", "other"] {
            fs::write(host.root("plain").join("etc").join(name), name.repeat(5000))
                .expect("the VE is writable");
        }
        host_sh("sync -f \"$1\"", [host.root("plain")]);
        Scene { host, source }
    }

    /// Does something to the store's files, with the daemon at work or without it.
    fn change(&self, in_use: bool, script: &str, files: &[&Path]) {
        if !in_use {
            self.host.stop();
        }
        host_sh(script, files);
        if !in_use {
            self.host.start();
        }
    }

    fn check(&self, repair: &[&str]) -> (i32, Value) {
        let outcome = self.host.vzfs([&["--format", "json", "store", "check"], repair].concat());
        assert!([0, 7].contains(&outcome.code) && !outcome.stdout.is_empty(), "{}", outcome.error());
        (outcome.code, outcome.json())
    }

    /// Two blobs of files that the VEs show.
    fn blobs(&self) -> [PathBuf; 2] {
        ["etc/conf.d/one", "etc/conf.d/two"].map(|path| self.host.blob_of(&self.source.join(path)))
    }

    fn trees(&self) -> [PathBuf; 2] {
        let layer = |name| self.host.store().join("trees").join(self.host.digest(name));
        [layer("app@1"), layer("sample@1")]
    }

    fn base_of(&self, ve: &str) -> PathBuf {
        let shown = self.host.json(["ve", "show", ve]);
        self.host.store().join("trees").join(shown["base"].as_str().expect("a digest"))
    }
}

/// Who is named in a report, over all that is damaged.
fn named(report: &Value) -> String {
    let damaged = report["damaged"].as_array().expect("a list");
    damaged.iter().map(|damage| damage["users"].to_string()).collect()
}

#[test]
fn damaged_content_is_found_and_repaired() {
    let scene = Scene::new();
    let [file, other] = scene.blobs();
    for in_use in [true, false] {
        for (damage, script) in DAMAGES {
            let what = format!("{damage}, in use: {in_use}");
            scene.change(in_use, script, &[&file, &other]);
            let (code, report) = scene.check(&[]);
            assert_eq!(code, 7, "{what}: {report}");
            for user in ["sample@1", "plain", "both", "etc/conf.d/one"] {
                assert!(named(&report).contains(user), "{what}: {user} is not named in {report}");
            }
            let (code, report) = scene.check(&["--repair", text(&scene.source)]);
            assert_eq!(code, 0, "{what}: {report}");
            assert_eq!(scene.check(&[]).0, 0, "{what}: it is whole");
            let read = fs::read(scene.host.root("plain").join("etc/conf.d/one"));
            assert_eq!(read.expect("readable"), b"one\n", "{what}");
        }
    }
}

#[test]
fn damaged_trees_are_found_and_repaired_and_others_go_on() {
    let scene = Scene::new();
    let base = scene.base_of("both");
    let [app, sample] = scene.trees();
    let app_source = scene.host.scratch().join("app");
    for (damage, script) in DAMAGES {
        // A base follows from its layers; a layer comes from what it was made of.
        for (file, other, source) in [(&base, &sample, ""), (&app, &sample, text(&app_source))] {
            let what = format!("{damage} of {}", file.display());
            let kept = scene.host.scratch().join("kept");
            host_sh("cp -p \"$1\" \"$2\"", [other, &kept]);
            // This is about one of them: the other is put back.
            let script = format!("{script}; cp -p \"$3\" \"$2.new\"; mv \"$2.new\" \"$2\"");
            scene.change(false, &script, &[file, other, &kept]);
            let (code, report) = scene.check(&[]);
            assert_eq!(code, 7, "{what}: {report}");
            let user = if file == &base { "both" } else { "app@1" };
            assert!(named(&report).contains(user), "{what}: {user} is not named in {report}");
            let list = fs::read(scene.host.root("plain").join("etc/conf.d/one"));
            assert_eq!(list.expect("another VE works"), b"one\n", "{what}");
            let repair: &[&str] = if source.is_empty() { &["--repair"] } else { &["--repair", source] };
            let (code, report) = scene.check(repair);
            assert_eq!(code, 0, "{what}: {report}");
            // Where another sound tree stood in its place, the VE shows that one until it is mounted again.
            if damage == "swap" {
                scene.host.vzfs(["ve", "umount", "both"]).ok();
            }
            scene.host.vzfs(["ve", "mount", "both"]).ok();
            let read = fs::read(scene.host.root("both").join("opt/app"));
            assert_eq!(read.expect("readable"), b"app\n", "{what}");
        }
    }
}

/// What can happen to a tree that the daemon has mapped, besides.
const IN_PLACE: [(&str, &str); 2] = [
    ("cut", "truncate -s 4096 \"$1\""),
    (
        "zero",
        "size=$(stat -c %s \"$1\"); head -c \"$size\" /dev/zero | dd of=\"$1\" conv=notrunc status=none",
    ),
];

#[test]
fn trees_that_are_damaged_while_ves_show_them_are_found_and_repaired_and_the_daemon_lives() {
    let scene = Scene::with_many();
    let base = scene.base_of("both");
    let [_, sample] = scene.trees();
    let (root, other) = (scene.host.root("both"), scene.host.root("plain"));
    let list = "cd \"$1\" && find . -printf '%P %y %m %n %s %l\\n' | LC_ALL=C sort";
    let sound = host_sh(list, [&root]).text();
    let daemon = scene.host.daemon_pid();
    for (damage, script) in DAMAGES.into_iter().chain(IN_PLACE) {
        let kept = scene.host.scratch().join("kept");
        host_sh("cp -p \"$1\" \"$2\"", [&sample, &kept]);
        let script = format!("{script}; cp -p \"$3\" \"$2.new\"; mv \"$2.new\" \"$2\"");
        scene.change(true, &script, &[&base, &sample, &kept]);
        // What the kernel has cached it does not ask for again.
        let drop = "echo 2 > /proc/sys/vm/drop_caches; ";
        let output = Command::new("bash")
            .args(["-o", "pipefail", "-c", &format!("{drop}{list}"), "x"])
            .arg(&root)
            .output();
        let output = output.expect("bash can be started");
        let (seen, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match damage {
            "delete" | "swap" | "replace" => {
                assert_eq!(seen, sound, "{damage}: what is mapped is not touched")
            }
            "cut" => {
                assert!(said.contains("Input/output error"), "{damage}: {said}");
                let other = said.lines().find(|line| !line.contains("Input/output error"));
                assert_eq!(other, None, "{damage}: nothing else is told");
                let made_up = seen.lines().find(|line| !sound.lines().any(|sound| sound == *line));
                assert_eq!(made_up, None, "{damage}: nothing is made up");
            }
            // Nobody notices before a check: a tree has no sums of its parts.
            _ => {}
        }
        assert_eq!(fs::read(other.join("etc/conf.d/one")).expect("another VE works"), b"one\n", "{damage}");
        let (code, report) = scene.check(&[]);
        assert_eq!(code, 7, "{damage}: {report}");
        assert!(named(&report).contains("both"), "{damage}: it is not named in {report}");
        let (code, report) = scene.check(&["--repair"]);
        assert_eq!(code, 0, "{damage}: {report}");
        assert_eq!(scene.check(&[]).0, 0, "{damage}: it is whole");
        host_sh(&format!("{drop}true"), ["x"]);
        assert_eq!(host_sh(list, [&root]).text(), sound, "{damage}: without another mount");
        assert_eq!(scene.host.daemon_pid(), daemon, "{damage}: the daemon lives");
    }
}

#[test]
fn lost_private_content_is_named_and_the_rest_of_the_ve_works() {
    for in_use in [true, false] {
        let scene = Scene::new();
        let data = scene.host.store().join("data");
        let find = "find \"$1\" -type f -size 15000c -exec grep -q own {} \\; -delete";
        scene.change(in_use, find, &[&data]);
        let (code, report) = scene.check(&["--repair", text(&scene.source)]);
        assert_eq!(code, 7, "nobody else has it: {report}");
        assert_eq!(report["private"].as_array().map(Vec::len), Some(1), "{report}");
        assert_eq!(
            (&report["private"][0]["ve"], &report["private"][0]["path"]),
            (&"plain".into(), &"etc/own".into())
        );
        let root = scene.host.root("plain");
        let read = fs::read(root.join("etc/own")).map_err(|error| error.raw_os_error());
        // Who reads it through the kernel's cache may not notice before that is dropped.
        assert!(in_use || read == Err(Some(5)), "EIO: {read:?}");
        assert_eq!(fs::read(root.join("etc/other")).expect("readable").len(), 25_000);
        // The way out.
        fs::remove_file(root.join("etc/own")).expect("removable");
        assert_eq!(scene.check(&[]).0, 0);
    }
}

#[test]
fn a_damaged_database_is_refused_by_name_and_opens_when_it_is_put_back() {
    let scene = Scene::new();
    scene.host.stop();
    let meta = scene.host.store().join("meta");
    // Into tables, so that there is one of each kind of file.
    scene.host.start();
    scene.host.stop();
    let kept = scene.host.scratch().join("meta");
    host_sh("cp -a \"$1\" \"$2\"", [&meta, &kept]);
    let find = |pattern: &str| {
        let found = host_sh("ls -S \"$1\"/$2 | head -1", [meta.as_os_str(), pattern.as_ref()]);
        PathBuf::from(found.text().trim())
    };
    let files = [find("CURRENT"), find("MANIFEST-*"), find("*.sst")];
    let [_, manifest, table] = files.clone();
    for file in files {
        for (damage, script) in DAMAGES {
            // A bit of a table is found when its block is read, and see above.
            let is_found = match damage {
                "swap" => false,
                "flip" => file != table,
                "truncate" => file != manifest,
                _ => true,
            };
            if !is_found {
                continue;
            }
            let what = format!("{damage} of {}", file.display());
            host_sh(script, [&file, &file]);
            let mut command = Command::new("timeout");
            let daemon = scene.host.daemon_command();
            command.arg("20").arg(daemon.get_program()).args(daemon.get_args());
            let output = command.output().expect("it can be started");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && output.status.code() != Some(124), "{what}: it starts");
            assert!(error.contains("database") && error.contains("meta"), "{what}: {error}");
            host_sh("rm -r \"$1\" && cp -a \"$2\" \"$1\"", [&meta, &kept]);
        }
    }
    scene.host.start();
    assert_eq!(scene.check(&[]).0, 0);
    assert_eq!(fs::read(scene.host.root("plain").join("etc/own")).expect("readable").len(), 15_000);
}
