//! Configuration, mounts, control interface, shutdown.
