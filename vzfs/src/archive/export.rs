//! Export of a tree as a tar: ustar headers, with PAX records for whatever those cannot carry.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use rustix::fs;
use rustix::io::Errno;

use super::error::{ArchiveError, printable};
use super::pax::{Records, format_time};
use super::sparse::{Segment, encode_map};
use super::tar::{BLOCK_BYTES, LAYER_KEYWORD, encode_xattr_name};
use crate::blobs::{BlobError, BlobStore};
use crate::tree::{ContentRef, NodeView, Tree, WalkEntry};
use crate::types::{Attr, Digest, FileKind, Ino, Timestamp};

/// A file is written with its holes when they are worth the map: at least this many bytes of them.
const SPARSE_WORTH_BYTES: u64 = 64 << 10;
/// The end marker is two blocks; writers fill up to a record of twenty.
const RECORD_BYTES: u64 = 20 * BLOCK_BYTES as u64;
const BUFFER_BYTES: usize = 256 << 10;

/// Name and value of an extended attribute.
pub type Xattr<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// One entry of a tar that is being written.
pub struct TarEntry<'a> {
    /// From the root, without leading slash; empty for the root itself.
    pub path: &'a [u8],
    /// Type, owner, permissions, times, size and device number. `ino`, `nlink` and `blocks` are not used.
    pub attr: &'a Attr,
    /// The target of a symbolic link; empty for what is none.
    pub symlink: &'a [u8],
    /// The extended attributes.
    pub xattrs: Vec<Xattr<'a>>,
    /// For the second and further names of an inode: the path that it had first. The rest is then not used.
    pub hard_link: Option<&'a [u8]>,
    /// Opens the content of a regular file, `attr.size` bytes from the start of the file that it gives. `None` is good for
    /// empty files only.
    pub open: Option<&'a dyn Fn() -> io::Result<File>>,
    /// For layers: the entry stands for a whiteout (`whiteout`) or for its directory being opaque (`opaque`).
    pub layer_mark: Option<&'a str>,
}

/// What can be exported: anything that can list its entries.
pub trait TarSource {
    /// Gives every entry to `emit`, directories before what they contain and the first name of an inode before the
    /// others. An error of `emit` ends the listing and is passed on; own errors go into [`ArchiveError::Provider`].
    fn visit(
        &self,
        emit: &mut dyn FnMut(TarEntry<'_>) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError>;
}

/// Writes everything that `source` lists as a tar, with its end marker. Sockets are left out: a tar cannot hold them.
///
/// # Errors
/// What was written so far is then no complete archive, which every reader notices by the missing end marker.
pub fn export_tar(source: impl TarSource, out: impl Write) -> Result<(), ArchiveError> {
    let mut writer =
        TarWriter { out: io::BufWriter::with_capacity(BUFFER_BYTES, out), written: 0, buffer: Vec::new() };
    source.visit(&mut |entry| writer.entry(&entry))?;
    writer.finish()
}

struct TarWriter<W: Write> {
    out: io::BufWriter<W>,
    written: u64,
    buffer: Vec<u8>,
}

impl<W: Write> TarWriter<W> {
    fn entry(&mut self, entry: &TarEntry<'_>) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Content { entry: printable(entry.path), source };
        let attr = entry.attr;
        if attr.kind == FileKind::Socket {
            tracing::info!(path = %printable(entry.path), "sockets are not exported");
            return Ok(());
        }
        if let Some(target) = entry.hard_link {
            return self.header(entry, b'1', target, Records::default(), 0);
        }
        let flag = match attr.kind {
            FileKind::File | FileKind::Socket => b'0',
            FileKind::Symlink => b'2',
            FileKind::Char => b'3',
            FileKind::Block => b'4',
            FileKind::Dir => b'5',
            FileKind::Fifo => b'6',
        };
        let mut records = Records::default();
        for (name, value) in &entry.xattrs {
            records.push(&encode_xattr_name(name), value);
        }
        if let Some(mark) = entry.layer_mark {
            records.push(LAYER_KEYWORD.as_bytes(), mark.as_bytes());
        }
        if attr.kind != FileKind::File || attr.size == 0 {
            return self.header(entry, flag, entry.symlink, records, 0);
        }
        let Some(open) = entry.open else {
            return Err(failed(io::Error::other("it has a size and no content")));
        };
        let mut file = open().map_err(failed)?;
        match find_holes(&file, attr.size).map_err(failed)? {
            Some(segments) => self.sparse_file(entry, records, &mut file, &segments),
            None => {
                self.header(entry, flag, b"", records, attr.size)?;
                self.data(entry, &mut file, attr.size)?;
                self.pad()
            }
        }
    }

    /// GNU's format 1.0: the map stands before the data, and the real name and size in PAX records.
    fn sparse_file(
        &mut self,
        entry: &TarEntry<'_>,
        mut records: Records,
        file: &mut File,
        segments: &[Segment],
    ) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Content { entry: printable(entry.path), source };
        let map = encode_map(segments);
        let stored = map.len() as u64 + segments.iter().map(|segment| segment.length).sum::<u64>();
        records.push(b"GNU.sparse.major", b"1");
        records.push(b"GNU.sparse.minor", b"0");
        records.push(b"GNU.sparse.name", entry.path);
        records.push(b"GNU.sparse.realsize", entry.attr.size.to_string().as_bytes());
        self.header(entry, b'0', b"", records, stored)?;
        self.put(&map)?;
        for segment in segments {
            file.seek(SeekFrom::Start(segment.offset)).map_err(failed)?;
            self.data(entry, file, segment.length)?;
        }
        self.pad()
    }

    fn header(
        &mut self,
        entry: &TarEntry<'_>,
        flag: u8,
        link: &[u8],
        mut records: Records,
        size: u64,
    ) -> Result<(), ArchiveError> {
        let attr = entry.attr;
        let mut path = if entry.path.is_empty() { b".".to_vec() } else { entry.path.to_vec() };
        if flag == b'5' {
            path.push(b'/');
        }
        let mut text_records = Records::default();
        let mut header = Header::new(flag);
        if !header.set_path(&path) {
            text_records.push(b"path", &path);
        }
        if !header.set_text(157..257, link) {
            text_records.push(b"linkpath", link);
        }
        let is_utf8 = |(_, value): (&[u8], &[u8])| std::str::from_utf8(value).is_ok();
        let mut all = Records::default();
        if !text_records.iter().all(is_utf8) {
            // PAX text is UTF-8 unless it says otherwise.
            all.push(b"hdrcharset", b"BINARY");
        }
        all.append(text_records);
        header.set_number(100..108, u64::from(attr.perm));
        if !header.set_number(108..116, u64::from(attr.uid)) {
            records.push(b"uid", attr.uid.to_string().as_bytes());
        }
        if !header.set_number(116..124, u64::from(attr.gid)) {
            records.push(b"gid", attr.gid.to_string().as_bytes());
        }
        if !header.set_number(124..136, size) {
            records.push(b"size", size.to_string().as_bytes());
        }
        let Timestamp { secs, nanos } = attr.mtime;
        let whole = u64::try_from(secs).is_ok_and(|secs| header.set_number(136..148, secs));
        if !whole || nanos != 0 {
            records.push(b"mtime", format_time(attr.mtime).as_bytes());
        }
        if attr.kind.is_device() && flag != b'1' {
            let (major, minor) = super::decode_device(attr.rdev);
            header.set_number(329..337, u64::from(major));
            header.set_number(337..345, u64::from(minor));
        }
        all.append(records);
        if !all.is_empty() {
            let bytes = all.encode();
            let mut extension = Header::new(b'x');
            // The name is for programs that do not know PAX; they unpack the records as a file.
            extension.set_path(b"PaxHeaders/entry");
            extension.set_number(100..108, 0o644);
            extension.set_number(108..116, 0);
            extension.set_number(116..124, 0);
            extension.set_number(124..136, bytes.len() as u64);
            extension.set_number(136..148, 0);
            self.put(&extension.finish())?;
            self.put(&bytes)?;
            self.pad()?;
        }
        self.put(&header.finish())
    }

    /// Copies exactly `length` bytes; a file that has become shorter is an error, one that grew is cut.
    fn data(&mut self, entry: &TarEntry<'_>, file: &mut File, length: u64) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Content { entry: printable(entry.path), source };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER_BYTES, 0);
        let mut left = length;
        while left > 0 {
            let want = left.min(BUFFER_BYTES as u64) as usize;
            match file.read(&mut buffer[..want]) {
                Ok(0) => return Err(failed(io::Error::other("the file is shorter than its size says"))),
                Ok(read) => {
                    self.put(&buffer[..read])?;
                    left -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.out.write_all(bytes).map_err(ArchiveError::Output)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> Result<(), ArchiveError> {
        let past = (self.written % BLOCK_BYTES as u64) as usize;
        if past == 0 { Ok(()) } else { self.put(&[0; BLOCK_BYTES][past..]) }
    }

    fn finish(mut self) -> Result<(), ArchiveError> {
        self.put(&[0; 2 * BLOCK_BYTES])?;
        while !self.written.is_multiple_of(RECORD_BYTES) {
            self.put(&[0; BLOCK_BYTES])?;
        }
        self.out.flush().map_err(ArchiveError::Output)
    }
}

struct Header([u8; BLOCK_BYTES]);

impl Header {
    fn new(flag: u8) -> Self {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[156] = flag;
        bytes[257..265].copy_from_slice(b"ustar\x0000");
        // Devices' fields are there for every type; empty ones irritate strict readers.
        bytes[329..337].copy_from_slice(b"0000000\0");
        bytes[337..345].copy_from_slice(b"0000000\0");
        Header(bytes)
    }

    /// Octal digits and a NUL; all zeros, and false, when it does not fit.
    fn set_number(&mut self, range: std::ops::Range<usize>, value: u64) -> bool {
        let width = range.len() - 1;
        let fits = value < 1 << (3 * width);
        let text = format!("{:0width$o}\0", if fits { value } else { 0 });
        self.0[range].copy_from_slice(text.as_bytes());
        fits
    }

    /// As much as fits; false when that is not all.
    fn set_text(&mut self, range: std::ops::Range<usize>, text: &[u8]) -> bool {
        let length = text.len().min(range.len());
        self.0[range.start..range.start + length].copy_from_slice(&text[..length]);
        length == text.len()
    }

    /// Splits a long path at a slash between the two fields that POSIX has for it, when it can.
    fn set_path(&mut self, path: &[u8]) -> bool {
        const NAME: usize = 100;
        const PREFIX: usize = 155;
        if path.len() <= NAME {
            return self.set_text(0..100, path);
        }
        let from = path.len() - NAME - 1;
        let slash =
            (from..path.len() - 1).find(|at| path[*at] == b'/').filter(|at| (1..=PREFIX).contains(at));
        match slash {
            Some(slash) => {
                self.set_text(345..500, &path[..slash]) && self.set_text(0..100, &path[slash + 1..])
            }
            None => {
                self.set_text(0..100, path);
                false
            }
        }
    }

    fn finish(mut self) -> [u8; BLOCK_BYTES] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// The data ranges of a file with holes that are worth a map; `None` for others and where holes cannot be found.
fn find_holes(file: &File, size: u64) -> io::Result<Option<Vec<Segment>>> {
    let metadata = file.metadata()?;
    if metadata.blocks().saturating_mul(512).saturating_add(SPARSE_WORTH_BYTES) > size
        || metadata.len() < size
    {
        return Ok(None);
    }
    let mut segments = Vec::new();
    let mut at = 0;
    while at < size {
        let offset = match fs::seek(file, fs::SeekFrom::Data(at)) {
            Ok(offset) if offset < size => offset,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let end = fs::seek(file, fs::SeekFrom::Hole(offset))?.min(size);
        if end <= offset {
            return Ok(None);
        }
        segments.push(Segment { offset, length: end - offset });
        at = end;
    }
    let data: u64 = segments.iter().map(|segment| segment.length).sum();
    // GNU tar ends a map with an empty segment at the file's size; readers take the size from there or from the record.
    segments.push(Segment { offset: size, length: 0 });
    Ok(if data + SPARSE_WORTH_BYTES <= size { Some(segments) } else { None })
}

/// Exports a stored tree. Whiteouts and opaque directories of a layer become the `.wh.` files of OCI image layers, with a
/// record that tells them from files that are really named so.
pub struct TemplateSource<'a> {
    /// What to export.
    pub tree: &'a Tree,
    /// Where its contents are.
    pub blobs: &'a BlobStore,
}

impl TarSource for TemplateSource<'_> {
    fn visit(
        &self,
        emit: &mut dyn FnMut(TarEntry<'_>) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        // Only inodes with several names are remembered.
        let mut first_names = std::collections::HashMap::new();
        for (path, entry) in self.tree.walk() {
            match entry {
                WalkEntry::Whiteout => emit(mark_entry(&with_prefix(&path), "whiteout"))?,
                WalkEntry::Node(node) => {
                    let attr = node.attr();
                    let first = match attr.kind != FileKind::Dir && attr.nlink > 1 {
                        true => first_names.get(&node.ino()).cloned(),
                        false => None,
                    };
                    self.node(&path, &node, &attr, first.as_deref(), emit)?;
                    if first.is_none() && attr.kind != FileKind::Dir && attr.nlink > 1 {
                        first_names.insert(node.ino(), path);
                    } else if attr.kind == FileKind::Dir && node.is_opaque() {
                        let below = if path.is_empty() { Vec::new() } else { [&path[..], b"/"].concat() };
                        emit(mark_entry(&[&below[..], b".wh..wh..opq"].concat(), "opaque"))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl TemplateSource<'_> {
    fn node(
        &self,
        path: &[u8],
        node: &NodeView<'_>,
        attr: &Attr,
        first: Option<&[u8]>,
        emit: &mut dyn FnMut(TarEntry<'_>) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let (mut symlink, mut blob): (&[u8], Option<Digest>) = (b"", None);
        match node.content() {
            ContentRef::None => {}
            ContentRef::Blob { digest, .. } => blob = Some(digest),
            ContentRef::Symlink(target) => symlink = target,
        }
        let open = || match blob {
            Some(digest) => self.blobs.open_blob(&digest).map_err(into_io),
            None => Err(io::Error::other("it has no content")),
        };
        emit(TarEntry {
            path,
            attr,
            symlink,
            xattrs: node.xattrs().map(|(name, value)| (name.into(), value.into())).collect(),
            hard_link: first,
            open: Some(&open),
            layer_mark: None,
        })
    }
}

/// Keeps the blob's name in the message.
fn into_io(error: BlobError) -> io::Error {
    let kind = error.io_error().map_or(io::ErrorKind::Other, io::Error::kind);
    io::Error::new(kind, error)
}

fn with_prefix(path: &[u8]) -> Vec<u8> {
    let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..name], b".wh.", &path[name..]].concat()
}

/// Whiteouts have no attributes of their own.
const MARK_ATTR: Attr = Attr {
    ino: Ino::ROOT,
    kind: FileKind::File,
    perm: 0,
    nlink: 1,
    uid: 0,
    gid: 0,
    rdev: 0,
    size: 0,
    blocks: 0,
    atime: Timestamp { secs: 0, nanos: 0 },
    mtime: Timestamp { secs: 0, nanos: 0 },
    ctime: Timestamp { secs: 0, nanos: 0 },
};

fn mark_entry<'a>(path: &'a [u8], mark: &'a str) -> TarEntry<'a> {
    TarEntry {
        path,
        attr: &MARK_ATTR,
        symlink: b"",
        xattrs: Vec::new(),
        hard_link: None,
        open: None,
        layer_mark: Some(mark),
    }
}
