//! Operations that must happen once although their request comes again.
//!
//! A daemon that is killed may have committed an operation without answering it; the kernel then sends the request to the next daemon. So the batch
//! of an operation that would do harm the second time (a name made, removed or moved) also writes who asked and which inode came of it: the
//! *outcome*. It has a place, and stays there until another takes it; who gives out the places sees to it that this is after the answer.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Changes, Meta, MetaError, OUTCOMES_TABLE, damaged, keys};
use crate::types::{Ino, VeId};

/// Places of a VE that are taken before one is that an earlier daemon used: far more than the daemons that may be killed one after the other while
/// a request waits for its answer.
const PLACES: u64 = 256;
/// Connection, request, inode.
const OUTCOME_BYTES: usize = 24;

/// A request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// The connection's random number.
    pub connection: u64,
    /// The request's number, unique in its connection.
    pub unique: u64,
    /// Where its outcome goes: in place of one whose request was answered.
    pub place: u64,
}

thread_local! {
    static REQUEST: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// Does `work` on behalf of a request: the operation that it commits with [`Changes::commit_once`] leaves its outcome.
///
/// The request travels beside the call and not through it, because it means nothing to any layer between the one that receives requests and the
/// one that writes batches; one thread does one request at a time.
pub fn on_behalf_of<T>(request: RequestId, work: impl FnOnce() -> T) -> T {
    let before = REQUEST.replace(Some(request));
    let result = work();
    REQUEST.set(before);
    result
}

impl Changes<'_> {
    /// As [`Changes::commit`], and leaves the outcome for the request that this thread works for: `made` is the inode that a new name
    /// stands for.
    pub fn commit_once(mut self, made: Option<Ino>) -> Result<(), MetaError> {
        if let Some(request) = REQUEST.get() {
            let mut value = [0; OUTCOME_BYTES];
            let words = [request.connection, request.unique, made.map_or(0, Ino::get)];
            for (bytes, word) in value.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let table = self.meta.table(OUTCOMES_TABLE);
            self.batch.put_cf(table, keys::outcome(self.ve, request.place), value);
        }
        self.commit()
    }
}

/// What became of a connection's requests.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// By request: the inode that it made a name for.
    pub by_request: HashMap<u64, Option<Ino>>,
    /// The places that are in use, with the request of this connection whose outcome is there.
    taken: BTreeMap<u64, Option<u64>>,
}

impl Outcomes {
    /// All places, in the order in which they should be taken: first what no request of this connection needs, then by the age of the request.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        let all: BTreeSet<u64> = (0..PLACES).chain(self.taken.keys().copied()).collect();
        let mut ordered: Vec<_> =
            all.into_iter().map(|place| (self.taken.get(&place).copied().flatten(), place)).collect();
        ordered.sort_unstable();
        ordered.into_iter().map(|(_, place)| place)
    }
}

impl Meta {
    /// The kept outcomes of one connection of a VE.
    pub fn outcomes(&self, ve: VeId, connection: u64) -> Result<Outcomes, MetaError> {
        let mut outcomes = Outcomes::default();
        for row in self.numbered(OUTCOMES_TABLE, ve, 0) {
            let (place, key, value) = row?;
            let value: &[u8; OUTCOME_BYTES] = value[..]
                .try_into()
                .map_err(|_| damaged(OUTCOMES_TABLE, &key, &"it does not have three numbers"))?;
            let word = |at: usize| {
                // In range: `at` is 0, 1 or 2.
                u64::from_le_bytes(std::array::from_fn(|byte| value[at * 8 + byte]))
            };
            let request = (word(0) == connection).then(|| word(1));
            outcomes.taken.insert(place, request);
            if let Some(request) = request {
                outcomes.by_request.insert(request, Ino::new(word(2)));
            }
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VE: VeId = VeId(3);

    fn leave(meta: &Meta, connection: u64, unique: u64, place: u64) {
        let made = Ino::new(unique * 10);
        let request = RequestId { connection, unique, place };
        on_behalf_of(request, || meta.changes(VE).commit_once(made)).expect("written");
    }

    #[test]
    fn an_outcome_is_found_by_its_connection_until_another_has_its_place() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let meta = Meta::open(dir.path()).expect("opened");
        leave(&meta, 7, 100, 0);
        leave(&meta, 7, 101, 1);
        leave(&meta, 8, 102, 2);
        let found = meta.outcomes(VE, 7).expect("readable").by_request;
        assert_eq!(found, HashMap::from([(100, Ino::new(1000)), (101, Ino::new(1010))]));
        leave(&meta, 7, 103, 0);
        let found = meta.outcomes(VE, 7).expect("readable").by_request;
        assert_eq!(found, HashMap::from([(103, Ino::new(1030)), (101, Ino::new(1010))]));
        assert_eq!(meta.outcomes(VeId(4), 7).expect("readable").by_request, HashMap::new());
    }

    #[test]
    fn the_places_of_old_requests_are_taken_last() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let meta = Meta::open(dir.path()).expect("opened");
        leave(&meta, 7, 102, 0);
        leave(&meta, 7, 101, PLACES + 5);
        leave(&meta, 8, 1, 2);
        let places: Vec<u64> = meta.outcomes(VE, 7).expect("readable").places().collect();
        assert_eq!(places.len() as u64, PLACES + 1);
        assert_eq!(places[..3], [1, 2, 3], "no request of this connection needs them");
        assert_eq!(places[places.len() - 2..], [PLACES + 5, 0], "the older one first");
        assert!(Outcomes::default().places().eq(0..PLACES));
    }
}
