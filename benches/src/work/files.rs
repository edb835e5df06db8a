//! Work that is made of system calls, without the start of a program in its time.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Ready;
use crate::source::{HUGE_BYTES, Noise, PAYLOAD};

/// Files that are opened and read.
const READ_FILES: usize = 5000;
/// Files that are made.
const SMALL_FILES: usize = 5000;
/// Files of the tree that are changed.
const CHANGED_FILES: usize = 2000;
const BLOCK_BYTES: usize = 4096;
const SEQUENTIAL_MIB: usize = 256;
const RANDOM_BYTES: usize = 64 << 20;
const RANDOM_WRITES: usize = 32_768;
const APPENDS: usize = 300;

/// The first files below a folder, by path.
fn files(folder: &Path, wanted: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
                if found.len() == wanted {
                    return Ok(found);
                }
            }
        }
    }
    anyhow::bail!("{} has {} files, {wanted} are wanted", folder.display(), found.len())
}

fn work(root: &Path) -> PathBuf {
    root.join("srv/work")
}

pub(super) fn open_read_close(root: &Path) -> Result<Ready> {
    let files = files(&root.join("usr"), READ_FILES)?;
    let mut block = [0; BLOCK_BYTES];
    Ok(Box::new(move || {
        for file in &files {
            let _bytes = File::open(file)?.read(&mut block)?;
        }
        Ok(())
    }))
}

pub(super) fn create_small(root: &Path) -> Result<Ready> {
    let folder = work(root).join("small");
    fs::create_dir(&folder)?;
    Ok(Box::new(move || {
        for number in 0..SMALL_FILES {
            let inside = folder.join((number / 100).to_string());
            if number % 100 == 0 {
                fs::create_dir(&inside)?;
            }
            fs::write(inside.join(format!("file{number}")), [b'x'; 1024])?;
        }
        Ok(())
    }))
}

pub(super) fn write_sequentially(root: &Path) -> Result<Ready> {
    let mut file = File::create(work(root).join("sequential"))?;
    let block = vec![b'x'; 1 << 20];
    Ok(Box::new(move || {
        for _ in 0..SEQUENTIAL_MIB {
            file.write_all(&block)?;
        }
        Ok(())
    }))
}

/// A file of zeros that are written out.
fn ready_file(root: &Path) -> Result<File> {
    let path = work(root).join("ready");
    fs::write(&path, vec![0; RANDOM_BYTES])?;
    let file = File::options().read(true).write(true).open(path)?;
    file.sync_all()?;
    Ok(file)
}

pub(super) fn write_randomly(root: &Path) -> Result<Ready> {
    let file = ready_file(root)?;
    let block = [b'x'; BLOCK_BYTES];
    let mut noise = Noise(3);
    Ok(Box::new(move || {
        for _ in 0..RANDOM_WRITES {
            let place = noise.number() % (RANDOM_BYTES / BLOCK_BYTES) as u64;
            file.write_all_at(&block, place * BLOCK_BYTES as u64)?;
        }
        Ok(())
    }))
}

pub(super) fn write_mapped(root: &Path) -> Result<Ready> {
    let file = ready_file(root)?;
    Ok(Box::new(move || {
        // SAFETY: nobody else has this file, which was made just now, so it does not change or shrink while it is mapped.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }?;
        for page in map.chunks_mut(BLOCK_BYTES) {
            page[0] = b'x';
        }
        map.flush()?;
        Ok(())
    }))
}

pub(super) fn append_durably(root: &Path) -> Result<Ready> {
    let mut file = File::create(work(root).join("appended"))?;
    let block = [b'x'; BLOCK_BYTES];
    Ok(Box::new(move || {
        for _ in 0..APPENDS {
            file.write_all(&block)?;
            file.sync_all()?;
        }
        Ok(())
    }))
}

fn append(file: &Path) -> Result<()> {
    let opened = File::options().append(true).open(file);
    opened
        .and_then(|mut file| file.write_all(b"x"))
        .with_context(|| format!("cannot append to {}", file.display()))
}

pub(super) fn copy_up_small(root: &Path) -> Result<Ready> {
    let files = files(&root.join("usr/share"), CHANGED_FILES)?;
    for file in &files {
        let _content = fs::read(file)?;
    }
    Ok(Box::new(move || files.iter().try_for_each(|file| append(file))))
}

pub(super) fn copy_up_huge(root: &Path) -> Result<Ready> {
    let file = root.join(PAYLOAD).join("huge");
    ensure!(fs::metadata(&file)?.len() == HUGE_BYTES, "{} has not its size", file.display());
    Ok(Box::new(move || append(&file)))
}
