//! A disk that remembers everything that was written to it, and in which order.
//!
//! This kernel may lack dm-log-writes. So the disk is a loop device on the only file of a small FUSE filesystem that is served here: every write of
//! blocks comes as a WRITE, and every flush of the disk's cache as an FSYNC, just as dm-log-writes would log them. The content is in memory, block by
//! block and shared between copies, so that thousands of states of a disk of hundreds of megabytes cost little.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::HostFs;
use crate::host::run;

const BLOCK_BYTES: usize = 4096;
/// What a disk writes at once whatever happens: the physical sector of today's disks. With 512 bytes, XFS and ext4 themselves cannot always be
/// mounted again: both take it that a block of theirs is written whole.
pub const SECTOR_BYTES: usize = 4096;
const FILE: &str = "disk";
const FILE_INO: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What is on a disk. Copies share what they have alike.
#[derive(Clone, Default)]
pub struct Image(HashMap<u64, Arc<[u8; BLOCK_BYTES]>>);

impl Image {
    fn read(&self, mut offset: u64, mut target: &mut [u8]) {
        while !target.is_empty() {
            let (block, at) = place(offset);
            let len = target.len().min(BLOCK_BYTES - at);
            let (now, rest) = target.split_at_mut(len);
            match self.0.get(&block) {
                Some(bytes) => now.copy_from_slice(&bytes[at..at + len]),
                None => now.fill(0),
            }
            (offset, target) = (offset + len as u64, rest);
        }
    }

    /// Puts bytes on the disk.
    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (block, at) = place(offset);
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - at));
            if now.len() == BLOCK_BYTES && now.iter().all(|byte| *byte == 0) {
                self.0.remove(&block);
            } else {
                let target = self.0.entry(block).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
                Arc::make_mut(target)[at..at + now.len()].copy_from_slice(now);
            }
            (offset, bytes) = (offset + now.len() as u64, rest);
        }
    }
}

fn place(offset: u64) -> (u64, usize) {
    // The remainder is below the size of a block.
    (offset / BLOCK_BYTES as u64, (offset % BLOCK_BYTES as u64) as usize)
}

/// What happened to a recorded disk.
#[derive(Clone)]
pub enum Event<M> {
    /// Bytes reached the disk's cache.
    Write {
        /// Where.
        offset: u64,
        /// Which.
        bytes: Vec<u8>,
    },
    /// Everything before is durable.
    Flush,
    /// A note of whoever records.
    Mark(M),
}

/// Everything that happened to a disk, from when it was empty of all but `from`.
pub struct Recording<M> {
    /// What was on it.
    pub from: Image,
    /// What happened.
    pub events: Vec<Event<M>>,
}

/// What a disk does not do: it answers with EIO.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Failing {
    /// Reads.
    pub reads: bool,
    /// Writes, and flushes of its cache.
    pub writes: bool,
}

struct State<M> {
    image: Image,
    failing: Failing,
    recorded: Option<Vec<Event<M>>>,
}

/// The disk's content, shared with the threads that serve it.
struct Content<M>(Arc<Mutex<State<M>>>, u64);

impl<M> Content<M> {
    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, nlink, size) = if ino == FILE_INO {
            (FileType::RegularFile, 0o600, 1, self.1)
        } else {
            (FileType::Directory, 0o700, 2, 0)
        };
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl<M: Send + 'static> Filesystem for Content<M> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _larger_writes = config.set_max_write(1 << 20);
        let _ = config.add_capabilities(InitFlags::FUSE_BIG_WRITES);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == FILE {
            reply.entry(&FOREVER, &self.attr(FILE_INO), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // What is not cached above is written in the order in which it comes, and read from what it is now.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let state = self.state();
        if state.failing.reads {
            return reply.error(Errno::EIO);
        }
        state.image.read(offset, &mut bytes);
        drop(state);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        if state.failing.writes {
            return reply.error(Errno::EIO);
        }
        state.image.write(offset, data);
        if let Some(recorded) = &mut state.recorded {
            recorded.push(Event::Write { offset, bytes: data.to_vec() });
        }
        drop(state);
        // A request has 32 bits of length.
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.state();
        if state.failing.writes {
            return reply.error(Errno::EIO);
        }
        if let Some(recorded) = &mut state.recorded {
            recorded.push(Event::Flush);
        }
        drop(state);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// A block device whose content is in this process.
pub struct Disk<M: Send + 'static> {
    content: Content<M>,
    /// Where the file is served.
    folder: PathBuf,
    device: String,
    session: Option<BackgroundSession>,
}

impl<M: Send + 'static> Disk<M> {
    /// An empty disk. `folder` is made.
    pub fn new(folder: &Path, size_bytes: u64) -> Disk<M> {
        crate::require_root();
        std::fs::create_dir_all(folder).expect("the scratch folder is writable");
        let state = Arc::new(Mutex::new(State {
            image: Image::default(),
            failing: Failing::default(),
            recorded: None,
        }));
        let served = Content(Arc::clone(&state), size_bytes);
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("torture".to_owned())];
        config.n_threads = Some(2);
        let session = fuser::spawn_mount(served, folder, &config).expect("FUSE filesystems can be mounted");
        let attached = run(Command::new("losetup").args(["--find", "--show"]).arg(folder.join(FILE)));
        let device = attached.text().trim().to_owned();
        Disk {
            content: Content(state, size_bytes),
            folder: folder.to_owned(),
            device,
            session: Some(session),
        }
    }

    /// Makes an empty filesystem on it.
    pub fn format(&self, fs: HostFs) {
        self.content.state().image = Image::default();
        match fs {
            HostFs::Xfs => {
                run(Command::new("mkfs.xfs").args(["-q", "-f", "-K", "-m", "reflink=1", &self.device]))
            }
            HostFs::Ext4 => run(Command::new("mkfs.ext4").args([
                "-q",
                "-F",
                "-E",
                "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
                &self.device,
            ])),
        };
    }

    /// Mounts its filesystem, which recovers it.
    ///
    /// # Errors
    /// The kernel finds no filesystem that it can recover.
    pub fn mount(&self, fs: HostFs, place: &Path) -> std::io::Result<()> {
        let name = match fs {
            HostFs::Xfs => "xfs",
            HostFs::Ext4 => "ext4",
        };
        Ok(rustix::mount::mount(self.device.as_str(), place, name, MountFlags::NOATIME, None)?)
    }

    /// Takes the filesystem away. Whatever is not on the disk is written.
    pub fn unmount(place: &Path) {
        let mut tries = 0;
        // A descriptor that was just closed counts for a moment longer.
        while let Err(error) = rustix::mount::unmount(place, UnmountFlags::empty()) {
            tries += 1;
            assert!(tries < 1000, "{} cannot be unmounted: {error}", place.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The block device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Puts something else on the disk. It must not be mounted.
    pub fn load(&self, image: Image) {
        self.content.state().image = image;
    }

    /// Lets it fail from now on, or heals it. The host may have what is on it in memory.
    pub fn fail(&self, failing: Failing) {
        self.content.state().failing = failing;
    }

    /// Begins a recording.
    pub fn record(&self) -> Image {
        let mut state = self.content.state();
        state.recorded = Some(Vec::new());
        state.image.clone()
    }

    /// Leaves a note in the recording.
    pub fn mark(&self, mark: M) {
        if let Some(recorded) = &mut self.content.state().recorded {
            recorded.push(Event::Mark(mark));
        }
    }

    /// Ends the recording that began with `from`.
    pub fn recorded(&self, from: Image) -> Recording<M> {
        Recording { from, events: self.content.state().recorded.take().unwrap_or_default() }
    }
}

impl<M: Send + 'static> Drop for Disk<M> {
    fn drop(&mut self) {
        // Without a check: a test that fails may leave the disk mounted, and the guardian tidies up then.
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        let _ = rustix::mount::unmount(&self.folder, UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

#[cfg(test)]
impl Image {
    pub(super) fn byte(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0]
    }
}
