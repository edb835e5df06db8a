//! The daemon's side.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Channel, Holding, Order, Report};
use crate::fuse::Kept;
use crate::types::VeId;

/// The daemon's link to its supervisor.
#[derive(Debug)]
pub struct Link {
    channel: Channel,
    held: Mutex<HashMap<VeId, (PathBuf, Kept)>>,
    restarts: u64,
    notifies: bool,
    outlived: bool,
    /// Who waits for notices to be written, by number.
    notified: Mutex<HashMap<u64, mpsc::Sender<()>>>,
    next_number: AtomicU64,
}

/// What the daemon does when its supervisor says so.
pub struct Orders<L, R, E> {
    /// Leave everything mounted and end.
    pub leave: L,
    /// There will be no successor.
    pub refused: R,
    /// The supervisor is gone: end. The mounts stay if the argument says so.
    pub end: E,
}

impl Link {
    /// Takes up the link on the socket that the supervisor left as standard input, and receives the mounts that the last daemon left.
    ///
    /// # Errors
    /// Standard input is no such socket, or the supervisor is gone.
    pub fn take_up(channel: Channel) -> io::Result<Arc<Link>> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the supervisor is gone");
        let mut held = HashMap::new();
        loop {
            match channel.receive()?.ok_or_else(gone)? {
                (Order::Held(holding), descriptors) => {
                    let [device, ledger] = <[_; 2]>::try_from(descriptors)
                        .map_err(|_| io::Error::other("a held mount comes with two descriptors"))?;
                    let kept = Kept { device, ledger, agreed: holding.agreed };
                    held.insert(holding.ve, (holding.mountpoint, kept));
                }
                (Order::AllHeld { restarts, notifies, outlived }, _) => {
                    return Ok(Arc::new(Link {
                        channel,
                        held: Mutex::new(held),
                        restarts,
                        notifies,
                        outlived,
                        notified: Mutex::default(),
                        next_number: AtomicU64::new(0),
                    }));
                }
                (order, _) => return Err(io::Error::other(format!("unexpected order {order:?}"))),
            }
        }
    }

    /// How many daemons there were before this one under the same supervisor.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The mount of a VE that the last daemon left at this place.
    pub fn take_held(&self, ve: VeId, mountpoint: &Path) -> Option<Kept> {
        let mut held = self.held.lock();
        match held.remove(&ve) {
            Some((place, kept)) if place == mountpoint => Some(kept),
            Some(other) => {
                held.insert(ve, other);
                None
            }
            None => None,
        }
    }

    /// What the last daemon left and nobody has taken: its places. The connections end with this call.
    pub fn discard_held(&self) -> Vec<(VeId, PathBuf)> {
        let left = std::mem::take(&mut *self.held.lock());
        left.into_iter().map(|(ve, (place, _))| (ve, place)).collect()
    }

    /// Whether the supervisor is gone and the mounts are to stay: asked before its end has come through [`Orders`].
    pub fn is_outlived(&self) -> bool {
        let mut polled = [PollFd::new(&self.channel, PollFlags::empty())];
        let told = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&Timespec::default())));
        self.outlived && told.is_ok() && polled[0].revents().contains(PollFlags::HUP)
    }

    /// Has the supervisor keep a mount. If the mount is to outlive the supervisor, it does so when this returns.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn keep(&self, ve: VeId, mountpoint: &Path, kept: &Kept) -> io::Result<()> {
        let holding = Holding { ve, mountpoint: mountpoint.to_owned(), agreed: kept.agreed.clone() };
        self.channel.send(&Report::Keep(holding), &[kept.device.as_fd(), kept.ledger.as_fd()])?;
        // Reports are obeyed in order, so the answer to one that asks for nothing tells that the one before was.
        if self.outlived { self.ask_to_notify(ve, &[]) } else { Ok(()) }
    }

    /// Whether the supervisor writes notices: one of an older version does not.
    pub fn notifies(&self) -> bool {
        self.notifies
    }

    /// Has the supervisor write notices to a VE's connection; returns when they are written, or nobody will.
    pub fn notify(&self, ve: VeId, notices: &[u8]) {
        // When the supervisor is gone, the mounts end, or the next daemon has the kernel ask again for everything.
        if let Err(error) = self.ask_to_notify(ve, notices) {
            tracing::warn!(%ve, %error, "the kernel is not told of changed names");
        }
    }

    fn ask_to_notify(&self, ve: VeId, notices: &[u8]) -> io::Result<()> {
        let sheet = sheet(notices)?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (sender, written) = mpsc::channel();
        self.notified.lock().insert(number, sender);
        if let Err(error) = self.channel.send(&Report::Notify { ve, number }, &[sheet.as_fd()]) {
            self.notified.lock().remove(&number);
            return Err(error);
        }
        written.recv().map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the supervisor is gone"))
    }

    /// Tells the supervisor something without descriptors.
    pub fn report(&self, report: &Report) {
        if let Err(error) = self.channel.send(report, &[]) {
            tracing::warn!(%error, ?report, "the supervisor was not told");
        }
    }

    /// Follows orders from now on, in a thread of its own.
    pub fn follow<L, R, E>(self: &Arc<Link>, orders: Orders<L, R, E>) -> io::Result<()>
    where
        L: Fn() + Send + 'static,
        R: Fn(String) + Send + 'static,
        E: FnOnce(bool) + Send + 'static,
    {
        let link = Arc::clone(self);
        std::thread::Builder::new().name("supervised".to_owned()).spawn(move || {
            loop {
                match link.channel.receive() {
                    Ok(Some((Order::Notified(number), _))) => {
                        if let Some(waiting) = link.notified.lock().remove(&number) {
                            // It waits until this comes.
                            let _ = waiting.send(());
                        }
                    }
                    Ok(Some((Order::Leave, _))) => (orders.leave)(),
                    Ok(Some((Order::Refused(why), _))) => (orders.refused)(why),
                    Ok(Some((order, _))) => tracing::warn!(?order, "an order at the wrong time"),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "the link to the supervisor failed");
                        break;
                    }
                }
            }
            link.notified.lock().clear();
            (orders.end)(link.outlived);
        })?;
        Ok(())
    }
}

/// A file in memory, as a message has room for few names.
fn sheet(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(c"notices", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}
