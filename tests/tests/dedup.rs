//! Files that VEs wrote themselves and that are equal are kept once: with programs at work in the VEs, on the host's own filesystems, in its page
//! cache, and whenever the daemon or the power goes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vzfs_tests::host::host_sh;
use vzfs_tests::measure::{ms, report};
use vzfs_tests::{Host, HostFs, Setup};

const BIG: usize = 50 << 20;

fn host(fs: HostFs, daemon_args: &[&str], ves: &[&str]) -> Host {
    let daemon_args = daemon_args.iter().map(|arg| (*arg).to_owned()).collect();
    Host::with_sample_in(Setup { fs, size_mib: 4096, daemon_args, ..Setup::default() }, ves)
}

const NEVER: [&str; 4] = ["--dedup-interval", "never", "--scrub-interval", "never"];

fn number(value: &Value, field: &str) -> u64 {
    let number = value[field].as_u64();
    assert!(number.is_some(), "no number {field} in {value}");
    number.unwrap_or_default()
}

/// What each VE gets: one large file, and the files of a real package.
fn content(host: &Host) -> PathBuf {
    let folder = host.scratch().join("content");
    host_sh(
        "mkdir \"$1\" && head -c \"$2\" /dev/urandom > \"$1/big\" && cp -rL /usr/lib/*/perl-base \"$1/package\"",
        [folder.as_os_str(), BIG.to_string().as_ref()],
    );
    folder
}

fn put(host: &Host, content: &Path, ve: &str) {
    host_sh("cp -r \"$1\" \"$2/own\" && sync -f \"$2\"", [content, &host.root(ve)]);
}

/// Long enough ago for `--quiet-for 1s`.
fn wait() {
    std::thread::sleep(Duration::from_millis(2100));
}

fn dedup(host: &Host, args: &[&str]) -> Value {
    let args = ["store", "dedup", "--quiet-for", "1s"].iter().chain(args);
    host.json(args)
}

/// All that a program can see of the files without reading them.
fn seen(root: &Path) -> String {
    let script = "cd \"$1\"; find . -printf '%P %i %y %m %U %G %n %s %T@ %C@ %A@\\n' | LC_ALL=C sort; \
                  getfattr -P -h -R -d -m - . | LC_ALL=C sort";
    host_sh(script, [root]).text()
}

fn assert_content(host: &Host, content: &Path, ve: &str) {
    host_sh("diff -r \"$1\" \"$2/own\"", [content, &host.root(ve)]);
}

/// A program that holds files of its VE: open, mapped for reading, mapped for writing, the last two without a descriptor.
struct Holder(Child, BufReader<std::process::ChildStdout>);

const HOLDER: &str = r#"
import mmap, os, sys
os.chdir(sys.argv[1])
opened = open('held/open', 'rb')
def mapped(name, flags, prot):
    fd = os.open(name, flags)
    map = mmap.mmap(fd, 0, mmap.MAP_SHARED, prot)
    os.close(fd)
    return map
# What mmap.mmap keeps is a descriptor of its own, which must go for the map to be alone.
before = set(os.listdir('/proc/self/fd'))
read = mapped('held/read', os.O_RDONLY, mmap.PROT_READ)
written = mapped('held/written', os.O_RDWR, mmap.PROT_READ | mmap.PROT_WRITE)
for fd in set(os.listdir('/proc/self/fd')) - before:
    try:
        os.close(int(fd))
    except OSError:
        pass
print('ready', flush=True)
sys.stdin.readline()
assert opened.read() == b'open' * 4096
assert read[:] == b'read' * 4096
written[:4] = b'MINE'
with open('held/read', 'r+b') as other:
    other.write(b'SEEN')
assert read[:8] == b'SEENread', read[:8]
print('done', flush=True)
"#;

impl Holder {
    fn start(root: &Path) -> Holder {
        let mut child = Command::new("python3")
            .args(["-c", HOLDER])
            .arg(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut lines = BufReader::new(child.stdout.take().expect("it was asked for"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("it says something");
        assert_eq!(line, "ready\n");
        Holder(child, lines)
    }

    fn finish(mut self) {
        let mut stdin = self.0.stdin.take().expect("it was asked for");
        stdin.write_all(b"go on\n").expect("it listens");
        let mut line = String::new();
        self.1.read_line(&mut line).expect("it says something");
        assert_eq!(line, "done\n");
        assert!(self.0.wait().expect("it ends").success());
    }
}

fn equal_files_are_kept_once(fs: HostFs) {
    let host = host(fs, &NEVER, &["a", "b"]);
    let content = content(&host);
    for ve in ["a", "b"] {
        put(&host, &content, ve);
        host_sh(
            "cd \"$1\"; ln own/big own/link; setfattr -n user.note -v \"$2\" own/big; chmod 4750 own/big; chown 12:34 own/package; \
             touch -d '1965-03-04 05:06:07.123456789 UTC' own/big; mkdir held",
            [host.root(ve).as_os_str(), ve.as_ref()],
        );
        for name in ["open", "read", "written"] {
            fs::write(host.root(ve).join("held").join(name), name.repeat(4096)).expect("writes");
        }
    }
    let holder = Holder::start(&host.root("a"));
    wait();
    let before = [seen(&host.root("a")), seen(&host.root("b"))];
    let (used, df) = (host.used_bytes(), host.json(["store", "df"]));
    let dry = dedup(&host, &["--dry-run"]);
    assert_eq!(host.json(["store", "df"]), df, "a dry run changes nothing");
    let started = Instant::now();
    let done = dedup(&host, &[]);
    let took = started.elapsed();
    // All but how many files were looked at: what the first VE's made shared is none to look at in the second.
    for field in ["shared_files", "freed_bytes", "new_blobs", "new_blob_bytes", "saved_bytes"] {
        assert_eq!(done[field], dry[field], "{field}: {done}");
    }
    assert_eq!(number(&done, "hashed_files"), 0, "the dry run has read them: {done}");
    assert_eq!(number(&done["skipped"], "open"), 3, "{done}");
    assert!(number(&done, "shared_files") > 100 && number(&done, "saved_bytes") >= BIG as u64, "{done}");
    report("files shared and bytes saved", format!("{} {}", done["shared_files"], done["saved_bytes"]));
    report("the time for it, files read before", ms(took));
    report("the longest pause of a VE", format!("{} us", done["longest_pause_us"]));

    // What the report says is what the host has, but for the logs of database and filesystem.
    let fell = used.saturating_sub(host.used_bytes());
    let expected = number(&done, "saved_bytes");
    assert!(fell + (8 << 20) > expected && fell < expected + (8 << 20), "{fell} for {expected}");
    let now = host.json(["store", "df"]);
    assert_eq!(number(&df, "private_bytes") - number(&now, "private_bytes"), number(&done, "freed_bytes"));
    assert_eq!(number(&df, "logical_bytes"), number(&now, "logical_bytes"));
    assert!(number(&now["ves"][1], "unique_bytes") < 1 << 20, "{}", now["ves"]);

    // Nothing shows in the VEs, also to those who use the files.
    assert_eq!([seen(&host.root("a")), seen(&host.root("b"))], before);
    holder.finish();
    let held = |ve: &str, name: &str| fs::read(host.root(ve).join("held").join(name)).expect("reads");
    for (ve, name, bytes) in [
        ("a", "written", b"MINEtenw"),
        ("b", "written", b"writtenw"),
        ("a", "read", b"SEENread"),
        ("b", "read", b"readread"),
    ] {
        assert_eq!(&held(ve, name)[..8], bytes, "{ve} {name}");
    }
    for ve in ["a", "b"] {
        host_sh("rm \"$1/own/link\"; chmod u-s \"$1/own/big\"", [host.root(ve)]);
        assert_content(&host, &content, ve);
    }

    // Who writes gets his own, and the other keeps what it has.
    host_sh(
        "printf changed | dd of=\"$1/own/big\" conv=notrunc status=none; echo more >> \"$1/own/package/strict.pm\"",
        [host.root("a")],
    );
    assert_content(&host, &content, "b");
    assert!(fs::read(host.root("a").join("own/big")).expect("reads").starts_with(b"changed"));
    host.vzfs(["store", "gc"]).ok();
    host.vzfs(["store", "verify"]).ok();
    assert_content(&host, &content, "b");
    assert_eq!(number(&dedup(&host, &["b"]), "shared_files"), 0, "nothing is left to do");
}

#[test]
fn equal_files_are_kept_once_on_xfs() {
    equal_files_are_kept_once(HostFs::Xfs);
}

#[test]
fn equal_files_are_kept_once_on_ext4() {
    equal_files_are_kept_once(HostFs::Ext4);
}

/// Pages of a file in the host's page cache, in bytes.
fn cached(file: &Path) -> u64 {
    let found = host_sh("fincore --bytes --noheadings --output RES \"$1\"", [file]);
    found.text().trim().parse().expect("a number")
}

#[test]
fn what_one_ve_has_read_is_in_memory_for_the_others() {
    let host = host(HostFs::Ext4, &NEVER, &["a", "b"]);
    let content = content(&host);
    let files = ["a", "b"].map(|ve| {
        put(&host, &content, ve);
        host.root(ve).join("own/big")
    });
    wait();
    assert_eq!(cached(&files[0]), BIG as u64, "it was just written");
    dedup(&host, &[]);
    let find = "find \"$1\" -type f -size \"$2c\"";
    let blob = host_sh(find, [host.store().join("blobs").as_os_str(), BIG.to_string().as_ref()]).text();
    let blob = Path::new(blob.trim());
    host_sh("sync \"$1\"; dd if=\"$1\" iflag=nocache count=0 status=none", [blob]);
    assert_eq!((cached(blob), cached(&files[0]), cached(&files[1])), (0, 0, 0), "one file, read by nobody");
    assert_eq!(fs::read(&files[0]).expect("reads").len(), BIG);
    assert_eq!((cached(blob), cached(&files[1])), (BIG as u64, BIG as u64), "the other VE has it");
    assert_content(&host, &content, "b");
}

#[test]
fn a_daemon_that_is_killed_loses_nothing() {
    let host = host(HostFs::Ext4, &NEVER, &["a", "b", "c"]);
    let content = content(&host);
    ["a", "b", "c"].iter().for_each(|ve| put(&host, &content, ve));
    wait();
    // It is killed sooner or later in a search; what one of them has shared stays so.
    let mut cut_off = 0;
    for round in 0..12_u64 {
        let mut search = host.command(["store", "dedup", "--quiet-for", "1s"]);
        let mut search =
            search.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("vzfs can be started");
        std::thread::sleep(Duration::from_millis(40 * round));
        host.kill_daemon();
        cut_off += u32::from(!search.wait().expect("it ends").success());
        ["a", "b", "c"].iter().for_each(|ve| assert_content(&host, &content, ve));
        host.vzfs(["store", "verify"]).ok();
        if round % 3 == 2 {
            host.vzfs(["store", "gc"]).ok();
        }
    }
    report("searches that a kill cut off, of 12", cut_off);
    dedup(&host, &[]);
    // Once more with a new session, which knows the data files that kills have left.
    host.stop();
    host.start();
    host.vzfs(["store", "gc"]).ok();
    ["a", "b", "c"].iter().for_each(|ve| assert_content(&host, &content, ve));
    let df = host.json(["store", "df"]);
    let left = host_sh(
        "find \"$1\" -type f -printf '%b\\n' | awk '{ s += $1 } END { print s * 512 }'",
        [host.store().join("data")],
    );
    assert_eq!(left.text().trim(), number(&df, "private_bytes").to_string(), "{df}");
    assert!(number(&df, "private_bytes") < 3 << 20, "{df}");
}

/// The power goes right after a search, and right after a collection of what one had shared.
#[test]
fn a_power_cut_loses_nothing() {
    let host = host(HostFs::Xfs, &NEVER, &["a", "b"]);
    let content = content(&host);
    for ve in ["a", "b"] {
        put(&host, &content, ve);
        // The files must be there after the cut.
        host_sh("find \"$1\" -type f -exec sync {} +; sync \"$1\"", [host.root(ve)]);
    }
    wait();
    dedup(&host, &[]);
    host.cut_power();
    ["a", "b"].iter().for_each(|ve| assert_content(&host, &content, ve));
    host.vzfs(["store", "verify"]).ok();
    assert!(number(&host.json(["store", "df"]), "private_bytes") < 2 << 20, "it was durable");

    // The removal is not durable by itself: what collects the blob must make it so.
    host_sh("rm -r \"$1/own\"", [host.root("a")]);
    host_sh("rm -r \"$1/own\"", [host.root("b")]);
    // The kernel forgets the files a moment later.
    let deadline = Instant::now() + Duration::from_secs(60);
    while number(&host.json(["store", "gc"]), "blob_bytes") < BIG as u64 {
        assert!(Instant::now() < deadline, "nothing was collected");
    }
    host.cut_power();
    host.vzfs(["store", "verify"]).ok();
    for ve in ["a", "b"] {
        assert!(!host.root(ve).join("own/big").exists(), "{ve}");
    }
}

#[test]
fn the_daemon_does_it_by_itself() {
    let every = ["--dedup-interval", "1s", "--dedup-rate", "1000", "--dedup-quiet", "1s"];
    let host = host(HostFs::Xfs, &every, &["a", "b"]);
    let content = content(&host);
    ["a", "b"].iter().for_each(|ve| put(&host, &content, ve));
    let deadline = Instant::now() + Duration::from_secs(120);
    while number(&host.json(["store", "df"]), "private_bytes") > 2 << 20 {
        assert!(Instant::now() < deadline, "{}", host.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    ["a", "b"].iter().for_each(|ve| assert_content(&host, &content, ve));
    let status = host.vzfs(["store", "dedup", "--status"]).ok().text();
    assert!(status.contains("last search from"), "{status}");
    host.vzfs(["store", "dedup", "nobody"]).refused(3, &["nobody"]);
    host.vzfs(["store", "dedup", "--status", "a"]).expect_code(2);
}

/// Many VEs with the same files of their own; `VZFS_DEDUP_VES` says how many.
#[test]
fn many_ves_with_the_same_files() {
    let count = std::env::var("VZFS_DEDUP_VES").map_or(12, |text| text.parse::<usize>().expect("a number"));
    let host = host(HostFs::Ext4, &NEVER, &[]);
    let content = host.scratch().join("content");
    host_sh("cp -rL /usr/lib/*/perl-base \"$1\"", [&content]);
    let names: Vec<String> = (0..count).map(|number| format!("ve-{number}")).collect();
    for name in &names {
        host.mounted("sample", &[name]);
        host_sh("cp -r \"$1\" \"$2/own\"", [&content, &host.root(name)]);
    }
    wait();
    let used = host.used_bytes();
    let started = Instant::now();
    let done = dedup(&host, &[]);
    report(&format!("a search in {count} VEs"), ms(started.elapsed()));
    let started = Instant::now();
    let again = dedup(&host, &[]);
    report("the same again", ms(started.elapsed()));
    let started = Instant::now();
    let df = host.json(["store", "df"]);
    report("store df", ms(started.elapsed()));
    for field in ["files", "hashed_bytes", "shared_files", "saved_bytes", "longest_pause_us"] {
        report(field, number(&done, field));
    }
    report("bytes in use on the host before and after", format!("{used} {}", host.used_bytes()));
    let files = host_sh("find \"$1\" -type f -size +0 | wc -l", [&content]).text();
    let files = files.trim().parse::<u64>().expect("a number");
    assert_eq!(number(&done, "shared_files"), files * count as u64, "{done}");
    assert_eq!((number(&again, "files"), number(&again, "hashed_files")), (0, 0), "{again}");
    assert_eq!(number(&df, "private_bytes"), 0, "{df}");
    for name in &names {
        host_sh("diff -r \"$1\" \"$2/own\"", [&content, &host.root(name)]);
    }
}
