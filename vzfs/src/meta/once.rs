//! Operations that must happen once although their request comes again.
//!
//! A daemon that is killed may have committed an operation without answering it; the kernel then sends the request to the next daemon. So the batch
//! of an operation that would do harm the second time (a name made, removed or moved) also writes who asked and which inode came of it: the
//! *outcome*. Kept are the last [`OUTCOMES`] of each VE.

use std::cell::Cell;
use std::collections::HashMap;

use super::{Changes, Meta, MetaError, OUTCOMES_TABLE, damaged, keys};
use crate::types::{Ino, VeId};

/// Outcomes that are kept of each VE. Far more than the requests that are under way at once.
pub(super) const OUTCOMES: u64 = 256;
/// Connection, request, inode.
const OUTCOME_BYTES: usize = 24;

/// A request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// The connection's random number.
    pub connection: u64,
    /// The request's number, unique in its connection.
    pub unique: u64,
    /// Where its outcome goes: counts up with each request, wraps at [`OUTCOMES`].
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
            self.batch.put_cf(table, keys::outcome(self.ve, request.place % OUTCOMES), value);
        }
        self.commit()
    }
}

/// What became of a connection's requests.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// By request: the inode that it made a name for.
    pub by_request: HashMap<u64, Option<Ino>>,
    /// A place from which on the oldest stand.
    pub next_place: u64,
}

impl Meta {
    /// The kept outcomes of one connection of a VE.
    pub fn outcomes(&self, ve: VeId, connection: u64) -> Result<Outcomes, MetaError> {
        let mut outcomes = Outcomes::default();
        let mut newest = 0;
        for place in 0..OUTCOMES {
            let key = keys::outcome(ve, place);
            let Some(value) = self.db.get_pinned_cf(self.table(OUTCOMES_TABLE), key)? else { continue };
            let value: &[u8; OUTCOME_BYTES] = value[..]
                .try_into()
                .map_err(|_| damaged(OUTCOMES_TABLE, &key, &"it does not have three numbers"))?;
            let word = |at: usize| {
                // In range: `at` is 0, 1 or 2.
                u64::from_le_bytes(std::array::from_fn(|byte| value[at * 8 + byte]))
            };
            if word(0) == connection {
                outcomes.by_request.insert(word(1), Ino::new(word(2)));
                if word(1) >= newest {
                    (newest, outcomes.next_place) = (word(1), place + 1);
                }
            }
        }
        Ok(outcomes)
    }
}
