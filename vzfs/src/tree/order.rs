//! Visits a tree in the order of whole paths, byte by byte, without ever holding more than one path.

/// What [`in_path_order`] finds in a directory. A subdirectory is two steps, because other paths lie between
/// its own and those below it: `a`, `a.txt`, `a/b`.
pub(super) enum Step<D, E> {
    /// A name.
    Name(E),
    /// The names inside the subdirectory with this name.
    Below(D),
}

/// Calls `visit` with every path below `root`, in ascending order of the path's bytes.
///
/// `list` gives the steps of a directory, in any order. It must describe a tree; a cycle would never end.
pub(super) fn in_path_order<'a, D, E, X>(
    root: D,
    list: impl Fn(D) -> Vec<(&'a [u8], Step<D, E>)>,
    mut visit: impl FnMut(&[u8], E) -> Result<(), X>,
) -> Result<(), X> {
    let listed = |dir: D| {
        let mut steps = list(dir);
        steps.sort_unstable_by(|a, b| sort_key(a).cmp(sort_key(b)));
        steps.into_iter()
    };
    let mut path = Vec::new();
    let mut open = vec![(0, listed(root))];
    while let Some((prefix, steps)) = open.last_mut() {
        path.truncate(*prefix);
        let Some((name, step)) = steps.next() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        match step {
            Step::Name(entry) => visit(&path, entry)?,
            Step::Below(dir) => open.push((path.len(), listed(dir))),
        }
    }
    Ok(())
}

fn sort_key<'s, D, E>((name, step): &'s (&[u8], Step<D, E>)) -> impl Iterator<Item = &'s u8> {
    name.iter().chain(matches!(step, Step::Below(_)).then_some(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_paths_are_in_byte_order() {
        let list = |dir: u8| match dir {
            0 => vec![
                (&b"a"[..], Step::Below(1)),
                (b"b", Step::Name(())),
                (b"a", Step::Name(())),
                (b"a!", Step::Name(())),
                (b"a0", Step::Name(())),
            ],
            _ => vec![(&b"z"[..], Step::Name(())), (b"\xff", Step::Name(()))],
        };
        let mut seen: Vec<Vec<u8>> = Vec::new();
        in_path_order(0, list, |path, ()| {
            seen.push(path.to_vec());
            Ok::<(), ()>(())
        })
        .expect("nothing fails");
        let expected: [&[u8]; 6] = [b"a", b"a!", b"a/z", b"a/\xff", b"a0", b"b"];
        assert_eq!(seen, expected);
    }
}
