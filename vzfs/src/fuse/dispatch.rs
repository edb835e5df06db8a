//! What serves one mounted VE: its volume, and what must be known of the kernel's side.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fuser::{Errno, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, Request};
use tracing::{error, warn};

use super::convert::{ENDLESS, file_attr};
use super::courtesy::{Courtesy, DiskSyncs};
use super::device;
use super::errno::{Answer, answer};
use super::failures::Failures;
use super::ledger::{Handles, Ledger};
use super::mount::Negotiated;
use super::notices::Notices;
use super::overlays::{Asking, Overlays};
use super::places::Places;
use super::request::{caller, ino, name_of};
use super::requests::Requests;
use super::rights::Process;
use super::syncs::Syncs;
use super::wakeful::Wakeful;
use super::writers::{Writers, Written};
use crate::meta::{self, Outcomes, RequestId};
use crate::types::{Attr, IdShift, Ino, NameRef, VeName};
use crate::volume::{BegunSync, NewNode, Sharing, Volume, VolumeError};

/// The inode number is enough: numbers are never used again for another file.
pub(super) const GENERATION: Generation = Generation(0);

/// How long a request that holds a lock in the kernel waits for a notice, which takes well below a millisecond where nobody is in its way.
const NOTICE_PATIENCE: Duration = Duration::from_millis(100);

/// A file that the kernel may write to by itself has attributes that change unasked only where it is mapped: every `write` of a program makes the kernel
/// ask anew. One that has not changed for so long is taken to rest,
const REST: Duration = Duration::from_millis(100);
/// and its attributes may be kept for so long: a database asks many times a second for the size of files that it has open and hardly writes to.
const KEPT_AT_REST: Duration = Duration::from_millis(8);

/// A file with more content of its own is synced apart from others.
const LARGE_BYTES: u64 = 16 << 20;

/// A sync that was begun, and whom to tell.
struct ToSync {
    operation: &'static str,
    node: INodeNo,
    begun: BegunSync,
    reply: ReplyEmpty,
}

/// What a mount is made of.
pub(super) struct Parts {
    pub volume: Arc<Volume>,
    pub ve: VeName,
    /// Whether the kernel is to serve content itself.
    pub wants_passthrough: bool,
    /// Which ids of the host stand for the VE's.
    pub shift: Option<IdShift>,
    pub ledger: Ledger,
    /// What an earlier process had open of it, or let the kernel write to.
    pub used: Vec<(Ino, Handles)>,
    /// The connection, for what is not a reply.
    pub device: Arc<OwnedFd>,
    /// What became of requests of this connection under an earlier process.
    pub outcomes: Outcomes,
    /// Is told of each request.
    pub wakeful: Option<Arc<Wakeful>>,
    /// The syncs of all mounts on the same disk.
    pub disk_syncs: Arc<DiskSyncs>,
}

/// Serves one mounted VE.
pub(super) struct Dispatch {
    pub(super) volume: Arc<Volume>,
    pub(super) ve: VeName,
    pub(super) wants_passthrough: bool,
    pub(super) negotiated: Arc<Negotiated>,
    pub(super) shift: Option<IdShift>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) device: Arc<OwnedFd>,
    pub(super) overlays: Overlays,
    pub(super) writers: Writers,
    pub(super) notices: Arc<Notices>,
    pub(super) requests: Arc<Requests>,
    syncs: Syncs<ToSync>,
    pub(super) courtesy: Arc<Courtesy>,
    failures: Failures,
    connection: u64,
    outcomes: HashMap<u64, Option<Ino>>,
    places: Arc<Places>,
}

impl Dispatch {
    pub(super) fn new(parts: Parts) -> Self {
        Dispatch {
            volume: parts.volume,
            ve: parts.ve,
            wants_passthrough: parts.wants_passthrough,
            negotiated: Arc::default(),
            shift: parts.shift,
            connection: parts.ledger.connection(),
            ledger: Arc::new(parts.ledger),
            device: parts.device,
            overlays: Overlays::default(),
            writers: Writers::adopt(&parts.used),
            notices: Arc::default(),
            requests: Arc::new(Requests::new(parts.wakeful)),
            syncs: Syncs::default(),
            courtesy: Arc::new(Courtesy::new(parts.disk_syncs)),
            failures: Failures::default(),
            places: Arc::new(Places::after(&parts.outcomes)),
            outcomes: parts.outcomes.by_request,
        }
    }

    /// Carries out a request that must not be carried out twice. If an earlier process has done so, its result is found `again` from the inode
    /// that it made.
    pub(super) fn once<T>(
        &self,
        req: &Request,
        again: impl FnOnce(Option<Ino>) -> Result<T, VolumeError>,
        work: impl FnOnce() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let unique = device::unique(req);
        if let Some(made) = self.outcomes.get(&unique) {
            return again(*made);
        }
        let place = self.places.mine();
        let request = RequestId { connection: self.connection, unique, place };
        let done = meta::on_behalf_of(request, work);
        self.courtesy.changed(req.pid());
        done
    }

    /// The attributes of what an earlier process made for the same request.
    pub(super) fn made(&self, made: Option<Ino>) -> Result<Attr, VolumeError> {
        self.volume.attr(made.ok_or(VolumeError::NotFound)?)
    }

    /// What the program is told, and, if it is the host's failure, whoever reads the log. `node` is the file or the directory that was asked for.
    pub(super) fn failed(&self, operation: &'static str, node: INodeNo, error: &VolumeError) -> Errno {
        if matches!(error, VolumeError::Stale) {
            self.forget_relabelled(|| {});
        }
        let answer = answer(error);
        if let Answer::Host(code) = answer {
            self.requests.failed(code);
            self.tell(operation, ino(node).ok(), code, error);
        }
        Errno::from_i32(answer.code())
    }

    /// Logs a failure of the host's, unless that was done.
    pub(super) fn tell(
        &self,
        operation: &'static str,
        ino: Option<Ino>,
        errno: i32,
        error: &dyn std::fmt::Display,
    ) {
        // What the host has none of is missing for all files alike.
        let about = ino.filter(|_| errno == libc::EIO);
        let Some(suppressed) = self.failures.admit(errno, about, Instant::now()) else { return };
        // What fails may also be what says where it is.
        let path = ino.and_then(|ino| self.volume.path(ino).ok().flatten());
        let path = path.map_or_else(|| "(not known)".to_owned(), |path| format!("/{}", path.escape_ascii()));
        let ino = ino.map(Ino::get);
        error!(ve = %self.ve, operation, %path, ino, %error, errno, suppressed, "request failed because of the host");
    }

    /// Makes the kernel ask again for what relabels changed, and runs `then`.
    pub(super) fn forget_relabelled(&self, then: impl FnOnce() + Send + 'static) {
        let volume = Arc::clone(&self.volume);
        self.notices.forget_relabelled(move || volume.take_relabelled(), then);
    }

    /// The same for a request during which the kernel holds the lock of the file. Who removes the file's name at the same time holds the lock of the
    /// directory, which the notice wants, and waits for that of the file: so `then` runs after a while in any case.
    pub(super) fn forget_relabelled_under_lock(&self, then: impl FnOnce() + Send + 'static) {
        let (done, sent) = mpsc::channel::<()>();
        self.forget_relabelled(move || drop(done));
        let wait = move || {
            // It is an error either way: nothing is ever sent.
            let _ended = sent.recv_timeout(NOTICE_PATIENCE);
            then();
        };
        if let Err(error) = std::thread::Builder::new().name("stale".to_owned()).spawn(wait) {
            warn!(ve = %self.ve, %error, "a request for a file that became another one is not answered as it should");
        }
    }

    /// Attributes to tell the kernel, and how long it may keep them.
    pub(super) fn with_lifetime(&self, attr: Attr) -> (Attr, Duration) {
        match self.writers.state(attr.ino, || self.volume.is_written_by_kernel(attr.ino)) {
            Written::No => (attr, ENDLESS),
            Written::NoLonger => (self.volume.attr(attr.ino).unwrap_or(attr), ENDLESS),
            Written::Still => (attr, lifetime_of_written(&attr)),
        }
    }

    /// Answers a request that changed these names: where the kernel has another directory for one, after it was told of that.
    pub(super) fn answer_change(&self, names: &[(INodeNo, &OsStr)], answer: impl FnOnce() + Send + 'static) {
        let is_joined = |(dir, name): &&(INodeNo, &OsStr)| {
            ino(*dir).is_ok_and(|dir| self.volume.changed_in(dir, name.as_bytes()))
        };
        match names.iter().filter(is_joined).count() {
            0 => answer(),
            _ => {
                let kept = self.places.keep();
                self.forget_relabelled_under_lock(move || {
                    answer();
                    drop(kept);
                });
            }
        }
    }

    /// After the listing of a directory was answered.
    pub(super) fn listed(&self, dir: INodeNo) {
        if ino(dir).is_ok_and(|dir| self.volume.listed(dir)) {
            self.forget_relabelled(|| {});
        }
    }

    /// How long the kernel may keep what it is told of names in a directory, and of the directory.
    pub(super) fn names_lifetime(&self, dir: INodeNo) -> Duration {
        let is_joined = ino(dir).is_ok_and(|dir| self.volume.is_joined(dir));
        if is_joined { Duration::ZERO } else { ENDLESS }
    }

    /// The attributes of an inode, and how long the kernel may keep them.
    pub(super) fn attr_with_lifetime(&self, ino: Ino) -> Result<(Attr, Duration), VolumeError> {
        // Asked first, so that attributes that may be kept are younger than the last write.
        let written = self.writers.state(ino, || self.volume.is_written_by_kernel(ino));
        let attr = self.volume.attr(ino)?;
        let lifetime = if written == Written::Still { lifetime_of_written(&attr) } else { ENDLESS };
        Ok((attr, lifetime))
    }

    pub(super) fn reply_attr(
        &self,
        operation: &'static str,
        node: INodeNo,
        found: Result<Attr, VolumeError>,
        reply: ReplyAttr,
    ) {
        match found {
            Ok(attr) => {
                let (attr, lifetime) = self.with_lifetime(attr);
                reply.attr(&lifetime.min(self.names_lifetime(node)), &file_attr(&attr));
            }
            Err(error) => reply.error(self.failed(operation, node, &error)),
        }
    }

    pub(super) fn sharing(&self) -> Sharing {
        if self.negotiated.passthrough.load(Ordering::Acquire) {
            Sharing::Passthrough
        } else {
            Sharing::Served
        }
    }

    /// What a name in a directory leads to. `made` is that name if the request made it.
    pub(super) fn reply_entry(
        &self,
        operation: &'static str,
        dir: INodeNo,
        made: Option<&OsStr>,
        found: Result<Attr, VolumeError>,
        reply: ReplyEntry,
    ) {
        match found {
            Ok(attr) => {
                if let Err(error) = self.refer(attr.ino) {
                    return reply.error(error);
                }
                let (attr, lifetime) = self.with_lifetime(attr);
                let (attr, name_lifetime) = (file_attr(&attr), self.names_lifetime(dir));
                self.answer_change(made.map(|name| (dir, name)).as_slice(), move || {
                    reply.entry_with_ttls(&lifetime, &name_lifetime, &attr, GENERATION);
                });
            }
            Err(error) => reply.error(self.failed(operation, dir, &error)),
        }
    }

    /// Names that were removed or moved.
    pub(super) fn reply_changed(
        &self,
        operation: &'static str,
        names: &[(INodeNo, &OsStr)],
        done: Result<(), VolumeError>,
        reply: ReplyEmpty,
    ) {
        match done {
            Ok(()) => self.answer_change(names, move || reply.ok()),
            Err(error) => {
                let dir = names.first().map_or(INodeNo(0), |(dir, _)| *dir);
                reply.error(self.failed(operation, dir, &error));
            }
        }
    }

    pub(super) fn reply_empty(
        &self,
        operation: &'static str,
        node: INodeNo,
        done: Result<(), VolumeError>,
        reply: ReplyEmpty,
    ) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.failed(operation, node, &error)),
        }
    }

    /// Ends a sync, or leaves that to the thread that ends others already, and replies.
    pub(super) fn sync(
        &self,
        operation: &'static str,
        node: INodeNo,
        begun: Result<BegunSync, VolumeError>,
        reply: ReplyEmpty,
    ) {
        let end = |ToSync { operation, node, begun, reply }: ToSync| {
            self.reply_empty(operation, node, self.volume.end_sync(begun), reply);
        };
        match begun {
            Err(error) => self.reply_empty(operation, node, Err(error), reply),
            Ok(begun) => {
                let is_large = begun.bytes() > LARGE_BYTES;
                let to_sync = ToSync { operation, node, begun, reply };
                let end_all = |all: Vec<ToSync>| self.courtesy.sync(|| all.into_iter().for_each(end));
                self.syncs.join(to_sync, is_large, end_all);
            }
        }
    }

    /// Counts the reference that a reply is about to give to the kernel.
    pub(super) fn refer(&self, ino: Ino) -> Result<(), Errno> {
        self.ledger.refer(ino).map_err(|error| {
            warn!(ve = %self.ve, %ino, %error, "cannot count a reference of the kernel");
            Errno::ENOMEM
        })
    }

    /// What a name leads to, for who asks.
    pub(super) fn find(&self, thread: u32, dir: Ino, name: &OsStr) -> Result<Attr, VolumeError> {
        let name = name_of(name)?;
        let found = self.volume.lookup(dir, name);
        let now = found.as_ref().ok().map(|attr| attr.ino);
        let kept = self.overlays.kept(dir, name, now, || Asking::of(thread));
        kept.and_then(|ino| self.volume.attr(ino).ok()).map_or(found, Ok)
    }

    /// Runs what removes a name, and remembers the name if an overlayfs may still ask for what had it.
    pub(super) fn removing(
        &self,
        thread: u32,
        (dir, name): (Ino, NameRef<'_>),
        remove: impl FnOnce() -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let old = self.volume.linked_file(dir, name)?;
        remove()?;
        if let Some(old) = old
            && Asking::of(thread) != Asking::Other
        {
            self.overlays.removed(dir, name, old);
        }
        Ok(())
    }

    pub(super) fn create_node(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: NewNode<'_>,
    ) -> Result<Attr, VolumeError> {
        let create = || self.volume.create(ino(parent)?, name_of(name)?, new, caller(req));
        self.once(req, |made| self.made(made), create)
    }

    /// What the process behind a request may keep.
    pub(super) fn rights(&self, req: &Request) -> Process {
        Process::new(req.pid(), (req.uid(), req.gid()), self.shift)
    }

    pub(super) fn forget_inode(&self, ino: Ino) {
        self.close_backing(self.ledger.take_registered(ino));
        self.writers.forget(ino);
        self.overlays.forget(ino);
        if let Err(error) = self.volume.forget_soon(ino) {
            // The next start of the VE tries again.
            warn!(ve = %self.ve, %ino, %error, "a removed file could not be freed");
        }
    }
}

/// How long the kernel may keep the attributes of a file that it may be writing to.
fn lifetime_of_written(attr: &Attr) -> Duration {
    let rests = attr.ctime.elapsed().is_some_and(|since| since >= REST);
    if rests { KEPT_AT_REST } else { Duration::ZERO }
}
