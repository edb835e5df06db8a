//! Kernel request -> volume call -> reply; the only module that names fuser.
