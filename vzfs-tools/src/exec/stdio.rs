//! The program's stdin, stdout and stderr.
//!
//! crun gives the files it has as these to the user that the program runs as. For a pipe that does no harm; the host's `/dev/null` would
//! belong to a VE's user, who could then take it from everybody. So files and devices stay with us, and the program gets pipes.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use rustix::fs::FileType;

/// Copies that run while the program does.
pub(super) struct Relays(Vec<JoinHandle<()>>);

impl Relays {
    /// Puts pipes in place of what crun must not have.
    pub(super) fn start(command: &mut Command) -> io::Result<Relays> {
        let mut relays = Vec::new();
        if let Some(mut file) = kept(io::stdin().as_fd())? {
            let (reader, mut writer) = io::pipe()?;
            command.stdin(Stdio::from(reader));
            // It ends with the file, with the program, or with us: nobody waits for it.
            std::thread::Builder::new()
                .name("stdin".to_owned())
                .spawn(move || io::copy(&mut file, &mut writer))?;
        }
        let (stdout, stderr) = (kept(io::stdout().as_fd())?, kept(io::stderr().as_fd())?);
        let one = match (&stdout, &stderr) {
            (Some(stdout), Some(stderr)) => same(stdout, stderr)?,
            _ => false,
        };
        if let Some(file) = stdout {
            let (reader, writer) = io::pipe()?;
            if one {
                // One pipe keeps their order.
                command.stderr(Stdio::from(writer.try_clone()?));
            }
            command.stdout(Stdio::from(writer));
            relays.push(relay(reader, file)?);
        }
        if let Some(file) = stderr.filter(|_| !one) {
            let (reader, writer) = io::pipe()?;
            command.stderr(Stdio::from(writer));
            relays.push(relay(reader, file)?);
        }
        Ok(Relays(relays))
    }

    /// Waits until everything that was printed is where it belongs. The command, which holds the pipes open, must be gone.
    pub(super) fn finish(self) {
        for relay in self.0 {
            // A copy that panicked has lost output already.
            let _ = relay.join();
        }
    }
}

fn relay(mut from: PipeReader, mut to: File) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("output".to_owned()).spawn(move || {
        // When the file takes no more (a full disk), the program gets EPIPE, as from any reader that went away.
        let _ = io::copy(&mut from, &mut to);
    })
}

/// A copy of the descriptor if it is a file or a device, other than a terminal.
fn kept(fd: BorrowedFd<'_>) -> io::Result<Option<File>> {
    let kind = match rustix::fs::fstat(fd) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        // Closed: nothing to give away.
        Err(_) => return Ok(None),
    };
    let keep = match kind {
        FileType::CharacterDevice => !rustix::termios::isatty(fd),
        FileType::RegularFile | FileType::BlockDevice => true,
        _ => false,
    };
    keep.then(|| fd.try_clone_to_owned().map(File::from)).transpose()
}

fn same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
