//! Immutable memory-mapped trees: layers and bases.
