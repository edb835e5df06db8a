//! The command line's grammar.

mod template;
mod update;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vzfs::api::Selector;
use vzfs::types::{IdShift, TemplateRef, TemplateSpec, TypeError, VeName};

pub(crate) use template::{BuildArgs, CascadeArgs, Description, PatchArgs, PatchFile, TemplateCommand};
pub(crate) use update::{StartArgs, UpdateArgs, UpdateCommand};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failure
  2  wrong usage
  3  the template, VE or file is not there
  4  it exists already, or is in use
  5  the input was refused: a bad definition, a hostile archive, templates that do not fit
  6  the daemon cannot be reached
  7  damaged data was found
  8  the disk is full
  9  an update did not reach every VE
  10  the daemon does not let this user do it
  130  interrupted

'vzfs ve exec' passes the program's exit code on; its own failures are 125, 126 (the program cannot be run), \
127 (there is no such program) and 128+N (the program was ended by signal N).

The environment variable VZFS_SOCKET names the daemon's socket.";

const EXEC_HELP: &str = "\
The VE is mounted first if it is not, and stays mounted. The program runs under crun with its own mounts, \
processes, host name and IPC.

The network is the host's unless --no-network is given; then the host's /etc/resolv.conf and /etc/hosts cover the \
VE's, read-only, where the VE has these files. Nothing is created in the VE for it: in a VE without an \
/etc/resolv.conf, names are not looked up. The DST of a --bind is made in the VE if it is missing, and stays.

In a VE with an id shift the program runs in a user namespace with those ids: its root is nobody in particular on the host, and what it can \
do is bounded by that. What a --bind shows belongs to the host's users, whom the VE does not know.

The environment is PATH, HOME, TERM, LANG and what --env adds. The program has a terminal when stdin and stdout are \
one. Without a terminal, Ctrl-C and SIGTERM are passed on, and the second of them kills the program.

This is for administrators, not a jail for hostile programs: without an id shift the program runs as a user of the host, \
and there are no limits.

Exit codes: the program's own; 125 when vzfs or crun failed, 126 when the program cannot be run, 127 when it is not \
there, 128+N when signal N ended it.";

/// Manage templates and the virtual environments (VEs) that stand on them.
#[derive(Parser, Debug)]
#[command(name = "vzfs", version, after_help = EXIT_CODES, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The daemon's socket.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = vzfs::api::SOCKET_VARIABLE,
        default_value = vzfs::api::DEFAULT_SOCKET,
    )]
    pub(crate) socket: PathBuf,
    /// How to print: tables for people, or one JSON document on stdout.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Print only what was asked for: no progress, no confirmations.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// How to print.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// Tables and sentences.
    Table,
    /// One JSON document.
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make, compare, check and remove templates.
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Make, mount, enter and remove VEs.
    #[command(subcommand)]
    Ve(VeCommand),
    /// Move VEs to newer templates while they run, and back.
    Update(Box<UpdateArgs>),
    /// Look at the store and its host.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Look at the daemon, or replace it under running VEs.
    #[command(subcommand)]
    Daemon(DaemonCommand),
    /// Show what VEs ask of the daemon, and what that costs it, again and again: requests a second, the busiest VE first.
    Top(TopArgs),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// The directory; it is made if missing.
        dir: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum VeCommand {
    /// Make a VE, or several.
    Create {
        /// The name; with --count, NAME-1 to NAME-N are made.
        name: VeName,
        /// A template to stand on; the OS template first.
        #[arg(short, long = "template", value_name = "REF", required = true)]
        templates: Vec<TemplateRef>,
        /// Make this many.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        count: Option<u32>,
        /// Let the host's ids FIRST, FIRST+1 and so on stand for the VE's 0, 1 and so on, 65536 of them without COUNT.
        ///
        /// Programs in the VE then have no right on the host. With --count each VE gets the next range.
        #[arg(long, value_name = "FIRST[:COUNT]")]
        id_shift: Option<IdShift>,
        /// A label; may be repeated.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
        labels: Vec<(String, String)>,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the VEs.
    #[command(visible_alias = "ls")]
    List {
        /// Only those that have all these labels.
        #[arg(long, short = 'l', value_name = "KEY=VALUE,...")]
        selector: Option<Selector>,
        /// List the files of updates that VEs do not show, because they have their own.
        #[arg(long)]
        shadowed: bool,
    },
    /// Show how much space VEs take.
    Df {
        /// Only these.
        names: Vec<VeName>,
    },
    /// Show one VE.
    Show {
        /// The VE.
        name: VeName,
    },
    /// Show how many requests of each kind the kernel has sent the daemon for a VE since it was mounted.
    Stats {
        /// The VE.
        name: VeName,
    },
    /// Remove a VE and everything that it changed.
    Rm {
        /// The VE.
        name: VeName,
        /// Also when it is mounted.
        #[arg(long, short)]
        force: bool,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Give a VE another name; it must not be mounted.
    Rename {
        /// The VE.
        name: VeName,
        /// Its new name.
        new: VeName,
    },
    /// Change how a VE is run; it must not be mounted.
    Set {
        /// The VE.
        name: VeName,
        /// The host's ids that stand for the VE's, as for create; `none` lets the VE have the host's own.
        #[arg(long, value_name = "FIRST[:COUNT]|none", value_parser = id_shift_or_none)]
        id_shift: NewIdShift,
    },
    /// Mount a VE; it is mounted again whenever the daemon starts, until it is unmounted.
    Mount {
        /// The VE.
        name: VeName,
        /// Where; without it, where it was the last time, or root/NAME beside the store.
        mountpoint: Option<PathBuf>,
    },
    /// Unmount a VE.
    Umount {
        /// The VE.
        name: VeName,
        /// Also while programs use it.
        #[arg(long, short)]
        force: bool,
    },
    /// Run a program in a VE.
    #[command(after_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// List what a VE changed.
    Diff {
        /// The VE.
        name: VeName,
    },
    /// Write a VE as the programs in it see it, as a tar.
    Export {
        /// The VE.
        name: VeName,
        /// The tar to write; `-` is stdout.
        file: PathBuf,
    },
    /// Make an application template of what a VE changed.
    Commit {
        /// The VE.
        name: VeName,
        /// The template to make.
        #[arg(value_name = "NAME@VERSION")]
        template: TemplateSpec,
        #[command(flatten)]
        description: Description,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `ve exec`.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The VE.
    pub(crate) name: VeName,
    /// Run as this user (a name in the VE, or a number).
    #[arg(long, short, value_name = "USER[:GROUP]", default_value = "root")]
    pub(crate) user: String,
    /// Start in this directory of the VE.
    #[arg(long, short, value_name = "DIR", default_value = "/")]
    pub(crate) workdir: PathBuf,
    /// Set a variable; may be repeated.
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Show a file or directory of the host in the VE; may be repeated.
    #[arg(long, value_name = "SRC:DST[:ro]", value_parser = bind)]
    pub(crate) bind: Vec<crate::exec::Bind>,
    /// Give the program a network of its own, with nothing but a loopback.
    #[arg(long)]
    pub(crate) no_network: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Show the store and the daemon.
    Info,
    /// Check what the host offers, and say what its lack costs.
    Doctor,
    /// Show how much space each template and each VE takes, and what sharing saves.
    Df,
    /// Read everything again, check it against its digests, look through what VEs changed, and name every template, VE and path that damage touches.
    #[command(
        visible_alias = "check",
        after_help = "Exit codes: 0 when nothing is damaged or everything was repaired, 7 when damage is left."
    )]
    Verify {
        /// Repair what is damaged: what follows from the rest of the store, and what this folder, tar, OCI layout or other store has (on the daemon's
        /// host).
        #[arg(long, value_name = "SOURCE", num_args = 0..=1)]
        repair: Option<Option<PathBuf>>,
        /// Only show the check that runs and what the last one found.
        #[arg(long, conflicts_with = "repair")]
        status: bool,
    },
    /// Keep files once that VEs wrote themselves and that are equal, while VEs work. The daemon does it by itself, too.
    ///
    /// Programs in the VEs notice nothing; who changes such a file gets his own again.
    Dedup {
        /// Look only at files of these VEs, and compare them with each other and with all that is shared already.
        #[arg(value_name = "VE")]
        ves: Vec<VeName>,
        /// Only say what would be shared.
        #[arg(long)]
        dry_run: bool,
        /// Leave files alone that take less: bytes, or a number with K, M or G (4K unless given).
        #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
        min_size: Option<u64>,
        /// Leave files alone that were changed less long ago: a number with d, h, m or s (1h unless given).
        #[arg(long, value_name = "TIME", value_parser = time_secs)]
        quiet_for: Option<u64>,
        /// Only show the search that runs and what the last one did.
        #[arg(long, conflicts_with_all = ["ves", "dry_run", "min_size", "quiet_for"])]
        status: bool,
    },
    /// Remove what no template and no VE needs any more, while VEs work.
    Gc {
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum DaemonCommand {
    /// Show the daemon: version, processes, how often it was started again, what is on of its sandbox.
    Status,
    /// Replace the daemon by the version that is installed now; VEs stay mounted, programs in them notice a pause. Refused
    /// when that version cannot read the store.
    Restart,
    /// Print all numbers for monitoring, in the text form of Prometheus.
    Metrics,
}

#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// From one look to the next: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Look so many times; once when stdout is no terminal, else until Ctrl-C.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) times: Option<u32>,
    /// Show so many VEs at most.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) rows: usize,
}

fn interval(text: &str) -> Result<Duration, String> {
    time_secs(text).map(Duration::from_secs)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn size_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes() {
        [.., b'K' | b'k'] => (&text[..text.len() - 1], 10),
        [.., b'M' | b'm'] => (&text[..text.len() - 1], 20),
        [.., b'G' | b'g'] => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(1 << shift));
    bytes.ok_or_else(|| "write a number of bytes, or a number with K, M or G, as in 64K".to_owned())
}

fn time_secs(text: &str) -> Result<u64, String> {
    let secs = vzfs::api::duration_secs(text).filter(|secs| *secs > 0);
    secs.ok_or_else(|| "write a number with d, h, m or s, as in 30m".to_owned())
}

/// What `--id-shift` of `ve set` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NewIdShift(pub(crate) Option<IdShift>);

fn id_shift_or_none(text: &str) -> Result<NewIdShift, String> {
    match text {
        "none" => Ok(NewIdShift(None)),
        text => text.parse().map(|shift| NewIdShift(Some(shift))).map_err(|e: TypeError| e.to_string()),
    }
}

fn bind(text: &str) -> Result<crate::exec::Bind, String> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exec_keeps_the_programs_own_options() {
        let cli =
            Cli::try_parse_from(["vzfs", "ve", "exec", "web", "--env", "A=b=c", "--", "ls", "-l", "--quiet"]);
        let Command::Ve(VeCommand::Exec(exec)) = cli.expect("legal").command else { unreachable!("exec") };
        assert_eq!(exec.command, ["ls", "-l", "--quiet"]);
        assert_eq!(exec.env, [("A".to_owned(), "b=c".to_owned())]);
    }

    #[test]
    fn sizes_and_times_have_units() {
        let sizes = ["0", "4096", "64K", "2m", "1G"].map(|text| size_bytes(text).expect("legal"));
        assert_eq!(sizes, [0, 4096, 65_536, 2 << 20, 1 << 30]);
        for wrong in ["", "K", "-1", "1.5M", "1T", "99999999999999999999", "99999999999999999G"] {
            assert!(size_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(time_secs("2m"), Ok(120));
        assert!(time_secs("2").is_err() && time_secs("0s").is_err());
    }

    #[test]
    fn help_tells_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("the daemon cannot be reached"));
    }
}
