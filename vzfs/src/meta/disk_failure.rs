//! What RocksDB's errors say of the disk.
//!
//! RocksDB keeps the host's errno only as strerror(3) has it, at the end of its text (`IOError` in its `env/io_posix.cc`); a full disk alone has a code
//! of its own, which the binding does not pass on but as text.

use rocksdb::ErrorKind;

const NO_SPACE: &str = "No space left on device";
const OVER_QUOTA: &str = "Disk quota exceeded";
/// What only a disk or a filesystem that does not work answers.
const BROKEN: [&str; 2] = ["Input/output error", "Read-only file system"];

/// How a disk did not take a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFailure {
    /// It is full. RocksDB goes on by itself some seconds after there is space.
    Full,
    /// A quota is used up (`EDQUOT`), which RocksDB takes for an error like any other: it goes on only when it is opened anew.
    Quota,
    /// Anything else: an input/output error, or the host's filesystem has made itself read-only.
    Broken,
}

impl DiskFailure {
    /// Of an error of this kind with this text; `None` of one that the disk has nothing to do with.
    pub(super) fn of(kind: ErrorKind, text: &str) -> Option<DiskFailure> {
        if text.contains(OVER_QUOTA) {
            Some(DiskFailure::Quota)
        } else if text.contains(NO_SPACE) {
            Some(DiskFailure::Full)
        } else {
            (kind == ErrorKind::IOError).then_some(DiskFailure::Broken)
        }
    }
}

/// Whether the text says that the disk does not work: a file that is missing, say, is no fault of its.
pub(super) fn blames_disk(text: &str) -> bool {
    BROKEN.iter().any(|why| text.contains(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of strerror(3).
    fn strerror(error: &std::io::Error) -> String {
        error.to_string().split(" (os error").next().unwrap_or_default().to_owned()
    }

    /// As RocksDB words an error of the host's with its log: what it did, the file, strerror(3).
    fn io_error(code: &str, errno: i32) -> String {
        let said = strerror(&std::io::Error::from_raw_os_error(errno));
        format!("IO error: {code}While appending to file: /store/meta/000042.log: {said}")
    }

    #[test]
    fn rocksdb_words_errors_so() {
        let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let file = folder.path().join("CURRENT");
        std::fs::create_dir(&file).expect("made");
        let refused = std::fs::read(&file).expect_err("a directory has no content");
        let options = rocksdb::Options::default();
        let error = rocksdb::DB::open_for_read_only(&options, &folder, false).expect_err("it needs the file");
        let text: &str = error.as_ref();
        assert!(text.starts_with("IO error: ") && text.ends_with(&strerror(&refused)), "{text}");
        assert_eq!(DiskFailure::of(error.kind(), text), Some(DiskFailure::Broken));
    }

    #[test]
    fn the_hosts_errors_are_told_apart_by_their_text() {
        let of = |code: &str, errno: i32| DiskFailure::of(ErrorKind::IOError, &io_error(code, errno));
        assert_eq!(of("", libc::EDQUOT), Some(DiskFailure::Quota));
        assert_eq!(of("No space left on device: ", libc::ENOSPC), Some(DiskFailure::Full));
        assert_eq!(of("", libc::EIO), Some(DiskFailure::Broken));
        assert_eq!(of("", libc::EROFS), Some(DiskFailure::Broken));
        // What is not an error of writing, and is the disk's for all that.
        let synced = "IO error: While fdatasync: /store/meta/000042.log: Disk quota exceeded";
        assert_eq!(DiskFailure::of(ErrorKind::IOError, synced), Some(DiskFailure::Quota));
    }

    #[test]
    fn the_reason_counts_whatever_kind_of_error_has_it() {
        for kind in [ErrorKind::Aborted, ErrorKind::Incomplete, ErrorKind::Unknown] {
            let of = |text: &str| DiskFailure::of(kind.clone(), text);
            assert_eq!(of("Operation aborted: flush: Disk quota exceeded"), Some(DiskFailure::Quota));
            assert_eq!(of("Operation aborted: flush: No space left on device"), Some(DiskFailure::Full));
            assert_eq!(of("Operation aborted: Input/output error"), None, "not of a write");
        }
        assert_eq!(DiskFailure::of(ErrorKind::Corruption, "Corruption: bad block"), None);
    }
}
