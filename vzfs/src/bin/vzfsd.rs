//! The daemon's program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use vzfs::daemon::{self, Args, DaemonError};

fn main() -> ExitCode {
    let args = Args::parse();
    if args.background_child {
        daemon::detach();
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            // To the command that waits; it shows the text as its own.
            if args.background_child {
                use std::io::Write;
                let _ = write!(std::io::stdout(), "{error}{hint}");
            }
            eprintln!("vzfsd: {error}{hint}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), DaemonError> {
    let config = args.resolve()?;
    if !args.foreground {
        return daemon::start_in_background(&config);
    }
    daemon::start_logging(args.log_format);
    daemon::start(&config, || {
        if args.background_child {
            daemon::tell_ready();
        }
    })
}
