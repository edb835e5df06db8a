//! The tree that every system shows: Debian with compilers, an interpreter and a database, and what the work needs. Made once, kept between runs
//! beside the Debian tree of the tests.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{host, run};

/// Where the tree has what the work needs.
pub const PAYLOAD: &str = "opt/bench";
/// Files in the archive that is unpacked.
pub const ARCHIVE_FILES: usize = 12_000;
/// Files in each folder of the archive.
const FILES_PER_FOLDER: usize = 20;
/// Transactions of the SQL script.
const TRANSACTIONS: usize = 200;
/// The small package that is installed, with what it needs.
const PACKAGE: &[&str] = &["jq", "libjq1", "libonig5"];
/// The huge file.
pub const HUGE_BYTES: u64 = 1 << 30;
/// Changes with the payload.
const VERSION: &str = "bench-1";

/// The folder with the tree.
///
/// # Errors
/// It cannot be made; the error says why.
pub fn tree() -> Result<PathBuf> {
    let debian = vzfs_tests::debian::tree();
    let cache = debian.parent().context("the Debian tree is in a folder")?;
    let ready = cache.join(VERSION);
    if ready.exists() {
        return Ok(ready);
    }
    let partial = cache.join(format!("{VERSION}.partial"));
    host(&["rm", "-rf", "--"], &[&partial])?;
    // No links: the tests compare trees with their link counts.
    host(&["cp", "-a", "--reflink=auto", "--"], &[&debian, &partial])?;
    let payload = partial.join(PAYLOAD);
    fs::create_dir_all(payload.join("debs"))?;
    archive(&payload.join("files.tar")).context("cannot make the archive")?;
    fs::write(payload.join("transactions.sql"), transactions())?;
    fs::write(payload.join("hello.c"), HELLO)?;
    let mut download = Command::new("apt-get");
    download.arg("download").arg("-qq").args(PACKAGE).current_dir(payload.join("debs"));
    run(&mut download).context("cannot get the package that is to be installed")?;
    fs::create_dir_all(partial.join("srv/work"))?;
    host(&["chmod", "1777"], &[&partial.join("srv/work")])?;
    fs::rename(&partial, &ready)?;
    Ok(ready)
}

/// Writes the huge file into a tree: content that no filesystem can leave out.
///
/// # Errors
/// No space.
pub fn add_huge(tree: &Path) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(tree.join(PAYLOAD).join("huge"))?);
    let mut noise = Noise(7);
    let mut block = vec![0; 1 << 20];
    for _ in 0..HUGE_BYTES >> 20 {
        noise.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(file.flush()?)
}

const HELLO: &str = r#"#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) printf("%s %zu %f %ld\n", argv[i], strlen(argv[i]), (double)rand(), (long)time(NULL));
    return 0;
}
"#;

/// Small transactions, each of which must be durable.
fn transactions() -> String {
    use std::fmt::Write;
    let mut sql = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, number INTEGER);\n".to_owned();
    for transaction in 0..TRANSACTIONS {
        sql.push_str("BEGIN;\n");
        for row in 0..5 {
            // Writing to a string does not fail.
            let _ = writeln!(sql, "INSERT INTO t (name, number) VALUES ('name {transaction}.{row}', {row});");
        }
        sql.push_str("COMMIT;\n");
    }
    sql
}

/// An archive like that of a large program's source: 600 folders, files from 100 bytes to 64 KiB, most of them small.
fn archive(path: &Path) -> io::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(path)?));
    let mut noise = Noise(1);
    let mut content = vec![0; 64 << 10];
    for number in 0..ARCHIVE_FILES {
        let (folder, file) = (number / FILES_PER_FOLDER, number % FILES_PER_FOLDER);
        if file == 0 {
            let mut header = header(0, 0o755);
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, format!("tree/{:02}/{:03}/", folder / 20, folder), io::empty())?;
        }
        // Half of all files below 3 KiB, one in 64 of 64 KiB.
        let size = (100 + (noise.number() % 1000) as usize) << (noise.number() | 1 << 6).trailing_zeros();
        let size = size.min(content.len());
        noise.fill(&mut content[..size]);
        let name = format!("tree/{:02}/{:03}/file{file}.c", folder / 20, folder);
        tar.append_data(&mut header(size as u64, 0o644), name, &content[..size])?;
    }
    tar.into_inner()?.flush()
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(1_700_000_000);
    header
}

/// Numbers that look random and are the same each time.
pub struct Noise(pub u64);

impl Noise {
    /// The next one.
    pub fn number(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// As many as fit.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_as_many_files_as_it_says() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("files.tar");
        archive(&path).expect("made");
        let mut tar = tar::Archive::new(File::open(&path).expect("there"));
        let (mut files, mut bytes) = (0, 0);
        for entry in tar.entries().expect("readable") {
            let entry = entry.expect("whole");
            files += usize::from(entry.header().entry_type().is_file());
            bytes += entry.size();
        }
        assert_eq!(files, ARCHIVE_FILES);
        assert!((20 << 20..200 << 20).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn every_transaction_ends() {
        let sql = transactions();
        let count = |word| sql.lines().filter(|line| *line == word).count();
        assert_eq!((count("BEGIN;"), count("COMMIT;")), (TRANSACTIONS, TRANSACTIONS));
    }
}
