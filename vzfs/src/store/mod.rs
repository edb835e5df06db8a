//! One store: templates, VEs, bases, locks.
