//! A small root filesystem with one of everything that is hard to carry, for tests that need no Debian.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::host::host_sh;

/// The sample's making: devices, odd modes, foreign owners, nanoseconds, times before 1970, hard links, holes, ACLs,
/// file capabilities, names that are not UTF-8.
const SCRIPT: &str = r#"
cd "$1"
mkdir -p bin etc/conf.d usr/bin usr/lib var/lib/app var/log tmp dev empty
chmod 1777 tmp
printf 'root:x:0:0:root:/root:/bin/sh\n' > etc/passwd
printf 'one\n' > etc/conf.d/one
printf 'two\n' > etc/conf.d/two
printf 'hostname\n' > etc/hostname
printf '#!/bin/sh\n' > usr/bin/tool; chmod 0755 usr/bin/tool
cp usr/bin/tool usr/bin/suid; chmod 4755 usr/bin/suid
cp usr/bin/tool usr/bin/sgid; chmod 2755 usr/bin/sgid; chown 0:50 usr/bin/sgid; chmod 2755 usr/bin/sgid
cp usr/bin/tool usr/bin/capable; setcap cap_net_raw+ep usr/bin/capable
ln usr/bin/tool usr/bin/hard-one; ln usr/bin/tool usr/lib/hard-two
ln -s ../usr/bin/tool bin/tool
ln -s /nowhere/at/all bin/dangling
mknod dev/null c 1 3; mknod dev/block b 7 0; chmod 0666 dev/null
mkfifo var/lib/app/fifo
truncate -s 8M var/lib/app/sparse; printf 'x' | dd of=var/lib/app/sparse bs=1 seek=4194304 conv=notrunc status=none
head -c 3000000 /dev/urandom > var/lib/app/data
: > var/lib/app/none
chown -R 1234:5678 var/lib/app
setfattr -n user.note -v 'a value' etc/hostname
setfattr -n trusted.secret -v 0x00ff00 etc/hostname
setfacl -m u:1234:r,g:5678:rw etc/conf.d/one
setfacl -d -m u:1234:rwx etc/conf.d
printf 'latin' > "$(printf 'etc/caf\351')"
printf 'line' > "$(printf 'etc/two\nlines')"
touch -d '1965-03-04 05:06:07.123456789 UTC' etc/conf.d/two
touch -h -d '2001-02-03 04:05:06.987654321 UTC' bin/dangling
touch -d '2020-01-01 00:00:00.000000001 UTC' usr/bin/tool etc
"#;

/// Makes the sample in a new folder.
pub fn make(dir: &Path) {
    crate::require_root();
    fs::create_dir_all(dir).expect("the parent folder is writable");
    host_sh(SCRIPT, [dir]);
}

/// Every difference between two trees in content, metadata, hard links, ACLs and xattrs, one a line, as rsync sees them;
/// empty when there is none.
pub fn differences(a: &Path, b: &Path) -> String {
    let with_slash = |path: &Path| {
        let mut bytes = path.as_os_str().as_bytes().to_vec();
        bytes.push(b'/');
        std::ffi::OsString::from(std::ffi::OsStr::from_bytes(&bytes))
    };
    // --delete is what makes it see the names that only the second tree has.
    let outcome = host_sh(
        "rsync -aHAXn --checksum --delete --itemize-changes --no-inc-recursive \"$1\" \"$2\"",
        [with_slash(a), with_slash(b)],
    );
    outcome.text()
}

/// What `differences` may pass over (nanoseconds, link counts, times of symbolic links), as one text with a line a path.
pub fn fingerprint(dir: &Path) -> String {
    host_sh(
        "cd \"$1\"; find . -printf '%P\\t%y\\t%m\\t%U\\t%G\\t%n\\t%T@\\t%l\\t%s\\n' \
         | awk -F'\\t' -v OFS='\\t' '{ if ($2 == \"d\") { $6 = \"-\"; $9 = \"-\" } print }' | LC_ALL=C sort",
        [dir],
    )
    .text()
}
