//! Base + private layer = one POSIX tree.
