//! The tree that a sequence starts with: small, but with one of everything that copy-up, pins and whiteouts meet.

use std::fs;
use std::path::Path;

use crate::host::host_sh;

const SCRIPT: &str = r#"
cd "$1"
chmod 0755 .
mkdir -p d/e s/y t/y p/y r
fill() { head -c "$2" /dev/zero | tr '\0' "$3" > "$1"; }
fill a 5000 A; ln a b; ln a d/b; ln -s a c; ln -s d x; ln -s nowhere y; fill z 9000 Z
fill d/a 20000 D; ln -s e d/c; fill d/x 100 X; fill d/y 100 Y; fill d/z 6000 Z
fill d/e/a 4096 E; truncate -s 262144 d/e/a; printf mid | dd of=d/e/a bs=1 seek=131000 conv=notrunc status=none
: > d/e/b; fill d/e/c 8192 C; mkfifo d/e/x; mknod d/e/y c 1 3; mknod d/e/z c 0 0
fill s/a 3000 S; fill s/b 10 B; ln s/b s/c; fill t/a 50 T; fill t/b 60 U; mkdir t/c
fill p/a 70 P; fill p/b 80 Q; fill r/a 90 R; ln -s ../a r/c
chown 1000:50 s/a s/y t/a d/z r r/a; chown 2000:2000 t/b; chown 0:50 s d/y; chown 1000:100 z p/b
chmod 2775 s s/y; chmod 1777 t; chmod 0700 r; chmod 0664 s/a; chmod 0666 t/b p/b
chmod 4755 d/x; chmod 2755 d/y; chmod 6711 d/z; chmod 0600 p/a; chmod 0666 d/e/y d/e/z d/e/x; chmod 2745 d/e/c
setfattr -n user.one -v value d/a; setfattr -n user.two -v value d; setfattr -n trusted.one -v secret d/a
setfattr -n security.one -v label a
setcap cap_net_raw+ep d/e/c
setfacl -m u:1000:rwx,g:50:r p/a; setfacl -d -m u:2000:rwx,g:50:rx p; setfacl -m u:1000:rwx p; setfacl -m u:2000:rw s/b
find . -exec touch -h -d '2015-05-05 05:05:05.050505050 UTC' {} +
touch -h -d '1960-01-02 03:04:05.678901234 UTC' d/a y d/e
"#;

/// Makes the tree in a new folder.
pub(super) fn make(root: &Path) {
    fs::create_dir_all(root).expect("the parent folder is writable");
    host_sh(SCRIPT, [root]);
}

/// Makes a copy of it.
pub(super) fn copy(from: &Path, to: &Path) {
    host_sh("cp -a --sparse=always \"$1\" \"$2\"", [from, to]);
}
