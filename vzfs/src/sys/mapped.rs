//! Files of the store that are mapped for reading, and outlive the failures of their disk.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::bus_error::{PAGE_BYTES, Registered, is_hole};
use super::reads;

/// All mappings, by their first address.
static MAPPINGS: LazyLock<Mutex<HashMap<usize, Weak<Mapping>>>> = LazyLock::new(Mutex::default);

/// A whole file, mapped for reading.
///
/// It is one of the store's immutable files: written once under another name and never changed after its publication. What cannot be read of it all the same,
/// because its disk fails or somebody cut it off, reads as zeros, and whoever reads between [`reads::Reads::begin`] and its verdict is told, if
/// what was read was noted by [`MappedFile::note`]. Pages that can be read again are put back by [`Mapping::mend`].
pub struct MappedFile {
    mapping: Arc<Mapping>,
    start: *const u8,
    len: usize,
}

// SAFETY: the mapping is only read, and what is read is bytes: any thread may.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

/// The mapping of a [`MappedFile`], for whoever mends it.
pub struct Mapping {
    name: String,
    /// The order of these is that in which they are dropped: nobody looks for the range when it is unmapped, nor at the states of its pages.
    registered: Registered,
    start: usize,
    len: usize,
    _unmapped_at_end: Unmap,
    pages: Box<[AtomicU32]>,
    source: Mutex<Source>,
}

/// A range of memory that ends to be one when this is dropped.
struct Unmap(usize, usize);

struct Source {
    file: File,
    /// When mending was last tried.
    tried: Option<Instant>,
    /// Whether somebody was told of holes that are still there.
    is_told: bool,
}

/// What came of mending.
#[derive(Debug)]
pub enum Mended {
    /// Everything can be read.
    Whole,
    /// It was tried a moment ago.
    NotDue,
    /// Something still cannot be read.
    Broken {
        /// Why.
        error: io::Error,
        /// Whether nobody was told since all was well.
        is_news: bool,
    },
}

impl MappedFile {
    /// Maps a file, which must not be empty. `name` says what it is.
    ///
    /// # Errors
    /// Those of mmap(2); `ENOMEM` also when 4096 files are mapped.
    pub fn map(file: File, name: String) -> io::Result<MappedFile> {
        let len =
            usize::try_from(file.metadata()?.len()).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let mapped = unsafe {
            libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = mapped as usize;
        let _unmapped_at_end = Unmap(start, len);
        let pages: Box<[AtomicU32]> = (0..len.div_ceil(PAGE_BYTES)).map(|_| AtomicU32::new(0)).collect();
        let registered = Registered::new(start, len, &pages)?;
        let source = Mutex::new(Source { file, tried: None, is_told: false });
        let mapping = Arc::new(Mapping { name, registered, start, len, _unmapped_at_end, pages, source });
        mappings().insert(start, Arc::downgrade(&mapping));
        Ok(MappedFile { mapping, start: mapped.cast_const().cast(), len })
    }

    /// Notes that these bytes are about to be read.
    pub fn note(&self, bytes: Range<usize>) {
        let registered = &self.mapping.registered;
        reads::note_range(registered.bit());
        if registered.slot().has_holes() && self.mapping.has_hole_in(&bytes) {
            reads::note_unreadable(self.mapping.start + bytes.start);
        }
    }

    /// What mends it.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`. Nothing writes to it. The bytes change when the signal handler or
        // `mend` exchanges a page; who reads them takes any bytes and is told that they were exchanged.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Mapping {
    /// The mapping that an address is in.
    pub fn at(address: usize) -> Option<Arc<Mapping>> {
        // Dropping the last reference to one takes the lock.
        let all: Vec<Arc<Mapping>> = mappings().values().filter_map(Weak::upgrade).collect();
        all.into_iter().find(|mapping| (mapping.start..mapping.start + mapping.len).contains(&address))
    }

    /// What the file is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether something cannot be read, as far as is known.
    pub fn has_holes(&self) -> bool {
        self.registered.slot().has_holes()
    }

    fn has_hole_in(&self, bytes: &Range<usize>) -> bool {
        let first = bytes.start / PAGE_BYTES;
        let pages = self.pages.get(first..bytes.end.div_ceil(PAGE_BYTES).max(first)).unwrap_or_default();
        pages.iter().any(|page| is_hole(page.load(Ordering::Acquire)))
    }

    /// Puts back what can be read again, unless that was tried in vain less than `pause` ago, or is being tried. Waits as long as the disk takes.
    pub fn mend(&self, pause: Duration) -> Mended {
        let Ok(mut source) = self.source.try_lock() else { return Mended::NotDue };
        if !self.has_holes() {
            source.is_told = false;
            return Mended::Whole;
        }
        if source.tried.is_some_and(|tried| tried.elapsed() < pause) {
            return Mended::NotDue;
        }
        match self.put_back(&source.file) {
            // Others have met new ones meanwhile.
            Ok(()) if self.has_holes() => Mended::NotDue,
            Ok(()) => {
                (source.tried, source.is_told) = (None, false);
                Mended::Whole
            }
            Err(error) => {
                source.tried = Some(Instant::now());
                Mended::Broken { error, is_news: !std::mem::replace(&mut source.is_told, true) }
            }
        }
    }

    fn put_back(&self, file: &File) -> io::Result<()> {
        let has = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        if has < self.len && !has.is_multiple_of(PAGE_BYTES) {
            // The kernel fills up the last page with zeros and tells nobody.
            let page = has / PAGE_BYTES;
            self.registered.slot().lose(&self.pages[page], self.start + page * PAGE_BYTES);
        }
        let mut result = Ok(());
        if has != self.len {
            let why = format!("its file has {has} bytes instead of {}", self.len);
            result = Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        let mut buffer = [0; PAGE_BYTES];
        for (at, page) in self.pages.iter().enumerate() {
            // One that is being lost now is still a hole afterwards.
            let Some(seen) = self.registered.slot().seen(page).filter(|seen| is_hole(*seen)) else {
                continue;
            };
            let offset = at * PAGE_BYTES;
            let bytes = &mut buffer[..(self.len - offset).min(PAGE_BYTES)];
            let back = file.read_exact_at(bytes, offset as u64).and_then(|()| {
                self.registered.slot().note_change();
                map_over(self.start + offset, PAGE_BYTES, file, offset)
            });
            match back {
                Ok(()) => self.registered.slot().clear_hole(page, seen),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Shows another file of the same length, and by the caller's promise of the same content, to all who have this one mapped.
    ///
    /// # Errors
    /// Those of mmap(2); `EINVAL` for another length.
    pub fn replace(&self, file: File) -> io::Result<()> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if file.metadata()?.len() != self.len as u64 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let seen: Vec<_> = self.pages.iter().map(|page| self.registered.slot().seen(page)).collect();
        self.registered.slot().note_change();
        map_over(self.start, self.len, &file, 0)?;
        self.registered.slot().note_change();
        for (page, seen) in self.pages.iter().zip(seen) {
            if let Some(seen) = seen {
                self.registered.slot().clear_hole(page, seen);
            }
        }
        *source = Source { file, tried: None, is_told: false };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        mappings().remove(&self.start);
    }
}

impl Drop for Unmap {
    fn drop(&mut self) {
        // SAFETY: a mapping of this module's that nobody has a reference into any more.
        unsafe { libc::munmap(self.0 as *mut libc::c_void, self.1) };
    }
}

fn mappings() -> MutexGuard<'static, HashMap<usize, Weak<Mapping>>> {
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maps a part of a file in the place of a part of a mapping.
fn map_over(start: usize, bytes: usize, file: &File, offset: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: whole pages of a mapping of this module's, which nobody writes to; they are exchanged at once.
    let mapped = unsafe {
        libc::mmap(start as *mut libc::c_void, bytes, libc::PROT_READ, flags, file.as_raw_fd(), offset)
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
impl Mapping {
    /// Loses a page, as a disk that fails does.
    pub fn lose(&self, page: usize) {
        let lost = self.registered.slot().lose(&self.pages[page], self.start + page * PAGE_BYTES);
        assert!(lost, "there is memory");
    }

    /// Takes its file away, so that nothing can be put back; or gives it back.
    pub fn with_file(&self, file: File) -> File {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        source.tried = None;
        std::mem::replace(&mut source.file, file)
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;
    use crate::sys::{Reads, Verdict};

    const PAGES: usize = 5;
    /// The last page is not whole.
    const LEN: usize = PAGES * PAGE_BYTES - 100;

    fn file() -> File {
        let mut file = tempfile::tempfile_in("/var/tmp").expect("scratch file");
        file.write_all(&content()).expect("written");
        file
    }

    fn content() -> Vec<u8> {
        (0..LEN).map(|at| (at % 251) as u8 + 1).collect()
    }

    fn mapped() -> (File, MappedFile) {
        let file = file();
        let map = MappedFile::map(file.try_clone().expect("a descriptor"), "it".to_owned()).expect("mapped");
        (file, map)
    }

    /// What is read of a range, and what came of it.
    fn read(map: &MappedFile, range: Range<usize>) -> (Vec<u8>, Verdict) {
        let reads = Reads::begin();
        map.note(range.clone());
        let bytes = map[range].to_vec();
        (bytes, reads.verdict())
    }

    #[test]
    fn a_file_that_is_cut_off_is_told_to_everybody_who_reads_there_until_it_is_whole() {
        let (file, map) = mapped();
        assert_eq!(read(&map, 0..LEN), (content(), Verdict::Sound));
        file.set_len((2 * PAGE_BYTES + 10) as u64).expect("cut off");
        assert_eq!(read(&map, 0..PAGE_BYTES), (content()[..PAGE_BYTES].to_vec(), Verdict::Sound));
        let lost = 3 * PAGE_BYTES..3 * PAGE_BYTES + 8;
        for _ in 0..2 {
            let (bytes, verdict) = read(&map, lost.clone());
            assert!(bytes == [0; 8] && matches!(verdict, Verdict::Unreadable(_)), "{bytes:?} {verdict:?}");
        }
        // Another thread meets no signal, and is told all the same.
        let other = std::thread::scope(|scope| scope.spawn(|| read(&map, lost.clone()).1).join());
        assert!(matches!(other.expect("no panic"), Verdict::Unreadable(_)));
        assert_eq!(Mapping::at(map.as_ptr() as usize + lost.start).expect("in use").name(), "it");
        let mending = map.mapping();
        assert!(matches!(mending.mend(Duration::ZERO), Mended::Broken { is_news: true, .. }));
        assert!(matches!(mending.mend(Duration::ZERO), Mended::Broken { is_news: false, .. }));
        assert!(matches!(mending.mend(Duration::from_secs(60)), Mended::NotDue));
        // The kernel has filled the page up in which the file ends now, without a signal. It is known to be wrong since it was looked at.
        let end = 2 * PAGE_BYTES + 20..2 * PAGE_BYTES + 30;
        assert!(matches!(read(&map, end).1, Verdict::Unreadable(_)));
        file.write_all_at(&content(), 0).expect("whole again");
        assert!(matches!(mending.mend(Duration::ZERO), Mended::Whole));
        assert_eq!(read(&map, 0..LEN), (content(), Verdict::Sound));
        assert!(!mending.has_holes());
    }

    #[test]
    fn another_file_takes_the_place_of_one_that_is_lost() {
        let (lost, map) = mapped();
        lost.set_len(0).expect("cut off");
        assert!(matches!(read(&map, 0..LEN).1, Verdict::Unreadable(_)));
        let short = tempfile::tempfile_in("/var/tmp").expect("scratch file");
        assert!(map.mapping().replace(short).is_err(), "it has another length");
        map.mapping().replace(file()).expect("replaced");
        assert_eq!(read(&map, 0..LEN), (content(), Verdict::Sound));
    }

    #[test]
    fn what_was_read_before_does_not_count_and_what_is_read_inside_does() {
        let (_file, map) = mapped();
        map.mapping().lose(1);
        let outer = Reads::begin();
        let inner = Reads::begin();
        map.note(0..10);
        assert_eq!(inner.verdict(), Verdict::Sound);
        map.note(PAGE_BYTES - 1..PAGE_BYTES + 1);
        assert!(matches!(inner.verdict(), Verdict::Unreadable(_)));
        inner.forget();
        assert_eq!(outer.verdict(), Verdict::Sound, "it was forgotten");
        let inner = Reads::begin();
        map.note(PAGE_BYTES..PAGE_BYTES + 1);
        drop(inner);
        assert!(matches!(outer.verdict(), Verdict::Unreadable(_)));
        drop(outer);
        assert_eq!(Reads::begin().verdict(), Verdict::Sound);
    }

    #[test]
    fn whoever_reads_while_a_page_is_lost_reads_again_and_others_do_not() {
        let ((_file, map), (_other_file, other)) = (mapped(), mapped());
        let reads = Reads::begin();
        map.note(0..10);
        map.mapping().lose(3);
        assert_eq!(reads.verdict(), Verdict::Disturbed);
        drop(reads);
        let reads = Reads::begin();
        other.note(0..10);
        map.mapping().lose(2);
        assert_eq!(reads.verdict(), Verdict::Sound, "it reads another file");
    }

    #[test]
    fn after_something_was_stored_nothing_is_taken_back() {
        let (_file, map) = mapped();
        let reads = Reads::begin();
        map.note(0..10);
        assert_eq!(crate::sys::settle(), Verdict::Sound);
        map.mapping().lose(0);
        map.note(0..10);
        assert_eq!(reads.verdict(), Verdict::Sound);
        drop(reads);
        let reads = Reads::begin();
        map.note(0..10);
        assert!(matches!(crate::sys::settle(), Verdict::Unreadable(_)));
        assert!(matches!(reads.verdict(), Verdict::Unreadable(_)));
    }

    /// What is mapped by others, and a signal that somebody sends, end the process as ever.
    #[test]
    fn a_bus_error_of_others_ends_the_process() {
        const CHILD: &str = "VZFS_TEST_BUS_ERROR";
        match std::env::var(CHILD).as_deref() {
            Ok("access") => {
                let (_file, _ours) = mapped();
                let file = file();
                // SAFETY: that the file is cut off below is what this is about.
                let others = unsafe { memmap2::Mmap::map(&file) }.expect("mapped");
                file.set_len(0).expect("cut off");
                std::hint::black_box(others[0]);
            }
            Ok(_) => {
                let (_file, _ours) = mapped();
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS)
                    .expect("sent");
                std::thread::sleep(Duration::from_secs(5));
            }
            Err(_) => {
                for how in ["access", "sent"] {
                    let name = "sys::mapped::tests::a_bus_error_of_others_ends_the_process";
                    let program = std::env::current_exe().expect("this program");
                    let mut child = Command::new(program);
                    child.args(["--exact", name, "--nocapture"]).env(CHILD, how);
                    let output = child.output().expect("it runs");
                    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{how}: {output:?}");
                }
            }
        }
    }
}
