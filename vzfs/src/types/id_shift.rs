use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TypeError;

/// The host's user and group ids that stand for a VE's ids 0, 1, 2 and so on, written `FIRST[:COUNT]`.
///
/// Id 0 of the host is in no range, since a VE whose root is the host's needs no shift; nor is 2^32 - 1, which means "no id" to Linux.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "Range", into = "Range")]
pub struct IdShift {
    first: u32,
    count: u32,
}

/// The fields as they are stored and sent.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    first: u32,
    count: u32,
}

impl IdShift {
    /// Ids of a range without a count: what subuid(5) gives to one user, and all that Debian's own accounts need.
    pub const DEFAULT_COUNT: u32 = 65_536;

    /// The range of `count` ids of the host from `first` up.
    ///
    /// # Errors
    /// It is empty, holds the host's root, or reaches past the largest id.
    pub fn new(first: u32, count: u32) -> Result<Self, TypeError> {
        let refuse = |why| Err(TypeError::IdShift { value: format!("{first}:{count}"), why });
        if first == 0 {
            return refuse("0 is the host's root");
        }
        if count == 0 {
            return refuse("it has no id");
        }
        // One past the last id is 2^32 - 1 at most.
        if first.checked_add(count).is_none() {
            return refuse("it ends above 4294967294, the largest id");
        }
        Ok(IdShift { first, count })
    }

    /// The host's id for the VE's 0.
    pub const fn first(self) -> u32 {
        self.first
    }

    /// How many ids the VE has.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The host's id for one of the VE, or `None` for one that the VE does not have.
    pub fn to_host(self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.first + id)
    }

    /// Whether some id of the host belongs to both.
    pub fn overlaps(self, other: IdShift) -> bool {
        // The ends do not overflow: see `new`.
        self.first < other.first + other.count && other.first < self.first + self.count
    }

    /// The range of the same size `steps` ranges further up.
    ///
    /// # Errors
    /// As for [`IdShift::new`].
    pub fn further(self, steps: u32) -> Result<Self, TypeError> {
        match self.count.checked_mul(steps).and_then(|distance| self.first.checked_add(distance)) {
            Some(first) => IdShift::new(first, self.count),
            None => Err(TypeError::IdShift {
                value: format!("{self}, {steps} ranges further up,"),
                why: "it ends above 4294967294, the largest id",
            }),
        }
    }
}

impl FromStr for IdShift {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        let number = |digits: &str| {
            // `u32` alone would take a plus sign.
            let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|digits| digits.parse::<u32>().ok())
        };
        let (first, count) = match text.split_once(':') {
            Some((first, count)) => (number(first), number(count)),
            None => (number(text), Some(IdShift::DEFAULT_COUNT)),
        };
        match (first, count) {
            (Some(first), Some(count)) => IdShift::new(first, count),
            _ => Err(TypeError::IdShift { value: text.to_owned(), why: "write FIRST or FIRST:COUNT" }),
        }
    }
}

impl fmt::Display for IdShift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.first, self.count)
    }
}

impl TryFrom<Range> for IdShift {
    type Error = TypeError;

    fn try_from(range: Range) -> Result<Self, TypeError> {
        IdShift::new(range.first, range.count)
    }
}

impl From<IdShift> for Range {
    fn from(shift: IdShift) -> Range {
        Range { first: shift.first, count: shift.count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shift(text: &str) -> IdShift {
        text.parse().expect("legal")
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!(shift("100000"), IdShift::new(100_000, 65_536).expect("legal"));
        assert_eq!(shift("100000:1").to_string(), "100000:1");
        assert_eq!(shift("1:4294967294").to_host(4_294_967_293), Some(4_294_967_294));
        for bad in [
            "",
            "0",
            "0:5",
            "5:0",
            "1:4294967295",
            "4294967295:1",
            "4294967296",
            "+5",
            "5:",
            ":5",
            "5:6:7",
            "-1",
            "a",
        ] {
            assert!(bad.parse::<IdShift>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_and_neighbours() {
        let range = shift("1000:10");
        assert_eq!((range.to_host(0), range.to_host(9), range.to_host(10)), (Some(1000), Some(1009), None));
        assert!(range.overlaps(range) && range.overlaps(shift("1009:1")) && range.overlaps(shift("1:1000")));
        assert!(!range.overlaps(shift("1010:1")) && !range.overlaps(shift("1:999")));
        assert_eq!(range.further(3).expect("legal"), shift("1030:10"));
        assert!(range.further(u32::MAX).is_err() && shift("4294967000:200").further(1).is_err());
    }

    #[test]
    fn json_is_checked_too() {
        let text = serde_json::to_string(&shift("7:8")).expect("serializes");
        assert_eq!(text, r#"{"first":7,"count":8}"#);
        assert_eq!(serde_json::from_str::<IdShift>(&text).expect("parses"), shift("7:8"));
        assert!(serde_json::from_str::<IdShift>(r#"{"first":0,"count":8}"#).is_err());
    }
}
