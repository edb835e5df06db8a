//! Whether a file is a running program.
//!
//! A program that runs cannot be written to (`ETXTBSY`): the kernel sees to it when a file is opened for writing. But of an open for reading with
//! `O_TRUNC` it tells us first (`FUSE_ATOMIC_O_TRUNC`), and finds out afterwards, when the program has lost its text. Such opens are so rare that
//! all processes can be looked through for one.

use std::fs;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::types::Ino;

/// Whether a process runs the inode, or one of the same number in another VE: a base's have one number everywhere.
pub(super) fn is_running(ino: Ino) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        // From the kernel's memory: a question to this mount would be one to ourselves.
        let program = statx(CWD, process.path().join("exe"), AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
        // FUSE mounts have no device.
        program.is_ok_and(|program| program.stx_dev_major == 0 && program.stx_ino == ino.get())
    })
}
