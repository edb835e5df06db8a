//! What both commands can be told.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::report::Format;
use crate::source;
use crate::system::{Place, Under};

/// Where is measured, and what becomes of the results.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The filesystem under all of them.
    #[arg(long, default_value = "ext4")]
    pub filesystem: Under,
    /// What is printed.
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Write the results to this file, as JSON.
    #[arg(long)]
    pub output: Option<PathBuf>,
    /// The program of fuse-overlayfs 2.
    #[arg(long, env = "FUSE_OVERLAYFS_2", default_value = "fuse-overlayfs-2", hide = true)]
    pub fuse_overlayfs_2: PathBuf,
}

impl Options {
    /// What systems are made of. With `huge` their tree has the huge file.
    ///
    /// # Errors
    /// The tree cannot be made.
    pub fn place(&self, huge: bool) -> Result<Place> {
        Ok(Place {
            tree: source::tree().context("cannot make the tree")?,
            huge,
            under: self.filesystem,
            fuse_overlayfs_2: self.fuse_overlayfs_2.clone(),
        })
    }

    /// Writes results to where they are wanted. Returns what is to be printed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn tell<T: Serialize>(&self, results: &T, table: impl FnOnce(&T) -> String) -> Result<String> {
        let json = serde_json::to_string_pretty(results)? + "\n";
        if let Some(path) = &self.output {
            write(path, &json)?;
        }
        Ok(match self.format {
            Format::Json => json,
            Format::Table => table(results),
        })
    }
}

/// Writes a file.
///
/// # Errors
/// It cannot be written; the error names it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
