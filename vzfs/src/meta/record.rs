//! Records of the private tables: one version byte, then the postcard encoding of the structure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{FileKind, Ino, Timestamp};

/// Version byte of the records written now. Readers accept this one only; a new layout gets the next number.
const VERSION: u8 = 1;

/// Where the content of a private inode is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrivateContent {
    /// Directories and special files.
    None,
    /// A shared blob (a pinned file).
    Blob {
        /// BLAKE3 digest.
        digest: [u8; 32],
        /// Logical size.
        size: u64,
        /// Space that is no hole.
        allocated_bytes: u64,
    },
    /// Target of a symbolic link.
    Symlink(Vec<u8>),
    /// A private data file. Its size and mtime are the host file's, because the kernel writes to it directly.
    Data {
        /// Names the host file within the VE's data folder.
        id: u64,
        /// The host file's ctime when the record was written. A later one means that the kernel wrote since, and that the host's
        /// ctime is the file's.
        stamp: Timestamp,
    },
    /// A removed directory for which another one stands while the kernel knows it.
    Joined {
        /// The number of that directory.
        with: u64,
    },
}

/// What a VE's private layer knows of one inode: everything, so that the base is not asked again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRecord {
    /// Type of file.
    pub kind: FileKind,
    /// Permission bits, `0 ..= 0o7777`.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Names; 0 for an inode that is removed but not yet forgotten by the kernel.
    pub nlink: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content; for [`PrivateContent::Data`] the host file's counts instead.
    pub mtime: Timestamp,
    /// Last change of attributes; see [`PrivateContent::Data`].
    pub ctime: Timestamp,
    /// The directory a directory is in (its own number for the root); 0 for what is no directory.
    pub parent: u64,
    /// Content.
    pub content: PrivateContent,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl InodeRecord {
    /// The record as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("encoding into memory has no failing part")
    }

    /// What [`InodeRecord::encode`] made. Other bytes are refused with a reason.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("record version {version} is not known here")),
            None => Err("it is empty".to_owned()),
        }
    }

    /// Where a directory is.
    pub fn parent(&self) -> Option<Ino> {
        Ino::new(self.parent)
    }
}

#[cfg(test)]
impl InodeRecord {
    /// An empty file of root's with one name.
    pub(super) fn example() -> InodeRecord {
        let time = Timestamp::default();
        InodeRecord {
            kind: FileKind::File,
            perm: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            atime: time,
            mtime: time,
            ctime: time,
            parent: 0,
            content: PrivateContent::None,
            xattrs: BTreeMap::new(),
        }
    }
}

/// What a private entry says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRecord {
    /// The name is this inode, of this kind.
    Node(Ino, FileKind),
    /// The base's entry of this name is hidden.
    Whiteout,
}

impl EntryRecord {
    /// The entry as it is stored.
    pub fn encode(self) -> Vec<u8> {
        match self {
            EntryRecord::Whiteout => vec![0],
            EntryRecord::Node(ino, kind) => {
                let mut bytes = vec![kind as u8];
                bytes.extend_from_slice(&ino.get().to_le_bytes());
                bytes
            }
        }
    }

    /// What [`EntryRecord::encode`] made. Other bytes are refused with a reason.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let wrong = || format!("{} is no entry", bytes.escape_ascii());
        match bytes.split_first().ok_or_else(wrong)? {
            (0, []) => Ok(EntryRecord::Whiteout),
            (&kind, ino) => {
                let ino = u64::from_le_bytes(ino.try_into().map_err(|_| wrong())?);
                let (Some(ino), Some(kind)) = (Ino::new(ino), FileKind::from_u8(kind)) else {
                    return Err(wrong());
                };
                Ok(EntryRecord::Node(ino, kind))
            }
        }
    }
}
