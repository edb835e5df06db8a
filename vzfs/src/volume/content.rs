//! File content: handles, copy-up, and the I/O of files that the kernel does not serve itself.
//!
//! A regular file's content is a shared blob or a private data file. Opening for writing turns the first into the second (copy-up); the
//! copying is done without holding `names`.
//!
//! # Who serves the bytes
//! With [`Sharing::Passthrough`] the kernel reads and writes the backing file itself, so the volume may not put another file under an inode
//! that is open (V2). Copy-up of a file that somebody has open on its blob therefore *relabels*: a new inode with a data file of its own takes
//! over all names, and the caller gets [`VolumeError::Stale`], upon which the kernel looks the name up again and opens the new inode. Who had
//! the file open keeps reading the old content, as after a rename over it. With [`Sharing::Served`] the daemon moves the bytes and copy-up just
//! changes the file under the inode: every handle sees it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::data::{HostStat, copy_content, set_times};
use super::opens::{OpenFile, Sharing};
use super::{COPY_STRIPES, Caller, Node, Result, Rights, Volume, VolumeError};
use crate::meta::{EntryRecord, InodeRecord, PrivateContent};
use crate::sys;
use crate::tree::{ContentRef, soundly_read};
use crate::types::{Attr, Digest, FileKind, Ino};

/// What a copy is made from.
struct Source {
    digest: Digest,
    size: u64,
    /// The base when the copy was begun, if the inode had a name then.
    named_in: Option<Digest>,
}

/// What became of a finished copy.
enum Installed {
    /// It is under the inode.
    Here,
    /// It is under a new inode that has all names now.
    Relabelled,
    /// It is not used: the inode does not have the blob any more.
    No,
    /// It is not used: the names must go to a new inode, which must have the content as it is.
    Resized,
}

/// The modes of fallocate(2) as bits, as the kernel passes them.
pub type FallocateMode = FallocateFlags;

/// A sync that was begun; see [`Volume::begin_sync`]. Dropped: nothing is known to be durable.
#[derive(Debug)]
pub struct BegunSync(Option<BegunContent>);

/// A file with content of its own, whose writes are under way.
#[derive(Debug)]
struct BegunContent {
    ino: Ino,
    data_only: bool,
    file: Arc<File>,
}

impl BegunSync {
    /// The size of the file's own content, in bytes: an upper bound of what there is to write.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().and_then(|content| content.file.metadata().ok()).map_or(0, |meta| meta.len())
    }
}

impl Volume {
    /// Opens a regular file, after copy-up if it is to be written.
    ///
    /// # Errors
    /// [`VolumeError::Stale`] when the file was relabelled: look the name up again.
    pub fn open_file(&self, ino: Ino, write: bool, sharing: Sharing) -> Result<OpenFile> {
        loop {
            if write {
                self.copy_up(ino, None)?;
            }
            let _shared = self.names.read();
            let mut opens = self.opens.lock();
            let found = soundly_read(|| {
                let node = self.node(ino)?;
                match node.kind() {
                    FileKind::File => {}
                    FileKind::Dir => return Err(VolumeError::IsDir),
                    _ => return Err(VolumeError::Invalid("not a regular file")),
                }
                let blob = blob_of(&node).map(|(digest, _)| digest);
                if write && blob.is_some() {
                    return Ok(None);
                }
                if write {
                    self.check_named(&node)?;
                }
                Ok(Some((
                    opens
                        .held_file(ino)
                        .map_or_else(|| self.open_content(ino, &node, write).map(Arc::new), Ok)?,
                    blob,
                )))
            })?;
            // Otherwise somebody put a blob back meanwhile.
            if let Some((file, blob)) = found {
                opens.add(ino, Some(&file), blob.is_some(), sharing);
                if write {
                    opens.note_written(ino);
                }
                return Ok(OpenFile { blob, file: Some(file) });
            }
        }
    }

    /// Opens a file for reading by the kernel, without opening its backing file, if its content is this blob: the kernel may have that open already.
    pub fn open_on_blob(&self, ino: Ino, blob: Digest) -> Result<Option<OpenFile>> {
        let _shared = self.names.read();
        let mut opens = self.opens.lock();
        let now = soundly_read(|| Ok::<_, VolumeError>(blob_of(&self.node(ino)?).map(|(digest, _)| digest)))?;
        if now != Some(blob) {
            return Ok(None);
        }
        opens.add(ino, None, true, Sharing::Passthrough);
        Ok(Some(OpenFile { blob: Some(blob), file: None }))
    }

    /// The backing file of an open file: a blob (read-only) or a private data file.
    pub fn backing_file(&self, open: &OpenFile) -> Result<Arc<File>> {
        match (&open.file, &open.blob) {
            (Some(file), _) => Ok(Arc::clone(file)),
            (None, Some(blob)) => Ok(Arc::new(self.blobs.open_blob(blob)?)),
            (None, None) => Err(VolumeError::Invalid("an open file without content")),
        }
    }

    /// Gives back a handle. An orphan's last one frees it at the next [`Volume::forget`].
    pub fn release(&self, ino: Ino, sharing: Sharing) {
        self.opens.lock().remove(ino, sharing);
    }

    /// Whether somebody has a file open.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.opens.lock().has(ino)
    }

    /// Counts handles that were opened through an earlier `Volume` of this VE and are still open: so many that the kernel serves, and so many that the
    /// daemon does.
    pub fn adopt(&self, ino: Ino, passthrough: u32, served: u32) -> Result<()> {
        let _shared = self.names.read();
        let on_blob = soundly_read(|| Ok::<_, VolumeError>(blob_of(&self.node(ino)?).is_some()))?;
        let on_blob = if on_blob { passthrough } else { 0 };
        self.opens.lock().adopt(ino, passthrough + served, on_blob);
        Ok(())
    }

    /// Programs may have these files open for writing, or mapped so, since an earlier `Volume` of this VE.
    pub fn adopt_written(&self, inodes: impl IntoIterator<Item = Ino>) {
        let mut opens = self.opens.lock();
        inodes.into_iter().for_each(|ino| opens.note_written(ino));
    }

    /// Whether somebody has a file's private content open for writing, or mapped so, other than through handles that were given back. When it
    /// cannot be told: yes.
    pub fn is_written_by_kernel(&self, ino: Ino) -> bool {
        let _shared = self.names.read();
        match self.node(ino) {
            Ok(Node::Private(InodeRecord { content: PrivateContent::Data { id, .. }, .. })) => {
                self.data.is_open_for_writing(id).unwrap_or(true)
            }
            _ => false,
        }
    }

    /// Opens the content of a file for reading, without a handle: for export and commit.
    pub fn open_for_reading(&self, ino: Ino) -> Result<File> {
        self.shared(|| self.open_content(ino, &self.node(ino)?, false))
    }

    fn open_content(&self, ino: Ino, node: &Node<'_>, write: bool) -> Result<File> {
        if let Some((digest, _)) = blob_of(node) {
            return Ok(self.blobs.open_blob(&digest)?);
        }
        match node {
            Node::Private(InodeRecord { content: PrivateContent::Data { id, .. }, .. }) => {
                self.data.open(*id, write)
            }
            _ => Err(VolumeError::Damaged { ino, why: "a regular file has no content" }),
        }
    }

    /// Gives a file a data file of its own with the content of its blob, cut or extended to `resize` in the same step. Does nothing to a file
    /// that has one. Tells whether it resized it.
    fn copy_up(&self, ino: Ino, mut resize: Option<u64>) -> Result<bool> {
        // The remainder is below 16, so the conversion cannot lose anything.
        let _one_at_a_time = self.copying[(ino.get() % COPY_STRIPES as u64) as usize].lock();
        loop {
            let source = self.shared(|| {
                let node = self.node(ino)?;
                let Some((digest, size)) = blob_of(&node) else { return Ok(None) };
                self.check_named(&node)?;
                let named_in = (node.nlink() > 0).then(|| self.base().digest());
                Ok(Some((Source { digest, size, named_in }, self.attr_of(ino, &node)?)))
            })?;
            let Some((source, attr)) = source else { return Ok(false) };
            let id = self.new_number()?;
            let copy = self.all_data.make_room(|| self.data.create(id))?;
            let copied = self.blobs.open_blob(&source.digest).map_err(VolumeError::from).and_then(|blob| {
                self.all_data
                    .make_room(|| copy_content(&blob, &copy, source.size, resize.unwrap_or(source.size)))?;
                set_times(&copy, Some(attr.atime), Some(attr.mtime))?;
                self.install(ino, &source, id, copy, resize.is_some())
            });
            match copied {
                Ok(Installed::Here) => return Ok(resize.is_some()),
                Ok(Installed::Relabelled) => return Err(VolumeError::Stale),
                // The inode's content changed while it was copied: once more.
                Ok(Installed::No) => self.data.remove(id)?,
                // The caller will be told to look the name up again; until it does, the content must be the old one.
                Ok(Installed::Resized) => {
                    self.data.remove(id)?;
                    resize = None;
                }
                Err(error) => {
                    self.data.remove(id)?;
                    return Err(error);
                }
            }
        }
    }

    /// Puts a finished copy in place of the blob it was made from.
    ///
    /// # Errors
    /// [`VolumeError::Stale`] for an orphan that is open on its blob: it has no name that could go to another inode; and for what a rebase
    /// took the names from while it was copied: what is written next would be lost.
    fn install(&self, ino: Ino, source: &Source, id: u64, copy: File, resized: bool) -> Result<Installed> {
        self.exclusive(|| {
            let node = self.node(ino)?;
            if blob_of(&node).map(|(now, _)| now) != Some(source.digest) {
                return Ok(Installed::No);
            }
            if node.nlink() == 0 && source.named_in.is_some_and(|base| base != self.base().digest()) {
                return Err(VolumeError::Stale);
            }
            let content = PrivateContent::Data { id, stamp: HostStat::of_file(&copy)?.ctime };
            let mut opens = self.opens.lock();
            if opens.is_on_blob(ino) {
                drop(opens);
                if node.nlink() == 0 {
                    return Err(VolumeError::Stale);
                }
                if resized {
                    return Ok(Installed::Resized);
                }
                self.relabel(ino, content)?;
                return Ok(Installed::Relabelled);
            }
            let mut batch = self.batch();
            let mut record = self.pin(ino, node, &mut batch)?;
            record.content = content;
            batch.put_inode(ino, &record);
            batch.commit()?;
            opens.replace(ino, copy);
            Ok(Installed::Here)
        })
    }

    /// Moves all names of an inode to a new one with the given content. The old inode becomes an orphan that its handles keep.
    fn relabel(&self, ino: Ino, content: PrivateContent) -> Result<()> {
        let new = self.new_ino()?;
        let mut batch = self.batch();
        let names = self.names_of(ino)?;
        let mut old = self.record_of(self.node(ino)?);
        let record = InodeRecord { content, ..old.clone() };
        for (dir, name) in &names {
            batch.put_entry(*dir, name.as_ref(), EntryRecord::Node(new, record.kind));
        }
        batch.put_inode(new, &record);
        old.nlink = 0;
        batch.put_inode(ino, &old);
        batch.commit()?;
        let mut relabelled = self.relabelled.lock();
        relabelled.inodes.push(ino);
        relabelled.names.extend(names);
        Ok(())
    }

    /// All names of an inode: the base's if it was never touched, else those among the private entries.
    fn names_of(&self, ino: Ino) -> Result<Vec<(Ino, crate::types::Name)>> {
        if self.meta.inode(self.ve, ino)?.is_none() {
            let view = self.base().node(ino).ok_or(VolumeError::NotFound)?;
            return Ok(view.names().map(|(dir, name)| (dir, name.to_name())).collect());
        }
        // A scan of the VE's private entries: only for a file that is pinned, has its blob open, and is now opened for writing.
        let mut names = Vec::new();
        for row in self.meta.all_entries(self.ve) {
            let row = row?;
            if matches!(row.entry, EntryRecord::Node(found, _) if found == ino) {
                names.push((row.dir, row.name));
            }
        }
        Ok(names)
    }

    /// Runs `io` on a file that has (or gets) private content, so that it may be written.
    fn with_data<T>(
        &self,
        ino: Ino,
        mut io: impl FnMut(&File) -> std::io::Result<T>,
        what: &'static str,
    ) -> Result<T> {
        let _changing = self.changing(ino);
        self.copy_up(ino, None)?;
        let file = self.current_file(ino, true)?;
        self.all_data.make_room(|| {
            io(&file).map_err(|error| VolumeError::io(format!("{what} inode {ino} of VE {}", self.ve))(error))
        })
    }

    /// The file under an inode now, whether or not it is open.
    fn current_file(&self, ino: Ino, write: bool) -> Result<Arc<File>> {
        self.shared(|| {
            if let Some(file) = self.opens.lock().held_file(ino) {
                return Ok(file);
            }
            Ok(Arc::new(self.open_content(ino, &self.node(ino)?, write)?))
        })
    }

    /// Sets a file's size; mtime and ctime move in any case.
    pub(super) fn truncate(&self, ino: Ino, size: u64, rights: &impl Rights) -> Result<()> {
        let (attr, on_blob) = self.shared(|| {
            let node = self.node(ino)?;
            self.check_named_or_open(ino, &node)?;
            Ok((self.attr_of(ino, &node)?, blob_of(&node).is_some()))
        })?;
        match attr.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(VolumeError::IsDir),
            _ => return Err(VolumeError::Invalid("only regular files have a size")),
        }
        if i64::try_from(size).is_err() {
            return Err(VolumeError::Invalid("the size is negative"));
        }
        if on_blob && attr.size == size {
            // Nothing is copied for a time.
            self.kill_privileges(ino, rights)?;
            return self
                .update(ino, |volume, record, now| volume.set_times(record, None, Some(now)))
                .map(drop);
        }
        // Up to the end, where the times of the data file are set.
        let _changing = self.changing(ino);
        if !self.copy_up(ino, Some(size))? {
            self.with_data(ino, |file| file.set_len(size), "truncate")?;
        }
        self.kill_privileges(ino, rights)?;
        self.after_write(ino)
    }

    /// Moves mtime and ctime where the host may have left them, because the size did not change.
    fn after_write(&self, ino: Ino) -> Result<()> {
        let file = self.current_file(ino, true)?;
        set_times(&file, None, Some(self.clock.now()))
    }

    /// Reads from a file.
    pub fn read(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let file = self.current_file(ino, false)?;
        let failed = |error| VolumeError::io(format!("read inode {ino} of VE {}", self.ve))(error);
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(done)
    }

    /// Writes to a file.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], rights: impl Rights) -> Result<()> {
        self.with_data(ino, |file| file.write_all_at(bytes, offset), "write")?;
        self.kill_privileges(ino, &rights)
    }

    /// Writes what programs have changed in a memory map, which takes no privileges away.
    pub fn write_back(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<()> {
        self.with_data(ino, |file| file.write_all_at(bytes, offset), "write back to")
    }

    /// fallocate(2), with the modes that the host filesystem has.
    pub fn fallocate(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: FallocateMode,
        rights: impl Rights,
    ) -> Result<()> {
        let io = |file: &File| Ok(rustix::fs::fallocate(file, mode, offset, len)?);
        self.with_data(ino, io, "allocate space in")?;
        self.kill_privileges(ino, &rights)
    }

    /// copy_file_range(2) between two files of the VE: by reflink where the host can.
    pub fn copy_range(
        &self,
        from: (Ino, u64),
        to: (Ino, u64),
        len: usize,
        rights: impl Rights,
    ) -> Result<usize> {
        let source = self.current_file(from.0, false)?;
        let (mut offset_in, mut offset_out) = (from.1, to.1);
        let io = |target: &File| {
            let copied = rustix::fs::copy_file_range(
                &*source,
                Some(&mut offset_in),
                target,
                Some(&mut offset_out),
                len,
            )?;
            Ok(copied)
        };
        let copied = self.with_data(to.0, io, "copy into")?;
        self.kill_privileges(to.0, &rights)?;
        Ok(copied)
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek(&self, ino: Ino, from: SeekFrom) -> Result<u64> {
        let file = self.current_file(ino, false)?;
        rustix::fs::seek(&*file, from)
            .map_err(|errno| VolumeError::io(format!("seek in inode {ino} of VE {}", self.ve))(errno.into()))
    }

    /// fsync(2): the content, the name and the attributes of a file are durable afterwards.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<()> {
        self.end_sync(self.begin_sync(ino, data_only)?)
    }

    /// The first half of [`Volume::fsync`]: what the file has in memory only is on its way to the disk afterwards.
    ///
    /// So what it needs of the host's journal gets into the commit that the log waits for in the second half, and the file need not wait for
    /// one of its own. The same holds for all files that are begun before the first of them is ended.
    pub fn begin_sync(&self, ino: Ino, data_only: bool) -> Result<BegunSync> {
        let has_data = self.shared(|| {
            Ok(matches!(
                self.node(ino)?,
                Node::Private(InodeRecord { content: PrivateContent::Data { .. }, .. })
            ))
        })?;
        if !has_data {
            return Ok(BegunSync(None));
        }
        let file = self.current_file(ino, false)?;
        sys::begin_writing_back(&file).map_err(self.sync_failed(ino))?;
        Ok(BegunSync(Some(BegunContent { ino, data_only, file })))
    }

    /// The first half of a directory's fsync(2), whose names are in the log.
    pub fn begin_dir_sync(&self) -> BegunSync {
        BegunSync(None)
    }

    /// The second half of [`Volume::fsync`].
    pub fn end_sync(&self, begun: BegunSync) -> Result<()> {
        self.sync()?;
        let Some(BegunContent { ino, data_only, file }) = begun.0 else { return Ok(()) };
        let synced = if data_only { file.sync_data() } else { file.sync_all() };
        synced.map_err(self.sync_failed(ino))?;
        self.data.sync()
    }

    fn sync_failed(&self, ino: Ino) -> impl FnOnce(std::io::Error) -> VolumeError {
        VolumeError::io(format!("sync inode {ino} of VE {}", self.ve))
    }

    /// Creates a file and opens it for reading and writing.
    pub fn create_and_open(
        &self,
        dir: Ino,
        name: crate::types::NameRef<'_>,
        new: super::NewNode<'_>,
        caller: Caller,
        sharing: Sharing,
    ) -> Result<(Attr, OpenFile)> {
        match self.make(dir, name, new, caller, Some(sharing))? {
            (attr, Some(open)) => Ok((attr, open)),
            (attr, None) => Ok((attr, self.open_file(attr.ino, true, sharing)?)),
        }
    }
}

/// Digest and size of the blob that an inode shows.
fn blob_of(node: &Node<'_>) -> Option<(Digest, u64)> {
    match node {
        Node::Base(view) | Node::Retired(view) => match view.content() {
            ContentRef::Blob { digest, size, .. } => Some((digest, size)),
            _ => None,
        },
        Node::Private(InodeRecord { content: PrivateContent::Blob { digest, size, .. }, .. }) => {
            Some((Digest::from_bytes(*digest), *size))
        }
        Node::Private(_) => None,
    }
}
