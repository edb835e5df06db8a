//! One pass over content: hash it, find its all-zero blocks, and write the others where they belong.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{self, SeekFrom};
use rustix::io::Errno;

use super::direct;
use super::store::HASH_CHUNK_BYTES;
use crate::types::Digest;

/// Holes are found in units of 4 KiB, the block size of the host filesystems that matter. `allocated_bytes` is stored in trees and so
/// depends on this value: changing it changes the digest of every tree with sparse files.
pub(super) const BLOCK_BYTES: usize = 4096;
static ZEROS: [u8; HASH_CHUNK_BYTES] = [0; HASH_CHUNK_BYTES];

/// What is known of content after a pass over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// 4096 times the number of its 4 KiB blocks that are not all zero.
    pub allocated_bytes: u64,
}

/// Why a pass ended early: which side failed.
#[derive(Debug)]
pub(super) enum PassError {
    Read(io::Error),
    Write(Errno),
}

impl From<Errno> for PassError {
    fn from(errno: Errno) -> PassError {
        PassError::Read(errno.into())
    }
}

/// Takes content in order. Every piece but the last is a multiple of [`BLOCK_BYTES`] long.
pub(super) struct Pass<'a> {
    hasher: blake3::Hasher,
    size: u64,
    data_blocks: u64,
    /// Where the last written run ends: the target's size so far.
    written_bytes: u64,
    target: Option<&'a File>,
}

impl<'a> Pass<'a> {
    /// A pass that writes the data blocks to `target`, a new file, or only looks at the content.
    pub(super) fn new(target: Option<&'a File>) -> Self {
        Pass { hasher: blake3::Hasher::new(), size: 0, data_blocks: 0, written_bytes: 0, target }
    }

    pub(super) fn data(&mut self, piece: &[u8]) -> Result<(), PassError> {
        for part in piece.chunks(HASH_CHUNK_BYTES) {
            self.hasher.update(part);
        }
        // Neighbouring data blocks are written together; a run ends at an all-zero block.
        let mut run_start = None;
        let mut at = 0;
        for block in piece.chunks(BLOCK_BYTES) {
            if is_zero(block) {
                self.flush(piece, run_start.take(), at)?;
            } else {
                self.data_blocks += 1;
                run_start.get_or_insert(at);
            }
            at += block.len();
        }
        self.flush(piece, run_start, at)?;
        self.size += piece.len() as u64;
        Ok(())
    }

    /// `length` zero bytes that nobody has to read.
    pub(super) fn hole(&mut self, mut length: u64) {
        self.size += length;
        while length > 0 {
            let part = length.min(ZEROS.len() as u64) as usize;
            self.hasher.update(&ZEROS[..part]);
            length -= part as u64;
        }
    }

    fn flush(&mut self, piece: &[u8], start: Option<usize>, end: usize) -> Result<(), PassError> {
        let (Some(target), Some(start)) = (self.target, start) else { return Ok(()) };
        write_at(target, &piece[start..end], self.size + start as u64).map_err(PassError::Write)?;
        self.written_bytes = self.size + end as u64;
        Ok(())
    }

    /// Gives the target its final size, which a hole at the end needs.
    pub(super) fn finish(self) -> Result<Summary, PassError> {
        if let Some(target) = self.target
            && self.written_bytes < self.size
        {
            fs::ftruncate(target, self.size).map_err(PassError::Write)?;
        }
        Ok(Summary {
            digest: self.hasher.finalize().into(),
            size: self.size,
            allocated_bytes: self.data_blocks * BLOCK_BYTES as u64,
        })
    }
}

/// What a pass over content that is already in memory finds.
pub(super) fn summarize(content: &[u8]) -> Summary {
    let data_blocks = content.chunks(BLOCK_BYTES).filter(|block| !is_zero(block)).count();
    Summary {
        digest: Digest::of(content),
        size: content.len() as u64,
        allocated_bytes: (data_blocks * BLOCK_BYTES) as u64,
    }
}

/// What a file's content is, read past the page cache. `read` is told how many bytes were read, piece by piece: it may take its time, and ends
/// the reading, with nothing as result, when it returns `false`.
pub fn summarize_file(file: &File, read: &mut dyn FnMut(u64) -> bool) -> io::Result<Option<Summary>> {
    pass_direct(Pass::new(None), file, read).map_err(|error| match error {
        PassError::Read(source) => source,
        PassError::Write(errno) => errno.into(),
    })
}

/// Passes all of a file, read past the page cache; see [`summarize_file`].
pub(super) fn pass_direct(
    mut pass: Pass<'_>,
    file: &File,
    read: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Summary>, PassError> {
    let mut wanted = true;
    let passed = direct::read(file, &mut |piece| {
        pass.data(piece)?;
        wanted = read(piece.len() as u64);
        if wanted { Ok(()) } else { Err(PassError::from(Errno::CANCELED)) }
    });
    match passed {
        Ok(()) => pass.finish().map(Some),
        Err(_) if !wanted => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_zero(block: &[u8]) -> bool {
    // Almost every block of data differs from zero at its start; the comparison with memory of known zeros is a memcmp.
    block == &ZEROS[..block.len()]
}

fn write_at(target: &File, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(target, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Fills `buffer` as far as the reader goes; less than all of it means the end.
pub(super) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads at `offset` until `buffer` is full or the file ends.
pub(super) fn fill_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}

/// Passes the first `size` bytes of a file, skipping its holes when `sparse`. Ends early where the file has become
/// shorter meanwhile.
pub(super) fn pass_file(
    pass: &mut Pass<'_>,
    file: &File,
    size: u64,
    sparse: bool,
    buffer: &mut [u8],
) -> Result<(), PassError> {
    let mut offset = 0;
    while offset < size {
        let (data, end) =
            if sparse { next_data(file, offset, size).map_err(PassError::Read)? } else { (0, size) };
        let data = data.max(offset);
        pass.hole(data - offset);
        offset = data;
        while offset < end {
            let want = (end - offset).min(buffer.len() as u64) as usize;
            let read = fill_at(file, &mut buffer[..want], offset).map_err(PassError::Read)?;
            pass.data(&buffer[..read])?;
            offset += read as u64;
            if read < want {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The next range of data at or after `offset`, which is a multiple of the block size, widened to whole blocks.
fn next_data(file: &File, offset: u64, size: u64) -> io::Result<(u64, u64)> {
    const MASK: u64 = BLOCK_BYTES as u64 - 1;
    let start = match fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start & !MASK,
        Err(Errno::NXIO) => return Ok((size, size)),
        // No support for finding holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((offset, size)),
        Err(errno) => return Err(errno.into()),
    };
    if start >= size {
        return Ok((size, size));
    }
    let end = fs::seek(file, SeekFrom::Hole(start.max(offset))).map_or(size, |end| (end + MASK) & !MASK);
    // At least one block, so that a filesystem that answers strangely cannot keep us here.
    Ok((start, end.max((start.max(offset) + 1 + MASK) & !MASK).min(size)))
}
