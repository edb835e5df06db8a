//! A root filesystem in which a shell and a few programs run, for tests that need programs and no Debian.

use std::path::Path;

use crate::host::host_sh;

/// The host's own programs with the libraries that they need.
const SCRIPT: &str = r#"
mkdir -p "$1" && cd "$1"
mkdir -p bin etc dev proc sys tmp var/lib usr/lib
for program in sh sleep cat ls rm mv touch grep tail; do
    file=$(readlink -f "$(command -v $program)")
    cp "$file" "bin/$program"
    for library in $(ldd "$file" | grep -o '/[^ ]*'); do
        mkdir -p ".${library%/*}"
        cp -L "$library" ".$library"
    done
done
printf 'root:x:0:0:root:/root:/bin/sh\n' > etc/passwd
printf 'root:x:0:\n' > etc/group
"#;

/// Makes it in a new folder, which says in `etc/version` which version it is.
pub fn make(dir: &Path, version: &str) {
    host_sh(SCRIPT, [dir]);
    std::fs::write(dir.join("etc/version"), format!("{version}\n")).expect("the folder is writable");
}
