//! Finds out how a stream is compressed, and undoes it under a limit.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::Reason;
use super::tar;

const BUFFER_BYTES: usize = 256 << 10;
/// The ratio is judged only beyond this many decompressed bytes: short runs of zeros compress extremely well.
const RATIO_FREE_BYTES: u64 = 64 << 20;
/// What an xz stream may make its decoder allocate; `xz -9` asks for 65 MiB.
const XZ_MEMORY_BYTES: u64 = 256 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
}

fn compression(magic: &[u8]) -> Result<Compression, String> {
    Ok(match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame, with which some zstd files begin.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [b'B', b'Z', b'h', ..] => return Err("bzip2 compression is not supported".to_owned()),
        [b'P', b'K', 3, 4, ..] => return Err("it is a zip file".to_owned()),
        _ => Compression::None,
    })
}

/// A stream as it was before compression. Reading fails with a carried [`Reason::Limit`] once it grows by more than
/// the given ratio.
pub(super) fn decompressed<'a>(input: impl Read + 'a, max_ratio: u64) -> Result<Box<dyn Read + 'a>, Reason> {
    let packed = Arc::new(AtomicU64::new(0));
    let counted = Counting { input, count: Arc::clone(&packed) };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, counted);
    let kind = compression(fill(&mut input)?).map_err(Reason::Unsupported)?;
    let unpacked: Box<dyn Read + 'a> = match kind {
        Compression::None => return Ok(Box::new(input)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input).map_err(Reason::from)?),
        Compression::Xz => {
            let stream = xz2::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, xz2::stream::CONCATENATED);
            let stream = stream.map_err(|error| Reason::from(io::Error::from(error)))?;
            Box::new(xz2::bufread::XzDecoder::new_stream(input, stream))
        }
    };
    let bounded = Bounded { input: unpacked, packed, unpacked: 0, max_ratio };
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, bounded)))
}

fn fill<R: Read>(input: &mut BufReader<R>) -> Result<&[u8], Reason> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(input.buffer())
}

/// Whether the file begins, decompressed, like a tar; otherwise what it is.
pub(super) fn looks_like_tar(file: File) -> Result<(), String> {
    let mut input = decompressed(file, u64::MAX).map_err(|reason| match reason {
        Reason::Unsupported(what) => what,
        reason => reason.to_string(),
    })?;
    let mut block = [0; tar::BLOCK_BYTES];
    match input.read_exact(&mut block) {
        Ok(()) if tar::is_header(&block) => Ok(()),
        Ok(()) => Err("it is neither a tar nor compressed by gzip, zstd or xz".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err("it is too short for a tar".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

struct Counting<R> {
    input: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

struct Bounded<R> {
    input: R,
    packed: Arc<AtomicU64>,
    unpacked: u64,
    max_ratio: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.unpacked += read as u64;
        let allowed =
            self.packed.load(Ordering::Relaxed).saturating_mul(self.max_ratio).max(RATIO_FREE_BYTES);
        if self.unpacked > allowed {
            let what = "decompressed bytes for each compressed one";
            return Err(Reason::Limit { what, limit: self.max_ratio }.into());
        }
        Ok(read)
    }
}
