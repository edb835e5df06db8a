//! The daemon's program: arguments in, exit code out.
//!
//! It runs as one of two: the supervisor, which is what was started, and the daemon, which the supervisor starts.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use vzfs::daemon::{self, Args, DaemonError};
use vzfs::supervisor::{Link, Report};

fn main() -> ExitCode {
    let args = Args::parse();
    if args.background_child {
        daemon::detach();
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::Reported) => ExitCode::FAILURE,
        Err(Failed::Unheard(error)) => {
            let text = error.with_hint();
            // To the command that waits; it shows the text as its own.
            if args.background_child && !args.supervised {
                use std::io::Write;
                let _ = write!(std::io::stdout(), "{text}");
            }
            eprintln!("vzfsd: {text}");
            ExitCode::FAILURE
        }
    }
}

/// What ended the program.
enum Failed {
    /// The supervisor has been told, and says so.
    Reported,
    /// Nobody knows of it yet.
    Unheard(DaemonError),
}

impl From<DaemonError> for Failed {
    fn from(error: DaemonError) -> Failed {
        Failed::Unheard(error)
    }
}

fn run(args: &Args) -> Result<(), Failed> {
    let config = args.resolve()?;
    if args.probe {
        return Ok(daemon::probe(&config)?);
    }
    if !args.foreground {
        return Ok(daemon::start_in_background(&config)?);
    }
    daemon::start_logging(args.log_format);
    if !args.supervised {
        let ready = || {
            if args.background_child {
                daemon::tell_ready();
            }
        };
        return Ok(daemon::supervise(&config, ready)?);
    }
    let link = daemon::link()?;
    serve(&config, &link).map_err(|error| {
        link.report(&Report::Failed(error.with_hint()));
        Failed::Reported
    })
}

fn serve(config: &daemon::Config, link: &Arc<Link>) -> Result<(), DaemonError> {
    daemon::start(config, Some(Arc::clone(link)), || link.report(&Report::Ready))
}
