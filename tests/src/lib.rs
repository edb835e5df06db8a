//! Harness of the end-to-end tests: a private vzfsd on a store of its own, the command `vzfs` run against it, and a real
//! Debian tree to work with.
//!
//! A [`Host`] is one "machine" with vzfs on it: an image file with a filesystem in it, loop-mounted; a store, a socket and
//! the default mount points inside; and a daemon. Whatever happens to the test, a guardian process (a shell that waits
//! for the end of its standard input, which is a pipe to the test) ends that daemon by its process id, takes the mounts
//! away and removes the image. So a test that fails, or that is killed, leaves nothing behind either.
//!
//! Environment: `VZFS_BIN_DIR` (where `vzfs` and `vzfsd` are; the folder of the test's own build by default),
//! `VZFS_TEST_DIR` (where images are made; `/var/tmp`), `VZFS_TEST_CACHE` (where the Debian tree is kept between runs;
//! `/var/tmp/vzfs-test-cache`), `VZFS_TEST_KEEP=1` (leave everything as it is for a look, when a test has failed),
//! `VZFS_SUITES=long` (the suites that others wrote in their long form; `make suites-long`).

// A harness fails by panicking, that is its way of telling; and it prints measurements for people.
#![allow(clippy::panic, clippy::print_stdout)]

pub mod debian;
pub mod differential;
pub mod host;
pub mod manager;
pub mod measure;
pub mod outcome;
pub mod sample;
pub mod semantics;
pub mod suites;
pub mod tiny;
pub mod torture;

pub use host::{Host, HostFs, Setup};
pub use outcome::Outcome;

/// A path of a test as an argument of a command.
///
/// # Panics
/// It is not UTF-8.
pub fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a path of this test")
}

/// Makes a file, or replaces its content, and syncs it.
///
/// # Errors
/// Those of the system calls, for tests of disks that fail.
pub fn write_synced(path: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    std::io::Write::write_all(&mut file, content)?;
    file.sync_all()
}

/// Ends the test with a message unless it runs as root: mounting, loop devices and foreign owners need it.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests mount filesystems and make files of other owners: run them as root (sudo make test)"
    );
}
