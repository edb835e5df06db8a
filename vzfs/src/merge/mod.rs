//! Three-way merges of files that two layers both change; pure.
