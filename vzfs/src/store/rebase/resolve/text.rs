//! Bytes of VEs in sentences for people, and lines.

/// Bytes for a message: what is no text is replaced.
pub(super) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(|c: char| c.is_control(), "\u{fffd}")
}

/// The lines without their newlines.
pub(super) fn lines_of(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

/// `a, b and 3 more`: the first of many names.
pub(super) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let first = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A sentence with parts that a VE wrote, or such a part: not longer than somebody reads.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 300;
    let text = shown(text.as_bytes());
    let first: String = text.chars().take(SHOWN_CHARS).collect();
    if first.len() < text.len() { format!("{first}...") } else { first }
}
