//! The vocabulary of the system as validated types. No I/O happens here.
//!
//! A value of one of these types is valid by construction: parsing is the only way in, and it refuses with a
//! [`TypeError`] that says which rule was broken.

mod attr;
mod digest;
mod id_shift;
mod ino;
mod name;
mod reference;
mod watermark;

pub use attr::{Attr, FileKind, Timestamp};
pub use digest::Digest;
pub use id_shift::IdShift;
pub use ino::Ino;
pub use name::{
    MAX_NAME_BYTES, MAX_SYMLINK_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES, Name, NameRef,
};
pub use reference::{Tag, TemplateName, TemplateRef, TemplateSpec, VeId, VeName, Version, debian_order};

pub use watermark::Watermark;

use thiserror::Error;

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TypeError {
    /// A file name that no directory can hold.
    #[error("illegal file name {name:?}: {why}")]
    Name {
        /// The offending bytes, made printable.
        name: String,
        /// The rule that was broken.
        why: &'static str,
    },
    /// A string that is not 64 hexadecimal digits.
    #[error("illegal digest {0:?}: a BLAKE3 digest has 64 hexadecimal digits")]
    Digest(String),
    /// A template, version or VE name outside the allowed alphabet.
    #[error("illegal {what} {value:?}: {why}")]
    Reference {
        /// Which kind of name: "template name", "version", "tag", "VE name".
        what: &'static str,
        /// The offending text.
        value: String,
        /// The rule that was broken.
        why: &'static str,
    },
    /// A range of ids that no VE can have.
    #[error("illegal range of ids {value}: {why}")]
    IdShift {
        /// The offending text.
        value: String,
        /// The rule that was broken.
        why: &'static str,
    },
}
