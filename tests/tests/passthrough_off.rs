//! The core of everything once more with the data served by the daemon, as on a kernel without FUSE passthrough.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use vzfs_tests::host::host_sh;
use vzfs_tests::{Host, HostFs, Setup, debian, sample};

fn setup(fs: HostFs) -> Setup {
    Setup { fs, daemon_args: vec!["--passthrough".into(), "off".into()], ..Setup::default() }
}

#[test]
fn real_work_on_debian() {
    let host = Host::with_debian(setup(HostFs::Ext4));
    host.mounted("debian", &["work", "idle"]);
    assert_eq!(host.json(["ve", "show", "work"])["passthrough"], false);
    assert_eq!(sample::differences(&debian::tree(), &host.root("idle")), "");
    let script = r#"
cd /srv; git init -q -b trunk repository; cd repository; cp -r /usr/lib/python3.11 .; git add -A
git -c user.name=a -c user.email=a@example.org commit -qm all; git fsck --full --strict; test -z "$(git status --porcelain)"
cd /srv; printf '#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n' > c.c; gcc -O2 -o c c.c; ./c
sqlite3 t.db "PRAGMA journal_mode = DELETE; CREATE TABLE t (a, b);
  WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) INSERT INTO t SELECT i, randomblob(100) FROM n;
  PRAGMA integrity_check;" | tail -n 1
sqlite3 t.db "PRAGMA journal_mode = WAL; DELETE FROM t WHERE a % 2; PRAGMA integrity_check;" | tail -n 1
dpkg --verify
"#;
    assert_eq!(host.sh("work", script).ok().text(), "compiled\nok\nok\n");
    host.sh(
        "work",
        "apt-get update -q && apt-get install -yq --no-install-recommends cowsay && dpkg --verify",
    )
    .ok();
    assert_eq!(host.diff("idle"), Vec::new());
    host.vzfs(["template", "verify", "debian"]).ok();
}

#[test]
fn reads_writes_and_mappings_agree() {
    let host = Host::with_sample_in(Setup { size_mib: 2048, ..setup(HostFs::Xfs) }, &["one", "two"]);
    let source = host.scratch().join("source");
    assert_eq!(sample::fingerprint(&source), sample::fingerprint(&host.root("one")));
    let path = host.root("one").join("var/lib/app/data");
    let original = fs::read(&path).expect("read");
    assert_eq!(original, fs::read(source.join("var/lib/app/data")).expect("read"));

    let file = File::options().read(true).write(true).open(&path).expect("open");
    file.write_all_at(b"in the middle", 1_500_000).expect("write");
    file.set_len(2_000_000).expect("truncate");
    file.write_all_at(b"after a hole", 5_000_000).expect("write");
    let mut expected = original.clone();
    expected[1_500_000..1_500_013].copy_from_slice(b"in the middle");
    expected.truncate(2_000_000);
    expected.resize(5_000_000, 0);
    expected.extend_from_slice(b"after a hole");
    assert_eq!(fs::read(&path).expect("read"), expected);
    let script = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
assert m[1500000:1500013] == b"in the middle"
m[10:16] = b"mapped"
m.flush(); m.close()
assert os.pread(fd, 6, 10) == b"mapped"
"#;
    host_sh("python3 -c \"$1\" \"$2\"", [script.as_ref(), path.as_os_str()]);
    drop(file);
    expected[10..16].copy_from_slice(b"mapped");
    host.vzfs(["ve", "umount", "one"]).ok();
    host.vzfs(["ve", "mount", "one"]).ok();
    assert_eq!(fs::read(&path).expect("read"), expected);
    assert_eq!(fs::read(host.root("two").join("var/lib/app/data")).expect("read"), original);
    assert_eq!(sample::differences(&source, &host.root("two")), "");
    host.vzfs(["template", "verify", "sample"]).ok();
}
