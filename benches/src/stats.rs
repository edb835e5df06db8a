//! Medians and ratios.

/// The middle of some numbers: of an even count, the mean of the two in the middle. `None` of none.
pub fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(sorted[middle - 1], upper)) }
}

/// How often one goes into the other; `None` where that says nothing.
pub fn ratio(number: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| number / of)
}

/// A time as people read it: three digits and a unit.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 0.9995 => (s, "s"),
        s if s >= 0.000_999_5 => (s * 1e3, "ms"),
        s => (s * 1e6, "us"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A ratio as people read it.
pub fn times(ratio: f64) -> String {
    format!("{ratio:.2}")
}

fn three_digits(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn ratios() {
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
        assert_eq!(ratio(3.0, 0.0), None);
    }

    #[test]
    fn times_have_three_digits() {
        for (seconds, text) in [
            (0.000_012_3, "12.3 us"),
            (0.000_999_9, "1.00 ms"),
            (0.123_45, "123 ms"),
            (0.9999, "1.00 s"),
            (12.345, "12.3 s"),
            (345.6, "346 s"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }
}
