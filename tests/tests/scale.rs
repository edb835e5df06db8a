//! Many VEs on one daemon: times, memory and disk are printed; that it works is asserted.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vzfs_tests::measure::{ms, report, resident_bytes, spread};
use vzfs_tests::{Host, Setup};

/// The tests of this file measure: one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// What `command` takes, by the clock.
fn timed(command: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    command();
    begin.elapsed()
}

#[test]
fn two_hundred_ves_on_one_daemon() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::with_debian(Setup::default());
    // The base is made with the first VE; the rest is what every further one costs.
    host.mounted("debian", &["first"]);
    let name = |number: usize| format!("ve{number}");

    let used = host.used_bytes();
    let create = |number| timed(|| drop(host.vzfs(["ve", "create", &name(number), "-t", "debian"]).ok()));
    let times = spread((0..100).map(create).collect());
    report("ve create, median and slowest of 100", format!("{}, {}", ms(times.median), ms(times.worst)));
    report(
        "disk for a fresh VE",
        format!("{:.1} KiB", (host.used_bytes().saturating_sub(used)) as f64 / 100.0 / 1024.0),
    );

    let memory = resident_bytes(host.daemon_pid());
    let mount = |number| timed(|| drop(host.vzfs(["ve", "mount", &name(number)]).ok()));
    let times = spread((0..100).map(mount).collect());
    report("ve mount, median and slowest of 100", format!("{}, {}", ms(times.median), ms(times.worst)));
    let grown = resident_bytes(host.daemon_pid()).saturating_sub(memory);
    report("daemon memory for a mounted VE", format!("{:.0} KiB", grown as f64 / 100.0 / 1024.0));

    let begin = Instant::now();
    let made = host.json(["ve", "create", "more", "-t", "debian", "--count", "100"]);
    report("100 more VEs with --count", ms(begin.elapsed()));
    assert_eq!(made.as_array().map(Vec::len), Some(100));
    for number in 1..=100 {
        host.vzfs(["ve", "mount", &format!("more-{number}")]).ok();
    }
    let info = host.json(["store", "info"]);
    assert_eq!(info["mounted"], 201);
    assert_eq!(info["bases"], 1, "equal stacks share one base");

    // Every one of them is a whole Debian, and holds its own change only.
    let all: Vec<String> = (0..100).map(name).chain((1..=100).map(|n| format!("more-{n}"))).collect();
    let begin = Instant::now();
    for ve in &all {
        assert_eq!(
            fs::read_to_string(host.root(ve).join("etc/debian_version"))
                .expect("read")
                .trim()
                .split('.')
                .next(),
            Some("12")
        );
        fs::write(host.root(ve).join("etc/hostname"), ve).expect("written");
    }
    report("one read and one write in each of 200 VEs", ms(begin.elapsed()));
    for ve in &all {
        assert_eq!(&fs::read_to_string(host.root(ve).join("etc/hostname")).expect("read"), ve);
    }
    for ve in [&all[0], &all[199]] {
        let diff = host.diff(ve);
        let only_etc = diff.iter().all(|(path, _)| path == "etc/hostname" || path == "etc");
        assert!(only_etc, "{ve} holds more than its own change: {diff:?}");
    }
    report("daemon memory with 201 mounted VEs", format!("{} MiB", resident_bytes(host.daemon_pid()) >> 20));

    let begin = Instant::now();
    host.stop();
    report("stopping the daemon with 201 mounts", ms(begin.elapsed()));
    let begin = Instant::now();
    host.start();
    let mounted = host.json(["store", "info"])["mounted"].as_u64();
    report("starting it again", ms(begin.elapsed()));
    assert_eq!(mounted, Some(201));
    assert_eq!(fs::read_to_string(host.root("more-77").join("etc/hostname")).expect("read"), "more-77");

    let times =
        spread((0..100).map(|n| timed(|| drop(host.vzfs(["ve", "rm", "--force", &name(n)]).ok()))).collect());
    report("ve rm --force, median and slowest of 100", format!("{}, {}", ms(times.median), ms(times.worst)));
}

#[test]
fn costs_of_a_ve_do_not_grow_with_its_template() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::with(Setup { size_mib: 4096, ..Setup::default() });
    for (template, files) in [("small", 10), ("large", 100_000)] {
        let source = host.disk().join(template);
        for number in 0..files {
            let folder = source.join(format!("folder{}", number / 1000));
            if number % 1000 == 0 {
                fs::create_dir_all(&folder).expect("writable");
            }
            fs::write(folder.join(format!("file{number}")), format!("content {}", number % 5000))
                .expect("writable");
        }
        let begin = Instant::now();
        host.vzfs(["template", "import", &format!("{template}@1"), source.to_str().expect("text")]).ok();
        report(&format!("import of {files} small files"), ms(begin.elapsed()));
        let first =
            timed(|| drop(host.vzfs(["ve", "create", &format!("{template}-first"), "-t", template]).ok()));
        let name = |number: usize| format!("{template}{number}");
        let create = |number| timed(|| drop(host.vzfs(["ve", "create", &name(number), "-t", template]).ok()));
        let created = spread((0..30).map(create).collect());
        let mount = |number| timed(|| drop(host.vzfs(["ve", "mount", &name(number)]).ok()));
        let mounted = spread((0..30).map(mount).collect());
        report(
            &format!("template of {files} files: first create, median create, median mount"),
            format!("{}, {}, {}", ms(first), ms(created.median), ms(mounted.median)),
        );
        for number in 0..5 {
            fs::write(source.join(format!("folder0/file{number}")), "fixed").expect("writable");
        }
        host.vzfs(["template", "import", &format!("{template}@2"), source.to_str().expect("text")]).ok();
        let mut update = vec!["update".to_owned(), "--yes".to_owned()];
        update.extend((0..30).map(name));
        let done = host.json(&update);
        assert_eq!(done["counts"]["done"], 30, "{done}");
        let id = done["id"].as_u64().expect("a number").to_string();
        let moved = |number| {
            let shown = host.json(["update", "show", &id, &name(number)]);
            assert_eq!(shown["report"]["changed"], 5, "{shown}");
            Duration::from_micros(shown["report"]["micros"].as_u64().expect("a number"))
        };
        let moved = spread((0..30).map(moved).collect());
        report(
            &format!("update of five of {files} files, median and slowest of 30 VEs"),
            format!("{}, {}", ms(moved.median), ms(moved.worst)),
        );
    }
}
