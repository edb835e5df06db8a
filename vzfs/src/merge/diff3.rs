//! Three-way merge of text by lines.
//!
//! Both sides are aligned with the ancestor (Myers' O(ND) algorithm). Between two neighbouring ancestor lines that both sides kept lies
//! a region; a region that only one side changed takes that side, one that both changed alike takes either, and any
//! other is a conflict, which fails the whole merge: markers in a configuration file would break its program.

use std::collections::HashMap;

use super::{MergeError, Merged, Versions};

/// Insertions and deletions of one side beyond which aligning is given up. Time grows with lines x edits and memory with edits squared (16 MB here).
const MAX_EDITS: usize = 2000;

pub(super) fn merge(versions: Versions<'_>) -> Result<Merged, MergeError> {
    let Versions { base, ours, theirs } = versions;
    if [base.unwrap_or_default(), ours, theirs].iter().any(|text| text.contains(&0)) {
        return Err(MergeError::NotText);
    }
    // Without an ancestor nothing says which lines belong together.
    let Some(base) = base else { return Err(MergeError::Conflict { line: 1 }) };
    let mut numbers = HashMap::new();
    let (base, ours, theirs) =
        (Lines::new(base, &mut numbers), Lines::new(ours, &mut numbers), Lines::new(theirs, &mut numbers));
    let our_match = align(&base.numbers, &ours.numbers)?;
    let their_match = align(&base.numbers, &theirs.numbers)?;

    let mut bytes = Vec::new();
    let (mut at, mut our_at, mut their_at) = (0, 0, 0);
    loop {
        // The next ancestor line that both sides kept ends the region; the end of the file does so too.
        let kept = (at..base.len()).find_map(|line| Some((line, our_match[line]?, their_match[line]?)));
        let (end, our_end, their_end) = kept.unwrap_or((base.len(), ours.len(), theirs.len()));
        let old = base.region(at, end);
        let (our, their) = (ours.region(our_at, our_end), theirs.region(their_at, their_end));
        let decided =
            super::keyed::three_way(old, our, their).ok_or(MergeError::Conflict { line: at + 1 })?;
        decided.iter().for_each(|line| bytes.extend_from_slice(line));
        if kept.is_none() {
            return Ok(Merged { bytes, notes: Vec::new() });
        }
        bytes.extend_from_slice(base.text[end]);
        (at, our_at, their_at) = (end + 1, our_end + 1, their_end + 1);
    }
}

/// Lines with their newlines, each with a number that is equal for equal lines.
struct Lines<'a> {
    text: Vec<&'a [u8]>,
    numbers: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(bytes: &'a [u8], known: &mut HashMap<&'a [u8], usize>) -> Self {
        let text: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        let number = |line: &&'a [u8]| {
            let next = known.len();
            *known.entry(line).or_insert(next)
        };
        let numbers = text.iter().map(number).collect();
        Lines { text, numbers }
    }

    fn len(&self) -> usize {
        self.text.len()
    }

    fn region(&self, from: usize, to: usize) -> &[&'a [u8]] {
        &self.text[from..to]
    }
}

/// For each line of `old` the line of `new` that it became, if it was kept: strictly ascending.
fn align(old: &[usize], new: &[usize]) -> Result<Vec<Option<usize>>, MergeError> {
    let prefix = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[prefix..], &new[prefix..]);
    let suffix = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old_rest[..old_rest.len() - suffix], &new_rest[..new_rest.len() - suffix]);

    let mut matched = vec![None; old.len()];
    (0..prefix).for_each(|line| matched[line] = Some(line));
    (0..suffix).for_each(|back| matched[old.len() - 1 - back] = Some(new.len() - 1 - back));
    for (line, partner) in shortest_edit(old_rest, new_rest)? {
        matched[prefix + line] = Some(prefix + partner);
    }
    Ok(matched)
}

/// The pairs of lines that a shortest edit script keeps, last pair first.
fn shortest_edit(old: &[usize], new: &[usize]) -> Result<Vec<(usize, usize)>, MergeError> {
    let most = (old.len() + new.len()).min(MAX_EDITS);
    // `reached[most + k]`: how far in `old` the furthest path on diagonal k (old position - new position) has come.
    let mut reached = vec![0_usize; 2 * most + 2];
    let mut steps: Vec<Vec<usize>> = Vec::new();
    let signed = |n: usize| n as isize;
    for edits in 0..=most {
        // What was reached with one edit less, diagonals -edits ..= edits, kept for the way back.
        steps.push(reached[most - edits..=(most + edits).min(reached.len() - 1)].to_vec());
        for diagonal in (-signed(edits)..=signed(edits)).step_by(2) {
            let slot = (signed(most) + diagonal) as usize;
            let inserted = came_by_insertion(diagonal, edits, |at| reached[(signed(most) + at) as usize]);
            let mut x = match (edits, inserted) {
                (0, _) => 0,
                (_, true) => reached[slot + 1],
                (_, false) => reached[slot - 1] + 1,
            };
            let new_at = |x: usize| usize::try_from(signed(x) - diagonal).unwrap_or(usize::MAX);
            while x < old.len() && new.get(new_at(x)) == Some(&old[x]) {
                x += 1;
            }
            reached[slot] = x;
            if x >= old.len() && new_at(x) != usize::MAX && new_at(x) >= new.len() {
                return Ok(walk_back(old.len(), new.len(), edits, &steps));
            }
        }
    }
    Err(MergeError::TooMuch)
}

/// Whether the best path with `edits` edits enters this diagonal by an insertion (from the diagonal above).
fn came_by_insertion(diagonal: isize, edits: usize, reached: impl Fn(isize) -> usize) -> bool {
    let edits = edits as isize;
    diagonal == -edits || (diagonal != edits && reached(diagonal - 1) < reached(diagonal + 1))
}

fn walk_back(old_len: usize, new_len: usize, edits: usize, steps: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let (mut x, mut y) = (old_len, new_len);
    let mut kept = Vec::new();
    for edits in (1..=edits).rev() {
        let diagonal = x as isize - y as isize;
        let reached = |at: isize| steps[edits][(at + edits as isize) as usize];
        let (before_x, before_y) = if came_by_insertion(diagonal, edits, reached) {
            let x = reached(diagonal + 1);
            (x, (x as isize - diagonal - 1) as usize)
        } else {
            let x = reached(diagonal - 1);
            (x, (x as isize - diagonal + 1) as usize)
        };
        // The edit itself goes from `before` one step right or down; the rest of the way is kept lines.
        let (edit_x, edit_y) = if diagonal < before_x as isize - before_y as isize {
            (before_x, before_y + 1)
        } else {
            (before_x + 1, before_y)
        };
        while x > edit_x && y > edit_y {
            (x, y) = (x - 1, y - 1);
            kept.push((x, y));
        }
        (x, y) = (before_x, before_y);
    }
    while x > 0 && y > 0 {
        (x, y) = (x - 1, y - 1);
        kept.push((x, y));
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The longest common subsequence by the textbook's quadratic table.
    fn longest(old: &[usize], new: &[usize]) -> usize {
        let mut row = vec![0; new.len() + 1];
        for a in old {
            let mut diagonal = 0;
            for (at, b) in new.iter().enumerate() {
                let above = row[at + 1];
                row[at + 1] = if a == b { diagonal + 1 } else { above.max(row[at]) };
                diagonal = above;
            }
        }
        row[new.len()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn alignment_is_ascending_and_as_long_as_can_be(
            old in prop::collection::vec(0_usize..4, 0..14),
            new in prop::collection::vec(0_usize..4, 0..14),
        ) {
            let matched = align(&old, &new).expect("few edits");
            let pairs: Vec<_> = matched.iter().enumerate().filter_map(|(a, b)| Some((a, (*b)?))).collect();
            prop_assert!(pairs.iter().all(|(a, b)| old[*a] == new[*b]));
            prop_assert!(pairs.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
            prop_assert_eq!(pairs.len(), longest(&old, &new));
        }
    }

    #[test]
    fn far_too_different_texts_are_given_up() {
        let (old, new): (Vec<usize>, Vec<usize>) = ((0..3000).collect(), (3000..6000).collect());
        assert_eq!(align(&old, &new), Err(MergeError::TooMuch));
    }
}
