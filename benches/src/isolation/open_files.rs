//! A VE's many open files: more than one process may have.
//!
//! The first process makes as many files as it may hold and keeps them open. For the rest it starts itself anew, one process after the other, and each of those
//! opens the same files again, for reading and writing. They end when their standard input does: it is a pipe whose other end the first process has
//! alone, and who ends, in whatever way, has its pipes closed. So no process is left behind.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::memory::available_bytes;

/// The most files that are held open, unless somebody says otherwise.
pub const MAX_OPEN: u64 = 1_000_000;
/// Descriptors that a process needs besides.
const SPARE: u64 = 50;
/// Files that are opened before memory is looked at again: a few MiB of the kernel's.
const AT_ONCE: u64 = 1_000;
/// This part of the memory that is available in the beginning is left alone: 1 / 4.
const LEFT: u64 = 4;

/// What is held open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// Open files, as the kernel counts them.
    pub open: u64,
    /// The files that those are: each has a name of its own.
    pub distinct: u64,
    /// The processes that have them open.
    pub processes: u64,
}

/// What a process is to open again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Again {
    /// No more files than these, which are there: they have the numbers from 0 as names.
    pub files: u64,
    /// It stops before less memory than this is available.
    pub least_available_bytes: u64,
}

/// Makes files in the folder and holds `most` of them open, if memory allows, with the help of further processes. Tells `under_way`
/// when it does, and returns at the end of standard input, when no other process has any open.
///
/// # Errors
/// Something was refused.
pub fn hold(folder: &Path, most: u64, under_way: impl FnOnce(Held) -> Result<()>) -> Result<()> {
    let input = Input::watch();
    let least_available_bytes = available_bytes()? / LEFT;
    let files = open(most.min(limit()?), least_available_bytes, &input, |number| {
        Ok(File::create(folder.join(number.to_string()))?)
    })?;
    let distinct = files.len() as u64;
    ensure!(distinct > 0, "no file can be held open: the limit of descriptors, or memory, is too low");
    let mut held = Held { open: distinct, distinct, processes: 1 };
    let (end, until) = pipe()?;
    let mut helpers = Vec::new();
    while held.open < most && !input.has_ended() {
        let again = Again { files: distinct.min(most - held.open), least_available_bytes };
        let (helper, opened) = help(folder, again, &end)?;
        helpers.push(helper);
        held.open += opened;
        held.processes += 1;
        if opened < again.files {
            break;
        }
    }
    under_way(held)?;
    input.wait();
    drop(until);
    for mut helper in helpers {
        helper.wait()?;
    }
    Ok(())
}

/// What a further process does: opens the files again, says how many, and holds them until the end of standard input.
///
/// # Errors
/// Something was refused.
pub fn hold_again(folder: &Path, again: Again, under_way: impl FnOnce(u64) -> Result<()>) -> Result<()> {
    let input = Input::watch();
    limit()?;
    let files = open(again.files, again.least_available_bytes, &input, |number| {
        Ok(File::options().read(true).write(true).open(folder.join(number.to_string()))?)
    })?;
    under_way(files.len() as u64)?;
    input.wait();
    drop(files);
    Ok(())
}

/// Starts a further process, and waits until it holds what it can. Returns how many files those are.
fn help(folder: &Path, again: Again, end: &PipeReader) -> Result<(Child, u64)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--hostile", "open-files", "--folder"]).arg(folder);
    command.args(["--again", &again.files.to_string()]);
    command.args(["--least-available-bytes", &again.least_available_bytes.to_string()]);
    let mut child = command.stdin(end.try_clone()?).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    // It says nothing after this, so that the descriptor can be spared.
    BufReader::new(child.stdout.take().context("it has no output")?).read_line(&mut line)?;
    let opened = line.trim().parse().context("a further process did not come under way")?;
    Ok((child, opened))
}

/// Opens up to `most` files, by their numbers; fewer when memory gets short or nobody wants them any more.
fn open(
    most: u64,
    least_available_bytes: u64,
    input: &Input,
    file: impl Fn(u64) -> Result<File>,
) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for number in 0..most {
        let short = number % AT_ONCE == 0 && available_bytes()? < least_available_bytes;
        if short || input.has_ended() {
            break;
        }
        files.push(file(number).with_context(|| format!("the file {number}"))?);
    }
    Ok(files)
}

/// Lets this process have as many descriptors as it may. Returns how many files it can hold with them.
fn limit() -> Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.map_or(MAX_OPEN, |limit| limit.saturating_sub(SPARE)))
}

/// Standard input, of which nothing but the end matters.
struct Input {
    ended: Arc<AtomicBool>,
    reader: JoinHandle<()>,
}

impl Input {
    fn watch() -> Input {
        let ended = Arc::new(AtomicBool::new(false));
        let reader = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                // What cannot be read has ended as well.
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                ended.store(true, Ordering::Relaxed);
            }
        });
        Input { ended, reader }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn wait(self) {
        // It does not panic.
        let _ = self.reader.join();
    }
}

/// The results in words.
pub fn sentence(held: Held, most: u64, secs: f64, bytes: u64) -> String {
    let Held { open, distinct, processes } = held;
    let each = bytes as f64 / open.max(1) as f64;
    let short = if open < most { ", fewer than wanted: memory ended" } else { "" };
    format!(
        "The daemon has {each:.0} bytes of memory for each of {open} open files of a VE ({distinct} files, {processes} processes, \
         under way after {secs:.1} s{short}).\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_there_was() {
        let held = Held { open: 10, distinct: 5, processes: 2 };
        let text = sentence(held, 10, 1.25, 644);
        assert!(
            text.contains("64 bytes of memory for each of 10 open files of a VE (5 files, 2 proc"),
            "{text}"
        );
        assert!(!text.contains("fewer"), "{text}");
        assert!(sentence(held, 11, 1.0, 0).contains("fewer than wanted"));
    }
}
