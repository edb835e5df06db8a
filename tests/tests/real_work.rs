//! Real programs doing real work on a real Debian tree inside mounted VEs, and the proof that the results are right.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use vzfs_tests::host::{host_sh, run};
use vzfs_tests::measure::{ms, report};
use vzfs_tests::{Host, HostFs, Setup, debian, sample};

/// One host for the whole file; its guardian ends it together with this process. The template's digest and the
/// checksums of all blobs are looked at again by every test at its end.
struct Shared {
    host: Host,
    digest: String,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let host = Host::with_debian(Setup::default());
        let digest = host.digest("debian");
        Shared { host, digest }
    })
}

impl Shared {
    /// A new VE, mounted.
    fn ve(&self, name: &str) -> &Host {
        self.host.mounted("debian", &[name]);
        &self.host
    }

    /// Takes the VE away and looks whether the template is what it was.
    fn finish(&self, name: &str) {
        self.host.vzfs(["ve", "umount", name]).ok();
        self.host.vzfs(["ve", "rm", name]).ok();
        assert_eq!(self.host.digest("debian"), self.digest);
    }
}

#[test]
fn apt_installs_and_dpkg_verifies() {
    let host = shared().ve("apt");
    host.sh("apt", "apt-get update -q && apt-get install -yq --no-install-recommends cowsay tree").ok();
    assert!(host.sh("apt", "/usr/games/cowsay it works").ok().text().contains("it works"));
    assert_eq!(host.sh("apt", "dpkg --verify; dpkg --audit").ok().text(), "");
    host.sh("apt", "apt-get check -q && apt-get install -yq --reinstall hostname && apt-get purge -yq tree")
        .ok();
    assert_eq!(host.sh("apt", "dpkg --verify; dpkg --audit; test ! -e /usr/bin/tree").ok().text(), "");
    let diff = host.diff("apt");
    for path in ["usr/games/cowsay", "var/lib/dpkg/info/cowsay.list"] {
        assert!(
            diff.iter().any(|(changed, kind)| changed == path && kind == "added"),
            "{path} is not in the difference"
        );
    }
    shared().finish("apt");
}

#[test]
fn git_clones_commits_and_checks() {
    let host = shared().ve("git");
    let script = r#"
export HOME=/root GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir /srv/origin; cd /srv/origin; git init -q -b trunk .
cp -r /usr/share/perl/5* /usr/lib/python3.11 .; git add -A; git commit -qm first
git clone -q /srv/origin /srv/clone; cd /srv/clone
for n in 1 2 3 4 5; do echo $n >> numbers; git add numbers; git commit -qm "number $n"; done
git rm -qr python3.11/json; git commit -qm 'without json'
git push -q origin HEAD:side; git gc -q --prune=now
git fsck --full --strict
git -C /srv/origin fsck --full --strict
test -z "$(git status --porcelain)"
git log --oneline | wc -l
"#;
    let outcome = host.sh("git", script).ok();
    assert_eq!(outcome.text().trim().lines().last(), Some("7"), "{}", outcome.text());
    shared().finish("git");
}

#[test]
fn gcc_builds_something_of_size() {
    let host = shared().ve("gcc");
    // Two hundred generated C files of a few hundred lines each, made in parallel, linked, run; then nothing is left to do.
    let script = r#"
mkdir /usr/src/big; cd /usr/src/big
for n in $(seq 200); do
    { echo '#include <stdio.h>'; echo '#include <stdlib.h>'; echo '#include <string.h>'
      for k in $(seq 40); do
          echo "static int f${n}_$k(int x) { char b[64]; snprintf(b, sizeof b, \"%d\", x + $k); return atoi(b) + (int)strlen(b); }"
      done
      echo "int unit$n(int x) {"; for k in $(seq 40); do echo "    x = f${n}_$k(x) & 0xffff;"; done; echo "    return x; }"
    } > unit$n.c
done
{ for n in $(seq 200); do echo "int unit$n(int);"; done
  echo '#include <stdio.h>'; echo 'int main(void) { int x = 1;'
  for n in $(seq 200); do echo "    x = unit$n(x);"; done
  printf '%s\n' '    printf("%d\n", x); return 0; }'; } > main.c
printf 'objects := $(patsubst %%.c,%%.o,$(wildcard *.c))\nbig: $(objects)\n\t$(CC) -o $@ $^\n%%.o: %%.c\n\t$(CC) -O1 -g -c -o $@ $<\n' > Makefile
make -s -j2
./big
make -q && echo up-to-date
objdump -h big >/dev/null
"#;
    let begin = Instant::now();
    let text = host.sh("gcc", script).ok().text();
    report("gcc of 200 files in a VE", ms(begin.elapsed()));
    assert!(text.contains("up-to-date"), "{text}");
    shared().finish("gcc");
}

#[test]
fn sqlite_keeps_its_integrity() {
    let host = shared().ve("sqlite");
    let script = r#"
cd /var/lib; cat > load.sql <<'SQL'
PRAGMA journal_mode = WAL;
CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT, v BLOB);
CREATE INDEX t_k ON t (k);
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
INSERT INTO t SELECT i, hex(i * 7919 % 100003), randomblob(200) FROM n;
DELETE FROM t WHERE id % 3 = 0;
UPDATE t SET v = randomblob(400) WHERE id % 5 = 0;
VACUUM;
PRAGMA wal_checkpoint(TRUNCATE);
SQL
sqlite3 test.db < load.sql >/dev/null
# Two writers and a reader at once, with both kinds of journal.
for mode in WAL DELETE; do
    sqlite3 test.db "PRAGMA journal_mode = $mode" >/dev/null
    for writer in 1 2; do
        (for n in $(seq 100); do
            sqlite3 -cmd '.timeout 20000' test.db "INSERT INTO t (k, v) VALUES ('$mode-$writer', zeroblob(1000));"
        done) &
        pids="$pids $!"
    done
    for pid in $pids; do wait $pid; done; pids=
done
sqlite3 test.db "SELECT count(*) FROM t WHERE k LIKE 'WAL-%' OR k LIKE 'DELETE-%'; PRAGMA integrity_check; PRAGMA foreign_key_check;"
"#;
    assert_eq!(host.sh("sqlite", script).ok().text(), "400\nok\n");
    shared().finish("sqlite");
}

#[test]
fn postgresql_runs_and_passes_its_checks() {
    let host = shared().ve("postgres");
    let script = r#"
bin=$(echo /usr/lib/postgresql/*/bin); data=/var/lib/postgresql/test
as() { su postgres -s /bin/sh -c "PATH=$bin:\$PATH; $1"; }
as "initdb -D $data --data-checksums -A trust >/dev/null"
as "pg_ctl -D $data -w -s -o \"-c listen_addresses= -k /tmp\" -l /tmp/log start"
as "createdb -h /tmp bench && pgbench -h /tmp -q -i -s 3 bench 2>&1 | tail -n 1"
as "pgbench -h /tmp -n -c 4 -j 2 -t 500 bench" | grep -E 'tps|processed|failed'
as "psql -h /tmp -qAt bench -c 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)'" > /tmp/sums
# Crash it, and let it recover.
as "pg_ctl -D $data -s -m immediate stop"
as "pg_ctl -D $data -w -s -o \"-c listen_addresses= -k /tmp\" -l /tmp/log start"
as "psql -h /tmp -qAt bench -c 'SELECT count(*) FROM pgbench_history'" >> /tmp/sums
as "pg_amcheck -h /tmp --install-missing bench" || echo 'amcheck found damage'
as "pg_ctl -D $data -s -m fast stop"
as "pg_checksums -D $data --check" | grep -E 'Bad|Blocks'
cat /tmp/sums
"#;
    let text = host.sh("postgres", script).ok().text();
    for line in text.lines().filter(|line| line.contains("tps")) {
        report("pgbench in a VE", line);
    }
    assert!(text.contains("Bad checksums:  0"), "{text}");
    assert!(text.ends_with("t\n2000\n"), "{text}");
    assert!(!text.contains("damage"), "{text}");
    shared().finish("postgres");
}

#[test]
fn python_makes_a_venv_and_pip_installs() {
    let host = shared().ve("python");
    let script = r#"
cd /srv; python3 -m venv env; . env/bin/activate
pip install --quiet --disable-pip-version-check click jinja2
python -c 'import click, jinja2; print(jinja2.Template("{{ 6 * 7 }}").render())'
pip check
python -m compileall -q env/lib
deactivate; python3 -m venv --clear env; test ! -e env/lib/python3.11/site-packages/click
"#;
    let text = host.sh("python", script).ok().text();
    assert!(text.starts_with("42\n"), "{text}");
    shared().finish("python");
}

#[test]
fn perl_and_nginx_do_their_work() {
    let host = shared().ve("misc");
    let script = r#"
printf 'daemon off; master_process off; pid /tmp/pid; error_log stderr;\nevents {}\nhttp { access_log /tmp/log; server { listen unix:/tmp/sock; root /srv/www; } }\n' > /tmp/conf
mkdir /srv/www; echo 'hello from nginx' > /srv/www/index.html
nginx -c /tmp/conf & pid=$!
python3 - <<'PY'
import socket, time
for attempt in range(100):
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect("/tmp/sock")
        break
    except OSError:
        time.sleep(0.05)
s.sendall(b"GET / HTTP/1.0\r\n\r\n")
print(s.makefile("rb").read().decode().splitlines()[-1])
PY
kill $pid; wait $pid || true
perl -MFile::Find -e 'my $n = 0; find({ wanted => sub { $n++ }, no_chdir => 1 }, "/usr"); print $n > 10000 ? "many\n" : "few\n"'
perl -i -pe 's/nginx/perl/' /srv/www/index.html; cat /srv/www/index.html
"#;
    assert_eq!(host.sh("misc", script).ok().text(), "hello from nginx\nmany\nhello from perl\n");
    shared().finish("misc");
}

#[test]
fn the_whole_root_goes_out_and_comes_back_with_nothing_different() {
    let host = shared().ve("out");
    shared().ve("back");
    let (root, tree) = (host.root("out"), debian::tree());
    assert_eq!(sample::differences(&tree, &root), "", "a fresh VE is the tree that was imported");
    assert_eq!(sample::fingerprint(&tree), sample::fingerprint(&root));

    let copy = host.disk().join("copy");
    let rsync = "rsync -aHAX --numeric-ids \"$1/\" \"$2/\"";
    host_sh(&format!("mkdir \"$2\"; {rsync}"), [&root, &copy]);
    assert_eq!(sample::differences(&root, &copy), "", "rsync out");
    // Back into an empty directory of another VE.
    let into = host.root("back").join("srv/rsynced");
    host_sh(&format!("mkdir \"$2\"; {rsync}"), [&copy, &into]);
    assert_eq!(sample::differences(&copy, &into), "", "rsync back");
    assert_eq!(sample::fingerprint(&copy), sample::fingerprint(&into));

    let tar = "mkdir \"$2\"; tar -C \"$1\" --xattrs --xattrs-include='*' --acls --numeric-owner -cf - . \
               | tar -C \"$2\" --xattrs --xattrs-include='*' --acls --numeric-owner -xpf -";
    let into = host.root("back").join("srv/untarred");
    host_sh(tar, [&root, &into]);
    assert_eq!(sample::differences(&root, &into), "", "tar out and back");
    host_sh("rm -rf \"$1\"", [&copy]);
    shared().finish("out");
    shared().finish("back");
}

#[test]
fn import_is_quick_and_a_second_one_writes_no_blob() {
    let tree = debian::tree();
    let host = Host::with(Setup { fs: HostFs::Ext4, ..Setup::default() });
    // The source is on the store's own filesystem, and so is the copy that it is compared with.
    let source = host.disk().join("source");
    let copy = |to: &PathBuf| run(Command::new("cp").arg("-a").args([&tree, to]));
    copy(&source);
    run(Command::new("sync").arg("-f").arg(host.disk()));
    let begin = Instant::now();
    run(Command::new("cp").arg("-a").args([&source, &host.disk().join("copy")]));
    run(Command::new("sync").arg("-f").arg(host.disk()));
    report("cp -a of the Debian tree, synced", ms(begin.elapsed()));

    let import = |template: &str| {
        let begin = Instant::now();
        host.vzfs([OsStr::new("template"), "import".as_ref(), template.as_ref(), source.as_os_str()]).ok();
        begin.elapsed()
    };
    report("its first import", ms(import("debian@1")));
    let blobs = host.json(["store", "info"])["blobs"].as_u64();
    let used = host.used_bytes();
    report("its second import", ms(import("debian@2")));
    assert_eq!(host.json(["store", "info"])["blobs"].as_u64(), blobs, "the second import wrote blobs");
    assert_eq!(host.digest("debian@1"), host.digest("debian@2"));
    report("disk for the second import", format!("{} KiB", host.used_bytes().saturating_sub(used) >> 10));
    host.vzfs(["template", "verify", "debian@2"]).ok();
}
