//! Directories, tars and OCI layouts in; tars out.
