//! Reading past the page cache: what counts is what is on the disk, and what programs use stays in the cache.

use std::fs::File;

use rustix::fs::{self, OFlags};
use rustix::io::Errno;

use super::store::HASH_CHUNK_BYTES;

/// Calls `each` with a file's content from its beginning to its end, in pieces of [`HASH_CHUNK_BYTES`] but for the last, until it fails. Direct
/// where the host can; the descriptor may be left in that mode.
pub fn read<E: From<Errno>>(file: &File, each: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    // Added to the flags that it has: `O_NOATIME` is one of them.
    let flags = fs::fcntl_getfl(file)?;
    let _ = fs::fcntl_setfl(file, flags | OFlags::DIRECT);
    let mut buffer = AlignedBuffer::new(HASH_CHUNK_BYTES);
    let (mut size, mut filled) = (0, 0);
    loop {
        // By position, as a direct read leaves no other trace of where it ended.
        match rustix::io::pread(file, &mut buffer.bytes()[filled..], size) {
            Ok(0) => break,
            Ok(got) => {
                (filled, size) = (filled + got, size + got as u64);
                if filled == HASH_CHUNK_BYTES {
                    each(buffer.bytes())?;
                    filled = 0;
                }
            }
            Err(Errno::INTR) => {}
            // A direct read at a position that is not aligned: the file ends in the middle of a block.
            Err(Errno::INVAL) if fs::fcntl_getfl(file).is_ok_and(|now| now.contains(OFlags::DIRECT)) => {
                fs::fcntl_setfl(file, flags - OFlags::DIRECT)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    if filled > 0 { each(&buffer.bytes()[..filled]) } else { Ok(()) }
}

/// Memory for direct reads, which must begin at a multiple of the disk's block size.
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// No disk has larger blocks.
    const ALIGNMENT: usize = 4096;

    fn new(len: usize) -> AlignedBuffer {
        let memory = vec![0; len + Self::ALIGNMENT];
        let start = memory.as_ptr().align_offset(Self::ALIGNMENT);
        AlignedBuffer { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
