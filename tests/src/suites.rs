//! Test suites that others wrote: where they are, and in which form they run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::Host;
use crate::host::binary;

/// Whether the long form was asked for (`make suites-long` sets `VZFS_SUITES=long`). The short one is part of `make test`.
pub fn long() -> bool {
    match std::env::var("VZFS_SUITES").as_deref() {
        Ok("long") => true,
        Err(_) | Ok("short" | "") => false,
        Ok(other) => panic!("VZFS_SUITES is `short` or `long`, not `{other}`"),
    }
}

/// A program that `scripts/suites` installed.
pub fn program(name: &str) -> PathBuf {
    // The programs under test are in <build folder>/<profile>, the suites in <build folder>/suites/bin.
    let vzfsd = binary("vzfsd");
    let folder = vzfsd.parent().and_then(Path::parent).expect("programs are in a folder");
    let path = folder.join("suites/bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/suites {}",
        path.display(),
        folder.join("suites").display()
    );
    path
}

/// Mounts a VE where suites can work: at a short path (a socket's has 107 bytes at most) that every user can reach, as they take on others.
#[track_caller]
pub fn mounted(host: &Host, ve: &str) -> PathBuf {
    let root = host.scratch().join("m");
    host.vzfs(["ve", "umount", ve]).ok();
    fs::create_dir(&root).expect("the scratch folder is writable");
    host.vzfs(["ve", "mount", ve, root.to_str().expect("text")]).ok();
    let_others_in(host);
    root
}

/// Lets every user pass through the host's scratch folder.
pub fn let_others_in(host: &Host) {
    fs::set_permissions(host.scratch(), fs::Permissions::from_mode(0o711)).expect("chmod");
}
