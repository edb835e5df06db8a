//! A VE's mount made read-only and writable again, by mount(8) as for any filesystem.

use vzfs_tests::Host;
use vzfs_tests::host::host_sh;

/// Tries every kind of change at a template's file, a private file and their folder; prints those that are not refused with `EROFS`. Reading works.
const CHANGES: &str = r#"
import ctypes, errno, os, sys
root = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
def rename_exchange(a, b):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2): raise OSError(ctypes.get_errno(), "")
def opened(path, flags): os.close(os.open(path, flags, 0o600))
for name in ["etc/hostname", "etc/private"]:
    path = os.path.join(root, name)
    new = path + ".new"
    assert open(path).read() == ("hostname\n" if name == "etc/hostname" else "mine\n")
    changes = {
        "open for writing": lambda: opened(path, os.O_WRONLY),
        "open and truncate": lambda: opened(path, os.O_RDONLY | os.O_TRUNC),
        "create": lambda: opened(new, os.O_WRONLY | os.O_CREAT),
        "truncate": lambda: os.truncate(path, 1),
        "chmod": lambda: os.chmod(path, 0o600),
        "chown": lambda: os.chown(path, 1, 1),
        "utime": lambda: os.utime(path),
        "setxattr": lambda: os.setxattr(path, "user.a", b"b"),
        "removexattr": lambda: os.removexattr(path, "user.note"),
        "link": lambda: os.link(path, new),
        "symlink": lambda: os.symlink("a", new),
        "mkdir": lambda: os.mkdir(new),
        "mkfifo": lambda: os.mkfifo(new),
        "rename": lambda: os.rename(path, new),
        "exchange": lambda: rename_exchange(path, os.path.join(root, "etc/passwd")),
        "unlink": lambda: os.unlink(path),
        "rmdir": lambda: os.rmdir(os.path.join(root, "empty")),
    }
    for what, change in changes.items():
        try:
            change()
            print(name, what, "was done")
        except OSError as error:
            if error.errno != errno.EROFS: print(name, what, error)
"#;

#[test]
fn a_mount_is_made_read_only_and_writable_again() {
    let host = Host::with_sample(&["data"]);
    let root = host.root("data");
    host_sh("echo mine > \"$1/etc/private\"; setfattr -n user.note -v a \"$1/etc/private\"", [&root]);
    let before = host.diff("data");

    // A descriptor that writes stands in the way, as everywhere.
    let busy = "exec 3>>\"$1/etc/private\"; if mount -i -o remount,ro \"$1\" 2>&1; then exit 1; fi; echo >> \"$1/tmp/a\"; rm \"$1/tmp/a\"";
    assert!(host_sh(busy, [&root]).text().contains("busy"));

    host_sh("mount -i -o remount,ro \"$1\"; findmnt -no OPTIONS \"$1\" | grep -q '^ro,'", [&root]);
    assert_eq!(host_sh("python3 -c \"$1\" \"$2\"", [CHANGES.as_ref(), root.as_os_str()]).text(), "");
    host_sh(
        "mount -i -o remount,rw \"$1\"; echo >> \"$1/etc/hostname\"; test \"$(wc -l < \"$1/etc/hostname\")\" = 2",
        [&root],
    );
    host_sh("printf 'hostname\\n' > \"$1/etc/hostname\"", [&root]);

    // Only one mount of two.
    let seen = host.scratch().join("seen");
    host_sh("mkdir \"$2\"; mount --bind \"$1\" \"$2\"; mount -i -o remount,bind,ro \"$2\"", [&root, &seen]);
    assert_eq!(host_sh("python3 -c \"$1\" \"$2\"", [CHANGES.as_ref(), seen.as_os_str()]).text(), "");
    host_sh(
        "echo more > \"$1/etc/more\"; test \"$(cat \"$2/etc/more\")\" = more; rm \"$1/etc/more\"; umount \"$2\"",
        [&root, &seen],
    );

    // A read-only mount is no obstacle to the daemon, and the next one is writable.
    host_sh("mount -i -o remount,ro \"$1\"", [&root]);
    host.vzfs(["ve", "umount", "data"]).ok();
    host.vzfs(["ve", "mount", "data"]).ok();
    host_sh("echo >> \"$1/etc/private\"", [&root]);
    let mut after = host.diff("data");
    after.retain(|(path, _)| path != "etc/hostname");
    assert_eq!(after, before);
}
