//! What the kernel holds of a mount: references to inodes, open files and their backing ids, in memory that outlives the process.
//!
//! The kernel's side of a connection survives the daemon when somebody else holds the `/dev/fuse` descriptor; this is the daemon's side of it. It
//! lives in a memfd whose descriptor the supervisor holds too. A new daemon [`adopts`](Ledger::adopt) it and goes on where the old one was
//! killed.
//!
//! # Layout (64-bit words)
//! | words | what |
//! |---|---|
//! | 0 | magic and version |
//! | 1 | the connection's random number |
//! | 2 | where the table begins, in pages (upper half), and log2 of its slots (lower half) |
//! | 3 | the ring's next place |
//! | 4..8 | the pending change: state, inode, handles, backing |
//! | 8 | the request of the pending change |
//! | 16.. | the ring: the last requests that changed handles |
//!
//! The table is an open-addressing hash table of four words a slot: inode, references, handles (readers; writers, and in the upper bit whether there
//! were any), backing (served handles, backing id). A slot keeps its inode until the table is made anew, twice as large as needed, at another
//! place of the file.
//!
//! # Invariants
//! - L1: each word is changed by one store, in an order that makes every prefix valid: a killed process leaves a ledger that can be adopted.
//! - L2: a change of handles happens once for a request, however often the kernel sends it: the ring tells.
//! - L3: references may be counted too high after a crash (a look-up is sent again), never too low. An orphan may therefore stay until
//!   the mount ends.
//! - L4: a backing id in the table is registered with the kernel. One that is registered and not in the table is lost until the mount ends; a crash
//!   at the wrong moment costs that.
//! - L5: a backing id without users is that of a blob, which is the inode's content or was; a process that takes the ledger over closes it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags};

use super::registered::Registered;
use crate::sys::SharedWords;
use crate::types::{Digest, Ino};

/// "vzledg" and the layout's version.
const MAGIC: u64 = 0x767a_6c65_6467_0002;
/// The version that did not tell whether an inode had writers.
const MAGIC_1: u64 = 0x767a_6c65_6467_0001;
/// In the lower half of a slot's handles.
const WRITTEN: u32 = 1 << 31;
const PAGE_BYTES: u64 = 4096;
/// Words of the header: one page.
const HEADER_WORDS: usize = 512;
const CONNECTION: usize = 1;
const PLACE: usize = 2;
const RING_NEXT: usize = 3;
const PENDING: usize = 4;
const PENDING_INO: usize = 5;
const PENDING_HANDLES: usize = 6;
const PENDING_BACKING: usize = 7;
const PENDING_REQUEST: usize = 8;
const RING: usize = 16;
/// Far more than the requests that can be under way at once. One could be forgotten only if it stayed unanswered through two crashes while
/// so many others were answered.
const RING_WORDS: usize = 256;
/// Words of a slot, in the order of [`Slot`].
const SLOT_WORDS: usize = 4;
const MIN_SLOTS_LOG2: u32 = 7;

/// How a file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handle {
    /// In passthrough mode, for reading.
    Reader,
    /// In passthrough mode, for writing too.
    Writer,
    /// The daemon moves its bytes.
    Served,
}

/// The open files of one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Handles {
    /// In passthrough mode, for reading.
    pub readers: u32,
    /// In passthrough mode, for writing too.
    pub writers: u32,
    /// Whether there were any of those since the kernel knows the inode: it may be mapped for writing still.
    pub written: bool,
    /// Those whose bytes the daemon moves.
    pub served: u32,
    /// The kernel's backing id. Never 0 while there are readers or writers; without them only while a blob stays registered (L5).
    pub backing: u32,
}

impl Handles {
    fn from_words(handles: u64, backing: u64) -> Handles {
        // Halves of words.
        let (high, low) = (|word: u64| (word >> 32) as u32, |word: u64| word as u32);
        Handles {
            readers: high(handles),
            writers: low(handles) & !WRITTEN,
            written: low(handles) & WRITTEN != 0,
            served: high(backing),
            backing: low(backing),
        }
    }

    fn words(self) -> (u64, u64) {
        let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let written = if self.written { WRITTEN } else { 0 };
        (join(self.readers, self.writers | written), join(self.served, self.backing))
    }

    /// Handles that the kernel serves.
    pub(super) fn passthrough(self) -> u32 {
        self.readers + self.writers
    }

    /// Whether the file is open.
    pub(super) fn is_open(self) -> bool {
        self.passthrough() > 0 || self.served > 0
    }

    fn count(&mut self, handle: Handle) -> &mut u32 {
        match handle {
            Handle::Reader => &mut self.readers,
            Handle::Writer => &mut self.writers,
            Handle::Served => &mut self.served,
        }
    }
}

/// A handle that was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// The backing id for the kernel, or 0 for a handle that the daemon serves.
    pub backing: u32,
    /// A backing id that is no longer in the ledger, and to be closed.
    pub unused: Option<u32>,
}

struct State {
    header: SharedWords,
    table: SharedWords,
    /// Slots that have an inode.
    used: usize,
    /// Requests that an earlier process has carried out.
    before: HashSet<u64>,
    /// The blobs that the backing ids in the table stand for, as far as this process has registered them.
    registered: Registered,
}

/// One mount's ledger.
pub(super) struct Ledger {
    memory: File,
    state: Mutex<State>,
}

impl Ledger {
    /// A ledger for a new connection.
    ///
    /// # Errors
    /// No memory, no descriptors.
    pub(super) fn new(connection: u64) -> io::Result<Ledger> {
        let memory = File::from(rustix::fs::memfd_create("vzfs-ledger", MemfdFlags::CLOEXEC)?);
        let header = SharedWords::map(&memory, 0, HEADER_WORDS)?;
        let table = new_table(&memory, 1, MIN_SLOTS_LOG2)?;
        let words = header.words();
        words[CONNECTION].store(connection, Ordering::Release);
        words[PLACE].store(place(1, MIN_SLOTS_LOG2), Ordering::Release);
        words[0].store(MAGIC, Ordering::Release);
        let state =
            State { header, table, used: 0, before: HashSet::new(), registered: Registered::default() };
        Ok(Ledger { memory, state: Mutex::new(state) })
    }

    /// Goes on with the ledger of a process that is no more.
    ///
    /// # Errors
    /// It is not a ledger of this version, or cannot be mapped.
    pub(super) fn adopt(memory: File) -> io::Result<Ledger> {
        let damaged = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let header = SharedWords::map(&memory, 0, HEADER_WORDS)?;
        let words = header.words();
        let version = words[0].load(Ordering::Acquire);
        if ![MAGIC, MAGIC_1].contains(&version) {
            return Err(damaged("it is no ledger of this version"));
        }
        let (page, log2) = placed(words[PLACE].load(Ordering::Acquire));
        if page == 0 || !(MIN_SLOTS_LOG2..=40).contains(&log2) {
            return Err(damaged("its table has no place"));
        }
        let table = SharedWords::map(&memory, page * PAGE_BYTES, SLOT_WORDS << log2)?;
        let ring = words[RING..RING + RING_WORDS].iter().map(|word| word.load(Ordering::Acquire));
        let mut before: HashSet<u64> = ring.collect();
        before.remove(&0);
        let used = slots(table.words()).filter(|slot| slot.ino() != 0).count();
        let mut state = State { header, table, used, before, registered: Registered::default() };
        let request = state.finish_pending();
        state.before.extend(request);
        if version == MAGIC_1 {
            slots(state.table.words()).for_each(|slot| slot.set_written());
            state.header.words()[0].store(MAGIC, Ordering::Release);
        }
        Ok(Ledger { memory, state: Mutex::new(state) })
    }

    /// The memory, to be kept by the supervisor.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// The connection's number.
    pub(super) fn connection(&self) -> u64 {
        self.state.lock().header.words()[CONNECTION].load(Ordering::Acquire)
    }

    /// The kernel gets a reference with a reply that carries the inode.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn refer(&self, ino: Ino) -> io::Result<()> {
        let mut state = self.state.lock();
        let slot = state.slot(&self.memory, ino)?;
        slot.references().store(slot.references().load(Ordering::Acquire) + 1, Ordering::Release);
        Ok(())
    }

    /// The kernel gives back `count` references. Whether those were all.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> bool {
        let state = self.state.lock();
        let Some(slot) = find(state.table.words(), ino) else { return true };
        let left = slot.references().load(Ordering::Acquire).saturating_sub(count);
        slot.references().store(left, Ordering::Release);
        left == 0
    }

    /// Whether the kernel knows the inode.
    pub(super) fn knows(&self, ino: Ino) -> bool {
        let state = self.state.lock();
        find(state.table.words(), ino).is_some_and(|slot| slot.is_known())
    }

    /// The open files of an inode.
    #[cfg(test)]
    fn handles(&self, ino: Ino) -> Handles {
        let state = self.state.lock();
        find(state.table.words(), ino).map(|slot| slot.handles()).unwrap_or_default()
    }

    /// All inodes with open files, or whose files the kernel may be writing to.
    pub(super) fn inodes_in_use(&self) -> Vec<(Ino, Handles)> {
        let state = self.state.lock();
        let used = slots(state.table.words()).filter(|slot| slot.is_known() && slot.is_in_use());
        used.filter_map(|slot| Some((Ino::new(slot.ino())?, slot.handles()))).collect()
    }

    /// All inodes that the kernel knows.
    pub(super) fn known_inodes(&self) -> Vec<Ino> {
        let state = self.state.lock();
        slots(state.table.words()).filter(Slot::is_known).filter_map(|slot| Ino::new(slot.ino())).collect()
    }

    /// Whether an earlier process has carried out this request, as far as handles go.
    pub(super) fn carried_out(&self, request: u64) -> bool {
        self.state.lock().before.contains(&request)
    }

    /// The blob that is registered for an inode.
    pub(super) fn registered(&self, ino: Ino) -> Option<Digest> {
        self.state.lock().registered.blob(ino)
    }

    /// Counts a handle on a file whose content is `blob`, or private data. The inode's first in passthrough mode registers its backing file with
    /// `register`, if it is not registered since before.
    ///
    /// # Errors
    /// What `register` says; no memory.
    pub(super) fn open(
        &self,
        request: u64,
        ino: Ino,
        (handle, blob): (Handle, Option<Digest>),
        register: impl FnOnce() -> io::Result<u32>,
    ) -> io::Result<Counted> {
        let mut state = self.state.lock();
        let mut handles = state.slot(&self.memory, ino)?.handles();
        if state.before.contains(&request) {
            return Ok(Counted { backing: handles.backing, unused: None });
        }
        let mut unused = None;
        if handle != Handle::Served {
            let is_registered = handles.backing != 0 && state.registered.blob(ino) == blob && blob.is_some();
            if handles.passthrough() == 0 && !is_registered {
                let backing = register()?;
                unused = Some(std::mem::replace(&mut handles.backing, backing)).filter(|id| *id != 0);
                state.registered.forget(ino);
            }
            if let Some(blob) = blob {
                state.registered.open(ino, blob);
            }
        }
        *handles.count(handle) += 1;
        handles.written |= handle == Handle::Writer;
        state.change(request, ino, handles);
        let backing = if handle == Handle::Served { 0 } else { handles.backing };
        Ok(Counted { backing, unused })
    }

    /// Takes a handle off the count. Returns whether it was counted now (and not when the request came before), and a backing id that is no longer in the
    /// ledger and to be closed: the inode's, when it was the last one's, or that of a blob that was kept for long enough.
    pub(super) fn close(&self, request: u64, ino: Ino, handle: Handle) -> (bool, Option<u32>) {
        let mut state = self.state.lock();
        if state.before.contains(&request) {
            return (false, None);
        }
        let Some(mut handles) = find(state.table.words(), ino).map(|slot| slot.handles()) else {
            return (false, None);
        };
        let count = handles.count(handle);
        if *count == 0 {
            return (false, None);
        }
        *count -= 1;
        let mut unused = None;
        let is_last = handles.passthrough() == 0 && handles.backing != 0;
        if is_last && !state.registered.keep(ino) {
            unused = Some(std::mem::take(&mut handles.backing));
        }
        state.change(request, ino, handles);
        (true, unused.or_else(|| state.take_one_too_many()))
    }

    /// The kernel has forgotten an inode. Returns its backing id, if a blob stayed registered for it: it is no longer in the ledger and to be closed.
    pub(super) fn take_registered(&self, ino: Ino) -> Option<u32> {
        let mut state = self.state.lock();
        state.registered.forget(ino);
        state.take_unused(ino)
    }

    /// All backing ids without users: they are no longer in the ledger, and to be closed.
    pub(super) fn take_all_unused(&self) -> Vec<u32> {
        let mut state = self.state.lock();
        let State { registered, table, .. } = &mut *state;
        registered.forget_idle(|ino| is_served_by_kernel(table.words(), ino));
        slots(table.words()).filter_map(|slot| slot.take_unused()).collect()
    }
}

impl State {
    /// The slot of an inode, made when it is missing.
    fn slot(&mut self, memory: &File, ino: Ino) -> io::Result<Slot<'_>> {
        if find(self.table.words(), ino).is_none() {
            let slots = self.table.words().len() / SLOT_WORDS;
            if (self.used + 1) * 4 > slots * 3 {
                self.rebuild(memory)?;
            }
            insert(self.table.words(), ino.get());
            self.used += 1;
        }
        find(self.table.words(), ino).ok_or_else(|| io::Error::other("the ledger lost an inode"))
    }

    /// Writes the table anew behind the old one, without what is no longer in use, and then gives the old one's memory back.
    fn rebuild(&mut self, memory: &File) -> io::Result<()> {
        let live = || {
            let words = self.table.words();
            slots(words).filter(Slot::is_known)
        };
        let count = live().count();
        let log2 = ((count + 1) * 2).next_power_of_two().trailing_zeros().max(MIN_SLOTS_LOG2);
        let (old_page, _) = placed(self.header.words()[PLACE].load(Ordering::Acquire));
        let old_bytes = std::mem::size_of_val(self.table.words()) as u64;
        let page = old_page + old_bytes.div_ceil(PAGE_BYTES);
        let table = new_table(memory, page, log2)?;
        for slot in live() {
            insert(table.words(), slot.ino());
            let Some(ino) = Ino::new(slot.ino()) else { continue };
            if let Some(copy) = find(table.words(), ino) {
                for (to, from) in copy.words.iter().zip(slot.words).skip(1) {
                    to.store(from.load(Ordering::Acquire), Ordering::Release);
                }
            }
        }
        self.header.words()[PLACE].store(place(page, log2), Ordering::Release);
        (self.table, self.used) = (table, count);
        // Memory that is not given back is the only harm.
        let _ = give_back(memory, old_page, old_bytes);
        Ok(())
    }

    /// Takes the backing id of an inode that has it without users.
    fn take_unused(&self, ino: Ino) -> Option<u32> {
        find(self.table.words(), ino)?.take_unused()
    }

    /// Takes a backing id that need not be kept any longer.
    fn take_one_too_many(&mut self) -> Option<u32> {
        let table = self.table.words();
        let ino = self.registered.too_many(|ino| is_served_by_kernel(table, ino))?;
        self.take_unused(ino)
    }

    /// Changes an inode's handles, so that a process that dies in the middle leaves either nothing or what [`State::finish_pending`] completes.
    fn change(&mut self, request: u64, ino: Ino, handles: Handles) {
        let words = self.header.words();
        let (counts, backing) = handles.words();
        words[PENDING_INO].store(ino.get(), Ordering::Release);
        words[PENDING_HANDLES].store(counts, Ordering::Release);
        words[PENDING_BACKING].store(backing, Ordering::Release);
        words[PENDING_REQUEST].store(request, Ordering::Release);
        words[PENDING].store(1, Ordering::Release);
        self.finish_pending();
    }

    /// Carries out the pending change, again if need be. Returns its request.
    fn finish_pending(&mut self) -> Option<u64> {
        let words = self.header.words();
        if words[PENDING].load(Ordering::Acquire) == 0 {
            return None;
        }
        let request = words[PENDING_REQUEST].load(Ordering::Acquire);
        let slot = Ino::new(words[PENDING_INO].load(Ordering::Acquire))
            .and_then(|ino| find(self.table.words(), ino));
        if let Some(slot) = slot {
            slot.words[2].store(words[PENDING_HANDLES].load(Ordering::Acquire), Ordering::Release);
            slot.words[3].store(words[PENDING_BACKING].load(Ordering::Acquire), Ordering::Release);
        }
        let next = words[RING_NEXT].load(Ordering::Acquire);
        // The remainder is an index.
        words[RING + (next % RING_WORDS as u64) as usize].store(request, Ordering::Release);
        words[RING_NEXT].store(next.wrapping_add(1), Ordering::Release);
        words[PENDING].store(0, Ordering::Release);
        Some(request)
    }
}

/// Four words of the table.
struct Slot<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Slot<'a> {
    fn ino(&self) -> u64 {
        self.words[0].load(Ordering::Acquire)
    }

    fn references(&self) -> &'a AtomicU64 {
        &self.words[1]
    }

    fn handles(&self) -> Handles {
        Handles::from_words(self.words[2].load(Ordering::Acquire), self.words[3].load(Ordering::Acquire))
    }

    /// Takes the backing id, if it has no users.
    fn take_unused(&self) -> Option<u32> {
        let handles = self.handles();
        if handles.passthrough() > 0 || handles.backing == 0 {
            return None;
        }
        // One store: the rest of the word stays (L1).
        let (_, word) = Handles { backing: 0, ..handles }.words();
        self.words[3].store(word, Ordering::Release);
        Some(handles.backing)
    }

    fn is_known(&self) -> bool {
        self.references().load(Ordering::Acquire) > 0 || self.is_open()
    }

    fn is_open(&self) -> bool {
        self.handles().is_open()
    }

    fn is_in_use(&self) -> bool {
        let handles = self.handles();
        handles.is_open() || handles.written
    }

    /// As if there had been writers.
    fn set_written(&self) {
        let (word, _) = Handles { written: true, ..self.handles() }.words();
        self.words[2].store(word, Ordering::Release);
    }
}

fn slots(table: &[AtomicU64]) -> impl Iterator<Item = Slot<'_>> {
    table.chunks_exact(SLOT_WORDS).map(|words| Slot { words })
}

/// The slots in the order in which an inode is looked for.
fn probe(table: &[AtomicU64], ino: u64) -> impl Iterator<Item = Slot<'_>> {
    let count = table.len() / SLOT_WORDS;
    // Fibonacci hashing: base inode numbers are hashes already, private ones count up. The remainder is an index.
    let start = (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize % count;
    (0..count).map(move |step| {
        let index = (start + step) % count * SLOT_WORDS;
        Slot { words: &table[index..index + SLOT_WORDS] }
    })
}

fn find(table: &[AtomicU64], ino: Ino) -> Option<Slot<'_>> {
    probe(table, ino.get()).take_while(|slot| slot.ino() != 0).find(|slot| slot.ino() == ino.get())
}

/// Whether somebody has an inode open in passthrough mode.
fn is_served_by_kernel(table: &[AtomicU64], ino: Ino) -> bool {
    find(table, ino).is_some_and(|slot| slot.handles().passthrough() > 0)
}

/// Takes a free slot, of which there is one as the table is never full; its other words are 0.
fn insert(table: &[AtomicU64], ino: u64) {
    if let Some(slot) = probe(table, ino).find(|slot| slot.ino() == 0) {
        slot.words[0].store(ino, Ordering::Release);
    }
}

/// An empty table. A process that died while it wrote one may have left words there.
fn new_table(memory: &File, page: u64, log2: u32) -> io::Result<SharedWords> {
    let words = SLOT_WORDS << log2;
    give_back(memory, page, (words * size_of::<u64>()) as u64)?;
    SharedWords::map(memory, page * PAGE_BYTES, words)
}

fn give_back(memory: &File, page: u64, bytes: u64) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(memory, punch, page * PAGE_BYTES, bytes)?)
}

fn place(page: u64, log2: u32) -> u64 {
    page << 32 | u64::from(log2)
}

fn placed(word: u64) -> (u64, u32) {
    // The lower half.
    (word >> 32, word as u32)
}

#[cfg(test)]
mod tests;
