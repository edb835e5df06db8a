//! What serves one mounted VE: its volume, and what must be known of the kernel's side.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuser::{Errno, Generation, INodeNo, ReplyEmpty, ReplyEntry, Request};
use tracing::warn;

use super::backing::{Backings, Writers};
use super::convert::{ENDLESS, file_attr};
use super::errno::errno;
use super::mount::{MountOptions, Negotiated, Passthrough};
use super::notices::Notices;
use super::overlays::Overlays;
use super::references::References;
use super::request::{caller, ino, name_of};
use super::rights::Process;
use crate::types::{Attr, IdShift, Ino, VeName};
use crate::volume::{NewNode, Sharing, Volume, VolumeError};

/// The inode number is enough: numbers are never used again for another file.
pub(super) const GENERATION: Generation = Generation(0);

/// Serves one mounted VE.
pub(super) struct Dispatch {
    pub(super) volume: Arc<Volume>,
    pub(super) ve: VeName,
    pub(super) wants_passthrough: bool,
    pub(super) negotiated: Arc<Negotiated>,
    pub(super) shift: Option<IdShift>,
    pub(super) references: References,
    pub(super) backings: Backings,
    pub(super) writers: Writers,
    pub(super) overlays: Overlays,
    pub(super) notices: Arc<Notices>,
}

impl Dispatch {
    pub(super) fn new(volume: Arc<Volume>, options: &MountOptions, negotiated: Arc<Negotiated>) -> Self {
        Dispatch {
            volume,
            ve: options.ve_name.clone(),
            wants_passthrough: options.passthrough == Passthrough::Auto,
            negotiated,
            shift: options.shift,
            references: References::default(),
            backings: Backings::default(),
            writers: Writers::default(),
            overlays: Overlays::default(),
            notices: Arc::default(),
        }
    }

    pub(super) fn notices(&self) -> Arc<Notices> {
        Arc::clone(&self.notices)
    }

    pub(super) fn failed(&self, operation: &'static str, error: &VolumeError) -> Errno {
        if matches!(error, VolumeError::Stale) {
            self.notices.forget_names(self.volume.take_relabelled());
        }
        errno(&self.ve, operation, error)
    }

    /// How long the kernel may keep an inode's attributes.
    pub(super) fn attr_lifetime(&self, ino: Ino) -> Duration {
        if self.writers.has(ino) { Duration::ZERO } else { ENDLESS }
    }

    pub(super) fn sharing(&self) -> Sharing {
        if self.negotiated.passthrough.load(Ordering::Acquire) {
            Sharing::Passthrough
        } else {
            Sharing::Served
        }
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
                reply.entry_with_ttls(&self.attr_lifetime(attr.ino), &ENDLESS, &file_attr(&attr), GENERATION);
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

    /// What the process behind a request may keep.
    pub(super) fn rights(&self, req: &Request) -> Process {
        Process::new(req.pid(), (req.uid(), req.gid()), self.shift)
    }

    pub(super) fn forget_inode(&self, ino: Ino) {
        if let Err(error) = self.volume.forget(ino) {
            // The next start of the VE tries again.
            warn!(ve = %self.ve, %ino, %error, "a removed file could not be freed");
        }
    }
}
