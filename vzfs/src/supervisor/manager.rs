//! The service manager that started the supervisor, and that keeps what it holds when it dies.
//!
//! The protocol is systemd's, written down in sd_notify(3), sd_listen_fds(3) and <https://systemd.io/FILE_DESCRIPTOR_STORE>:
//! - What the manager is told is a datagram of lines `NAME=VALUE` to the socket `$NOTIFY_SOCKET`: a path, or an abstract name behind `@`. Nothing is
//!   answered.
//! - `FDSTORE=1` with `FDNAME=` has it keep duplicates of the descriptors that come with the datagram, under one name of at most 255 characters
//!   without `:`; `FDSTOREREMOVE=1` has it close them. It keeps at most `FileDescriptorStoreMax=`, without a word about those beyond.
//! - `FDPOLL=0` has it not wait for errors on them: it would be woken by each request of a FUSE connection. So what ended meanwhile is sorted out
//!   here, when it comes back.
//! - The next process finds all of them from descriptor 3 on, `$LISTEN_FDS` many, for the process `$LISTEN_PID`, with their names in
//!   `$LISTEN_FDNAMES`, in no order that is promised. The manager goes on keeping them.
//!
//! A mount is three descriptors under one name, in one datagram: so it is kept wholly or, beyond the limit, recognised as incomplete. The name has a random
//! number, as a VE that is unmounted and mounted is another mount. What the manager was told by a process that then died counts: it reads such messages
//! before it learns of the death.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, MemfdFlags, SealFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{info, warn};

use super::Holding;
use crate::sys;

/// Environment variables that are meant for this process alone.
const OWN_VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "FDSTORE"];
/// The first descriptor that is handed over.
const FIRST_DESCRIPTOR: i32 = 3;
/// Names of mounts begin with this.
const NAME: &str = "vzfs-";
/// Descriptors of a mount: connection, ledger, description.
const DESCRIPTORS: usize = 3;
/// The manager reads at once, unless it hangs. The supervisor then goes on without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// A description has some hundred bytes and a path.
const MAX_DESCRIPTION_BYTES: u64 = 64 << 10;

/// A mount that the supervisor holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) holding: Holding,
    /// The connection to the kernel.
    pub(super) device: OwnedFd,
    /// What the kernel holds of it.
    pub(super) ledger: OwnedFd,
    /// The service manager's name for it.
    pub(super) name: Option<String>,
}

/// What the manager keeps beside a mount's descriptors, as JSON in a sealed memfd.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    /// Another store's VEs have the same numbers.
    store: PathBuf,
    holding: Holding,
}

/// Why a kept mount is not taken up.
#[derive(Debug, Error)]
enum Unusable {
    #[error("its connection has ended")]
    Ended,
    #[error("it is incomplete: does the service manager keep too few descriptors (FileDescriptorStoreMax=)?")]
    Incomplete,
    #[error("it belongs to the store {}", .0.display())]
    OtherStore(PathBuf),
    #[error("another of the same VE is kept")]
    Twice,
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// Takes from a child what the manager means for this process: it would take that for its own.
pub fn hide_from(child: &mut Command) {
    for variable in OWN_VARIABLES {
        child.env_remove(variable);
    }
}

/// The service manager.
#[derive(Debug)]
pub struct ServiceManager {
    socket: OwnedFd,
    address: SocketAddrUnix,
    store: PathBuf,
    /// How many descriptors it has handed over, and their names.
    handed: (usize, OsString),
}

impl ServiceManager {
    /// The manager that the environment names, if any, for the mounts of a store. `variable` looks variables up.
    ///
    /// # Errors
    /// There is one, and it cannot be told anything.
    pub fn find(
        variable: impl Fn(&str) -> Option<OsString>,
        store: &Path,
    ) -> io::Result<Option<ServiceManager>> {
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        let address = address(&name)?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        let number = |name| variable(name)?.to_str()?.parse::<u32>().ok();
        let handed = match number("LISTEN_PID") == Some(std::process::id()) {
            true => number("LISTEN_FDS").unwrap_or(0) as usize,
            false => 0,
        };
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        Ok(Some(ServiceManager { socket, address, store: store.to_owned(), handed: (handed, names) }))
    }

    /// Takes up what a supervisor before this one left with the manager. What cannot be used any more is closed, there too. Called once.
    pub(super) fn take_up(&self) -> Vec<Held> {
        let (count, names) = &self.handed;
        let descriptors = sys::inherited_descriptors(FIRST_DESCRIPTOR, *count);
        let mut held: Vec<Held> = Vec::new();
        for (name, descriptors) in by_name(descriptors, names) {
            let found = self.restore(&name, descriptors).and_then(|found| {
                let twice = held.iter().any(|other| other.holding.ve == found.holding.ve);
                if twice { Err(Unusable::Twice) } else { Ok(found) }
            });
            match found {
                Ok(found) => held.push(found),
                Err(why) => {
                    info!(name, %why, "the service manager has kept a mount that is not taken up");
                    self.forget(&name);
                }
            }
        }
        held
    }

    fn restore(&self, name: &str, descriptors: Vec<OwnedFd>) -> Result<Held, Unusable> {
        let (mut device, mut ledger, mut description) = (None, None, None);
        for descriptor in descriptors {
            let stat = rustix::fs::fstat(&descriptor).map_err(io::Error::from)?;
            // Of the two in memory, one is sealed.
            let place = match rustix::fs::fcntl_get_seals(&descriptor) {
                _ if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice => &mut device,
                Ok(seals) if seals.contains(SealFlags::WRITE) => &mut description,
                _ => &mut ledger,
            };
            *place = Some(descriptor);
        }
        let (Some(device), Some(ledger), Some(description)) = (device, ledger, description) else {
            return Err(Unusable::Incomplete);
        };
        let Description { store, holding } = read_description(&File::from(description))?;
        if store != self.store {
            return Err(Unusable::OtherStore(store));
        }
        if has_ended(&device)? {
            return Err(Unusable::Ended);
        }
        Ok(Held { holding, device, ledger, name: Some(name.to_owned()) })
    }

    /// Has the manager keep a mount from now on; returns the name to [`forget`](Self::forget) it by.
    ///
    /// # Errors
    /// It was not told.
    pub(super) fn keep(
        &self,
        holding: &Holding,
        device: BorrowedFd<'_>,
        ledger: BorrowedFd<'_>,
    ) -> io::Result<String> {
        let description = Description { store: self.store.clone(), holding: holding.clone() };
        let description = write_description(&serde_json::to_vec(&description)?)?;
        let mut number = [0; 8];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
        let name = format!("{NAME}{}-{:016x}", holding.ve, u64::from_ne_bytes(number));
        let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
        self.tell(&text, &[device, ledger, description.as_fd()])?;
        Ok(name)
    }

    /// Has the manager close what it keeps under a name.
    pub(super) fn forget(&self, name: &str) {
        self.try_to_tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
    }

    /// Requests are answered.
    pub(super) fn ready(&self) {
        self.try_to_tell("READY=1\n");
    }

    /// The supervisor was asked to end.
    pub(super) fn stopping(&self) {
        self.try_to_tell("STOPPING=1\n");
    }

    fn try_to_tell(&self, text: &str) {
        if let Err(error) = self.tell(text, &[]) {
            warn!(%error, text, "the service manager was not told");
        }
    }

    /// To the address each time: the manager may have been replaced by a newer one.
    fn tell(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let slices = [IoSlice::new(text.as_bytes())];
        rustix::io::retry_on_intr(|| {
            let flags = SendFlags::NOSIGNAL;
            rustix::net::sendmsg_addr(&self.socket, &self.address, &slices, &mut ancillary, flags)
        })?;
        Ok(())
    }
}

fn address(name: &OsStr) -> io::Result<SocketAddrUnix> {
    match name.as_bytes() {
        [b'@', name @ ..] => Ok(SocketAddrUnix::new_abstract_name(name)?),
        [b'/', ..] => Ok(SocketAddrUnix::new(name)?),
        _ => Err(io::Error::other(format!(
            "{} is neither a path nor the abstract name of a Unix socket",
            name.display()
        ))),
    }
}

/// The descriptors of each name that is a mount's. Others are not this program's, and are closed.
fn by_name(descriptors: Vec<OwnedFd>, names: &OsStr) -> BTreeMap<String, Vec<OwnedFd>> {
    let names = names.to_string_lossy();
    let mut found: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    for (descriptor, name) in descriptors.into_iter().zip(names.split(':')) {
        if name.starts_with(NAME) {
            found.entry(name.to_owned()).or_default().push(descriptor);
        } else {
            warn!(name, "closing a descriptor of the service manager's that is nobody's");
        }
    }
    found
}

/// Whether the kernel has ended a FUSE connection: unmounted it, or somebody aborted it.
fn has_ended(device: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&Timespec::default())))?;
    Ok(polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP))
}

fn write_description(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create(c"vzfs-mount", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Not from the file's position, which all who have the descriptor share.
fn read_description(file: &File) -> io::Result<Description> {
    let len = file.metadata()?.len().min(MAX_DESCRIPTION_BYTES);
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests;
