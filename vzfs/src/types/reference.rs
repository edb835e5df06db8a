use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TypeError;

/// Longest template name, version or VE name. VE names are host names (RFC 1123 labels), which stop at 63.
const MAX_REFERENCE_BYTES: usize = 63;

/// What [`Tag`]s are called in messages.
const TAG: &str = "tag";

fn check(what: &'static str, value: &str, extra: &[u8]) -> Result<(), TypeError> {
    let refuse = |why| Err(TypeError::Reference { what, value: value.to_owned(), why });
    let bytes = value.as_bytes();
    if bytes.is_empty() {
        return refuse("it is empty");
    }
    if bytes.len() > MAX_REFERENCE_BYTES {
        return refuse("it is longer than 63 characters");
    }
    if !bytes[0].is_ascii_alphanumeric() {
        return refuse("it must begin with a letter or a digit");
    }
    if what == TAG && !bytes[0].is_ascii_alphabetic() {
        return refuse("it must begin with a letter");
    }
    if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || extra.contains(b)) {
        return refuse(match extra {
            b"-" => "only letters, digits and '-' are allowed",
            b"-._" => "only letters, digits, '-', '.' and '_' are allowed",
            _ => "only letters, digits, '-', '.', '_', '+', '~' and ':' are allowed",
        });
    }
    Ok(())
}

macro_rules! text_type {
    ($(#[$doc:meta])* $type:ident, $what:expr, $extra:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = TypeError;
            fn from_str(s: &str) -> Result<Self, TypeError> {
                check($what, s, $extra)?;
                Ok($type(s.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = TypeError;
            fn try_from(s: String) -> Result<Self, TypeError> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

text_type!(
    /// The name of a template: letters, digits, `-`, `.`, `_`; at most 63 of them.
    #[derive(PartialOrd, Ord)]
    TemplateName, "template name", b"-._"
);
text_type!(
    /// The name of a VE, which is also its host name: letters, digits and `-`; at most 63 of them.
    #[derive(PartialOrd, Ord)]
    VeName, "VE name", b"-"
);
text_type!(
    /// The version of a template: letters, digits, `-._+~:`; ordered as Debian orders versions
    /// (deb-version(7)), so that 12.10 is newer than 12.9 and 1.0~rc1 older than 1.0.
    Version, "version", b"-._+~:"
);

text_type!(
    /// The name of a moving mark on one version of a template (`stable`): letters, digits, `-`, `.`, `_`; at most 63 of them, the first a letter,
    /// since `debian@12` must not come to mean something else.
    #[derive(PartialOrd, Ord)]
    Tag, TAG, b"-._"
);

impl Tag {
    /// The tag as it stands in a reference in place of a version.
    pub fn as_version(&self) -> Version {
        // The alphabet of tags is a part of that of versions.
        Version(self.0.clone())
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        // Versions that Debian's algorithm calls equal (1.0 and 1.00) are still different names.
        debian_order(&self.0, &other.0).then_with(|| self.0.cmp(&other.0))
    }
}

/// deb-version(7): `[epoch:]upstream[-revision]`, compared part by part.
pub fn debian_order(a: &str, b: &str) -> Ordering {
    fn parts(version: &str) -> [&str; 3] {
        let (epoch, rest) = version.split_once(':').unwrap_or(("", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        [epoch, upstream, revision]
    }
    let (a, b) = (parts(a), parts(b));
    a.iter().zip(&b).map(|(a, b)| part_order(a, b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

/// Alternately compares the longest prefixes of non-digits (letters before anything else, `~` before even the end)
/// and of digits (by value).
fn part_order(a: &str, b: &str) -> Ordering {
    fn weight(byte: Option<&u8>) -> i32 {
        match byte {
            None => 0,
            Some(b'~') => -1,
            Some(b) if b.is_ascii_digit() => 0,
            Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
            Some(b) => i32::from(*b) + 256,
        }
    }
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (first_a, first_b) = (a.first(), b.first());
            let is_text = |byte: Option<&u8>| byte.is_some_and(|b| !b.is_ascii_digit());
            if !is_text(first_a) && !is_text(first_b) {
                break;
            }
            match weight(first_a).cmp(&weight(first_b)) {
                Ordering::Equal => (a, b) = (&a[1..], &b[1..]),
                unequal => return unequal,
            }
        }
        let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
        let (number_a, number_b) = (&a[..digits(a)], &b[..digits(b)]);
        (a, b) = (&a[number_a.len()..], &b[number_b.len()..]);
        let trim = |text: &[u8]| text.iter().skip_while(|b| **b == b'0').copied().collect::<Vec<u8>>();
        let (number_a, number_b) = (trim(number_a), trim(number_b));
        match number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(&number_b)) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

/// `NAME@VERSION`: exactly one template.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateSpec {
    /// The template's name.
    pub name: TemplateName,
    /// Its version.
    pub version: Version,
}

impl FromStr for TemplateSpec {
    type Err = TypeError;

    fn from_str(s: &str) -> Result<Self, TypeError> {
        let Some((name, version)) = s.split_once('@') else {
            return Err(TypeError::Reference {
                what: "template",
                value: s.to_owned(),
                why: "write NAME@VERSION",
            });
        };
        Ok(TemplateSpec { name: name.parse()?, version: version.parse()? })
    }
}

impl TryFrom<String> for TemplateSpec {
    type Error = TypeError;

    fn try_from(s: String) -> Result<Self, TypeError> {
        s.parse()
    }
}

impl From<TemplateSpec> for String {
    fn from(spec: TemplateSpec) -> String {
        spec.to_string()
    }
}

impl fmt::Display for TemplateSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.name, self.version))
    }
}

impl fmt::Debug for TemplateSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `NAME`, `NAME@VERSION` or `NAME@TAG`, as people write it. `NAME` means the newest version: the greatest one in the order of [`Version`]s,
/// whenever it was made, so that a late fix of an old version (12.9.1 after 12.10) does not become what everybody gets.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateRef {
    /// The template's name.
    pub name: TemplateName,
    /// The version or the tag; `None` for the newest version.
    pub version: Option<Version>,
}

impl FromStr for TemplateRef {
    type Err = TypeError;

    fn from_str(s: &str) -> Result<Self, TypeError> {
        Ok(match s.split_once('@') {
            None => TemplateRef { name: s.parse()?, version: None },
            Some((name, version)) => TemplateRef { name: name.parse()?, version: Some(version.parse()?) },
        })
    }
}

impl TryFrom<String> for TemplateRef {
    type Error = TypeError;

    fn try_from(s: String) -> Result<Self, TypeError> {
        s.parse()
    }
}

impl From<TemplateRef> for String {
    fn from(reference: TemplateRef) -> String {
        reference.to_string()
    }
}

impl From<TemplateSpec> for TemplateRef {
    fn from(spec: TemplateSpec) -> Self {
        TemplateRef { name: spec.name, version: Some(spec.version) }
    }
}

impl fmt::Display for TemplateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            None => f.pad(self.name.as_str()),
            Some(version) => f.pad(&format!("{}@{}", self.name, version)),
        }
    }
}

/// A VE's number in its store: the prefix of all its private records, never used again after the VE is removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VeId(pub u32);

impl fmt::Display for VeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_as_debian_does() {
        let in_order = [
            "1.0~rc1", "1.0", "1.0a", "1.0.1", "1.2", "1.10", "2", "12.9", "12.10", "12.10-1", "12.10+b1",
            "1:0",
        ];
        for pair in in_order.windows(2) {
            let (a, b): (Version, Version) =
                (pair[0].parse().expect("legal"), pair[1].parse().expect("legal"));
            assert!(a < b, "{a} < {b}");
        }
    }

    #[test]
    fn references() {
        assert!("debian".parse::<TemplateRef>().expect("legal").version.is_none());
        assert_eq!("debian@12".parse::<TemplateRef>().expect("legal").to_string(), "debian@12");
        assert!("debian".parse::<TemplateSpec>().is_err());
        for bad in ["", "@1", "a@", "a b", "../x", "-a", "a@1@2", "é"] {
            assert!(bad.parse::<TemplateRef>().is_err(), "{bad}");
        }
        assert_eq!("stable".parse::<Tag>().expect("legal").as_version().as_str(), "stable");
        for bad in ["", "12", "9-stable", "a+b", "a b", "-a"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        for bad in ["", "a_b", "a.b", "-a", &"x".repeat(64)] {
            assert!(bad.parse::<VeName>().is_err(), "{bad}");
        }
    }
}
