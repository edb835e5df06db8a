//! Arbitrary bytes as a tree file: whatever they are, reading them is safe; what validation accepts is sound in every respect.
//!
//! Plain bytes would never get past the header, so the mutator knows where the tables are: it changes, copies and swaps whole fields of
//! records and then makes the sizes in the header fit.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use vzfs::tree::{Tree, TreeBuilder, diff};
use vzfs_fuzz::{assert_sound, read_all};

const HEADER_BYTES: usize = 128;
/// Record sizes of the sections, in order (doc/FORMAT.md), and the offset of their counts in the header. The index has none.
const SECTIONS: [(usize, usize); 10] =
    [(12, 56), (0, 4), (16, 28), (20, 4), (24, 48), (28, 8), (32, 12), (36, 1), (40, 1), (44, 1)];

fuzz_target!(|bytes: &[u8]| {
    let Ok(tree) = Tree::from_bytes(bytes.to_vec()) else { return };
    // A damaged tree may come to be read: validation happens once, on the way in.
    let paths = read_all(&tree);
    let valid = tree.validate().is_ok();
    if valid {
        assert_sound(&tree, bytes);
    }
    // Work per byte stays bounded, damaged or not: every entry is walked at most once.
    assert!(paths as u64 <= tree.stats().entries + 1);
    if let Ok(builder) = TreeBuilder::from_tree(&tree)
        && let Ok(image) = builder.finish()
    {
        let written = Tree::from_bytes(image.bytes).expect("what was written can be read");
        written.validate().expect("what was written is valid");
        let _ = diff(&tree, &written);
    }
    let mut layered = TreeBuilder::new(vzfs::tree::Meta::new(vzfs::types::FileKind::Dir, 0o755));
    let _ = layered.apply_layer(&tree);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random(seed);
    let mut size = size;
    if size < HEADER_BYTES || random.below(4) == 0 {
        size = fuzzer_mutate(data, size, max_size);
    } else {
        for _ in 0..=random.below(3) {
            change_field(&mut data[..size], &mut random);
        }
    }
    fit(data, size, max_size)
});

/// Makes the mark, the version and the size say what the bytes are, and the bytes as many as the counts stand for.
fn fit(data: &mut [u8], size: usize, max_size: usize) -> usize {
    if size < HEADER_BYTES {
        return size;
    }
    data[..8].copy_from_slice(b"vzfstree");
    data[8..12].copy_from_slice(&1u32.to_le_bytes());
    let end = sections(data).last().map_or(HEADER_BYTES, |section| section.1);
    data[72..80].copy_from_slice(&(end as u64).to_le_bytes());
    if end <= max_size {
        data[size.min(end)..end].fill(0);
        return end;
    }
    size
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

/// Start, end and record size of each section.
fn sections(data: &[u8]) -> Vec<(usize, usize, usize)> {
    let mut end = HEADER_BYTES;
    let section = |(count_at, record_bytes): &(usize, usize)| {
        let count = match count_at {
            0 => (1 << u32_at(data, 12).checked_ilog2().unwrap_or(0)) + 1,
            at => u32_at(data, *at) as usize,
        };
        let start = end;
        end += count * record_bytes;
        (start, end, *record_bytes)
    };
    SECTIONS.iter().map(section).collect()
}

/// Changes one field of a record, or swaps or copies whole records.
fn change_field(data: &mut [u8], random: &mut Random) {
    let size = data.len();
    let all = sections(data);
    let (start, end, record) = all[random.below(all.len())];
    let end = end.min(size);
    if start >= end || random.below(8) == 0 {
        // A count or a statistic in the header.
        let at = 12 + 4 * random.below(18);
        let value = random.value(data, &all);
        data[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        return;
    }
    let (a, b) = (random.record(start, end, record), random.record(start, end, record));
    let room = |at: usize| at + record <= size;
    match random.below(6) {
        0 if room(a) && room(b) => (0..record).for_each(|byte| data.swap(a + byte, b + byte)),
        1 if room(a) && room(b) => data.copy_within(a..a + record, b),
        _ => {
            let width = [1, 2, 4, 8][random.below(4)].min(record);
            let at = a + random.below(record / width) * width;
            let value = random.value(data, &all);
            if let Some(field) = data.get_mut(at..at + width) {
                field.copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
    }
}

/// xorshift32.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        let mut x = self.0.max(1);
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.0 = x;
        x
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit.max(1)
    }

    /// The position of some record of a section.
    fn record(&mut self, start: usize, end: usize, record: usize) -> usize {
        start + self.below((end - start) / record) * record
    }

    /// Something that a field may hold: an edge, a small number, or what another field holds.
    fn value(&mut self, data: &[u8], sections: &[(usize, usize, usize)]) -> u64 {
        const EDGES: [u64; 10] = [
            0,
            1,
            2,
            u32::MAX as u64,
            u32::MAX as u64 - 1,
            1 << 31,
            1 << 52,
            u64::MAX,
            i64::MAX as u64,
            1_000_000_000,
        ];
        match self.below(3) {
            0 => EDGES[self.below(EDGES.len())],
            1 => self.below(64) as u64,
            _ => {
                let (start, end, record) = sections[self.below(sections.len())];
                let end = end.min(data.len());
                let at = if start < end { self.record(start, end, record) } else { 16 };
                data.get(at..at + 8).map_or(7, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
            }
        }
    }
}
