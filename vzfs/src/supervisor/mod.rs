//! The process that outlives the daemon. It holds what the mounts' connections to the kernel consist of, starts the daemon, and starts it again
//! whenever it ends without having been asked to; the new one takes the mounts over, and programs in VEs notice a pause.
//!
//! It is small on purpose: it parses nothing that comes from a VE or a client, opens no store, and has no state but the descriptors. What it must not do is
//! die. If it does, a service manager has what it held ([`manager`]), and starts a supervisor again that goes on with it: the daemon ends at once and
//! leaves the mounts as they are. Without one the daemon takes the mounts away in order and ends.
//!
//! # Protocol
//! One `SOCK_SEQPACKET` socket, which is the daemon's standard input; one JSON message a packet, descriptors beside it ([`channel`]). The supervisor
//! begins with a [`Order::Held`] for each mount and [`Order::AllHeld`]. Then the daemon reports ([`Report`]), and a packet that was sent is
//! kept by the kernel even if its sender dies at once.
//!
//! # Notices
//! The kernel is told of changed names by a write that waits, unkillably, for the lock of a directory, and whoever has that lock may wait for an
//! answer of the daemon. A daemon that is killed in such a write could not die, so that no other could give the answer. So it is the supervisor
//! that writes ([`Report::Notify`]), in a thread for each such report.

mod channel;
mod link;
mod manager;
mod watch;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use channel::Channel;
pub use link::{Link, Orders};
pub use manager::{ServiceManager, hide_from};
pub use watch::{Program, supervise};

use crate::fuse::Agreed;
use crate::types::VeId;

/// Before the hint in what a daemon says of its end ([`Report::Failed`]).
pub const HINT: &str = "\nhint: ";

/// One mount, as it is told between supervisor and daemon; its two descriptors (connection, ledger) come with the message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holding {
    /// The VE.
    pub ve: VeId,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What a session needs to go on.
    pub agreed: Agreed,
}

/// From the supervisor to the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// A mount that the last daemon left.
    Held(Holding),
    /// These were all. `restarts` counts the daemons before this one.
    AllHeld {
        /// How often the daemon was started anew.
        restarts: u64,
        /// [`Report::Notify`] is understood.
        #[serde(default)]
        notifies: bool,
        /// The mounts outlive the supervisor too: somebody has its descriptors, and another supervisor will come.
        #[serde(default)]
        outlived: bool,
    },
    /// The notices of that number are written.
    Notified(u64),
    /// Leave everything mounted and end: a successor is ready.
    Leave,
    /// There will be no successor, for this reason.
    Refused(String),
}

/// From the daemon to the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// Keep this mount; descriptors come with it.
    Keep(Holding),
    /// The VE's mount is no more.
    Drop(VeId),
    /// Requests are answered.
    Ready,
    /// The daemon cannot start, for this reason.
    Failed(String),
    /// Please replace this daemon by a new one.
    Replace,
    /// Write the notices in the descriptor's file to a VE's connection, one after the other, and say so.
    Notify {
        /// The VE.
        ve: VeId,
        /// Which answer belongs to it.
        number: u64,
    },
}
