//! Benchmarks of vzfs: of its parts (`micro`, with criterion), beside its peers (`compare`), of what many VEs cost (`curve`), and of what one VE can cost another
//! (`isolation`).
//!
//! `compare` and `curve` show the same Debian tree through each [`system`]: the filesystem itself, the kernel's overlayfs, both
//! fuse-overlayfs, and vzfs. Each has a fresh filesystem in an image of its own. [`work`] is what they are made to do.

pub mod compare;
pub mod curve;
pub mod isolation;
pub mod memory;
pub mod micro;
pub mod options;
pub mod plot;
pub mod report;
pub mod run;
pub mod source;
pub mod stats;
pub mod system;
pub mod work;
