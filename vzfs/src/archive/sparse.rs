//! The ways in which tars describe files with holes: GNU's old header fields, and three generations of PAX records.

use super::error::Reason;
use super::pax::{Records, decimal, header_number};

const DAMAGED: Reason = Reason::Header("a sparse map is damaged");

/// One range of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The data of a file of `size` bytes: ranges in order, without overlap, all within the file.
#[derive(Clone, Debug)]
pub(super) struct SparseMap {
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl SparseMap {
    /// Checks the rules above, and that the archive holds exactly the data that the map describes.
    pub(super) fn new(size: u64, mut segments: Vec<Segment>, stored_bytes: u64) -> Result<SparseMap, Reason> {
        segments.retain(|segment| segment.length > 0);
        let (mut end, mut data) = (0_u64, 0_u64);
        for segment in &segments {
            if segment.offset < end {
                return Err(DAMAGED);
            }
            end = segment.offset.checked_add(segment.length).filter(|end| *end <= size).ok_or(DAMAGED)?;
            data += segment.length;
        }
        if data != stored_bytes { Err(DAMAGED) } else { Ok(SparseMap { size, segments }) }
    }
}

/// What the PAX records of an entry say about holes.
pub(super) enum PaxSparse {
    /// The map itself (formats 0.0 and 0.1).
    Map(u64, Vec<Segment>),
    /// The map stands before the data (format 1.0).
    InData(u64),
}

/// Finds the description in the records, if there is one.
pub(super) fn in_records(records: &Records) -> Result<Option<PaxSparse>, Reason> {
    let size = match records.number("GNU.sparse.realsize")? {
        Some(size) => Some(size),
        None => records.number("GNU.sparse.size")?,
    };
    let Some(size) = size else { return Ok(None) };
    match (records.number("GNU.sparse.major")?, records.number("GNU.sparse.minor")?) {
        (None | Some(0), _) => {}
        (Some(1), Some(0)) => return Ok(Some(PaxSparse::InData(size))),
        _ => return Err(Reason::Unsupported("this sparse format".to_owned())),
    }
    let mut segments = Vec::new();
    if let Some(map) = records.get("GNU.sparse.map") {
        let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(decimal).collect();
        let numbers = numbers.ok_or(DAMAGED)?;
        if numbers.len() % 2 != 0 {
            return Err(DAMAGED);
        }
        segments.extend(numbers.chunks(2).map(|pair| Segment { offset: pair[0], length: pair[1] }));
    } else {
        let mut offset = None;
        for (keyword, value) in records.iter() {
            match keyword {
                b"GNU.sparse.offset" => offset = Some(decimal(value).ok_or(DAMAGED)?),
                b"GNU.sparse.numbytes" => {
                    let (Some(offset), Some(length)) = (offset.take(), decimal(value)) else {
                        return Err(DAMAGED);
                    };
                    segments.push(Segment { offset, length });
                }
                _ => {}
            }
        }
    }
    Ok(Some(PaxSparse::Map(size, segments)))
}

/// The (offset, length) pairs of an old GNU header or of one of its extension blocks; an empty pair ends them.
pub(super) fn gnu_pairs(fields: &[u8], segments: &mut Vec<Segment>) -> Result<(), Reason> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let (offset, length) = (header_number(&pair[..12])?, header_number(&pair[12..])?);
        let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else { return Err(DAMAGED) };
        segments.push(Segment { offset, length });
    }
    Ok(())
}

/// Reads the lines of a format 1.0 map: the number of segments, then the two numbers of each.
#[derive(Default)]
pub(super) struct MapLines {
    numbers: Vec<u64>,
    digits: Vec<u8>,
}

impl MapLines {
    /// Takes the next block of the map. Returns whether the map is complete; the rest of its last block is padding.
    pub(super) fn take(&mut self, block: &[u8]) -> Result<bool, Reason> {
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > 20 {
                    return Err(DAMAGED);
                }
                continue;
            }
            self.numbers.push(decimal(&self.digits).ok_or(DAMAGED)?);
            self.digits.clear();
            if self.is_complete() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_complete(&self) -> bool {
        let wanted =
            self.numbers.first().and_then(|count| count.checked_mul(2)).and_then(|n| n.checked_add(1));
        wanted == Some(self.numbers.len() as u64)
    }

    pub(super) fn segments(self) -> Vec<Segment> {
        let pairs = self.numbers.get(1..).unwrap_or_default();
        pairs.chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect()
    }
}

/// The bytes of a format 1.0 map, padded to whole blocks.
pub(super) fn encode_map(segments: &[Segment]) -> Vec<u8> {
    let mut text = format!("{}\n", segments.len());
    for segment in segments {
        text.push_str(&format!("{}\n{}\n", segment.offset, segment.length));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}
