//! A connection to the kernel: the `/dev/fuse` descriptor, the first exchange on it, and how a new process takes it over.
//!
//! fuser makes a session of a descriptor by reading the kernel's INIT request from it and answering it. A connection that is taken over has had that
//! exchange, and a new one's INIT must be remembered for later; so the session is always made on one end of a socket pair, into which the INIT request is
//! written, and afterwards the descriptor is exchanged for the connection's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use fuser::{Config, Session, SessionACL};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::dispatch::Dispatch;
use crate::sys;
use crate::types::VeName;

/// The kernel wants room for the largest request that it could send.
const REQUEST_BYTES: usize = (1 << 20) + 4096;
/// Notifications without a body (linux/fuse.h): their header is 32 bits of length, 32 bits of code, 64 bits of zero.
const NOTIFY_BYTES: u32 = 16;
/// `FUSE_NOTIFY_RESEND`: send all unanswered requests again. Since Linux 6.9.
const NOTIFY_RESEND: u32 = 7;
/// `FUSE_NOTIFY_INC_EPOCH`: ask again for every cached name, when it is next used. Since Linux 6.16.
const NOTIFY_INC_EPOCH: u32 = 8;
/// Set in the number of a request that is sent again.
const UNIQUE_RESEND: u64 = 1 << 63;

/// A request's number, the same each time it is sent.
pub(super) fn unique(req: &fuser::Request) -> u64 {
    req.unique().0 & !UNIQUE_RESEND
}

/// A new connection, and its filesystem as a mount that is attached nowhere. Requests wait until a session answers them; if the connection is
/// closed before, they fail.
///
/// # Errors
/// `/dev/fuse` cannot be opened, or the kernel made no mount.
pub(super) fn new_filesystem(ve: &VeName) -> io::Result<(OwnedFd, OwnedFd)> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let filesystem = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let settings = [
        ("source", format!("vzfs:{ve}")),
        ("subtype", "vzfs".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        // A directory.
        ("rootmode", "40000".to_owned()),
        ("user_id", "0".to_owned()),
        ("group_id", "0".to_owned()),
    ];
    for (key, value) in settings {
        fsconfig_set_string(&filesystem, key, value)?;
    }
    // Every user of the VE may use it, and the kernel checks what each may do.
    for flag in ["default_permissions", "allow_other"] {
        fsconfig_set_flag(&filesystem, flag)?;
    }
    fsconfig_create(&filesystem)?;
    // A root filesystem has device nodes and setuid programs: neither is switched off.
    let mount = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok((device, mount))
}

/// Attaches a mount to its place.
///
/// # Errors
/// The place is not there or is no folder.
pub(super) fn attach(mount: &OwnedFd, mountpoint: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, mountpoint, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// The INIT request of a connection that was just mounted.
pub(super) fn read_init(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut request = vec![0; REQUEST_BYTES];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut request))?;
    request.truncate(read);
    Ok(request)
}

/// Makes a session on a connection whose INIT request is known. The kernel gets the answer if it `waits` for one.
pub(super) fn session(
    dispatch: Dispatch,
    device: &OwnedFd,
    init: &[u8],
    waits: bool,
    config: Config,
) -> io::Result<Session<Dispatch>> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&ours, init)?;
    let session = Session::from_fd(dispatch, theirs, SessionACL::All, config)?;
    let mut answer = [0; 4096];
    let read = rustix::io::read(&ours, &mut answer)?;
    if waits {
        rustix::io::write(device, &answer[..read])?;
    }
    sys::replace_descriptor(device.as_fd(), session.as_fd())?;
    Ok(session)
}

/// Has the kernel send again what the last daemon left unanswered, and ask again for the names that it has cached: the last daemon may have owed it
/// the news that some have changed.
///
/// # Errors
/// `ENOTCONN` or the like when the mount is gone; `EINVAL` from a kernel older than 6.9.
pub(super) fn resume(device: &OwnedFd) -> io::Result<()> {
    notify(device, NOTIFY_RESEND)?;
    match notify(device, NOTIFY_INC_EPOCH) {
        // An older kernel: names that a copy-up moved to another inode in the last moment stay stale there.
        Err(Errno::INVAL) => Ok(()),
        done => Ok(done?),
    }
}

fn notify(device: &OwnedFd, code: u32) -> Result<(), Errno> {
    let mut message = [0; NOTIFY_BYTES as usize];
    message[..4].copy_from_slice(&NOTIFY_BYTES.to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    rustix::io::write(device, &message).map(drop)
}
