//! One store: templates, VEs, bases, locks.

pub mod stack;
