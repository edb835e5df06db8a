//! Finds out how a stream is compressed, and undoes it under a limit.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Receiver;

use super::error::Reason;
use super::tar;

const BUFFER_BYTES: usize = 256 << 10;
/// Decompressed pieces of [`BUFFER_BYTES`] that may wait for the reader.
const CHUNKS_AHEAD: usize = 8;
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

/// Runs `work` on the stream as it was before compression. Decompression has a thread of its own, so that hashing and
/// writing do not wait for it. Returns what `work` does, or why the stream cannot be begun.
pub(super) fn with_decompressed<T>(
    input: impl Read + Send,
    max_ratio: u64,
    work: impl FnOnce(&mut dyn Read) -> T,
) -> Result<T, Reason> {
    let (kind, mut stream) = decompressed(input, max_ratio)?;
    if kind == Compression::None {
        return Ok(work(&mut stream));
    }
    let (send, receive) = crossbeam::channel::bounded(CHUNKS_AHEAD);
    Ok(std::thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                let mut chunk = Vec::with_capacity(BUFFER_BYTES);
                let outcome = (&mut stream).take(BUFFER_BYTES as u64).read_to_end(&mut chunk);
                // What came before an error is good and goes first.
                if !chunk.is_empty() && send.send(Ok(chunk)).is_err() {
                    break;
                }
                match outcome {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => {
                        // A reader that has stopped reading does not need to know.
                        let _ = send.send(Err(error));
                        break;
                    }
                }
            }
        });
        work(&mut Chunks { receive, chunk: io::Cursor::default() })
    }))
}

/// The reading end of the decompressor's thread. Dropping it ends the thread.
struct Chunks {
    receive: Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.chunk.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.receive.recv() {
                Ok(chunk) => self.chunk = io::Cursor::new(chunk?),
                Err(_) => return Ok(0),
            }
        }
    }
}

/// A stream as it was before compression. Reading fails with a carried [`Reason::Limit`] once it grows by more than
/// the given ratio.
fn decompressed<'a>(
    input: impl Read + Send + 'a,
    max_ratio: u64,
) -> Result<(Compression, Box<dyn Read + Send + 'a>), Reason> {
    let packed = Arc::new(AtomicU64::new(0));
    let counted = Counting { input, count: Arc::clone(&packed) };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, counted);
    let kind = compression(fill(&mut input)?).map_err(Reason::Unsupported)?;
    let unpacked: Box<dyn Read + Send + 'a> = match kind {
        Compression::None => return Ok((kind, Box::new(input))),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input).map_err(Reason::from)?),
        Compression::Xz => {
            let stream = xz2::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, xz2::stream::CONCATENATED);
            let stream = stream.map_err(|error| Reason::from(io::Error::from(error)))?;
            Box::new(xz2::bufread::XzDecoder::new_stream(input, stream))
        }
    };
    let bounded = Bounded { input: unpacked, packed, unpacked: 0, max_ratio };
    Ok((kind, Box::new(bounded)))
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
    let (_, mut input) = decompressed(file, u64::MAX).map_err(|reason| match reason {
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
