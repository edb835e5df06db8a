//! The differential test: the same operations on a mounted VE and on a plain directory of the host's filesystem, by the same kernel, must show
//! programs the same.
//!
//! A *case* is a sequence of [`ops::Step`]s. Both sides start with the same tree (`tree`), in the VE as its template. For each side a thread
//! with the tree as its root (`side`) does each step (`execute`); the answers must be equal, errors to the errno. After each step, or
//! after several, both trees and all open descriptors are looked at and compared (`snapshot`), and at the end once more after an
//! unmount and a mount.
//!
//! # What is compared, and how
//! - Results, errors, names, kinds, permissions, owners, link counts, sizes, device numbers, targets, extended attributes and content: as
//!   they are. Sizes and blocks of directories are not compared, blocks of files only for being there at all.
//! - `st_ino` as a relation: a file of one side corresponds to one of the other for as long as the case lasts (`stat::Relation`).
//! - Times that programs set: as they are. Others: whether they have moved since the last look, on one side as on the other. The plain tree is on
//!   a mount with `noatime`, since reads in a VE do not move atime.
//! - `SEEK_DATA` and `SEEK_HOLE`: that the answer is a right one, as allocation is the host's affair. Listings: as sets, and that an entry
//!   that nobody touches comes once, before and after seekdir.
//!
//! # What is known to differ, and modelled
//! - Descriptors on a template's file that is then opened for writing keep the old file, where the kernel serves its content (`detach`).
//! - Where XFS and ext4 differ a VE does as ext4, also on XFS, and the kernel does not tell of writes to fifos (`known`).
//! - There are no file handles in a VE.
//! - `FALLOC_FL_COLLAPSE_RANGE`, `INSERT_RANGE` and `UNSHARE_RANGE`: the kernel does not pass them to FUSE filesystems (`EOPNOTSUPP`).
//!
//! # A failure
//! prints the shrunk case as JSON. Put into a file of `tests/regressions`, it is run by every run of the test.

mod detach;
mod execute;
mod generate;
mod known;
pub mod ops;
mod pair;
mod raw;
mod side;
mod snapshot;
mod stat;
mod tree;

pub use pair::{Case, Ground};
