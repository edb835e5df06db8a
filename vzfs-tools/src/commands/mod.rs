//! What each command does: requests to the daemon, and what is printed of the replies.

pub(crate) mod daemon;
mod difference;
mod store;
pub(crate) mod template;
mod top;
mod update;
mod update_text;
pub(crate) mod ve;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::{Cli, Command, Global};
use crate::client::Client;
use crate::error::{Exit, Failure, Result};
use crate::output::{Output, print, size};
use crate::progress::Progress;

/// What every command needs.
pub(crate) struct Context {
    /// The daemon.
    pub(crate) client: Client,
    /// How to print.
    pub(crate) output: Output,
}

impl Context {
    fn new(global: &Global) -> Result<Context> {
        let output = Output { format: global.format, quiet: global.quiet };
        Ok(Context { client: Client::new(&global.socket)?, output })
    }

    /// The progress of a request.
    pub(crate) fn progress(&self) -> Progress {
        Progress::new(self.output.quiet)
    }

    /// Prints what a dry run found: the steps that would be taken, one a line.
    pub(crate) fn plan(&self, steps: &[String]) -> Result<()> {
        #[derive(Serialize)]
        struct Plan<'a> {
            dry_run: bool,
            steps: &'a [String],
        }
        self.output.show(&Plan { dry_run: true, steps }, |plan| {
            let lines = plan.steps.iter().map(|step| format!("would {}\n", crate::output::printable(step)));
            lines.collect()
        })
    }
}

/// Runs one command; the exit code of `ve exec` is the program's.
pub(crate) fn run(cli: Cli) -> Result<u8> {
    let context = || Context::new(&cli.global);
    match cli.command {
        Command::Template(command) => template::run(&context()?, command).map(|()| 0),
        Command::Ve(command) => ve::run(&context()?, command),
        Command::Update(arguments) => update::run(&context()?, *arguments).map(|()| 0),
        Command::Store(command) => store::run(&context()?, &command).map(|()| 0),
        Command::Daemon(command) => daemon::run(&context()?, &command).map(|()| 0),
        Command::Top(args) => top::run(&context()?, &args).map(|()| 0),
        Command::Completions { shell } => completions(shell).map(|()| 0),
        Command::Man { dir } => manual(&dir).map(|()| 0),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut <Cli as clap::CommandFactory>::command(), "vzfs", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn manual(dir: &Path) -> Result<()> {
    let what = || format!("cannot write the manual pages to {}", dir.display());
    std::fs::create_dir_all(dir).map_err(|e| Failure::io(what(), &e))?;
    clap_mangen::generate_to(<Cli as clap::CommandFactory>::command(), dir)
        .map_err(|e| Failure::io(what(), &e))
}

/// An absolute path for the daemon, which has another working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Failure::io(format!("cannot tell where {} is", path.display()), &e))
}

/// Writes the archive at `path` of the interface to `file`, whole or not at all; `-` is stdout.
pub(crate) fn export(context: &Context, what: &str, path: &str, file: &Path) -> Result<()> {
    #[derive(Serialize)]
    struct Exported<'a> {
        exported: &'a str,
        file: &'a Path,
        bytes: u64,
    }
    let progress = context.progress();
    if file == Path::new("-") {
        let stdout = io::stdout().lock();
        if stdout.is_terminal() {
            return Err(Failure::new(Exit::Usage, "an archive is nothing for a terminal")
                .with_hint("redirect stdout, or name a file"));
        }
        let mut stdout = BufWriter::with_capacity(1 << 20, stdout);
        context.client.download(path, &mut stdout, &progress)?;
        return stdout.flush().map_err(|e| Failure::io("cannot write the archive to stdout", &e));
    }
    let bytes = write_whole(file, |out| context.client.download(path, out, &progress))?;
    drop(progress);
    let report = Exported { exported: what, file, bytes };
    context
        .output
        .done(&report, |r| format!("{} exported to {} ({})", r.exported, r.file.display(), size(r.bytes)))
}

/// Makes `file` through a temporary name beside it: a failure leaves what was there before, and nothing else.
fn write_whole(file: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<u64>) -> Result<u64> {
    let what = |e: &io::Error| Failure::io(format!("cannot write {}", file.display()), e);
    // A device or a pipe is written to, not replaced.
    if std::fs::metadata(file).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        let mut out = File::options().write(true).open(file).map_err(|e| what(&e))?;
        return fill(&mut out);
    }
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let temporary = builder.prefix(".vzfs-export-").permissions(permissions).tempfile_in(dir);
    let temporary = temporary.map_err(|e| what(&e))?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary);
    let bytes = fill(&mut out)?;
    let temporary = out.into_inner().map_err(|e| what(e.error()))?;
    temporary.as_file().sync_all().map_err(|e| what(&e))?;
    temporary.persist(file).map_err(|e| what(&e.error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_export_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("x.tar");
        std::fs::write(&file, "old").expect("written");
        let failed = write_whole(&file, |out| {
            out.write_all(b"half").expect("written");
            Err(Failure::interrupted())
        });
        assert_eq!(failed.expect_err("fails").exit, Exit::Interrupted);
        assert_eq!(std::fs::read(&file).expect("there"), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
        let written = write_whole(&file, |out| {
            out.write_all(b"new").expect("written");
            Ok(3)
        });
        assert_eq!(written.expect("works"), 3);
        assert_eq!(std::fs::read(&file).expect("there"), b"new");
    }
}
