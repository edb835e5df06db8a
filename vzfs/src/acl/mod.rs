//! POSIX ACL arithmetic; pure.
