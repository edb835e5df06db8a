//! The states in which a power failure can leave a recorded disk.
//!
//! A disk has a cache that it writes out in any order, sector by sector, until it is told to flush it. So at any moment everything before the last
//! flush is there, and of what was written since, any part.

use super::disk::{Event, Image, Recording, SECTOR_BYTES};
use super::random::Random;

/// What of the unflushed writes reached the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Everything: the cache was written out in order.
    All,
    /// Nothing.
    Nothing,
    /// Any of the writes.
    Some,
    /// Any of their sectors.
    Torn,
}

/// A moment at which the power fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashPoint {
    /// So many events had happened.
    pub events: usize,
    /// What became of the cache.
    pub fate: Fate,
    /// Says which of the writes or sectors.
    pub seed: u64,
}

/// Goes through a recording from its beginning to its end.
pub struct Replay<'r, M> {
    recording: &'r Recording<M>,
    /// What is durable after the last flush before `position`.
    durable: Image,
    /// The event after that flush.
    flushed: usize,
}

impl<'r, M> Replay<'r, M> {
    /// At the beginning.
    pub fn new(recording: &'r Recording<M>) -> Replay<'r, M> {
        Replay { recording, durable: recording.from.clone(), flushed: 0 }
    }

    /// What is on the disk after a crash, which must not be before the one asked for last.
    pub fn image(&mut self, point: CrashPoint) -> Image {
        let events = &self.recording.events[..point.events];
        if let Some(flush) = events.iter().rposition(|event| matches!(event, Event::Flush))
            && flush >= self.flushed
        {
            for event in &events[self.flushed..flush] {
                if let Event::Write { offset, bytes } = event {
                    self.durable.write(*offset, bytes);
                }
            }
            self.flushed = flush + 1;
        }
        let mut image = self.durable.clone();
        let mut random = Random::new(point.seed);
        for event in &events[self.flushed..] {
            let Event::Write { offset, bytes } = event else { continue };
            match point.fate {
                Fate::All => image.write(*offset, bytes),
                Fate::Nothing => {}
                Fate::Some if random.once_in(2) => image.write(*offset, bytes),
                Fate::Some => {}
                Fate::Torn => {
                    for (at, sector) in sectors(*offset, bytes) {
                        if random.once_in(2) {
                            image.write(at, sector);
                        }
                    }
                }
            }
        }
        image
    }
}

/// Bytes by the sectors of the disk that they go to.
fn sectors(mut offset: u64, mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut sectors = Vec::new();
    while !bytes.is_empty() {
        // The remainder is below the size of a sector.
        let room = SECTOR_BYTES - (offset % SECTOR_BYTES as u64) as usize;
        let (sector, rest) = bytes.split_at(bytes.len().min(room));
        sectors.push((offset, sector));
        (offset, bytes) = (offset + sector.len() as u64, rest);
    }
    sectors
}

/// Draws crash points, in order. Half of them are just before or after a flush, where most is at stake.
pub fn draw<M>(recording: &Recording<M>, count: usize, random: &mut Random) -> Vec<CrashPoint> {
    let events = &recording.events;
    let flushes: Vec<usize> = (0..events.len()).filter(|at| matches!(events[*at], Event::Flush)).collect();
    let mut points: Vec<CrashPoint> = (0..count)
        .map(|_| {
            let anywhere = random.below(events.len() + 1);
            let at_flush = random.pick(&flushes).map(|at| at + random.below(2));
            let events = if random.once_in(2) { anywhere } else { at_flush.unwrap_or(anywhere) };
            let fate = [Fate::All, Fate::Nothing, Fate::Some, Fate::Torn][random.below(4)];
            CrashPoint { events, fate, seed: random.number() }
        })
        .collect();
    points.sort_by_key(|point| point.events);
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_there_and_of_the_rest_some() {
        let write = |offset, byte| Event::<()>::Write { offset, bytes: vec![byte; 8192] };
        let recording = Recording {
            from: Image::default(),
            events: vec![write(0, 1), Event::Flush, write(4096, 2), write(16384, 3)],
        };
        let read = |image: &Image, offset| image.byte(offset);
        let point = |events, fate| CrashPoint { events, fate, seed: 5 };
        let mut replay = Replay::new(&recording);
        let before = replay.image(point(1, Fate::Nothing));
        assert_eq!(read(&before, 0), 0, "nothing is flushed yet");
        let nothing = replay.image(point(4, Fate::Nothing));
        assert_eq!((read(&nothing, 0), read(&nothing, 4100), read(&nothing, 16384)), (1, 1, 0));
        let all = replay.image(point(4, Fate::All));
        assert_eq!((read(&all, 0), read(&all, 4100), read(&all, 16384)), (1, 2, 3));
        let halves: std::collections::BTreeSet<_> = (0..40)
            .map(|seed| {
                let torn = replay.image(CrashPoint { events: 4, fate: Fate::Torn, seed });
                assert_eq!(read(&torn, 0), 1);
                (read(&torn, 16384), read(&torn, 16384 + 4096))
            })
            .collect();
        assert_eq!(halves.into_iter().collect::<Vec<_>>(), [(0, 0), (0, 3), (3, 0), (3, 3)]);
    }
}
