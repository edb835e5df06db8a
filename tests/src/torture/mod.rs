//! Faults by the thousand, of which a seed tells all; `doc/TORTURE.md` says what is tried and what was lost.
//!
//! The power: a workload runs on a disk that remembers every write and flush ([`disk`]). Then the disk is put into states in which a crash could have
//! left it ([`crash`]), the store is opened on it, and what it shows is compared with a naive model ([`model`]).
//!
//! The daemon and its supervisor are killed, replaced, run out of space, and have a disk that fails, under programs that know what must be there ([`program`]).

pub mod crash;
pub mod disk;
pub mod failing;
pub mod full;
pub mod inside;
pub mod load;
pub mod model;
pub mod outside;
pub mod plan;
pub mod power;
pub mod program;
pub mod random;
pub mod scenario;

pub use scenario::{Effort, Scenario, Tried};
