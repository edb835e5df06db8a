//! vzfs: a copy-on-write template filesystem for virtual environments.
//!
//! The library behind the daemon `vzfsd`. `ARCHITECTURE.md` has the map; in short, modules depend
//! downward only (a test in `tests/layering.rs` reads the `use crate::` lines and fails on an upward edge):
//!
//! | level | module | responsible for |
//! |---|---|---|
//! | 0 | [`types`] | validated newtypes: digests, names, inode numbers, attributes, references |
//! | 0 | [`sys`] | the few system calls that need `unsafe`, and nothing else |
//! | 1 | [`acl`] | POSIX ACL arithmetic; pure |
//! | 1 | [`merge`] | three-way merges of the files that two layers both change; pure |
//! | 1 | [`api`] | requests and replies of the control interface |
//! | 1 | [`sandbox`] | what the processes, and threads that answer VEs, may do |
//! | 2 | [`blobs`] | the content-addressed blob store |
//! | 2 | [`tree`] | immutable memory-mapped trees: layers and bases; build, validate, look up, merge, compare |
//! | 2 | [`meta`] | the catalog and the private tables; the only module that names rocksdb |
//! | 3 | [`volume`] | base + private layer = one POSIX tree |
//! | 4 | [`archive`] | directories, tars and OCI layouts in; tars out |
//! | 5 | [`store`] | one store: templates, VEs, bases, locks and its invariants |
//! | 5 | [`fuse`] | kernel request -> volume call -> reply; the only module that names fuser |
//! | 6 | [`update`] | rollouts: many VEs moved in batches, with checks and a way back |
//! | 6 | [`supervisor`] | the process that outlives the daemon and holds its mounts' connections |
//! | 7 | [`daemon`] | configuration, mounts, control interface, shutdown |

pub mod acl;
pub mod api;
pub mod archive;
pub mod blobs;
pub mod daemon;
pub mod fuse;
pub mod merge;
pub mod meta;
pub mod sandbox;
pub mod store;
pub mod supervisor;
pub mod sys;
pub mod tree;
pub mod types;
pub mod update;
pub mod volume;
