//! The care of a store under a running daemon: garbage collection beside imports and working VEs, damage that is found, named and repaired, and
//! space that is counted exactly.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use vzfs_tests::host::host_sh;
use vzfs_tests::measure::{ms, report};
use vzfs_tests::{Host, Setup, sample, text};

/// A host with the sample as `sample@1` and a variant of it as `sample@2`; the folders are `one` and `two`.
fn host() -> Host {
    host_with(&["--scrub-interval", "never"])
}

fn host_with(daemon_args: &[&str]) -> Host {
    let daemon_args = daemon_args.iter().map(|arg| (*arg).to_owned()).collect();
    let host = Host::with(Setup { size_mib: 2048, daemon_args, ..Setup::default() });
    let (one, two) = (host.scratch().join("one"), host.scratch().join("two"));
    sample::make(&one);
    host_sh(
        "cp -a \"$1\" \"$2\" && printf 'only in two\\n' > \"$2/etc/two\" && head -c 500000 /dev/urandom > \"$2/var/lib/app/extra\"",
        [&one, &two],
    );
    host.vzfs(["template", "import", "sample@1", text(&one)]).ok();
    host.vzfs(["template", "import", "sample@2", text(&two)]).ok();
    host
}

fn number(value: &Value, field: &str) -> u64 {
    let number = value[field].as_u64();
    assert!(number.is_some(), "no number {field} in {value}");
    number.unwrap_or_default()
}

fn flip_a_bit(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("root may");
    let mut open = fs::File::options().read(true).write(true).open(file).expect("opens");
    let mut byte = [0];
    open.read_exact(&mut byte).expect("it is not empty");
    open.seek(SeekFrom::Start(0)).expect("seeks");
    open.write_all(&[byte[0] ^ 1]).expect("writes");
    open.sync_all().expect("syncs");
}

#[test]
fn garbage_is_collected_beside_imports_and_working_ves() {
    let host = host();
    host.mounted("sample@1", &["a", "b"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (host, done) = (&host, &done);
        let worker = |ve: &'static str| {
            move || {
                let root = host.root(ve);
                for round in 0..15 {
                    let file = root.join(format!("work-{round}"));
                    fs::copy(root.join("var/lib/app/data"), &file).expect("copies");
                    let expected = fs::read(host.scratch().join("one/var/lib/app/data")).expect("reads");
                    assert_eq!(fs::read(&file).expect("reads"), expected, "{ve} {round}");
                    fs::set_permissions(root.join("etc/hostname"), fs::Permissions::from_mode(0o600 + round))
                        .expect("chmod");
                    fs::remove_file(&file).expect("removes");
                }
            }
        };
        let importer = move || {
            let two = host.scratch().join("two");
            for round in 0..6 {
                let spec = format!("again@{round}");
                host.vzfs(["template", "import", &spec, text(&two)]).ok();
                host.vzfs(["ve", "create", "short", "-t", &spec]).ok();
                host.vzfs(["template", "verify", &spec]).ok();
                host.vzfs(["ve", "rm", "short"]).ok();
                host.vzfs(["template", "rm", &spec]).ok();
            }
        };
        let threads = [scope.spawn(worker("a")), scope.spawn(worker("b")), scope.spawn(importer)];
        let collector = scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                host.vzfs(["store", "gc"]).ok();
            }
        });
        for thread in threads {
            thread.join().expect("it ends well");
        }
        done.store(true, Ordering::SeqCst);
        collector.join().expect("it ends well");
    });
    // What only the second template has is still there, and goes with it.
    host.vzfs(["store", "verify"]).ok();
    host.vzfs(["template", "rm", "sample@2"]).ok();
    assert_eq!(number(&host.json(["store", "gc"]), "freed_bytes"), 0, "the removal has collected it");
    let found = host_sh("find \"$1\" -type f -size 500000c | wc -l", [host.store().join("blobs")]);
    assert_eq!(found.text().trim(), "0");
    // A VE that is gone leaves its base; a dry run says so and touches nothing.
    let dry = host.json(["store", "gc", "--dry-run"]);
    assert_eq!(number(&dry, "freed_bytes"), 0);
    host.vzfs(["store", "verify"]).ok();
}

#[test]
fn a_flipped_bit_is_found_named_and_repaired_from_a_tar() {
    let host = host();
    host.vzfs(["ve", "create", "untouched", "-t", "sample@1"]).ok();
    host.mounted("sample@1", &["own", "moved"]);
    fs::write(host.root("own").join("etc/conf.d/one"), "mine\n").expect("writes");
    host_sh(
        "cd \"$1\"; chmod 600 etc/conf.d/one; ln etc/conf.d/one etc/second; mv etc config",
        [host.root("moved")],
    );
    host.vzfs(["store", "verify"]).ok();

    let blob = host.blob_of(&host.scratch().join("one/etc/conf.d/one"));
    flip_a_bit(&blob);
    let outcome = host.vzfs(["--format", "json", "store", "verify"]).expect_code(7);
    let report = outcome.json();
    let damaged = report["damaged"].as_array().expect("a list");
    assert_eq!(damaged.len(), 1, "{report}");
    let users: Vec<String> = damaged[0]["users"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|user| {
            let who = user["template"].as_str().or(user["ve"].as_str()).expect("one of them");
            format!("{who} {}", user["path"].as_str().expect("a path"))
        })
        .collect();
    let expected = [
        "sample@1 etc/conf.d/one",
        "sample@2 etc/conf.d/one",
        "moved config/conf.d/one",
        "moved config/second",
        "untouched etc/conf.d/one",
    ];
    assert_eq!(users, expected);
    // People are told the same, the log has it, and it is remembered.
    let shown = host.vzfs(["store", "verify", "--status"]).expect_code(7).text();
    assert!(shown.contains("VE untouched /etc/conf.d/one") && shown.contains("last check"), "{shown}");
    assert!(host.log().contains("VE untouched /etc/conf.d/one"), "{}", host.log());
    assert_eq!(number(&host.json(["store", "info"]), "damaged"), 1);

    let tar = host.scratch().join("one.tar.gz");
    host_sh("tar -czf \"$2\" -C \"$1\" etc", [&host.scratch().join("one"), &tar]);
    let nothing = host.scratch().join("nothing.tar");
    host_sh("tar -cf \"$2\" -C \"$1\" usr", [&host.scratch().join("one"), &nothing]);
    host.vzfs(["store", "verify", "--repair", text(&nothing)]).expect_code(7);
    let repaired = host.vzfs(["store", "verify", "--repair", text(&tar)]).ok().text();
    assert!(repaired.contains("repaired"), "{repaired}");
    host.vzfs(["store", "verify"]).ok();
    assert_eq!(number(&host.json(["store", "info"]), "damaged"), 0);
    host.vzfs(["ve", "mount", "untouched"]).ok();
    for (ve, path) in [("untouched", "etc/conf.d/one"), ("moved", "config/second")] {
        assert_eq!(fs::read(host.root(ve).join(path)).expect("reads"), b"one\n", "{ve}");
    }
    assert_eq!(fs::read(host.root("own").join("etc/conf.d/one")).expect("reads"), b"mine\n");
    host.vzfs(["store", "verify", "--repair", text(&host.scratch().join("missing"))]).ok();
}

#[test]
fn space_is_what_a_slow_count_says() {
    let host = host();
    host.mounted("sample@1", &["busy", "idle"]);
    host_sh(
        "cd \"$1\"; rm -r usr/lib etc/conf.d; mv var/lib/app moved; head -c 700000 /dev/urandom > new; \
         printf more >> moved/data; truncate -s 5M grown; chmod 600 etc/hostname; ln etc/hostname etc/hard; sync",
        [host.root("busy")],
    );
    let df = host.json(["store", "df"]);
    let logical = |root: &Path| {
        let count = "find \"$1\" -xdev -type f -printf '%i %s\\n' | sort -u | awk '{ sum += $2 } END { print sum + 0 }'";
        host_sh(count, [root]).text().trim().parse::<u64>().expect("a number")
    };
    for ve in df["ves"].as_array().expect("a list") {
        let name = ve["ve"].as_str().expect("a name");
        assert_eq!(number(ve, "logical_bytes"), logical(&host.root(name)), "{name}");
        let shown = host.json(["ve", "df", name]);
        assert_eq!(shown, serde_json::json!([ve]), "{name}");
    }
    assert_eq!(number(&df["ves"][1], "unique_bytes"), 0, "idle has nothing of its own");
    let on_disk = |folder: &str, what: &str| {
        let count = format!(
            "find \"$1\" -type f -printf '{what}\\n' | awk '{{ sum += $1 }} END {{ print sum + 0 }}'"
        );
        host_sh(&count, [host.store().join(folder)]).text().trim().parse::<u64>().expect("a number")
    };
    assert_eq!(number(&df, "blob_bytes"), on_disk("blobs", "%s"));
    assert_eq!(number(&df, "tree_bytes"), on_disk("trees", "%s"));
    assert_eq!(number(&df, "private_bytes"), on_disk("data", "%b") * 512);
    host.vzfs(["ve", "df", "nobody"]).refused(3, &["nobody"]);

    // 300 VEs: only printed, as tests do not judge times.
    host.vzfs(["ve", "create", "many", "-t", "sample@1", "--count", "298"]).ok();
    host.json(["store", "df"]);
    let started = std::time::Instant::now();
    host.json(["store", "df"]);
    report("store df of 300 VEs, the command included", ms(started.elapsed()));
}

#[test]
fn the_daemon_checks_the_store_by_itself() {
    let host = host_with(&["--scrub-interval", "1s", "--scrub-rate", "1000"]);
    flip_a_bit(&host.blob_of(&host.scratch().join("one/etc/conf.d/one")));
    let found = || host.json(["store", "info"])["damaged"] == 1;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !found() {
        assert!(std::time::Instant::now() < deadline, "{}", host.log());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(host.log().contains("template sample@1 /etc/conf.d/one"), "{}", host.log());
}
