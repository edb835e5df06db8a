//! A streaming reader of tar: POSIX ustar and PAX, GNU long names and sparse files, and the V7 format before them.

use std::io::{self, Read};

use super::error::Reason;
use super::pax::{Records, header_number, parse_time};
use super::sparse::{self, MapLines, PaxSparse, Segment, SparseMap};
use super::{Xattrs, acl_text};
use crate::types::{FileKind, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES, Timestamp};

/// Everything in a tar is a multiple of this long.
pub(super) const BLOCK_BYTES: usize = 512;
/// Longest extended header or sparse map: room for a file with the most extended attributes that Linux filesystems
/// can store, and a bound on the memory an archive can take.
const MAX_EXTENSION_BYTES: u64 = 16 << 20;
/// Longest global extended header, and most bytes of global records in effect: every entry after it is read with them, so that this many
/// bytes are work for each. Real ones hold a comment.
const MAX_GLOBAL_BYTES: u64 = 16 << 10;
/// Prefix of the PAX keywords that carry extended attributes.
const XATTR_KEYWORD: &str = "SCHILY.xattr.";
/// PAX keyword of this program: marks the entries that stand for whiteouts and opaque directories of a layer.
pub(super) const LAYER_KEYWORD: &str = "VZFS.layer";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    /// A file of its own.
    File(FileKind),
    /// Another name of the entry that `link` names.
    HardLink,
}

/// One entry's header, with everything that extended headers say about it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    /// Target of a symbolic or hard link.
    pub(super) link: Vec<u8>,
    pub(super) perm: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    /// Device numbers (major, minor).
    pub(super) device: (u32, u32),
    /// Bytes of content, holes included.
    pub(super) size: u64,
    pub(super) sparse: Option<SparseMap>,
    pub(super) xattrs: Xattrs,
    /// Value of [`LAYER_KEYWORD`].
    pub(super) layer_mark: Option<Vec<u8>>,
}

/// Reads a tar from its start to its end marker.
pub(super) struct TarReader<R> {
    input: R,
    /// Stored bytes of the current entry that have not been read.
    remaining: u64,
    /// Bytes between those and the next header.
    padding: u64,
    global: Records,
    /// The path of the last header, for messages.
    path: Vec<u8>,
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(input: R) -> Self {
        TarReader { input, remaining: 0, padding: 0, global: Records::default(), path: Vec::new() }
    }

    /// The path in the last header that was read; for messages.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The next entry, after what is left of the one before. `None` at the end marker; an archive without one is
    /// truncated.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, Reason> {
        let mut own = Records::default();
        // Nothing says how many extended headers one entry may have, so they share the room of one.
        let mut room = MAX_EXTENSION_BYTES;
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let header = Header(self.block()?);
            if header.0.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            header.check()?;
            let size = header.size()?;
            match header.type_flag() {
                b'x' | b'X' => {
                    own.append(Records::parse(&self.extension(size, room)?)?);
                    room -= size;
                }
                b'g' => {
                    let records = Records::parse(&self.extension(size, MAX_GLOBAL_BYTES)?)?;
                    self.global.replace(records);
                    if self.global.bytes() > MAX_GLOBAL_BYTES {
                        let what = "bytes of global extended headers";
                        return Err(Reason::Limit { what, limit: MAX_GLOBAL_BYTES });
                    }
                }
                b'L' => long_path = Some(self.long_name(size)?),
                b'K' => long_link = Some(self.long_name(size)?),
                // A volume label.
                b'V' => self.begin(size),
                _ => {
                    let mut records = self.global.clone();
                    records.append(own);
                    return self.member(&header, &records, long_path, long_link).map(Some);
                }
            }
        }
    }

    /// The content of the entry that was read last.
    pub(super) fn content<'a>(&'a mut self, member: &'a Member) -> MemberContent<'a, R> {
        MemberContent { tar: self, sparse: member.sparse.as_ref(), segment: 0, position: 0 }
    }

    /// Reads what follows the end marker, so that a compressed stream's own checks take place.
    pub(super) fn finish(mut self) -> Result<(), Reason> {
        io::copy(&mut self.input, &mut io::sink())?;
        Ok(())
    }

    fn member(
        &mut self,
        header: &Header,
        records: &Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, Reason> {
        let given = |keyword: &str| records.get(keyword).map(<[u8]>::to_vec);
        // GNU's own name for sparse files, whose `path` is only a stand-in.
        let path =
            given("GNU.sparse.name").or_else(|| given("path")).or(long_path).unwrap_or_else(|| header.path());
        let link = given("linkpath").or(long_link).unwrap_or_else(|| header.link());
        self.path.clone_from(&path);
        let kind = header.kind(&path)?;
        let stored = match records.number("size")? {
            Some(size) => size,
            None => header.size()?,
        };
        // Only files have data. The size field of a directory is a quota, that of a hard link a copy of its target's, unless
        // PAX records show a writer that stores the content with every name.
        let has_data = match kind {
            MemberKind::File(kind) => kind == FileKind::File || header.type_flag() == b'D',
            MemberKind::HardLink => !records.is_empty() && records.number("size")?.is_some(),
        };
        self.begin(if has_data { stored } else { 0 });
        let sparse =
            if kind == MemberKind::File(FileKind::File) { self.sparse(header, records)? } else { None };
        let size = match (&sparse, kind) {
            (Some(map), _) => map.size,
            (None, MemberKind::File(FileKind::File)) => self.remaining,
            _ => 0,
        };
        let mtime = match records.get("mtime") {
            Some(time) => parse_time(time)?,
            None => Timestamp::new(header_number(&header.0[136..148])?, 0),
        };
        Ok(Member {
            kind,
            link,
            perm: (header_number(&header.0[100..108])? & 0o7777) as u16,
            uid: owner("owner", records.number("uid")?, &header.0[108..116])?,
            gid: owner("group", records.number("gid")?, &header.0[116..124])?,
            mtime,
            device: header.device(kind)?,
            size,
            sparse,
            xattrs: xattrs(records)?,
            layer_mark: given(LAYER_KEYWORD),
            path,
        })
    }

    fn sparse(&mut self, header: &Header, records: &Records) -> Result<Option<SparseMap>, Reason> {
        if header.type_flag() == b'S' {
            let mut segments = Vec::new();
            sparse::gnu_pairs(&header.0[386..482], &mut segments)?;
            let mut more = header.0[482] != 0;
            // The extension blocks stand before the data and do not count as part of it.
            while more {
                let block = self.block()?;
                sparse::gnu_pairs(&block[..504], &mut segments)?;
                more = block[504] != 0;
                check_map_length(segments.len())?;
            }
            let size = u64::try_from(header_number(&header.0[483..495])?);
            let size = size.map_err(|_| Reason::Header("a size is negative"))?;
            return SparseMap::new(size, segments, self.remaining).map(Some);
        }
        match sparse::in_records(records)? {
            None => Ok(None),
            Some(PaxSparse::Map(size, segments)) => SparseMap::new(size, segments, self.remaining).map(Some),
            Some(PaxSparse::InData(size)) => {
                let segments = self.map_in_data()?;
                SparseMap::new(size, segments, self.remaining).map(Some)
            }
        }
    }

    fn map_in_data(&mut self) -> Result<Vec<Segment>, Reason> {
        let mut lines = MapLines::default();
        let mut read = 0;
        loop {
            if self.remaining < BLOCK_BYTES as u64 {
                return Err(Reason::Header("a sparse map is damaged"));
            }
            if read > MAX_EXTENSION_BYTES {
                return Err(Reason::Limit { what: "bytes of sparse map", limit: MAX_EXTENSION_BYTES });
            }
            let block = self.block()?;
            self.remaining -= BLOCK_BYTES as u64;
            read += BLOCK_BYTES as u64;
            if lines.take(&block)? {
                return Ok(lines.segments());
            }
        }
    }

    fn begin(&mut self, stored: u64) {
        self.remaining = stored;
        self.padding = (BLOCK_BYTES as u64 - stored % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
    }

    fn block(&mut self) -> Result<[u8; BLOCK_BYTES], Reason> {
        let mut block = [0; BLOCK_BYTES];
        self.input.read_exact(&mut block)?;
        Ok(block)
    }

    fn extension(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, Reason> {
        if size > limit {
            return Err(Reason::Limit { what: "bytes of extended header", limit });
        }
        self.begin(size);
        // Grows with what really arrives: a header alone must not make us allocate.
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(size).read_to_end(&mut bytes)?;
        self.remaining -= read as u64;
        if self.remaining > 0 { Err(Reason::Truncated) } else { Ok(bytes) }
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, Reason> {
        let mut name = self.extension(size, MAX_EXTENSION_BYTES)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn skip_rest(&mut self) -> Result<(), Reason> {
        let rest = self.remaining.checked_add(self.padding).ok_or(Reason::Header("a size is too large"))?;
        if rest > 0 {
            let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
            if skipped < rest {
                return Err(Reason::Truncated);
            }
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }
}

fn check_map_length(segments: usize) -> Result<(), Reason> {
    const LIMIT: u64 = MAX_EXTENSION_BYTES / size_of::<Segment>() as u64;
    if segments as u64 > LIMIT {
        Err(Reason::Limit { what: "sparse segments", limit: LIMIT })
    } else {
        Ok(())
    }
}

fn owner(what: &'static str, given: Option<u64>, field: &[u8]) -> Result<u32, Reason> {
    let value = match given {
        Some(value) => i64::try_from(value).unwrap_or(i64::MAX),
        None => header_number(field)?,
    };
    // The largest value means "unchanged" to chown(2) and can own nothing.
    u32::try_from(value).ok().filter(|value| *value != u32::MAX).ok_or(Reason::Range { what, value })
}

fn xattrs(records: &Records) -> Result<Xattrs, Reason> {
    let mut xattrs = Xattrs::new();
    for (keyword, value) in records.iter() {
        let Some(name) = keyword.strip_prefix(XATTR_KEYWORD.as_bytes()) else { continue };
        let name = decode_xattr_name(name);
        if !super::is_kept_xattr(&name) {
            continue;
        }
        if name.len() > MAX_XATTR_NAME_BYTES || value.len() > MAX_XATTR_VALUE_BYTES || name.contains(&0) {
            return Err(Reason::Xattr(super::error::printable(&name)));
        }
        xattrs.insert(name.into_boxed_slice(), value.into());
    }
    for (keyword, name) in acl_text::KEYWORDS {
        // The attribute itself says the same, and more exactly.
        if let Some(text) = records.get(keyword).filter(|_| !xattrs.contains_key(name))
            && let Some(value) = acl_text::to_xattr(name, text)?
        {
            xattrs.insert(name.into(), value.into_boxed_slice());
        }
    }
    Ok(xattrs)
}

/// A PAX keyword ends at its first `=`, so GNU tar writes `%3D` for one in an attribute's name, and `%25` for `%`.
pub(super) fn encode_xattr_name(name: &[u8]) -> Vec<u8> {
    let mut encoded = XATTR_KEYWORD.as_bytes().to_vec();
    for byte in name {
        match byte {
            b'=' => encoded.extend_from_slice(b"%3D"),
            b'%' => encoded.extend_from_slice(b"%25"),
            byte => encoded.push(*byte),
        }
    }
    encoded
}

fn decode_xattr_name(mut encoded: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(encoded.len());
    while let [first, rest @ ..] = encoded {
        let (byte, rest) = match encoded {
            [b'%', b'3', b'D', rest @ ..] => (b'=', rest),
            [b'%', b'2', b'5', rest @ ..] => (b'%', rest),
            _ => (*first, rest),
        };
        name.push(byte);
        encoded = rest;
    }
    name
}

/// Whether a block is a plausible header or an end marker.
pub(super) fn is_header(block: &[u8; BLOCK_BYTES]) -> bool {
    block.iter().all(|byte| *byte == 0) || Header(*block).check().is_ok()
}

struct Header([u8; BLOCK_BYTES]);

impl Header {
    fn check(&self) -> Result<(), Reason> {
        let stored = header_number(&self.0[148..156])?;
        // The checksum counts its own field as spaces. Some old programs summed signed characters.
        let as_counted = |at: usize| if (148..156).contains(&at) { b' ' } else { self.0[at] };
        let unsigned: i64 = (0..BLOCK_BYTES).map(|at| i64::from(as_counted(at))).sum();
        let signed: i64 = (0..BLOCK_BYTES).map(|at| i64::from(as_counted(at).cast_signed())).sum();
        if stored == unsigned || stored == signed {
            Ok(())
        } else {
            Err(Reason::Header("the header's checksum is wrong"))
        }
    }

    fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn size(&self) -> Result<u64, Reason> {
        u64::try_from(header_number(&self.0[124..136])?).map_err(|_| Reason::Header("a size is negative"))
    }

    fn text(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.0[range].split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        // Only POSIX headers have a prefix; GNU's keep other things there.
        let prefix = if &self.0[257..263] == b"ustar\0" { self.text(345..500) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn link(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    fn kind(&self, path: &[u8]) -> Result<MemberKind, Reason> {
        Ok(MemberKind::File(match self.type_flag() {
            // V7 knows no directories: their names end in a slash.
            0 | b'0' if path.ends_with(b"/") => FileKind::Dir,
            0 | b'0' | b'7' | b'S' => FileKind::File,
            b'1' => return Ok(MemberKind::HardLink),
            b'2' => FileKind::Symlink,
            b'3' => FileKind::Char,
            b'4' => FileKind::Block,
            b'5' | b'D' => FileKind::Dir,
            b'6' => FileKind::Fifo,
            other => {
                let flag = other.escape_ascii();
                return Err(Reason::Unsupported(format!("an entry of type '{flag}'")));
            }
        }))
    }

    fn device(&self, kind: MemberKind) -> Result<(u32, u32), Reason> {
        let MemberKind::File(FileKind::Char | FileKind::Block) = kind else { return Ok((0, 0)) };
        let number = |what, field: &[u8]| -> Result<u32, Reason> {
            let value = header_number(field)?;
            u32::try_from(value).map_err(|_| Reason::Range { what, value })
        };
        Ok((
            number("device major number", &self.0[329..337])?,
            number("device minor number", &self.0[337..345])?,
        ))
    }
}

/// An entry's content, holes filled with zeros.
pub(super) struct MemberContent<'a, R> {
    tar: &'a mut TarReader<R>,
    sparse: Option<&'a SparseMap>,
    /// The first segment that is not yet read to its end.
    segment: usize,
    position: u64,
}

impl<R: Read> Read for MemberContent<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(map) = self.sparse else {
            return self.read_stored(buffer, u64::MAX);
        };
        let (start, end) = match map.segments.get(self.segment) {
            Some(segment) => (segment.offset, segment.offset + segment.length),
            None => (map.size, map.size),
        };
        let read = if self.position < start {
            let zeros = at_most(buffer, start - self.position);
            buffer[..zeros].fill(0);
            zeros
        } else {
            self.read_stored(buffer, end - self.position)?
        };
        self.position += read as u64;
        if self.position == end {
            self.segment += 1;
        }
        Ok(read)
    }
}

impl<R: Read> MemberContent<'_, R> {
    fn read_stored(&mut self, buffer: &mut [u8], most: u64) -> io::Result<usize> {
        let want = at_most(buffer, most.min(self.tar.remaining));
        if want == 0 {
            return Ok(0);
        }
        let read = self.tar.input.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.tar.remaining -= read as u64;
        Ok(read)
    }
}

fn at_most(buffer: &[u8], length: u64) -> usize {
    usize::try_from(length).map_or(buffer.len(), |length| length.min(buffer.len()))
}
