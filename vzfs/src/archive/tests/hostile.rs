//! Archives that mean harm, and broken ones.
