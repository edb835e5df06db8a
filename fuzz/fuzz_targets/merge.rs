//! Three-way merges of arbitrary files under every rule: no panic, the rules that hold for any input hold, and the result merges again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vzfs::merge::{Labels, Rule, Rules, Versions, alternative_links, merge, rules::RULES};

/// The first byte chooses the rule; the versions are separated by a byte that no table holds.
const SEPARATOR: u8 = 0xff;
const LABELS: Labels<'static> = Labels { ours: "one@1", theirs: "two@1" };

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let index = *first as usize % (RULES.len() + 1);
    let rule = RULES.get(index).map_or_else(|| Rules::default().rule_for(rest), |(_, rule)| *rule);
    let mut parts = rest.splitn(3, |byte| *byte == SEPARATOR);
    let (a, b, c) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    let (base, ours, theirs) = match c {
        Some(c) => (Some(a), b, c),
        None => (None, a, b),
    };
    let _ = alternative_links(b"editor", ours);
    let versions = Versions { base, ours, theirs };
    let Ok(merged) = merge(rule, versions, LABELS) else { return };
    // A side that did not change accepts the other's.
    if base == Some(ours) {
        assert_eq!(merged.bytes, theirs);
    }
    if base == Some(theirs) || ours == theirs {
        assert_eq!(merged.bytes, ours);
    }
    // What was merged is as well-formed as what it was made of: it can take part in the next merge.
    let next = Versions { base: Some(ours), ours: &merged.bytes, theirs: ours };
    assert_eq!(merge(rule, next, LABELS).expect("one side did not change").bytes, merged.bytes);
    // Where records have keys, a layer that is applied twice changes nothing the second time. Lines of plain text have none: the second
    // time they may be aligned in another way.
    if rule != Rule::Text {
        let next = Versions { base, ours: &merged.bytes, theirs };
        let again = merge(rule, next, LABELS);
        assert!(again.is_ok(), "{rule:?}: {again:?}");
    }
});
