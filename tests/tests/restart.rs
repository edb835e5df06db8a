//! A daemon that ends, in whatever way, brings its mounts and everything in them back.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vzfs_tests::host::{host_sh, run};
use vzfs_tests::{Host, HostFs, sample};

fn work(host: &Host, ve: &str) {
    let script = r#"
cd "$1"; mkdir -p made/deep; for n in $(seq 200); do echo $n > made/deep/$n; done
rm etc/conf.d/two; mv usr/bin/tool usr/bin/renamed; echo more >> etc/passwd; chown 7:8 etc/hostname
ln etc/passwd made/link; ln -s nowhere made/symlink; setfattr -n user.k -v v made; sync -f .
"#;
    host_sh(script, [host.root(ve)]);
}

#[test]
fn an_orderly_restart_brings_mounts_back() {
    let host = Host::with_sample(&["one", "two", "three"]);
    let elsewhere = host.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).expect("writable");
    host.vzfs(["ve", "umount", "two"]).ok();
    host.vzfs(["ve", "umount", "three"]).ok();
    host.vzfs(["ve", "mount", "three", elsewhere.to_str().expect("text")]).ok();
    work(&host, "one");
    let (before, diff) = (sample::fingerprint(&host.root("one")), host.diff("one"));

    host.stop();
    assert!(!host.root("one").join("etc").exists(), "a daemon that ends in order leaves no mounts");
    host.start();
    assert_eq!(sample::fingerprint(&host.root("one")), before);
    assert_eq!(host.diff("one"), diff);
    assert_eq!(host.json(["ve", "show", "two"])["mounted"], false, "what was unmounted stays so");
    assert_eq!(fs::read_to_string(elsewhere.join("etc/conf.d/one")).expect("read"), "one\n");
}

/// Opens a file so that every write is durable when it returns, and writes.
fn write_synced(path: PathBuf, flags: i32, bytes: &[u8]) {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).custom_flags(flags).open(path);
    file.expect("opened").write_all(bytes).expect("written");
}

/// One thing that is durable when it returns, and what is read from which file after the power cut.
type Durable = (fn(&Path), &'static str, &'static str);

#[test]
fn what_was_synced_survives_a_power_cut() {
    // First writes, to files of the template and to a new one: what names the data must be on the disk too.
    let all: [Durable; 7] = [
        (|ve| write_synced(ve.join("etc/hostname"), libc::O_DSYNC, b"DSYNC"), "etc/hostname", "DSYNCame\n"),
        (
            |ve| write_synced(ve.join("usr/bin/tool"), libc::O_SYNC, b"SYNC"),
            "usr/lib/hard-two",
            "SYNCin/sh\n",
        ),
        (|ve| write_synced(ve.join("etc/new"), libc::O_DSYNC, b"new"), "etc/new", "new"),
        (
            |ve| {
                let file = File::options().append(true).open(ve.join("etc/conf.d/one")).expect("opened");
                (&file).write_all(b"more").expect("written");
                file.sync_data().expect("synced");
            },
            "etc/conf.d/one",
            "one\nmore",
        ),
        (
            |ve| {
                let script =
                    "import mmap, os; file = os.open('etc/passwd', os.O_RDWR); map = mmap.mmap(file, 0)
map[0:4] = b'ROOT'; map.flush(); os.fsync(file); map[4:6] = b';X'; map.flush()";
                run(Command::new("python3").args(["-c", script]).current_dir(ve));
            },
            "etc/passwd",
            "ROOT;X:0:0:root:/root:/bin/sh\n",
        ),
        (
            |ve| {
                fs::write(ve.join("etc/synced"), "by sync").expect("written");
                rustix::fs::sync();
            },
            "etc/synced",
            "by sync",
        ),
        (
            |ve| {
                fs::rename(ve.join("var/log"), ve.join("usr/log")).expect("renamed");
                fs::write(ve.join("usr/log/empty"), "").expect("written");
                File::open(ve.join("usr/log")).expect("opened").sync_all().expect("synced");
            },
            "usr/log/empty",
            "",
        ),
    ];
    for fs in [HostFs::Xfs, HostFs::Ext4] {
        let host = Host::with_sample_on(fs, &["ve"]);
        for (number, (work, path, content)) in all.iter().enumerate() {
            work(&host.root("ve"));
            host.cut_power();
            let found = fs::read_to_string(host.root("ve").join(path));
            assert_eq!(
                found.map_err(|error| error.to_string()),
                Ok((*content).to_owned()),
                "{fs:?}, {number}"
            );
        }
    }
}

#[test]
fn a_killed_daemon_comes_back_with_what_was_synced() {
    let host = Host::with_sample(&["one", "two"]);
    work(&host, "one");
    let mut synced = File::create(host.root("two").join("synced")).expect("writable");
    synced.write_all(b"synced before the kill").expect("written");
    synced.sync_all().expect("synced");
    drop(synced);
    let (before, diff) = (sample::fingerprint(&host.root("one")), host.diff("one"));

    for round in 0..3 {
        host.kill();
        host.start();
        assert_eq!(sample::fingerprint(&host.root("one")), before, "round {round}");
        assert_eq!(host.diff("one"), diff, "round {round}");
        let text = fs::read_to_string(host.root("two").join("synced")).expect("it was synced");
        assert_eq!(text, "synced before the kill");
        fs::write(host.root("two").join(format!("round{round}")), "goes on").expect("the mount works");
    }
    host.vzfs(["template", "verify", "sample"]).ok();
}

#[test]
fn killed_in_the_middle_of_an_import_it_leaves_nothing_half_made() {
    let host = Host::with_sample(&[]);
    let source = host.disk().join("many");
    fs::create_dir(&source).expect("writable");
    for number in 0..20_000 {
        fs::write(source.join(format!("f{number}")), format!("content of {number}")).expect("writable");
    }
    let mut import = host.command(["template", "import", "many@1", source.to_str().expect("text")]);
    let mut import = import
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("started");
    std::thread::sleep(std::time::Duration::from_millis(300));
    host.kill();
    let told = import.wait().expect("it ends");
    host.start();
    let listed = host.json(["template", "list"]).to_string().contains("many");
    assert!(
        !listed || told.success() || host.vzfs(["template", "verify", "many"]).code == 0,
        "half a template is listed"
    );
    let staged = host_sh("ls -A \"$1\" | wc -l", [host.store().join("blobs/tmp")]).text();
    assert_eq!(staged.trim(), "0", "staged blobs are left");
    if !listed {
        host.vzfs(["template", "import", "many@1", source.to_str().expect("text")]).ok();
    }
    host.vzfs(["template", "verify", "many"]).ok();
}
