//! Containers inside a VE: overlayfs with all its folders on VEs, and container programs that use it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vzfs_tests::host::{finish, host_sh};
use vzfs_tests::{Host, Outcome, Setup};

/// Work on an overlay `$1/merged` with every form of change, and looks at what it left in the upper folder. `$2` is where the overlay
/// keeps its marks: `trusted` or `user`.
const USE_OVERLAY: &str = r#"
set -E; trap 'echo "failed: $BASH_COMMAND" >&2' ERR
cd "$1"; marks=$2; lower=$3
mark() { getfattr --absolute-names --only-values -n "$marks.overlay.$1" "$2"; }
cd merged
# A fresh file, a copy-up of content, of metadata, through a hard link, by mmap.
echo new > new; test -f ../upper/new
echo more >> etc/passwd; tail -n1 ../upper/etc/passwd | grep -qx more; ! grep -qx more "$lower/etc/passwd"
chmod 0700 usr/bin/tool; chown 12:34 etc/hostname; test "$(stat -c %u:%g ../upper/etc/hostname)" = 12:34
setfattr -n user.note -v changed etc/hostname; getfattr --only-values -n user.note etc/hostname | grep -qx changed
python3 - <<'PY'
import mmap
with open("var/lib/app/data", "r+b") as f:
    with mmap.mmap(f.fileno(), 0) as m:
        m[1000:1004] = b"mmap"
PY
test "$(dd if=../upper/var/lib/app/data bs=1 skip=1000 count=4 status=none)" = mmap
# Whiteouts are devices 0:0; a directory that hides another is marked.
rm etc/conf.d/two; test -c ../upper/etc/conf.d/two; test "$(stat -c %t:%T ../upper/etc/conf.d/two)" = 0:0; test ! -e etc/conf.d/two
rm -r etc/conf.d; test -c ../upper/etc/conf.d
mkdir etc/conf.d; mark opaque ../upper/etc/conf.d | grep -qx y; test -z "$(ls etc/conf.d)"; echo again > etc/conf.d/one; cat etc/conf.d/one | grep -qx again
# Renames: of files of both layers, over each other, exchanged, of directories.
mv new newer; mv usr/bin/suid usr/bin/moved; test -c ../upper/usr/bin/suid; test "$(stat -c %a usr/bin/moved)" = 4755
mv -f newer usr/bin/sgid; grep -qx new usr/bin/sgid
mkdir own; echo x > own/x; mv own own2; grep -qx x own2/x
python3 - <<'PY'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def rename(a, b, flags):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")
open("one", "w").write("1"); open("two", "w").write("2")
rename("one", "two", 2)
assert (open("one").read(), open("two").read()) == ("2", "1")
try:
    rename("one", "two", 1)
    raise SystemExit("NOREPLACE replaced")
except FileExistsError:
    pass
PY
ln etc/hostname hard; test "$(stat -c %h hard)" = 2; echo both >> hard; grep -qx both etc/hostname
ln -s nowhere link; mkfifo pipe; mknod null c 1 3 2>/dev/null || true; touch -d '1965-03-04 05:06:07.123456789 UTC' one
test "$(stat -c %y one)" = '1965-03-04 05:06:07.123456789 +0000'
truncate -s 8M sparse; fallocate -l 1M sparse; cp --sparse=always sparse sparse2; cmp sparse sparse2
# Many names come and go.
mkdir many; (cd many; seq 3000 | xargs touch; test "$(ls | wc -l)" = 3000; seq 1 2 3000 | xargs rm; test "$(ls | wc -l)" = 1500)
rm -rf many; test ! -e many; mkdir many; rmdir many
sync -f .
"#;

/// What must be there after another mount of the same folders, and an end without remains.
const LOOK_AGAIN: &str = r#"
cd "$1"/merged
grep -qx new usr/bin/sgid; grep -qx again etc/conf.d/one; test ! -e usr/bin/suid; test ! -e etc/conf.d/two; grep -qx x own2/x
find . -mindepth 1 -delete; test -z "$(ls -A)"
"#;

/// The lines that overlayfs wrote to the kernel's log since `mark`, but for those that are known.
fn complaints(mark: &str) -> Vec<String> {
    let log = finish(Command::new("dmesg").stdin(Stdio::null())).ok().text();
    assert!(log.contains(mark), "the kernel's log has lost its mark");
    let new = log.rsplit(mark).next().unwrap_or_default();
    let known = [
        "does not support tmpfile",
        "is useless with all layers on same fs",
        "\"xino\" feature enabled",
        // So that `index` and `nfs_export` are off.
        "does not support file handles",
        "NFS export requires \"index=on\"",
        "failed to get index nlink",
    ];
    let lines = new
        .lines()
        .filter(|line| line.contains("overlayfs:") && !known.iter().any(|text| line.contains(text)));
    lines.map(str::to_owned).collect()
}

fn mark_log(mark: &str) {
    fs::write("/dev/kmsg", format!("{mark}\n")).expect("the kernel's log can be written");
}

/// Mounts, uses, mounts again and looks, in a mount namespace that takes it all away at its end.
fn use_overlay(dir: &Path, lower: &Path, options: &str) -> Outcome {
    let script = format!(
        "mkdir -p \"$1/upper\" \"$1/work\" \"$1/merged\"\n\
         attach() {{ mount -t overlay vzfs-test -o \"lowerdir=$3,upperdir=$1/upper,workdir=$1/work{options}\" \"$1/merged\"; }}\n\
         attach \"$@\"; (set -e; {USE_OVERLAY}\n)\numount \"$1/merged\"; attach \"$@\"; (set -e; {LOOK_AGAIN}\n)\numount \"$1/merged\"\nrm -rf \"$1\"\n"
    );
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-euo",
        "pipefail",
        "-c",
        &script,
        "script",
    ]);
    finish(command.arg(dir).arg("trusted").arg(lower).stdin(Stdio::null()))
}

#[test]
fn overlayfs_works_on_ves() {
    let host = Host::with_sample(&["one", "two"]);
    mark_log("vzfs-test: overlays on VEs");
    let (one, two) = (host.root("one"), host.root("two"));
    let disk = host.disk().join("plain");
    fs::create_dir(&disk).expect("writable");
    for (number, options) in
        ["", ",redirect_dir=on,index=on,metacopy=on", ",index=on,nfs_export=on", ",xino=on"]
            .iter()
            .enumerate()
    {
        // Everything on one VE; lower and upper on two; each on the host's disk with the other on a VE. The lower folder is
        // a VE's whole root, which holds the other folders where they are on the same VE.
        let places = [
            (one.join("srv").join(number.to_string()), host.root("one").join("lower")),
            (two.join("srv").join(number.to_string()), one.clone()),
            (disk.join(number.to_string()), one.clone()),
        ];
        for (place, (dir, lower)) in places.iter().enumerate() {
            fs::create_dir_all(dir).expect("writable");
            if !lower.join("etc").exists() {
                fs::create_dir(lower).expect("writable");
                host_sh("cp -a \"$1\"/{etc,usr,var} \"$2\"", [&host.scratch().join("source"), lower]);
            }
            // What an earlier use left there is not below the folders that this one uses.
            let outcome = use_overlay(dir, lower, options);
            assert!(
                outcome.code == 0,
                "place {place}, options {options:?}: {}{}",
                outcome.text(),
                outcome.error()
            );
        }
    }
    assert_eq!(complaints("vzfs-test: overlays on VEs"), Vec::<String>::new());
    // Nothing of it touched the lower folder.
    let lower_changes: Vec<_> =
        host.diff("one").into_iter().filter(|(path, _)| path.starts_with("etc")).collect();
    assert_eq!(lower_changes, Vec::new());
}

/// The kernel forgets the lower files when the VE is mounted anew. The overlay on it finds its copies all the same, however often.
#[test]
fn overlayfs_finds_its_copies_after_the_ve_was_mounted_again() {
    let host = Host::with_sample(&["one"]);
    let dir = host.disk().join("merged");
    fs::create_dir(&dir).expect("writable");
    // Not with nfs_export=on: overlayfs then counts its index as a link after a remount, on all filesystems.
    let options = ["", ",index=on", ",redirect_dir=on,index=on,metacopy=on"];
    for (number, options) in options.iter().enumerate() {
        let on_overlay = |script: &str| {
            let script = format!(
                "cd \"$1\"; mkdir -p \"$2/upper\" \"$2/work\"\n\
                 mount -t overlay vzfs-test -o \"lowerdir=etc:usr,upperdir=$2/upper,workdir=$2/work{options}\" \"$3\"\n\
                 trap 'cd /; umount \"$3\"' EXIT; cd \"$3\"\n{script}"
            );
            host_sh(&script, [host.root("one"), format!("tmp/{number}").into(), dir.clone()]);
        };
        on_overlay(
            "echo more >> hostname; chmod 600 passwd; ln hostname hard; setfattr -n user.note -v x conf.d/one",
        );
        host.vzfs(["ve", "umount", "one"]).ok();
        host.vzfs(["ve", "mount", "one"]).ok();
        on_overlay(
            "for round in 1 2 3; do
                 test \"$(tail -n 1 hostname)\" = more; test \"$(stat -c %h hard)\" = 2; test \"$(stat -c %a passwd)\" = 600
                 grep -q . passwd; getfattr --only-values -n user.note conf.d/one | grep -qx x; test \"$(ls -i | wc -l)\" -gt 5
             done
             echo again >> hard; test \"$(tail -n 1 hostname)\" = again; mv passwd conf.d/moved; grep -q . conf.d/moved
             find . -mindepth 1 -delete; test -z \"$(ls -A)\"",
        );
    }
}

/// overlayfs knows a file by one of its names, also when that is removed and others are left.
#[test]
fn overlayfs_keeps_hard_links_when_one_is_removed() {
    let host = Host::with_sample(&["one"]);
    let dir = host.disk().join("merged");
    fs::create_dir(&dir).expect("writable");
    for (number, options) in ["", ",index=on"].iter().enumerate() {
        let script = format!(
            "cd \"$1\"; mkdir -p \"$2/upper\" \"$2/work\"\n\
             mount -t overlay vzfs-test -o \"lowerdir=etc:usr,upperdir=$2/upper,workdir=$2/work{options}\" \"$3\"\n\
             trap 'cd /; umount \"$3\"' EXIT; cd \"$3\"\n{HARD_LINKS}"
        );
        host_sh(&script, [host.root("one"), format!("tmp/{number}").into(), dir.clone()]);
    }
}

const HARD_LINKS: &str = r#"
twice() { for _ in 1 2; do test "$(cat "$1")" = "$2"; test "$(stat -c %h "$1")" = "$3"; done; }
# A file of its own: as mail and version control programs put a finished file in its place.
echo one > tmp; ln tmp done; rm tmp; twice done one 1; test ! -e tmp
# The name is given to another file, which is known by it too.
echo two > tmp; twice tmp two 1; twice done one 1; mv done other; twice other one 1
# Replaced by a rename: as package managers keep the old version.
echo old > status; ln status status-old; echo new > status-new; mv status-new status
twice status-old old 1; twice status new 1; echo newer >> status-old; tail -n 1 status-old | grep -qx newer; twice status new 1
# A copied file, whose name becomes a whiteout.
echo more >> hostname; ln hostname a; ln hostname b; rm hostname; test ! -e hostname
for name in a b; do tail -n 1 "$name" | grep -qx more; test "$(stat -c %h "$name")" = 2; done
rm a; tail -n 1 b | grep -qx more; echo back > hostname; twice hostname back 1; rm b hostname
# In a folder that is then removed, and in one that is renamed.
echo more >> conf.d/one; ln conf.d/one c; rm -r conf.d; tail -n 1 c | grep -qx more; mkdir conf.d; tail -n 1 c | grep -qx more; rm c
mkdir d; echo x > d/x; ln d/x y; ln d/x z; rm -r d; twice y x 2; mkdir d; twice z x 2; mv d e; twice y x 2; rm z; twice y x 1
"#;

/// As container programs without privilege do it: in a user namespace, with marks of `user.overlay.*`.
#[test]
fn overlayfs_works_in_a_user_namespace_on_a_shifted_ve() {
    let host = Host::with_debian(Setup::default());
    let source = host.scratch().join("source");
    vzfs_tests::sample::make(&source);
    host.mounted("debian", &["inner"]);
    // No devices: a user namespace cannot copy them.
    host_sh(
        "mkdir \"$2\"/srv/lower; cp -a \"$1\"/{etc,usr,var} \"$2\"/srv/lower",
        [&source, &host.root("inner")],
    );
    host.vzfs(["ve", "umount", "inner"]).ok();
    host.vzfs(["ve", "set", "inner", "--id-shift", "200000"]).ok();
    mark_log("vzfs-test: overlays in a user namespace");
    let script = format!(
        "mkdir -p \"$1/upper\" \"$1/work\" \"$1/merged\"; cd /\n\
         mount -t overlay vzfs-test -o \"userxattr,lowerdir=$3,upperdir=$1/upper,workdir=$1/work\" \"$1/merged\"\n\
         (set -e; {USE_OVERLAY}\n)\n(set -e; {LOOK_AGAIN}\n)\n"
    );
    in_ve(
        &host,
        "inner",
        &["bash", "-euo", "pipefail", "-c", &script, "script", "/srv/own", "user", "/srv/lower"],
    )
    .ok();
    assert_eq!(complaints("vzfs-test: overlays in a user namespace"), Vec::<String>::new());
    let owner = host_sh("stat -c %u \"$1\"/srv/own/upper", [host.root("inner")]).text();
    assert_eq!(owner, "200000\n");
}

/// A VE as the root of a container manager: with all rights, in namespaces of its own, whose mounts end with it.
const ENTER: &str = r#"
root=$1; shift
mount --rbind "$root" "$root"; mount -t proc proc "$root/proc"; mount -t sysfs sysfs "$root/sys"; mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
for dir in run dev; do mount -t tmpfs tmpfs "$root/$dir"; done
for name in null zero full random urandom tty; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
mkdir "$root/dev/pts" "$root/dev/shm"; mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"; ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"; cp /etc/resolv.conf "$root/run/resolv.conf"
# crun looks for the host's hierarchies and must not find them.
umount -l /sys/fs/cgroup 2>/dev/null || true
cd "$root"; pivot_root . mnt; cd /; umount -l /mnt
exec "$@"
"#;

fn entered(host: &Host, ve: &str, script: &str) -> Outcome {
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--propagation",
        "private",
        "bash",
        "-euo",
        "pipefail",
        "-c",
        ENTER,
        "enter",
    ]);
    finish(command.arg(host.root(ve)).args(["bash", "-euo", "pipefail", "-c", script]).stdin(Stdio::null()))
}

/// podman with its images and containers on the VE: layers are unpacked to it, containers run on overlays of it.
#[test]
fn podman_runs_containers_in_a_ve() {
    let host = Host::with_debian(Setup::default());
    host.mounted("debian", &["outer"]);
    let install = "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends podman crun busybox-static";
    host.sh("outer", install).ok();
    mark_log("vzfs-test: podman in a VE");
    let script = r#"
podman info --format '{{.Store.GraphDriverName}}' | grep -qx overlay
podman info --format '{{.Store.GraphStatus}}' | grep -q 'Native Overlay Diff:true'
mkdir -p /tmp/image/bin /tmp/image/etc; cp /bin/busybox /tmp/image/bin/; cp /bin/busybox /tmp/image/bin/id; chmod 4755 /tmp/image/bin/id
for name in sh ls cat rm mkdir stat touch chmod ln mv; do ln -s busybox "/tmp/image/bin/$name"; done
echo first > /tmp/image/etc/first; echo second > /tmp/image/etc/second
tar -C /tmp/image -c . | podman import -q - box:1 >/dev/null
run() { podman run --network=none --cgroups=disabled --security-opt seccomp=unconfined "$@"; }
run --name one box:1 /bin/sh -ec 'cat /etc/first; rm /etc/first; echo new > /etc/new; mkdir /etc/d; mv /etc/second /etc/d/; touch -c /bin/id; stat -c %a /bin/id'
podman diff one | sort
podman commit -q one box:2 >/dev/null
run --rm box:2 /bin/sh -ec 'test ! -e /etc/first; test ! -e /etc/second; cat /etc/new /etc/d/second; stat -c %a /bin/id'
run --rm box:1 /bin/sh -ec 'cat /etc/first /etc/second; test ! -e /etc/new'
podman rm one >/dev/null; podman rmi -f box:2 box:1 >/dev/null
test -z "$(podman images -q)"
"#;
    let text = entered(&host, "outer", script).ok().text();
    for part in ["first\n4755\n", "D /etc/first", "A /etc/new", "new\nsecond\n4755\n", "first\nsecond\n"] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(complaints("vzfs-test: podman in a VE"), Vec::<String>::new());
}

/// fuser 0.18 cannot answer for O_TMPFILE. Programs see what they see on other filesystems without it, and do without.
#[test]
fn unnamed_files_are_refused_and_programs_do_without() {
    let host = Host::with_sample(&["one"]);
    let script = r#"
import errno, os, tempfile
root = os.path.join(os.sys.argv[1], "tmp")
for _ in range(2):
    try:
        os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
        raise SystemExit("O_TMPFILE worked: this test, SEMANTICS and the README can say so")
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP, error
with tempfile.TemporaryFile(dir=root) as file:
    file.write(b"x" * 100000); file.flush()
    assert os.fstat(file.fileno()).st_nlink == 0
with tempfile.NamedTemporaryFile(dir=root) as file:
    file.write(b"x"); file.flush(); assert os.stat(file.name).st_size == 1
assert os.listdir(root) == []
"#;
    finish(Command::new("python3").args(["-c", script]).arg(host.root("one")).stdin(Stdio::null())).ok();
}

/// Attributes of the host's administrator are not even listed for others, as on ext4.
#[test]
fn trusted_attributes_are_seen_by_root_only() {
    let host = Host::with_sample(&["one"]);
    let names = |who: &[&str]| {
        let script = "cd \"$0\"; getfattr -m - etc/hostname | grep -v '^#' | sort";
        let mut command = Command::new("setpriv");
        command.args(who).args(["sh", "-ec", script]).arg(host.root("one")).stdin(Stdio::null());
        finish(&mut command).ok().text().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--clear-groups"]), ["trusted.secret", "user.note"]);
    assert_eq!(names(&["--reuid", "1000", "--clear-groups"]), ["user.note"]);
    assert_eq!(
        names(&["--clear-groups", "--inh-caps", "-sys_admin", "--bounding-set", "-sys_admin"]),
        ["user.note"]
    );
}

/// Runs a program in the namespaces of a running VE (user, mounts, processes) with all the rights of its root, as a container manager
/// that starts a VE gives them; `ve exec` itself gives fewer.
fn in_ve(host: &Host, ve: &str, program: &[&str]) -> Outcome {
    let stay = format!("4712.{}", std::process::id());
    let mut sleep = host.command(["ve", "exec", ve, "--", "sleep", &stay]).spawn().expect("vzfs starts");
    let begin = Instant::now();
    let pid = loop {
        let found = finish(Command::new("pgrep").args(["-n", "-f", &format!("^sleep {stay}")])).text();
        if !found.is_empty() {
            break found.trim().to_owned();
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "the program does not start");
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-U", "-m", "-p", "-i", "--setuid", "0", "--setgid", "0", "unshare", "-m"]);
    let outcome = finish(command.args(program).stdin(Stdio::null()));
    host_sh("kill -9 \"$1\"", [&pid]);
    let _ended = sleep.wait();
    outcome
}
