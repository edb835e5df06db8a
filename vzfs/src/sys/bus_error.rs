//! Pages of mapped files that cannot be read, and the signal that tells of them.
//!
//! A read error of the disk under a mapping, or a file that was cut off, is a SIGBUS for the thread that touches the page. For the ranges that are
//! registered here it does not end the process: the handler notes the page as a *hole*, puts a page of zeros in its place, and lets the thread go on.
//! What the thread makes of the zeros is thrown away by who asked ([`super::Reads`]).
//!
//! Any other SIGBUS is what it was before: the action that was there is put back, and the access is made again.
//!
//! A hole is noted before its zeros are mapped, and stays noted until the file's page is back. So whoever sees zeros can see that they are not the
//! file's.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use super::reads;

/// What the kernel maps at once, on x86-64.
pub(super) const PAGE_BYTES: usize = 4096;

/// Most ranges at a time. A store has one for each base in use.
const SLOTS: usize = 4096;

/// Bit of a page's state: it is a hole. The other bits count how often it became one, so that who takes a hole away notices a new one.
const HOLE: u32 = 1;

/// A registered range. The handler reads it without a lock: `version` is odd while the range is being changed, and another one afterwards.
pub(super) struct Slot {
    version: AtomicU32,
    start: AtomicUsize,
    bytes: AtomicUsize,
    /// One state for each page; as long as `bytes` says.
    pages: AtomicPtr<AtomicU32>,
    /// How many pages are holes.
    holes: AtomicUsize,
    /// How many threads are between the note of a hole and its zeros.
    losing: AtomicUsize,
    /// The last change of pages in this range, by the number that [`CHANGES`] had then.
    changed: AtomicU64,
}

static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];
/// How far the handler must look.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Slots below `USED` that are free again. Not for the handler.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// How often pages were exchanged, in all ranges.
static CHANGES: AtomicU64 = AtomicU64::new(0);
/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALL: Once = Once::new();

impl Slot {
    const fn free() -> Slot {
        Slot {
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            pages: AtomicPtr::new(ptr::null_mut()),
            holes: AtomicUsize::new(0),
            losing: AtomicUsize::new(0),
            changed: AtomicU64::new(0),
        }
    }

    /// Writes the range, so that the handler sees it whole or not at all.
    fn set(&self, start: usize, bytes: usize, pages: *mut AtomicU32) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.pages.store(pages, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The range and the states of its pages, if it has this address.
    fn holding(&self, address: usize) -> Option<(usize, *mut AtomicU32)> {
        let version = self.version.load(Ordering::Acquire);
        let (start, bytes) = (self.start.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let pages = self.pages.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && version == self.version.load(Ordering::Relaxed);
        // Starts are multiples of a page, and the last page belongs to the range wholly.
        (is_whole && bytes > 0 && (start..start + bytes.next_multiple_of(PAGE_BYTES)).contains(&address))
            .then_some((start, pages))
    }

    /// Whether there are holes. All that reading costs while there are none.
    pub(super) fn has_holes(&self) -> bool {
        self.holes.load(Ordering::Relaxed) > 0
    }

    /// Puts zeros in the place of a page, which begins at this address. `false` when there is no memory for that.
    pub(super) fn lose(&self, page: &AtomicU32, address: usize) -> bool {
        self.losing.fetch_add(1, Ordering::SeqCst);
        self.note_hole(page);
        let lost = map_zeros(address, PAGE_BYTES);
        self.losing.fetch_sub(1, Ordering::SeqCst);
        lost
    }

    /// The state of a page, to put it back from; `None` while a thread may be about to put zeros there.
    pub(super) fn seen(&self, page: &AtomicU32) -> Option<u32> {
        // In this order: who notes a hole later changes the state, and then it is not cleared.
        let seen = page.load(Ordering::SeqCst);
        (self.losing.load(Ordering::SeqCst) == 0).then_some(seen)
    }

    /// Notes that a page is a hole.
    fn note_hole(&self, page: &AtomicU32) {
        let add = |state: u32| Some((state | HOLE).wrapping_add(HOLE << 1));
        // The closure never refuses.
        let before = page.fetch_update(Ordering::SeqCst, Ordering::Relaxed, add).unwrap_or(HOLE);
        if before & HOLE == 0 {
            self.holes.fetch_add(1, Ordering::AcqRel);
        }
        self.note_change();
    }

    /// Takes the note of a hole away, unless it became one again since its state was `seen`.
    pub(super) fn clear_hole(&self, page: &AtomicU32, seen: u32) {
        let cleared = page.compare_exchange(seen, seen & !HOLE, Ordering::AcqRel, Ordering::Relaxed);
        if cleared.is_ok() && seen & HOLE != 0 {
            self.holes.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Notes that pages are about to be exchanged: what is being read of the range now may be of before and of afterwards.
    pub(super) fn note_change(&self) {
        let change = CHANGES.fetch_add(1, Ordering::AcqRel) + 1;
        self.changed.fetch_max(change, Ordering::AcqRel);
    }
}

/// Whether a page's state says that it is a hole.
pub(super) fn is_hole(state: u32) -> bool {
    state & HOLE != 0
}

/// How often pages were exchanged so far.
pub(super) fn changes() -> u64 {
    CHANGES.load(Ordering::Acquire)
}

/// Whether pages of a range with one of these bits were exchanged since.
pub(super) fn changed_since(changes: u64, bits: u64) -> bool {
    fence(Ordering::Acquire);
    if CHANGES.load(Ordering::Relaxed) == changes {
        return false;
    }
    let used = USED.load(Ordering::Acquire).min(SLOTS);
    let mut slots = TABLE[..used].iter().enumerate();
    slots.any(|(at, slot)| bits & bit(at) != 0 && slot.changed.load(Ordering::Acquire) > changes)
}

/// The bit that stands for a slot in a set of some. Several slots have one: they may be taken for each other, which costs one of them an answer.
fn bit(slot: usize) -> u64 {
    1 << (slot % 64)
}

/// A place in the table.
pub(super) struct Registered {
    at: usize,
}

impl Registered {
    /// Registers the range of a mapping. The states of its pages, one each, must stay where they are until the place is dropped, which must be before the
    /// range is unmapped.
    ///
    /// # Errors
    /// `ENOMEM`: there are 4096 already.
    pub(super) fn new(start: usize, bytes: usize, pages: &[AtomicU32]) -> io::Result<Registered> {
        INSTALL.call_once(install);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match free.pop() {
            Some(at) => at,
            None if USED.load(Ordering::Relaxed) < SLOTS => USED.fetch_add(1, Ordering::AcqRel),
            None => return Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        };
        TABLE[at].holes.store(0, Ordering::Relaxed);
        TABLE[at].set(start, bytes, pages.as_ptr().cast_mut());
        Ok(Registered { at })
    }

    pub(super) fn slot(&self) -> &'static Slot {
        &TABLE[self.at]
    }

    pub(super) fn bit(&self) -> u64 {
        bit(self.at)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        TABLE[self.at].set(0, 0, ptr::null_mut());
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.at);
    }
}

/// Puts zeros in the place of whole pages of a mapping.
fn map_zeros(start: usize, bytes: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the caller names pages of a mapping of this module's, which nobody writes to and which stays a mapping of the same length.
    let mapped = unsafe { libc::mmap(start as *mut libc::c_void, bytes, libc::PROT_READ, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

fn install() {
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with a null action sigaction(2) only writes the one that is there.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) } == 0 {
        // SAFETY: the call has succeeded, so it has written it.
        let _first = BEFORE.set(unsafe { before.assume_init() });
    }
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: all-zero bytes are a valid `sigaction`: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the action is whole, and its handler calls nothing that a signal handler may not.
    let _installed = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
}

/// Only atomics, mmap(2), sigaction(2), signal(2) and raise(3) from here on: nothing that takes a lock or memory.
extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`; for SIGBUS of its own it holds an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // SAFETY: this thread's errno; what was interrupted must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    let is_of_an_access = code > 0;
    if !is_of_an_access {
        // Somebody has sent it. It does not come again by itself, and what was there before may take it for one of an access.
        // SAFETY: the default action, and this thread is sent the signal once more, which arrives when the handler has returned.
        unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            libc::raise(libc::SIGBUS);
        }
    } else if !make_hole(address) {
        match BEFORE.get() {
            // SAFETY: an action that the process had before. The access is made again, and meets it.
            Some(before) => unsafe { libc::sigaction(libc::SIGBUS, before, ptr::null_mut()) },
            // SAFETY: as above, with the default action.
            None => unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) as libc::c_int },
        };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zeros where a thread could not read; `false` for an address of somebody else's.
fn make_hole(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire).min(SLOTS);
    for slot in &TABLE[..used] {
        let Some((start, pages)) = slot.holding(address) else { continue };
        let page = (address - start) / PAGE_BYTES;
        // SAFETY: the range has the page, so the states do; they live until the range is taken from the table, which is not while a
        // thread, this one, reads in the range.
        let state = unsafe { &*pages.add(page) };
        reads::note_unreadable(address);
        return slot.lose(state, start + page * PAGE_BYTES);
    }
    false
}
