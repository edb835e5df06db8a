//! The vzfs command line: a client of the daemon's control interface, and the tools that make templates.
//!
//! `cli` is the grammar, `commands` what each command asks the daemon and prints, `client` the connection,
//! `exec` runs programs in a mounted VE, `build` makes templates from definitions. Everything about the store
//! goes through the interface; only `exec` and `build` touch files, inside a mounted VE or a scratch folder.

mod build;
mod cli;
mod client;
mod commands;
mod error;
mod exec;
mod interrupt;
mod output;
mod progress;
mod rootfs;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match commands::run(cli::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("vzfs: {}", failure.message);
            }
            if let Some(hint) = &failure.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}
