//! Kernel request -> volume call -> reply. The only module that names fuser; it decides nothing about files.
//!
//! What it does decide is how to cost the kernel few requests, since a request is the expensive thing (see `ARCHITECTURE.md`): entries,
//! absent entries and attributes are cached without end, since nothing but requests through this mount changes the volume, and what does
//! (a relabel) invalidates what it changed; directories need no open; closing sends no flush; reads and writes of regular files do not
//! come here at all where passthrough works.
//!
//! # Node ids
//! A node id is the inode number, so that no table of the kernel's references is needed to answer a request. A count of references
//! is kept all the same, to know when the kernel has forgotten an orphan.
//!
//! # Passthrough
//! The kernel demands that all opens of one inode at a time use one backing id; the ledger keeps it with the number of its users. A blob's stays
//! registered when the last of them is gone, for the next.
//! Blobs are opened below a read-only mount (`blobs`), so that a writable open of one fails in the kernel.

mod backing;
mod convert;
mod courtesy;
mod device;
mod dispatch;
mod errno;
mod failures;
mod filesystem;
mod gate;
mod ledger;
mod listing;
mod locks;
mod mount;
mod notices;
mod opening;
mod overlays;
mod places;
mod registered;
mod request;
mod requests;
mod rights;
mod running;
mod syncs;
mod wakeful;
mod writers;

pub use courtesy::DiskSyncs;
pub use gate::Gate;
pub use mount::{Agreed, FuseError, Kept, Mount, MountOptions, Passthrough, mount, resume};
pub use notices::Herald;
pub use wakeful::Wakeful;
