//! Directories, tars and OCI image layouts in; tars out.
//!
//! Whatever comes in is hostile. Nothing of it is ever resolved on this host: names become entries of a
//! [`TreeBuilder`], contents become blobs of a [`Batch`], and a symbolic link is a string. So an archive can at worst
//! describe a strange tree; what it may cost is bounded by [`Limits`]. A failed import leaves nothing: the caller drops
//! the batch.
//!
//! Kept exactly: names of any bytes, types, owners, modes, modification times with nanoseconds, hard links, devices, holes, and extended
//! attributes (which POSIX ACLs and file capabilities are).

mod acl_text;
mod compress;
mod dir;
mod error;
mod export;
mod limits;
mod oci;
mod pax;
mod plant;
mod sparse;
mod tar;
#[cfg(test)]
mod tests;
mod unpack;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::blobs::{Batch, Stored};
use crate::tree::{Content, TreeBuilder};

pub use error::{ArchiveError, Reason};
pub use export::{TarEntry, TarSource, TemplateSource, Xattr, export_tar};
pub use limits::{Exclude, Limits, MAX_PATH_BYTES, Progress};

/// Where a tree comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder of this host.
    Dir(PathBuf),
    /// A tar, as it is or compressed with gzip, zstd or xz.
    Tar(PathBuf),
    /// A folder in the OCI image layout.
    OciLayout(PathBuf),
}

impl Source {
    /// Finds out what a path is by looking at it; its name does not matter.
    ///
    /// # Errors
    /// [`ArchiveError::NotAnArchive`] when it is nothing that can be imported.
    pub fn detect(path: &Path) -> Result<Source, ArchiveError> {
        let failed = |source| ArchiveError::Io { action: "open", path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            // This file alone decides: a layout that was copied only half must not pass for a root filesystem.
            let is_image = path.join("oci-layout").is_file();
            let path = path.to_owned();
            return Ok(if is_image { Source::OciLayout(path) } else { Source::Dir(path) });
        }
        if !metadata.is_file() {
            let why = "it is neither a folder nor a regular file".to_owned();
            return Err(ArchiveError::NotAnArchive { path: path.to_owned(), why });
        }
        let file = File::open(path).map_err(failed)?;
        match compress::looks_like_tar(file) {
            Ok(()) => Ok(Source::Tar(path.to_owned())),
            Err(why) => Err(ArchiveError::NotAnArchive { path: path.to_owned(), why }),
        }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        match self {
            Source::Dir(path) | Source::Tar(path) | Source::OciLayout(path) => path,
        }
    }
}

/// Reads a source into blobs of `batch` and a new tree. On failure the caller drops the batch and nothing is left.
pub fn import(
    source: &Source,
    batch: &Batch<'_>,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<TreeBuilder, ArchiveError> {
    import_excluding(source, batch, limits, &Exclude::default(), progress)
}

/// [`import`] that leaves some paths out.
pub fn import_excluding(
    source: &Source,
    batch: &Batch<'_>,
    limits: &Limits,
    exclude: &Exclude,
    progress: &dyn Progress,
) -> Result<TreeBuilder, ArchiveError> {
    match source {
        Source::Dir(path) => dir::import(path, batch, limits, exclude, progress),
        Source::Tar(path) => unpack::import(path, batch, limits, exclude, progress),
        Source::OciLayout(path) => oci::import(path, batch, limits, exclude, progress),
    }
}

/// Extended attributes by name.
type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

fn blob(stored: &Stored) -> Content {
    Content::Blob { digest: stored.digest, size: stored.size, allocated_bytes: stored.allocated_bytes }
}

/// Linux's 32-bit device number, as FUSE carries it: 12 bits of major, 20 of minor, the low 8 of which come last.
fn encode_device(major: u32, minor: u32) -> Result<u32, Reason> {
    if major >= 1 << 12 {
        return Err(Reason::Range { what: "device major number", value: i64::from(major) });
    }
    if minor >= 1 << 20 {
        return Err(Reason::Range { what: "device minor number", value: i64::from(minor) });
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The inverse of [`encode_device`].
fn decode_device(rdev: u32) -> (u32, u32) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00))
}

/// The attribute namespaces that are part of a file. Others (`system.nfs4_acl`, `btrfs.*`) are views of its
/// filesystem; so are `trusted.SGI_ACL_FILE` and `trusted.SGI_ACL_DEFAULT`, in which XFS shows every ACL once more.
fn is_kept_xattr(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix) && name.len() > prefix.len())
        && !name.starts_with(b"trusted.SGI_ACL_")
}
