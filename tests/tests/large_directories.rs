//! Directories with very many entries, a template's and a VE's own: each entry is found and listed once, also while others come and go, after a
//! rename and after a remount, and all of them can be removed.
//!
//! The short form is part of `make test`; the long one (`make suites-long`) has a million entries in each directory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use vzfs_tests::measure::report;
use vzfs_tests::suites::long;
use vzfs_tests::{Host, Setup};

fn count() -> usize {
    if long() { 1_000_000 } else { 20_000 }
}

/// Not the order in which a directory would list them.
fn entry(number: usize) -> String {
    format!("entry-{:07}", number.wrapping_mul(7_919) % 10_000_000)
}

fn make(dir: &Path) {
    fs::create_dir_all(dir).expect("mkdir");
    for number in 0..count() {
        File::create(dir.join(entry(number))).expect("create");
    }
}

/// Lists `dir`, doing something after each thousand entries. All names that `make` gave must be there once.
fn list(dir: &Path, mut meanwhile: impl FnMut(usize)) {
    let mut seen = HashSet::with_capacity(count());
    for (number, entry) in fs::read_dir(dir).expect("opendir").enumerate() {
        let name = entry.expect("readdir").file_name().into_string().expect("text");
        assert!(seen.insert(name.clone()), "{name} is listed twice");
        if number % 1000 == 999 {
            meanwhile(number / 1000);
        }
    }
    let missing: Vec<String> = (0..count()).map(entry).filter(|name| !seen.contains(name)).take(5).collect();
    assert!(missing.is_empty(), "{missing:?} and perhaps more are not listed");
    let added = seen.len() - count();
    assert!(added <= count() / 1000, "{added} names that nobody made");
}

/// Entries that come and go, among those that stay.
fn churn(dir: &Path, round: usize) {
    let (new, moved) = (dir.join(format!("new-{round}")), dir.join(format!("moved-{round}")));
    File::create(&new).expect("create");
    fs::rename(&new, &moved).expect("rename");
    fs::remove_file(&moved).expect("unlink");
}

fn timed(what: &str, side: &str, work: impl FnOnce()) {
    let begin = Instant::now();
    work();
    let each = begin.elapsed() / u32::try_from(count()).expect("below 2^32");
    report("large directories", format_args!("{what}, {side}: {} entries, {each:?} each", count()));
}

fn exercise(host: &Host, dir: &str, side: &str) {
    let at = |name: &str| host.root("large").join(name);
    timed("listed", side, || list(&at(dir), |_| {}));
    timed("listed while others come and go", side, || list(&at(dir), |round| churn(&at(dir), round)));
    for number in (0..count()).step_by(count() / 1000) {
        let path = at(dir).join(entry(number));
        assert!(path.symlink_metadata().expect("lstat").is_file());
        assert!(!path.with_extension("absent").exists());
    }
    let moved = format!("{dir}-moved");
    fs::rename(at(dir), at(&moved)).expect("rename of a directory");
    host.vzfs(["ve", "umount", "large"]).ok();
    host.vzfs(["ve", "mount", "large"]).ok();
    timed("listed after a rename and a remount", side, || list(&at(&moved), |_| {}));
    timed("removed", side, || {
        for number in 0..count() {
            fs::remove_file(at(&moved).join(entry(number))).expect("unlink");
        }
    });
    assert_eq!(fs::read_dir(at(&moved)).expect("opendir").count(), 0);
    fs::remove_dir(at(&moved)).expect("rmdir");
}

#[test]
fn directories_with_very_many_entries() {
    let host = Host::with(Setup::default());
    let source = host.disk().join("source");
    make(&source.join("template"));
    host.vzfs(["template", "import", "large@1", source.to_str().expect("text")]).ok();
    host.mounted("large", &["large", "other"]);
    timed("made", "private", || make(&host.root("large").join("private")));
    exercise(&host, "template", "template");
    exercise(&host, "private", "private");
    assert_eq!(fs::read_dir(host.root("large")).expect("opendir").count(), 0);
    list(&host.root("other").join("template"), |_| {});
}
