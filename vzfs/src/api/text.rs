//! How bytes and moments are written in JSON.

use std::fmt::Write;

/// A path for JSON: UTF-8 as it is, every other byte as `\xNN`, a backslash as `\\`. [`path_bytes`] takes it back.
pub fn path_text(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                text.push('\\');
            }
            text.push(c);
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// The bytes that [`path_text`] was given, or `None` for a text that it never makes.
pub fn path_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        match rest {
            [b'\\', tail @ ..] => {
                bytes.push(b'\\');
                rest = tail;
            }
            [b'x', high, low, tail @ ..] => {
                let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
                bytes.push(digit(*high)? << 4 | digit(*low)?);
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(bytes)
}

/// Moments as RFC 3339 texts in UTC (`2026-11-24T02:05:00Z`, with nanoseconds only where there are any), for
/// `#[serde(with)]`.
pub mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::Timestamp;

    const DAY_SECS: i64 = 86_400;
    /// Years 0000 to 9999: what four digits can say. A moment outside is written as the nearest one inside.
    const FIRST_SECS: i64 = -62_167_219_200;
    const LAST_SECS: i64 = 253_402_300_799;

    /// The moment as text.
    pub fn format(time: Timestamp) -> String {
        let secs = time.secs.clamp(FIRST_SECS, LAST_SECS);
        let (year, month, day) = date_of(secs.div_euclid(DAY_SECS));
        let second = secs.rem_euclid(DAY_SECS);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let date_time = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        if time.nanos == 0 { format!("{date_time}Z") } else { format!("{date_time}.{:09}Z", time.nanos) }
    }

    /// The moment that [`format`] wrote, or `None`. Only UTC (`Z`) is understood.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let text = text.strip_suffix('Z')?;
        let (date, time) = text.split_once('T')?;
        let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
        let [year, month, day] = numbers(date, '-')?;
        let [hour, minute, second] = numbers(time, ':')?;
        let legal = (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && (0..24).contains(&hour)
            && (0..60).contains(&minute)
            && (0..=60).contains(&second)
            && fraction.len() <= 9
            && fraction.bytes().all(|b| b.is_ascii_digit());
        if !legal {
            return None;
        }
        let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
        let secs = days_of(year, month, day) * DAY_SECS + hour * 3600 + minute * 60 + second;
        Some(Timestamp::new(secs, nanos))
    }

    fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
        let mut parts = text.split(separator).map(|part| {
            (matches!(part.len(), 2 | 4) && part.bytes().all(|b| b.is_ascii_digit()))
                .then(|| part.parse().ok())?
        });
        let numbers = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(numbers)
    }

    /// Days since 1970 to a date of the proleptic Gregorian calendar. Years are counted from March, so that the
    /// leap day is the last of its year, in eras of 400 years, which all have the same number of days.
    fn date_of(days: i64) -> (i64, i64, i64) {
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }

    /// The inverse of [`date_of`].
    fn days_of(year: i64, month: i64, day: i64) -> i64 {
        let year = year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let march_month = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * march_month + 2) / 5 + day - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }

    /// For serde.
    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*time))
    }

    /// For serde.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a UTC time as in RFC 3339")))
    }

    /// The same for a moment that may be missing.
    pub mod option {
        use serde::{Deserialize, Deserializer, Serializer};

        use crate::types::Timestamp;

        /// For serde.
        pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => serializer.serialize_some(&super::format(*time)),
                None => serializer.serialize_none(),
            }
        }

        /// For serde.
        pub fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Timestamp>, D::Error> {
            let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
            let time = super::parse(&text);
            let refusal = || serde::de::Error::custom(format!("{text:?} is not a UTC time as in RFC 3339"));
            time.map(Some).ok_or_else(refusal)
        }
    }
}

/// A time as people give it in options, in seconds: a number and `d`, `h`, `m` or `s`, as in `30d`.
pub fn duration_secs(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_secs = match &text[digits.len()..] {
        "d" => 86_400,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    digits.parse::<u32>().ok().map(|count| u64::from(count) * unit_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    #[test]
    fn paths_round_trip() {
        for path in
            [&b""[..], b"etc/passwd", b"a\\x2db", b"\xff\\", "ü/\u{1F600}".as_bytes(), b"\xc3(\xe2\x82"]
        {
            let text = path_text(path);
            assert_eq!(path_bytes(&text).as_deref(), Some(path), "{text}");
        }
        assert_eq!(path_text(b"caf\xe9"), "caf\\xe9");
        for bad in ["\\", "\\n", "\\x1", "\\xg0"] {
            assert_eq!(path_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_round_trip() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_795_485_900, 0, "2026-11-24T02:05:00Z"),
            (951_782_399, 5, "2000-02-28T23:59:59.000000005Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (-2_203_891_200, 0, "1900-03-01T00:00:00Z"),
        ];
        for (secs, nanos, text) in cases {
            let time = Timestamp { secs, nanos };
            assert_eq!(rfc3339::format(time), text);
            assert_eq!(rfc3339::parse(text), Some(time));
        }
        for bad in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-13-01T00:00:00Z",
            "+970-01-01T00:00:00Z",
            "1970-01-01T00:00:00.Zz",
        ] {
            assert_eq!(rfc3339::parse(bad), None, "{bad}");
        }
    }
}
