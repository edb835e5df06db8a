//! Root of a VE does what it likes; others, the store and the host do not notice.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vzfs_tests::host::{host_sh, run};
use vzfs_tests::measure::report;
use vzfs_tests::{Host, HostFs, Setup, sample, text};

const SECRET: &str = "the victim's secret";

fn host() -> Host {
    let host = Host::with_sample(&["evil", "victim"]);
    fs::write(host.root("victim").join("etc/secret"), SECRET).expect("written");
    fs::write(host.scratch().join("canary"), "the host's").expect("written");
    host
}

/// Everything that a VE must still be able to do.
fn works(host: &Host, ve: &str) {
    let script = r#"
cd "$1"; mkdir -p well/deep; for n in $(seq 50); do echo $n > well/deep/$n; mv well/deep/$n well/$n; done
[ "$(ls well | wc -l)" = 51 ]; [ "$(cat well/50)" = 50 ]; cat var/lib/app/data > well/copy; cmp var/lib/app/data well/copy
echo more >> etc/passwd; sync -f .; rm -r well
"#;
    host_sh(script, [host.root(ve)]);
}

fn python(script: &str, args: &[&Path]) {
    run(Command::new("python3").arg("-c").arg(script).args(args));
}

#[test]
fn file_handles_lead_to_no_other_ve() {
    let host = host();
    fs::write(host.disk().join("control"), "").expect("written");
    // As root of the host, who may open handles: a VE's root may not even do that. The mounts give none out; a forged one is a node id in two halves, and
    // a generation, as FUSE has them elsewhere.
    let script = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]
def given(path, handle):
    return libc.name_to_handle_at(-100, path.encode(), ctypes.byref(handle), ctypes.byref(ctypes.c_int()), 0) == 0
def opened(mount, handle):
    fd = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
    if fd >= 0: os.close(fd)
    return fd >= 0
# On a filesystem that has handles, this finds a file by one.
control = Handle(size=128)
assert given(sys.argv[3], control) and opened(os.open(os.path.dirname(sys.argv[3]), os.O_RDONLY), control)
for root in sys.argv[1:3]: assert not given(root + "/etc/passwd", Handle(size=128)), "a handle is given out"
evil = os.open(sys.argv[1], os.O_RDONLY)
assert not opened(evil, control), "a handle of the host's"
secret = os.stat(sys.argv[2] + "/etc/secret").st_ino
for node in [*range(3000), *range(max(secret - 3000, 0), secret + 3000), 2**32, 2**53 - 1, 2**63, 2**64 - 1]:
    for kind, size in (0x81, 12), (0x82, 24), (1, 8):
        handle = Handle(size=size, kind=kind)
        handle.bytes[:12] = struct.pack("III", node >> 32, node & 0xffffffff, 0)
        assert not opened(evil, handle), f"node {node} was opened"
"#;
    python(script, &[&host.root("evil"), &host.root("victim"), &host.disk().join("control")]);
    works(&host, "evil");
    works(&host, "victim");
}

#[test]
fn paths_and_links_stay_inside() {
    let host = Host::with_debian(Setup { fs: HostFs::Xfs, ..Setup::default() });
    host.mounted("debian", &["evil", "victim"]);
    fs::write(host.root("victim").join("etc/secret"), SECRET).expect("written");
    let canary = host.scratch().join("canary");
    fs::write(&canary, "the host's").expect("written");
    let secret = host.root("victim").join("etc/secret");
    let script = r#"
cd /srv
for file in CANARY SECRET STORE/format; do
    ln -sfn "$file" link; ln -sfn "/proc/1/root$file" magic; ln -sfn "../../../../../../../../..$file" up
    for way in "$file" "/../../../../../..$file" "/proc/self/root$file" "/proc/1/root$file" "/proc/1/cwd/../../../../..$file" \
        "/proc/self/cwd/../../../..$file" link magic up; do
        if cat "$way" 2>/dev/null; then echo "$way was read"; exit 1; fi
        if (echo over > "$way") 2>/dev/null; then rm -f "$way"; fi
    done
done
for pid in /proc/[0-9]*; do if grep -qs vzfsd $pid/comm; then echo "the daemon is seen"; exit 1; fi; done
for fd in /proc/[0-9]*/fd/*; do case "$(readlink $fd)" in *STORE*|/dev/fuse) echo "$fd is open"; exit 1;; esac; done
python3 - <<'END'
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
handle = ctypes.create_string_buffer(b"\x0c\0\0\0\x81\0\0\0" + bytes(12), 140)
root = libc.open(b"/", 0)
assert libc.open_by_handle_at(root, handle, 0) == -1 and ctypes.get_errno() == 1, "a handle was opened"
END
"#;
    let script = script.replace("CANARY", text(&canary)).replace("SECRET", text(&secret));
    host.sh("evil", &script.replace("STORE", text(&host.store()))).ok();

    // What the host's programs do with a VE follows no link of the VE's either.
    let links = "cd \"$1\"; rm -rf etc/resolv.conf etc/hosts var/tmp; ln -s \"$2\" etc/resolv.conf; ln -s \"$2\" etc/hosts; ln -s \"$3\" var/tmp";
    host_sh(links, [host.root("evil").as_path(), &canary, host.scratch()]);
    host.sh(
        "evil",
        "echo over > /etc/resolv.conf || true; echo over > /etc/hosts || true; echo in > /var/tmp/in || true",
    );
    let tar = host.scratch().join("evil.tar");
    host.vzfs(["ve", "export", "evil", text(&tar)]).ok();
    let listed = host_sh("tar -tvf \"$1\" | grep -E ' (\\./)?var/tmp| (\\./)?etc/hosts'", [&tar]).text();
    assert!(listed.contains("->"), "{listed}");
    host.vzfs(["ve", "commit", "evil", "evil@1"]).ok();
    assert_eq!(fs::read_to_string(&canary).expect("there"), "the host's");
    assert_eq!(fs::read_to_string(&secret).expect("there"), SECRET);
    assert!(!host.scratch().join("in").exists());
}

#[test]
fn devices_are_the_containers_to_say() {
    let host = Host::with_debian(Setup { fs: HostFs::Xfs, ..Setup::default() });
    host.mounted("debian", &["plain"]);
    host.vzfs(["ve", "create", "shifted", "-t", "debian", "--id-shift", "300000"]).ok();
    host.vzfs(["ve", "mount", "shifted"]).ok();
    let none = "for kind in b c; do if mknod /srv/$kind $kind 7 0 2>/dev/null; then echo \"$kind was made\"; exit 1; fi; done";
    host.sh("shifted", none).ok();
    // A character device can be made, as package managers do; a disk cannot, nor be mounted.
    let script = "if mknod /srv/b b 7 0 2>/dev/null; then echo made; exit 1; fi
mknod /srv/c c 1 3; echo x > /srv/c; if mount -t tmpfs none /mnt 2>/dev/null; then echo mounted; exit 1; fi";
    host.sh("plain", script).ok();
}

#[test]
fn attributes_of_a_ve_are_never_attributes_of_the_host() {
    let host = host();
    // As root of the host, who may set all of them.
    let script = r#"
cd "$1"; echo x > own; for file in own etc/passwd var/lib/app/data usr; do
    setfattr -n user.evil -v x $file; setfattr -n trusted.evil -v x $file
    setfattr -n trusted.overlay.opaque -v y $file; setfattr -n trusted.overlay.redirect -v /etc $file; setfattr -n user.overlay.metacopy -v y $file
    setfattr -n security.evil -v x $file; setfacl -m u:7:rwx $file
done
setfattr -n security.capability -v 0x0100000200000000000000000000000000000000 own || true
chmod 6777 own
"#;
    host_sh(script, [host.root("evil")]);
    let listed = "cd \"$1\"; getfattr -R -h -m - . 2>/dev/null | grep -v '^#' | grep -v '^$' || true; find . -type f -perm /7022";
    for folder in ["blobs", "data", "trees"] {
        assert_eq!(host_sh(listed, [host.store().join(folder)]).text(), "", "{folder}");
    }
    let seen =
        "cd \"$1\"; getfattr -h -d -m - etc/passwd var/lib/app/data usr 2>/dev/null | grep evil || true";
    assert_eq!(host_sh(seen, [host.root("victim")]).text(), "");
}

/// Floods a VE with requests from four threads until it is ended.
fn flood(root: &Path) -> Child {
    let script = r#"
import itertools, os, sys, threading
os.chdir(sys.argv[1]); os.makedirs("flood", exist_ok=True)
def work(own):
    for n in itertools.count():
        name = f"flood/{own}-{n}"
        fd = os.open(name, os.O_CREAT | os.O_RDWR); os.write(fd, b"x" * 5000)
        if n % 3 == 0: os.fsync(fd)
        os.close(fd); os.stat("etc/passwd"); os.listdir("etc"); os.rename(name, name + "r")
        try: os.stat(f"flood/no-{own}-{n}")
        except FileNotFoundError: pass
        os.setxattr(name + "r", "user.a", b"v")
        if n % 2: os.unlink(name + "r")
for own in range(4): threading.Thread(target=work, args=(own,)).start()
"#;
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(root).stderr(Stdio::null());
    command.spawn().expect("python3")
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("the own child");
}

#[test]
fn programs_that_are_stopped_and_killed_amid_requests_hold_nobody_up() {
    use rustix::process::Signal;
    let host = host();
    let before = sample::fingerprint(&host.root("victim").join("usr"));
    for round in 0..8_u64 {
        let mut all = [flood(&host.root("evil")), flood(&host.root("evil"))];
        std::thread::sleep(std::time::Duration::from_millis(120 + 40 * round));
        signal(&all[0], Signal::STOP);
        works(&host, "victim");
        for child in &mut all {
            signal(child, Signal::KILL);
            child.wait().expect("it ends");
        }
    }
    // Who waits for a lock, and is never given it.
    let holder = "import fcntl, os, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(1000)";
    let lock = host.root("evil").join("lock");
    let started = |script: &str| {
        Command::new("python3")
            .args(["-c", script])
            .arg(&lock)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3")
    };
    let mut lockers = vec![started(holder)];
    std::io::Read::read_exact(lockers[0].stdout.as_mut().expect("a pipe"), &mut [0; 4]).expect("it is held");
    lockers.extend((0..20).map(|_| started(holder)));
    works(&host, "victim");
    works(&host, "evil");
    for child in &mut lockers {
        child.kill().expect("the own child");
        child.wait().expect("it ends");
    }
    assert_eq!(sample::fingerprint(&host.root("victim").join("usr")), before);
    for ve in ["evil", "victim"] {
        host.vzfs(["ve", "umount", ve]).ok();
        host.vzfs(["ve", "mount", ve]).ok();
        works(&host, ve);
    }
    host.vzfs(["store", "verify"]).ok();
}

#[test]
fn many_open_files_and_names_of_one_ve_are_its_own_affair() {
    let host = host();
    let script = r#"
import os, resource, sys
os.chdir(sys.argv[1]); os.mkdir("many")
limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 30100)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
count = limit - 100
# Half of them files of their own, half of them one of the template's.
held = [os.open(f"many/{n}", os.O_CREAT | os.O_RDWR) if n % 2 else os.open("etc/passwd", os.O_RDONLY) for n in range(count)]
print(count, flush=True)
sys.stdin.read()
assert os.pread(held[0], 5, 0) == b"root:" and os.pwrite(held[1], b"x", 0) == 1
"#;
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(host.root("evil")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = command.spawn().expect("python3");
    let mut line = String::new();
    let stdout = program.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("it holds them");
    works(&host, "victim");
    works(&host, "evil");
    let open = host_sh("ls /proc/$1/fd | wc -l", [host.daemon_pid().to_string()]).text();
    report("open files", format!("a VE holds {}, the daemon {}", line.trim(), open.trim()));
    assert!(
        open.trim().parse::<u64>().expect("a number") < 1000,
        "the daemon keeps files open that the kernel serves"
    );
    drop(program.stdin.take());
    assert!(program.wait().expect("it ends").success());
}
