//! What serves one mounted VE: its volume, and what must be known of the kernel's side.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{Errno, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, Request};
use tracing::warn;

use super::backing::{Backings, Writers, Written};
use super::convert::{ENDLESS, file_attr};
use super::errno::errno;
use super::mount::{MountOptions, Passthrough};
use super::notices::Notices;
use super::references::References;
use super::request::{caller, groups, ino, name_of};
use crate::types::{Attr, Ino, VeName};
use crate::volume::{Caller, NewNode, Sharing, Volume, VolumeError};

/// The inode number is enough: numbers are never used again for another file.
pub(super) const GENERATION: Generation = Generation(0);

/// Serves one mounted VE.
pub(super) struct Dispatch {
    pub(super) volume: Arc<Volume>,
    pub(super) ve: VeName,
    pub(super) wants_passthrough: bool,
    pub(super) passthrough: Arc<AtomicBool>,
    pub(super) references: References,
    pub(super) backings: Backings,
    pub(super) writers: Writers,
    pub(super) notices: Arc<Notices>,
}

impl Dispatch {
    pub(super) fn new(volume: Arc<Volume>, options: &MountOptions, passthrough: Arc<AtomicBool>) -> Self {
        Dispatch {
            volume,
            ve: options.ve_name.clone(),
            wants_passthrough: options.passthrough == Passthrough::Auto,
            passthrough,
            references: References::default(),
            backings: Backings::default(),
            writers: Writers::default(),
            notices: Arc::default(),
        }
    }

    pub(super) fn notices(&self) -> Arc<Notices> {
        Arc::clone(&self.notices)
    }

    pub(super) fn failed(&self, operation: &'static str, error: &VolumeError) -> Errno {
        if matches!(error, VolumeError::Stale) {
            self.forget_relabelled(|| {});
        }
        errno(&self.ve, operation, error)
    }

    /// Makes the kernel ask again for the names that relabels gave to other inodes, and runs `then`.
    pub(super) fn forget_relabelled(&self, then: impl FnOnce() + Send + 'static) {
        let volume = Arc::clone(&self.volume);
        self.notices.forget_names(move || volume.take_relabelled(), then);
    }

    /// Attributes to tell the kernel, and how long it may keep them.
    pub(super) fn with_lifetime(&self, attr: Attr) -> (Attr, Duration) {
        match self.writers.state(attr.ino, || self.volume.is_written_by_kernel(attr.ino)) {
            Written::No => (attr, ENDLESS),
            Written::NoLonger => (self.volume.attr(attr.ino).unwrap_or(attr), ENDLESS),
            Written::Still => (attr, Duration::ZERO),
        }
    }

    pub(super) fn reply_attr(
        &self,
        operation: &'static str,
        found: Result<Attr, VolumeError>,
        reply: ReplyAttr,
    ) {
        match found {
            Ok(attr) => {
                let (attr, lifetime) = self.with_lifetime(attr);
                reply.attr(&lifetime, &file_attr(&attr));
            }
            Err(error) => reply.error(self.failed(operation, &error)),
        }
    }

    pub(super) fn sharing(&self) -> Sharing {
        if self.passthrough.load(Ordering::Acquire) { Sharing::Passthrough } else { Sharing::Served }
    }

    pub(super) fn reply_entry(
        &self,
        operation: &'static str,
        found: Result<Attr, VolumeError>,
        reply: ReplyEntry,
    ) {
        match found {
            Ok(attr) => {
                self.references.add(attr.ino);
                let (attr, lifetime) = self.with_lifetime(attr);
                reply.entry_with_ttls(&lifetime, &ENDLESS, &file_attr(&attr), GENERATION);
            }
            Err(error) => reply.error(self.failed(operation, &error)),
        }
    }

    pub(super) fn reply_empty(
        &self,
        operation: &'static str,
        done: Result<(), VolumeError>,
        reply: ReplyEmpty,
    ) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.failed(operation, &error)),
        }
    }

    pub(super) fn create_node(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: NewNode<'_>,
    ) -> Result<Attr, VolumeError> {
        self.volume.create(ino(parent)?, name_of(name)?, new, caller(req))
    }

    /// The caller, in the group of a file if it is a member of that by a supplementary group, of which requests say nothing.
    pub(super) fn caller_as_member(&self, req: &Request, ino: Ino) -> Result<Caller, VolumeError> {
        let (caller, group) = (caller(req), self.volume.attr(ino)?.gid);
        let joined = !caller.keeps_privileges() && caller.gid != group && groups(req.pid()).contains(&group);
        Ok(if joined { Caller { gid: group, ..caller } } else { caller })
    }

    pub(super) fn forget_inode(&self, ino: Ino) {
        self.writers.forget(ino);
        if let Err(error) = self.volume.forget(ino) {
            // The next start of the VE tries again.
            warn!(ve = %self.ve, %ino, %error, "a removed file could not be freed");
        }
    }
}
