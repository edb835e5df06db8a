//! The small encodings inside a tar: header numbers and PAX records. Pure.

use super::error::Reason;
use crate::types::Timestamp;

/// The value of a numeric header field: octal text, or binary with the first bit set (GNU, star).
pub(super) fn header_number(field: &[u8]) -> Result<i64, Reason> {
    match field.first() {
        Some(first @ (0x80 | 0xff)) => {
            let negative = *first == 0xff;
            let mut value: i64 = if negative { -1 } else { 0 };
            for byte in &field[1..] {
                // Leading sign bytes leave the value as it is; others must still fit.
                if value.checked_mul(256).is_none() {
                    return Err(Reason::Header("a binary number is too large"));
                }
                value = (value << 8) | i64::from(*byte);
            }
            Ok(value)
        }
        _ => {
            let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
            let mut value: i64 = 0;
            for byte in text {
                if !(b'0'..=b'7').contains(byte) {
                    return Err(Reason::Header("a number is not octal"));
                }
                value = value
                    .checked_mul(8)
                    .and_then(|value| value.checked_add(i64::from(byte - b'0')))
                    .ok_or(Reason::Header("a number is too large"))?;
            }
            Ok(value)
        }
    }
}

/// `keyword=value` records in the order of the archive.
#[derive(Clone, Debug, Default)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Reads `LENGTH KEYWORD=VALUE\n` records. Values are bytes of any kind, newlines too.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Records, Reason> {
        const DAMAGED: Reason = Reason::Header("a PAX record is damaged");
        let mut records = Vec::new();
        while !bytes.is_empty() {
            // Some writers fill the rest of the block with NULs and count them.
            if bytes.iter().all(|byte| *byte == 0) {
                break;
            }
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(DAMAGED)?;
            let length = decimal(&bytes[..space]).ok_or(DAMAGED)?;
            let length = usize::try_from(length).map_err(|_| DAMAGED)?;
            let record = bytes.get(space + 1..length).ok_or(DAMAGED)?;
            let record = record.strip_suffix(b"\n").ok_or(DAMAGED)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(DAMAGED)?;
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            bytes = &bytes[length..];
        }
        Ok(Records(records))
    }

    /// Adds later records. They override earlier ones of the same keyword, because everybody who looks takes the last.
    pub(super) fn append(&mut self, later: Records) {
        self.0.extend(later.0);
    }

    /// As [`Records::append`], and forgets what is overridden: the time is quadratic in the number of records.
    pub(super) fn replace(&mut self, later: Records) {
        // The sparse map of the oldest format is made of repeated records, whose order counts.
        let is_later = |keyword: &[u8]| later.0.iter().any(|(other, _)| other == keyword);
        self.0.retain(|(keyword, _)| keyword.starts_with(b"GNU.sparse.") || !is_later(keyword));
        self.append(later);
    }

    /// Length of all keywords and values.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(keyword, value)| (keyword.len() + value.len()) as u64).sum()
    }

    /// The last value of a keyword. An empty one withdraws an earlier value (POSIX).
    pub(super) fn get(&self, keyword: &str) -> Option<&[u8]> {
        let last = self.0.iter().rev().find(|(present, _)| present == keyword.as_bytes());
        last.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    /// A value that is a decimal number.
    pub(super) fn number(&self, keyword: &str) -> Result<Option<u64>, Reason> {
        match self.get(keyword) {
            None => Ok(None),
            Some(value) => decimal(value).map(Some).ok_or(Reason::Header("a PAX number is not decimal")),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(keyword, value)| (keyword.as_slice(), value.as_slice()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, keyword: &[u8], value: &[u8]) {
        self.0.push((keyword.to_vec(), value.to_vec()));
    }

    /// The bytes of a PAX header's content.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (keyword, value) in self.iter() {
            // The length counts its own digits.
            let rest = keyword.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + digits(length) {
                length = rest + digits(length);
            }
            bytes.extend_from_slice(length.to_string().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(keyword);
            bytes.push(b'=');
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        bytes
    }
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Digits only, and not more than fit.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A PAX time: seconds, perhaps negative, perhaps with a fraction of any length.
pub(super) fn parse_time(text: &[u8]) -> Result<Timestamp, Reason> {
    const DAMAGED: Reason = Reason::Header("a PAX time is damaged");
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(DAMAGED);
    }
    let secs = decimal(whole).and_then(|secs| i64::try_from(secs).ok()).ok_or(DAMAGED)?;
    let digit = |place: usize| u32::from(fraction.get(place).map_or(0, |byte| byte - b'0'));
    let nanos = (0..9).fold(0, |nanos, place| nanos * 10 + digit(place));
    Ok(match (negative, nanos) {
        (false, _) => Timestamp { secs, nanos },
        (true, 0) => Timestamp { secs: -secs, nanos: 0 },
        (true, _) => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// The inverse of [`parse_time`].
pub(super) fn format_time(time: Timestamp) -> String {
    let (sign, secs, nanos) = match (time.secs < 0, time.nanos) {
        (true, 0) => ("-", time.secs.unsigned_abs(), 0),
        (true, nanos) => ("-", time.secs.unsigned_abs() - 1, 1_000_000_000 - nanos),
        (false, nanos) => ("", time.secs.unsigned_abs(), nanos),
    };
    if nanos == 0 {
        return format!("{sign}{secs}");
    }
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(header_number(b"0000644\0").expect("octal"), 0o644);
        assert_eq!(header_number(b"   12 \0").expect("octal"), 0o12);
        assert_eq!(header_number(b"\0\0\0\0").expect("empty"), 0);
        assert_eq!(header_number(&[0x80, 0, 0, 0, 1, 0, 0, 0]).expect("binary"), 1 << 24);
        assert_eq!(header_number(&[0xff; 12]).expect("binary"), -1);
        assert_eq!(
            header_number(&[0xff, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0]).expect("binary"),
            -256
        );
        for bad in [
            &b"9"[..],
            b"12x",
            &[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(header_number(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn records_round_trip() {
        let mut records = Records::default();
        for length in [0, 1, 85, 86, 87, 88, 89, 90, 980, 985, 990, 9_980, 9_990, 70_000] {
            records.push(format!("k{length}").as_bytes(), &vec![b'\n'; length]);
        }
        let parsed = Records::parse(&records.encode()).expect("parse");
        assert!(parsed.iter().eq(records.iter()));
        assert_eq!(Records::parse(b"6 a=b\n6 a=c\n").expect("parse").get("a"), Some(&b"c"[..]));
        for bad in [
            &b"6 a=b"[..],
            b"x",
            b"99 a=b\n",
            b"3 a=b\n",
            b"0 a=b\n",
            b"5 ab\n\n",
            b"18446744073709551615 a=b\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_round_trip() {
        for (secs, nanos, text) in [
            (0, 0, "0"),
            (5, 500_000_000, "5.5"),
            (-1, 0, "-1"),
            (-2, 500_000_000, "-1.5"),
            (-1, 999_999_999, "-0.000000001"),
            (1_700_000_000, 1, "1700000000.000000001"),
        ] {
            let time = Timestamp { secs, nanos };
            assert_eq!(format_time(time), text);
            assert_eq!(parse_time(text.as_bytes()).expect("time"), time);
        }
        for bad in ["", "-", "1.x", "a", "--1", "99999999999999999999"] {
            assert!(parse_time(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
