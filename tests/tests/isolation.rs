//! Two VEs never see each other's changes, and no VE changes a template.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vzfs_tests::host::host_sh;
use vzfs_tests::measure::report;
use vzfs_tests::{Host, sample, write_synced};

/// Changes of every kind below a mounted VE.
fn change_everything(root: &Path, tag: &str) {
    let script = r#"
cd "$1"
printf '%s\n' "$2" > new-file
printf '%s\n' "$2" >> etc/passwd
printf '%s' "$2" | dd of=var/lib/app/data bs=1 seek=1000 conv=notrunc status=none
truncate -s 100 var/lib/app/sparse
rm bin/dangling etc/conf.d/two
chmod 0700 usr/bin/suid
chown 42:43 usr/bin/capable
mv usr/lib usr/lib-moved
mkdir usr/lib; printf '%s\n' "$2" > usr/lib/hard-two
setfattr -n user.note -v "$2" etc/hostname
rm -r empty; mkdir empty; printf '%s' "$2" > empty/no-more
ln usr/bin/tool usr/bin/hard-three
touch -d '2011-11-11 11:11:11.111111111 UTC' dev/null
"#;
    host_sh(script, [root.as_os_str(), tag.as_ref()]);
}

#[test]
fn what_one_ve_changes_no_other_sees() {
    let host = Host::with_sample(&["alpha", "beta", "gamma"]);
    let source = host.scratch().join("source");
    let digest = host.digest("sample");
    let before = sample::fingerprint(&host.root("gamma"));
    assert_eq!(before, sample::fingerprint(&source), "a fresh VE is its template, to the nanosecond");

    change_everything(&host.root("alpha"), "from alpha");
    assert_eq!(sample::differences(&source, &host.root("beta")), "");
    change_everything(&host.root("beta"), "from beta");

    assert_eq!(sample::differences(&source, &host.root("gamma")), "");
    assert_eq!(sample::fingerprint(&host.root("gamma")), before);
    for name in ["alpha", "beta"] {
        let text = fs::read_to_string(host.root(name).join("new-file")).expect("it was made");
        assert_eq!(text, format!("from {name}\n"));
    }
    assert_eq!(host.diff("gamma"), Vec::new(), "a VE in which only reading was done has no changes");
    let alpha = host.diff("alpha");
    assert_eq!(alpha, host.diff("beta"), "equal work gives equal lists of changes");
    for expected in [
        ("new-file", "added"),
        ("etc/passwd", "changed"),
        ("bin/dangling", "deleted"),
        ("etc/conf.d/two", "deleted"),
        ("empty/no-more", "added"),
        ("usr/bin/capable", "changed"),
        ("usr/bin/hard-three", "added"),
    ] {
        let found = alpha.iter().any(|(path, kind)| (path.as_str(), kind.as_str()) == expected);
        assert!(found, "{expected:?} not in {alpha:?}");
    }
    assert!(
        !alpha.iter().any(|(path, _)| path == "etc/conf.d/one"),
        "what nobody touched is no change: {alpha:?}"
    );

    // The template is what it was, and a VE made now starts from there.
    assert_eq!(host.digest("sample"), digest);
    host.vzfs(["template", "verify", "sample"]).ok();
    host.mounted("sample", &["delta"]);
    assert_eq!(sample::fingerprint(&host.root("delta")), before);
}

#[test]
fn open_files_of_two_ves_are_two_files() {
    let host = Host::with_sample(&["alpha", "beta"]);
    let path = |ve: &str| host.root(ve).join("etc/passwd");
    let mut reader = File::open(path("beta")).expect("it is there");
    let mut old = File::open(path("alpha")).expect("it is there");

    let mut writer = File::options().write(true).open(path("alpha")).expect("writable");
    writer.write_all(b"ALPHA").expect("written");
    drop(writer);

    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert!(text.starts_with("root:"), "beta's open file shows alpha's write: {text}");
    assert!(fs::read_to_string(path("alpha")).expect("read").starts_with("ALPHA"));
    // A descriptor from before the first write keeps working; it holds the old content or the new, never garbage.
    text.clear();
    old.read_to_string(&mut text).expect("read");
    assert!(text.starts_with("root:") || text.starts_with("ALPHA"), "garbage: {text}");
}

#[test]
fn changes_outlive_a_new_mount() {
    let host = Host::with_sample(&["alpha"]);
    change_everything(&host.root("alpha"), "kept");
    let (before, diff) = (sample::fingerprint(&host.root("alpha")), host.diff("alpha"));
    let ino = fs::metadata(host.root("alpha").join("etc/passwd")).expect("there").ino();
    host.vzfs(["ve", "umount", "alpha"]).ok();
    assert_eq!(host.diff("alpha"), diff, "the difference can be asked for without a mount");
    host.vzfs(["ve", "mount", "alpha"]).ok();
    assert_eq!(sample::fingerprint(&host.root("alpha")), before);
    assert_eq!(fs::metadata(host.root("alpha").join("etc/passwd")).expect("there").ino(), ino);
}

#[test]
fn equal_content_written_by_two_ves_stays_apart() {
    let host = Host::with_sample(&["alpha", "beta"]);
    for ve in ["alpha", "beta"] {
        fs::write(host.root(ve).join("same"), "same content").expect("writable");
    }
    fs::write(host.root("alpha").join("same"), "other content").expect("writable");
    assert_eq!(fs::read_to_string(host.root("beta").join("same")).expect("read"), "same content");
}

/// Makes and removes a file over and over, with as many threads, until it is told to stop.
fn change_until(stop: &AtomicBool, root: &Path, threads: usize) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let path = root.join(format!("made-{thread}"));
                while !stop.load(Ordering::Relaxed) {
                    File::create_new(&path).expect("it can be made");
                    fs::remove_file(&path).expect("it can be removed");
                }
            });
        }
    });
}

#[test]
fn who_changes_much_lets_others_sync_and_who_works_alone_does_not_wait() {
    let host = Host::with_sample(&["crowd", "alone", "syncs"]);
    let waited = |ve: &str| host.json(["ve", "stats", ve])["waited_us"].as_u64().expect("a number");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| change_until(&stop, &host.root("crowd"), 4));
        scope.spawn(|| change_until(&stop, &host.root("alone"), 1));
        let begin = Instant::now();
        while waited("crowd") == 0 && begin.elapsed() < Duration::from_secs(60) {
            for number in 0..100 {
                write_synced(&host.root("syncs").join(format!("synced-{number}")), b"text").expect("synced");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!((waited("alone"), waited("syncs")), (0, 0));
    let crowd = waited("crowd");
    assert!(crowd > 0, "nothing waited");
    report("four threads waited for syncs of another VE", format!("{} ms", crowd / 1000));
}
