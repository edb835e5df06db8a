//! The vzfs command line.
fn main() {}
