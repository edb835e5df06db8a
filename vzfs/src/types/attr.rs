use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Ino;

/// The seven types of file that Linux has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    File = 1,
    /// Directory.
    Dir = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Character device.
    Char = 4,
    /// Block device.
    Block = 5,
    /// Named pipe.
    Fifo = 6,
    /// Unix socket.
    Socket = 7,
}

impl FileKind {
    /// The kind with this stored number (see the `repr`), or `None`.
    pub const fn from_u8(raw: u8) -> Option<FileKind> {
        Some(match raw {
            1 => FileKind::File,
            2 => FileKind::Dir,
            3 => FileKind::Symlink,
            4 => FileKind::Char,
            5 => FileKind::Block,
            6 => FileKind::Fifo,
            7 => FileKind::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits of `st_mode`.
    pub const fn mode_bits(self) -> u32 {
        match self {
            FileKind::File => 0o100_000,
            FileKind::Dir => 0o040_000,
            FileKind::Symlink => 0o120_000,
            FileKind::Char => 0o020_000,
            FileKind::Block => 0o060_000,
            FileKind::Fifo => 0o010_000,
            FileKind::Socket => 0o140_000,
        }
    }

    /// The kind that `st_mode` names, or `None` for bits that Linux does not define.
    pub const fn from_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & 0o170_000 {
            0o100_000 => FileKind::File,
            0o040_000 => FileKind::Dir,
            0o120_000 => FileKind::Symlink,
            0o020_000 => FileKind::Char,
            0o060_000 => FileKind::Block,
            0o010_000 => FileKind::Fifo,
            0o140_000 => FileKind::Socket,
            _ => return None,
        })
    }

    /// Whether `rdev` means something.
    pub const fn is_device(self) -> bool {
        matches!(self, FileKind::Char | FileKind::Block)
    }
}

/// A moment: seconds since 1970 (negative before it) and nanoseconds within the second, always added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch; floor, so that `nanos` always counts forward.
    pub secs: i64,
    /// `0 ..= 999_999_999`.
    pub nanos: u32,
}

impl Timestamp {
    /// The current time.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// The time since then; `None` when it is still to come.
    pub fn elapsed(self) -> Option<std::time::Duration> {
        SystemTime::from(self).elapsed().ok()
    }

    /// From a pair as `stat` gives it; nanoseconds out of range are cut to the last one of the second.
    pub fn new(secs: i64, nanos: u32) -> Self {
        Timestamp { secs, nanos: nanos.min(999_999_999) }
    }

    /// A nanosecond later.
    pub fn next(self) -> Self {
        match self.nanos {
            999_999_999 => Timestamp { secs: self.secs.saturating_add(1), nanos: 0 },
            nanos => Timestamp { nanos: nanos + 1, ..self },
        }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp {
                secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let secs = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Timestamp { secs, nanos: 0 },
                    nanos => Timestamp { secs: secs - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let whole = std::time::Duration::from_secs(time.secs.unsigned_abs());
        let base = if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        // Out of the range of SystemTime only for values no filesystem can store; the epoch is as good as any.
        base.and_then(|base| base.checked_add(std::time::Duration::from_nanos(u64::from(time.nanos))))
            .unwrap_or(UNIX_EPOCH)
    }
}

/// What `stat` tells of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number, as programs see it.
    pub ino: Ino,
    /// Type of file.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `0 ..= 0o7777`.
    pub perm: u16,
    /// Number of names (directories: 2 + subdirectories).
    pub nlink: u32,
    /// Owner, as the VE sees it.
    pub uid: u32,
    /// Group, as the VE sees it.
    pub gid: u32,
    /// Device number (Linux's 32-bit `makedev` encoding, as FUSE carries it), zero for what is no device.
    pub rdev: u32,
    /// Bytes of content: file size, length of a symlink's target, 0 for devices.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
}

impl Attr {
    /// `st_mode`: type and permission bits.
    pub const fn mode(&self) -> u32 {
        self.kind.mode_bits() | self.perm as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive() {
        for (secs, nanos) in [(0, 0), (1, 5), (-1, 0), (-1, 999_999_999), (-86_400, 1), (1 << 33, 7)] {
            let time = Timestamp { secs, nanos };
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
    }

    #[test]
    fn kinds_round_trip() {
        for raw in 0..=255 {
            if let Some(kind) = FileKind::from_u8(raw) {
                assert_eq!(kind as u8, raw);
                assert_eq!(FileKind::from_mode(kind.mode_bits() | 0o777), Some(kind));
            }
        }
    }
}
