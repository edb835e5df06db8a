//! The rows of the table, in its order.

use super::{Caches, Row, Work, files};
use crate::system::Touches;

/// A row that leaves the tree as it is.
const fn row(name: &'static str, what: &'static str, caches: Caches, work: Work) -> Row {
    Row { name, what, caches, touches: Touches::Nothing, work, goal: None, huge: false }
}

const fn script(script: &'static str) -> Work {
    Work::Script { before: "", script, after: "" }
}

const fn prepared(before: &'static str, script: &'static str) -> Work {
    Work::Script { before, script, after: "" }
}

impl Row {
    const fn at_most(self, goal: f64) -> Row {
        Row { goal: Some(goal), ..self }
    }

    const fn touching(self) -> Row {
        Row { touches: Touches::Tree, ..self }
    }

    const fn with_huge(self) -> Row {
        Row { huge: true, ..self }
    }
}

const FIND: &str = "find / -xdev -printf '%s %m %U %p\\n' >/dev/null";
const READ: &str = "find /usr /etc /var -xdev -type f -print0 | xargs -0 cat >/dev/null";
const EXEC: &str = "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done";
const PYTHON: &str = "i=0; while [ $i -lt 10 ]; do python3 -c 'import json, ssl, email.message, http.client, sqlite3'; i=$((i + 1)); done";
const GCC: &str =
    "i=0; while [ $i -lt 5 ]; do gcc -O2 -o /srv/work/hello /opt/bench/hello.c; i=$((i + 1)); done";
const READ_ARCHIVE: &str = "cat /opt/bench/files.tar >/dev/null; tar --version >/dev/null";
const UNTAR: &str = "tar -xf /opt/bench/files.tar -C /srv/work";
const UNTAR_PART: &str =
    "tar -xf /opt/bench/files.tar -C /srv/work --wildcards 'tree/0[0-4]/*'; git --version >/dev/null";
const GIT: &str = "cd /srv/work/tree; git init -q; git add -A; git -c user.name=a -c user.email=a@b commit -qm all; git status; git status";
const SQLITE: &str = "sqlite3 /srv/work/t.db </opt/bench/transactions.sql";
const SQLITE_WAL: &str =
    "{ echo 'PRAGMA journal_mode = WAL;'; cat /opt/bench/transactions.sql; } | sqlite3 /srv/work/t.db";
const APT: &str =
    "apt-get -qq -o APT::Sandbox::User=root install --no-install-recommends -y /opt/bench/debs/*.deb";
const APT_READY: &str = "apt-get -qq -o APT::Sandbox::User=root install --no-install-recommends -s /opt/bench/debs/*.deb; cat /opt/bench/debs/* /usr/bin/dpkg* /var/lib/dpkg/info/* >/dev/null";
const POSTGRES_START: &str = r#"
bin=/usr/lib/postgresql/15/bin
install -d -o postgres /srv/work/pg
runuser -u postgres -- sh -ec "
    $bin/initdb -N -A trust -D /srv/work/pg/data
    $bin/pg_ctl -w -D /srv/work/pg/data -l /srv/work/pg/log -o \"-k /srv/work/pg -c listen_addresses=''\" start
    $bin/pgbench -i -q -s 2 -h /srv/work/pg postgres" >/srv/work/pg.log 2>&1
"#;
const PGBENCH: &str =
    "runuser -u postgres -- /usr/lib/postgresql/15/bin/pgbench -n -c 2 -t 300 -h /srv/work/pg postgres";
const POSTGRES_STOP: &str =
    "runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl -w -m immediate -D /srv/work/pg/data stop";
const MIXTURE: &str = "work=$(mktemp -d /srv/work/XXXXXX); find /usr -xdev -printf '%s\\n' >/dev/null
i=0; while [ $i -lt 5 ]; do python3 -c 'import json, ssl'; i=$((i + 1)); done
tar -xf /opt/bench/files.tar -C \"$work\" --wildcards 'tree/00/*'; rm -rf \"$work\"";

/// All rows.
pub static ROWS: &[Row] = &[
    row("find-cold", "find / with a stat of each", Caches::Cold, script(FIND)).at_most(2.0),
    row("find-warm", "the same again", Caches::Warm, script(FIND)).at_most(1.1),
    row("read-cold", "read every file", Caches::Cold, script(READ)).at_most(2.0),
    row("read-warm", "the same again", Caches::Warm, script(READ)).at_most(2.0),
    row(
        "open-read-close",
        "open, read 4 KiB and close 5,000 files",
        Caches::Warm,
        Work::Calls(files::open_read_close),
    )
    .at_most(5.0),
    row("exec", "/bin/true 300 times", Caches::Warm, script(EXEC)).at_most(1.2),
    row("python", "python3 with imports, 10 times", Caches::Warm, script(PYTHON)).at_most(1.2),
    row("gcc", "compile and link a small program, 5 times", Caches::Warm, script(GCC)).at_most(1.2),
    row("untar", "unpack 12,000 files", Caches::AsPrepared, prepared(READ_ARCHIVE, UNTAR)).at_most(5.0),
    row("rm", "rm -rf of them", Caches::AsPrepared, prepared(UNTAR, "rm -rf /srv/work/tree")).at_most(5.0),
    row("create-small", "create 5,000 files of 1 KiB", Caches::AsPrepared, Work::Calls(files::create_small))
        .at_most(5.0),
    row("git", "git init, add, commit, status of 2,000 files", Caches::AsPrepared, prepared(UNTAR_PART, GIT))
        .at_most(2.0),
    row("write", "write 256 MiB in 1 MiB blocks", Caches::AsPrepared, Work::Calls(files::write_sequentially))
        .at_most(1.1),
    row(
        "write-random",
        "write 32,768 blocks of 4 KiB at random",
        Caches::AsPrepared,
        Work::Calls(files::write_randomly),
    )
    .at_most(1.1),
    row(
        "write-mmap",
        "change every page of 64 MiB that are mapped, msync",
        Caches::AsPrepared,
        Work::Calls(files::write_mapped),
    )
    .at_most(1.1),
    row("fsync", "append 4 KiB and fsync, 300 times", Caches::AsPrepared, Work::Calls(files::append_durably))
        .at_most(1.1),
    row(
        "sqlite",
        "200 transactions, rollback journal",
        Caches::AsPrepared,
        prepared("sqlite3 -version >/dev/null", SQLITE),
    )
    .at_most(1.1),
    row(
        "sqlite-wal",
        "200 transactions, write-ahead log",
        Caches::AsPrepared,
        prepared("sqlite3 -version >/dev/null", SQLITE_WAL),
    )
    .at_most(1.1),
    row(
        "pgbench",
        "600 transactions of 2 clients",
        Caches::AsPrepared,
        Work::Script { before: POSTGRES_START, script: PGBENCH, after: POSTGRES_STOP },
    )
    .at_most(1.1),
    row("apt", "apt-get install of jq and 2 libraries", Caches::AsPrepared, prepared(APT_READY, APT))
        .touching()
        .at_most(2.0),
    row(
        "copy-up",
        "append a byte to 2,000 files of the tree",
        Caches::AsPrepared,
        Work::Calls(files::copy_up_small),
    )
    .touching(),
    row(
        "copy-up-huge",
        "append a byte to a file of 1 GiB",
        Caches::AsPrepared,
        Work::Calls(files::copy_up_huge),
    )
    .touching()
    .with_huge()
    .at_most(0.3),
    row(
        "chown",
        "chown -R of /usr/share",
        Caches::AsPrepared,
        prepared("find /usr/share -size -1 >/dev/null", "chown -R 1234:1234 /usr/share"),
    )
    .touching()
    .at_most(0.3),
    row(
        "rename",
        "mv /usr/share and /usr/lib/python3.11",
        Caches::AsPrepared,
        script("mv /usr/share /srv/work/; mv /usr/lib/python3.11 /usr/lib/moved"),
    )
    .touching()
    .at_most(0.3),
    row(
        "many",
        "8 VEs at once: find, python, unpack and remove 400 files",
        Caches::Warm,
        Work::Many { ves: 8, script: MIXTURE },
    ),
    row("first-use", "make a VE and run /bin/true in it", Caches::AsPrepared, Work::FirstUse).touching(),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }
}
