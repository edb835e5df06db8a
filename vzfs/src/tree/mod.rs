//! Immutable memory-mapped trees: layers and bases.
//!
//! A tree is one file that holds the whole metadata of a filesystem: inodes, names, extended attributes, and
//! for every regular file the digest of its blob. A **layer** may also hold whiteouts and opaque directories,
//! which hide what lies below it; a **base** is layers merged, and holds neither. Both have the same format,
//! `doc/FORMAT.md`.
//!
//! The invariants, as [`Tree::validate`] checks them and the tests cite them:
//!
//! 1. *Canonical*: equal trees are equal bytes, so that a tree's BLAKE3 digest is its identity. Every table
//!    has one legal order, nothing is stored that nothing refers to, and no byte is left to chance.
//! 2. *Stable numbers*: an inode's number is a function of its smallest path and its content. The same file
//!    has the same number in every tree in which it is unchanged (`number.rs`).
//! 3. *Ordered entries*: the entries of a directory are contiguous and ordered by (hash57, name bytes), as
//!    the private tables of a volume are, so that a merge of both is a directory listing with stateless
//!    offsets.
//! 4. *A tree*: every directory except the root has exactly one name, every inode is reached from the root.
//! 5. *No trust needed*: no bytes whatever can make a reader panic or read out of bounds. A damaged record is
//!    absent.
//! 6. *No wrong answer*: what is made of a part that the disk does not give is thrown away ([`soundly`]).
//!
//! Life of a tree: [`TreeBuilder`] (mutable, in memory) -> [`TreeBuilder::finish`] -> [`TreeImage`] (bytes)
//! -> [`TreeStore::put`] (validated, durable) -> [`TreeStore::open`] -> [`Tree`] (mapped, shared). Validation
//! happens once, on the way into the store; opening a stored tree reads its header only.
//!
//! Reading needs no lock, no heap and no system call. The only lock is the store's cache of open trees.

mod builder;
mod delta;
mod diff;
mod error;
mod format;
mod image;
mod number;
mod order;
mod reader;
mod sound;
mod store;
mod validate;
mod view;
mod walk;

#[cfg(test)]
mod tests;

pub use builder::{Content, Entry, Meta, NodeId, TreeBuilder};
pub use delta::{Delta, InodeChange, NameChange};
pub use diff::{Aspect, Change, ChangeKind, Side, diff};
pub use error::TreeError;
pub use format::{FORMAT_VERSION, MAX_PATH_BYTES};
pub use image::TreeImage;
pub use reader::{Target, Tree, TreeEntries, TreeEntry, TreeStats};
pub use sound::{check_sound, soundly, soundly_read};
pub use store::TreeStore;
pub use view::{ContentRef, NodeView};
pub use walk::{Walk, WalkEntry};
