//! The three-way merge of keyed records, which all table-like files share.

use std::collections::{BTreeMap, BTreeSet};

use super::{MergeError, printable};

/// Records in file order, with unique keys.
pub(super) struct Records<K, R> {
    order: Vec<(K, R)>,
    by_key: BTreeMap<K, usize>,
}

impl<K: Ord + Clone + AsRef<[u8]>, R> Records<K, R> {
    /// Refuses a key that comes twice: there is no telling which of the two a reader of the file would use.
    pub(super) fn new(order: Vec<(K, R)>) -> Result<Self, MergeError> {
        let mut by_key = BTreeMap::new();
        for (at, (key, _)) in order.iter().enumerate() {
            if by_key.insert(key.clone(), at).is_some() {
                return Err(MergeError::Duplicate { key: printable(key.as_ref()) });
            }
        }
        Ok(Records { order, by_key })
    }
}

impl<K: Ord, R> Records<K, R> {
    pub(super) fn get(&self, key: &K) -> Option<&R> {
        self.by_key.get(key).map(|at| &self.order[*at].1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, R)> {
        self.order.iter()
    }

    fn is_sorted(&self) -> bool {
        self.order.is_sorted_by(|a, b| a.0 < b.0)
    }
}

/// A record that both sides changed, differently. `None`: the record does not exist there.
pub(super) struct Clash<'a, K, R> {
    pub(super) key: &'a K,
    pub(super) base: Option<&'a R>,
    pub(super) ours: Option<&'a R>,
    pub(super) theirs: Option<&'a R>,
}

/// Merges by the rules 1 and 3 of the module; `resolve` decides about each clash (`None`: the record goes).
pub(super) fn merge_records<K: Ord + Clone, R: Eq + Clone>(
    base: &Records<K, R>,
    ours: &Records<K, R>,
    theirs: &Records<K, R>,
    mut resolve: impl FnMut(Clash<'_, K, R>) -> Option<R>,
) -> Vec<(K, R)> {
    let mut seen = BTreeSet::new();
    let mut merged = Vec::new();
    for (key, _) in base.order.iter().chain(&ours.order).chain(&theirs.order) {
        if !seen.insert(key) {
            continue;
        }
        let clash = Clash { key, base: base.get(key), ours: ours.get(key), theirs: theirs.get(key) };
        let record = match three_way(clash.base, clash.ours, clash.theirs) {
            Some(decided) => decided.cloned(),
            None => resolve(clash),
        };
        merged.extend(record.map(|record| (key.clone(), record)));
    }
    if base.is_sorted() && ours.is_sorted() && theirs.is_sorted() {
        merged.sort_by(|a, b| a.0.cmp(&b.0));
    }
    merged
}

/// The value that at most one side changed, or that both changed alike; `None` when they disagree.
pub(super) fn three_way<T: PartialEq>(base: T, ours: T, theirs: T) -> Option<T> {
    if ours == theirs || base == theirs {
        Some(ours)
    } else if base == ours {
        Some(theirs)
    } else {
        None
    }
}

/// Merges lists of words as sets: additions of both sides are united, what either side took away is gone. The ancestor's order, then
/// additions.
pub(super) fn merge_words<'a>(base: &[&'a [u8]], ours: &[&'a [u8]], theirs: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut merged: Vec<&[u8]> = Vec::new();
    for word in base.iter().chain(ours).chain(theirs) {
        let removed = base.contains(word) && !(ours.contains(word) && theirs.contains(word));
        if !removed && !merged.contains(word) {
            merged.push(word);
        }
    }
    merged
}
