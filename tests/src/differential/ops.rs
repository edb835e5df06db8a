//! The operations.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Open descriptors that a sequence may have at a time.
pub const SLOTS: u8 = 4;

/// One operation by one user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Who does it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by: User,
    /// The user's umask.
    #[serde(default = "usual_umask", skip_serializing_if = "is_usual_umask")]
    pub umask: u32,
    /// The slot of the directory that paths start at.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cwd: Option<u8>,
    /// What.
    pub op: Op,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

const fn usual_umask() -> u32 {
    0o022
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_usual_umask(umask: &u32) -> bool {
    *umask == usual_umask()
}

/// Whose rights an operation has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum User {
    /// All rights.
    #[default]
    Root,
    /// Owner of some files, and in their groups.
    Member,
    /// In none of these groups.
    Other,
}

/// A file by path or by descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The path, following a symbolic link at its end.
    Path(String),
    /// The path itself, also if it is a symbolic link.
    Link(String),
    /// An open descriptor.
    Slot(u8),
}

/// The access mode of open(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY`.
    Write,
    /// `O_RDWR`.
    Both,
    /// `O_PATH`.
    Path,
}

/// A flag of open(2). `O_NONBLOCK` is always given: nobody is at the other end of a fifo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "open(2) has them")]
pub enum OpenFlag {
    Creat,
    Excl,
    Trunc,
    Append,
    Directory,
    Nofollow,
    Sync,
    Direct,
}

/// What lseek(2) counts from or looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "lseek(2) has them")]
pub enum Whence {
    Set,
    Cur,
    End,
    Data,
    Hole,
}

/// What utimensat(2) does with one of the two times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetTime {
    /// `UTIME_NOW`.
    Now,
    /// `UTIME_OMIT`.
    Omit,
    /// Seconds and nanoseconds.
    At(i64, i64),
}

/// What mknod(2) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
}

/// Flags of renameat2(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "renameat2(2) has them")]
pub enum RenameFlag {
    #[default]
    Plain,
    Noreplace,
    Exchange,
    Whiteout,
    /// Two flags that exclude each other.
    Both,
}

/// The locks of flock(2) and fcntl(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "fcntl(2) has them")]
pub enum Lock {
    Shared,
    Exclusive,
    Unlock,
}

/// Which of the three kinds of lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// flock(2).
    Flock,
    /// `F_OFD_SETLK`.
    Ofd,
    /// `F_SETLK`.
    Posix,
}

/// A change of a directory while it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Meanwhile {
    /// A file with this name is made.
    Create(String),
    /// This name is removed.
    Unlink(String),
}

/// The operations. Those that the kernel does not see (the last ones) are done by the test to both sides alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is the system call of its name; slots are descriptors")]
pub enum Op {
    Open {
        slot: u8,
        path: String,
        access: Access,
        flags: Vec<OpenFlag>,
        mode: u32,
    },
    Close {
        slot: u8,
    },
    Read {
        slot: u8,
        len: usize,
    },
    Pread {
        slot: u8,
        at: u64,
        len: usize,
    },
    Write {
        slot: u8,
        len: usize,
        byte: u8,
    },
    Pwrite {
        slot: u8,
        at: u64,
        len: usize,
        byte: u8,
    },
    Seek {
        slot: u8,
        whence: Whence,
        at: i64,
    },
    Ftruncate {
        slot: u8,
        size: u64,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Fallocate {
        slot: u8,
        mode: u32,
        at: u64,
        len: u64,
    },
    CopyRange {
        from: u8,
        to: u8,
        from_at: u64,
        to_at: u64,
        len: usize,
    },
    /// Maps the first bytes of the file, reads them, and with a `byte` writes it over those at `at` and syncs.
    Map {
        slot: u8,
        at: usize,
        byte: Option<u8>,
    },
    Fsync {
        slot: u8,
        data_only: bool,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Rmdir {
        path: String,
    },
    Mknod {
        path: String,
        kind: NodeKind,
        mode: u32,
    },
    Symlink {
        target: String,
        path: String,
    },
    Readlink {
        path: String,
    },
    Link {
        from: String,
        to: String,
        follow: bool,
    },
    /// linkat(2) with `AT_EMPTY_PATH`.
    LinkSlot {
        slot: u8,
        to: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flag: RenameFlag,
    },
    Chmod {
        target: Target,
        mode: u32,
    },
    Chown {
        target: Target,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimens {
        target: Target,
        atime: SetTime,
        mtime: SetTime,
    },
    SetXattr {
        target: Target,
        name: String,
        value: Vec<u8>,
        flags: u32,
    },
    /// As `SetXattr`, with a value of this many bytes.
    FillXattr {
        target: Target,
        name: String,
        len: usize,
        flags: u32,
    },
    GetXattr {
        target: Target,
        name: String,
    },
    ListXattr {
        target: Target,
    },
    RemoveXattr {
        target: Target,
        name: String,
    },
    Access {
        path: String,
        mode: u32,
        effective: bool,
    },
    Stat {
        target: Target,
    },
    /// Lists a directory in calls of about `chunk` names, with a change after the first of them.
    List {
        path: String,
        chunk: usize,
        meanwhile: Option<Meanwhile>,
    },
    /// name_to_handle_at(2).
    Handle {
        target: Target,
    },
    Lock {
        slot: u8,
        kind: LockKind,
        lock: Lock,
        at: i64,
        len: i64,
    },
    /// Compares everything, content and extended attributes too.
    Compare,
    /// The kernel forgets the inodes and names that nobody uses.
    DropCaches,
    /// The VE is unmounted and mounted again. Closes all slots, as the next two do.
    Remount,
    /// The daemon ends and is started again.
    Restart,
    /// The daemon is killed and started again.
    Kill,
}
