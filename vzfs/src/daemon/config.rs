//! From the command line and the environment to values.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use rustix::fs::Gid;

use super::DaemonError;
use super::rights;
use crate::api::{DEFAULT_SOCKET, SOCKET_VARIABLE, STORE_VARIABLE, duration_secs};
use crate::fuse::Passthrough;

/// Each mount has this many threads at most unless told otherwise: requests are short, and there may be hundreds of mounts.
const MAX_DEFAULT_THREADS: usize = 4;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

/// Whether file data goes through the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum PassthroughChoice {
    /// Where the kernel and the privileges allow it.
    Auto,
    /// Never.
    Off,
}

/// Whether the daemon gives up what it does not need.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SandboxChoice {
    /// As far as the kernel can do that.
    On,
    /// It keeps whatever root may do.
    Off,
}

/// Whether idle processors are kept from halting while many requests come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum IdleChoice {
    /// In a small virtual machine whose processors halt at once.
    Auto,
    /// Wherever the kernel lets it.
    Awake,
    /// Never.
    Halt,
}

/// The vzfs daemon: owns a store, mounts its VEs, and answers `vzfs`.
#[derive(Clone, Debug, Parser)]
#[command(name = "vzfsd", version, about)]
pub struct Args {
    /// The store folder; made when it is missing.
    #[arg(long, value_name = "DIR", env = STORE_VARIABLE, default_value = "/var/lib/vzfs")]
    pub store: PathBuf,
    /// Where to listen.
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// A group of this host, by name or number, whose members may see what there is and how it fares, but not change it. Only root may connect unless given.
    #[arg(long, value_name = "GROUP", env = "VZFS_READ_GROUP")]
    pub read_group: Option<String>,
    /// Serve numbers for monitoring at this address, as in 127.0.0.1:9469, to whoever can reach it, as `GET /metrics` in the text form of Prometheus.
    #[arg(long, value_name = "ADDRESS", env = "VZFS_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// Stay in the foreground and log to standard error. Otherwise the command returns when the daemon is ready, and the
    /// log is a file beside the socket, with the extension `log`.
    #[arg(long)]
    pub foreground: bool,
    /// How log lines look. What is logged is chosen with VZFS_LOG, as in `VZFS_LOG=debug`.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Whether file data goes through the kernel instead of the daemon.
    #[arg(long, value_enum, default_value = "auto")]
    pub passthrough: PassthroughChoice,
    /// Whether the daemon gives up capabilities and system calls that it does not need.
    #[arg(long, value_enum, env = "VZFS_SANDBOX", default_value = "on")]
    pub sandbox: SandboxChoice,
    /// Whether idle processors wait awake (poll) while many requests come in: requests are answered sooner, for processor time that others of the host could
    /// have had. "auto" does so in a virtual machine of at most 8 processors, which would halt at once.
    #[arg(long, value_enum, env = "VZFS_IDLE_PROCESSORS", default_value = "auto")]
    pub idle_processors: IdleChoice,
    /// Threads that answer requests of each mount; as many as CPUs, at most 4, unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// How often the whole store is read again and checked against its digests: a number with d, h, m or s, or "never".
    #[arg(long, value_name = "TIME", env = "VZFS_SCRUB_INTERVAL", default_value = "30d", value_parser = interval)]
    pub scrub_interval: Every,
    /// How fast that reads, in MiB a second.
    #[arg(long, value_name = "MIB", env = "VZFS_SCRUB_RATE", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub scrub_rate: u32,
    /// How often private files of VEs are searched for equal ones, which then are kept once: as for the check, or "never".
    #[arg(long, value_name = "TIME", env = "VZFS_DEDUP_INTERVAL", default_value = "1d", value_parser = interval)]
    pub dedup_interval: Every,
    /// How fast that reads, in MiB a second.
    #[arg(long, value_name = "MIB", env = "VZFS_DEDUP_RATE", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub dedup_rate: u32,
    /// For how long nobody must have changed a private file for that.
    #[arg(long, value_name = "TIME", env = "VZFS_DEDUP_QUIET", default_value = "1h", value_parser = duration)]
    pub dedup_quiet: Duration,
    /// The program that enters VEs, for the commands that updates run in them; the one beside this program unless given.
    #[arg(long, value_name = "PATH")]
    pub vzfs: Option<PathBuf>,
    /// Set by the command for the process that it leaves in the background: it tells on standard output when it is
    /// ready.
    #[arg(long, hide = true)]
    pub background_child: bool,
    /// Set by the supervisor for the daemon: its standard input is the link to the supervisor.
    #[arg(long, hide = true)]
    pub supervised: bool,
    /// Only says whether this version can read the store, with the exit code.
    #[arg(long, hide = true)]
    pub probe: bool,
}

/// What the daemon runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store folder, absolute.
    pub store: PathBuf,
    /// The socket, absolute.
    pub socket: PathBuf,
    /// The group whose members may look.
    pub readers: Option<Gid>,
    /// Where numbers for monitoring are served.
    pub metrics: Option<SocketAddr>,
    /// Whether file data may go through the kernel.
    pub passthrough: Passthrough,
    /// Whether processes and threads are confined to what [`crate::sandbox`] leaves them.
    pub sandbox: bool,
    /// Whether idle processors are kept awake while many requests come in.
    pub idle_processors: IdleChoice,
    /// Threads of each mount.
    pub threads: usize,
    /// The command `vzfs`, which knows how to run programs in VEs.
    pub vzfs: PathBuf,
    /// Scheduled checks; `None` for none.
    pub scrub: Option<Scrub>,
    /// Scheduled searches for equal private files; `None` for none.
    pub dedup: Option<Dedup>,
}

/// How the daemon checks the store by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scrub {
    /// From the end of one check to the beginning of the next.
    pub interval: Duration,
    /// How fast it reads.
    pub bytes_per_second: u64,
}

/// How the daemon makes equal private files one by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dedup {
    /// From the end of one search to the beginning of the next.
    pub interval: Duration,
    /// How fast it reads.
    pub bytes_per_second: u64,
    /// For how long nobody has changed what it takes.
    pub quiet: Duration,
}

/// An interval, or never; a type of its own, as the command line takes an `Option` for an option that may be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Every(pub Option<Duration>);

fn interval(text: &str) -> Result<Every, String> {
    if text == "never" {
        return Ok(Every(None));
    }
    duration(text).map(|interval| Every(Some(interval))).map_err(|error| format!("{error}, or \"never\""))
}

fn duration(text: &str) -> Result<Duration, String> {
    duration_secs(text)
        .filter(|secs| *secs > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| "write a number and d, h, m or s, as in 30d".to_owned())
}

impl Args {
    /// Makes the paths absolute, because the daemon leaves its working directory, and fills in what depends on the host.
    pub fn resolve(&self) -> Result<Config, DaemonError> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(DaemonError::io(format!("use {}", path.display())))
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Config {
            store: absolute(&self.store)?,
            socket: absolute(&self.socket)?,
            readers: self.read_group.as_deref().map(rights::group).transpose()?,
            metrics: self.metrics,
            passthrough: match self.passthrough {
                PassthroughChoice::Auto => Passthrough::Auto,
                PassthroughChoice::Off => Passthrough::Off,
            },
            sandbox: self.sandbox == SandboxChoice::On,
            idle_processors: self.idle_processors,
            threads: self.threads.map_or(cpus.min(MAX_DEFAULT_THREADS), usize::from),
            vzfs: self.vzfs.as_ref().map_or_else(|| Ok(beside("vzfs")), absolute)?,
            scrub: self
                .scrub_interval
                .0
                .map(|interval| Scrub { interval, bytes_per_second: u64::from(self.scrub_rate) << 20 }),
            dedup: self.dedup_interval.0.map(|interval| Dedup {
                interval,
                bytes_per_second: u64::from(self.dedup_rate) << 20,
                quiet: self.dedup_quiet,
            }),
        })
    }
}

/// A program in the folder of this one.
fn beside(name: &str) -> PathBuf {
    // The kernel says of a program that was replaced since that it is deleted, but not of its folder.
    std::env::current_exe().map_or_else(|_| PathBuf::from(name), |program| program.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        let args = Args::try_parse_from(["vzfsd", "--store", "s", "--threads", "3", "--passthrough", "off"]);
        let config = args.expect("legal").resolve().expect("resolves");
        assert!(config.store.is_absolute());
        assert!(config.vzfs.is_absolute() && config.vzfs.ends_with("vzfs"));
        assert_eq!((config.threads, config.passthrough), (3, Passthrough::Off));
        assert!(config.sandbox);
        let open = Args::try_parse_from(["vzfsd", "--sandbox", "off"]).expect("legal").resolve();
        assert!(!open.expect("resolves").sandbox);
        assert!(Args::try_parse_from(["vzfsd", "--threads", "0"]).is_err());
        let scrub = |arguments: &[&str]| {
            Args::try_parse_from(arguments).ok().map(|args| args.resolve().expect("resolves").scrub)
        };
        let scrub_of = |hours: u64, mib: u64| {
            Some(Scrub { interval: Duration::from_secs(hours * 3600), bytes_per_second: mib << 20 })
        };
        assert_eq!(scrub(&["vzfsd"]), Some(scrub_of(720, 20)));
        assert_eq!(scrub(&["vzfsd", "--scrub-interval", "12h", "--scrub-rate", "5"]), Some(scrub_of(12, 5)));
        assert_eq!(scrub(&["vzfsd", "--scrub-interval", "never"]), Some(None));
        for wrong in ["0d", "", "d", "7", "7w", "-1h", "1.5h"] {
            assert_eq!(scrub(&["vzfsd", "--scrub-interval", wrong]), None, "{wrong}");
            assert!(Args::try_parse_from(["vzfsd", "--dedup-quiet", wrong]).is_err(), "{wrong}");
        }
        let dedup = |arguments: &[&str]| {
            Args::try_parse_from(arguments).ok().map(|args| args.resolve().expect("resolves").dedup)
        };
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let of =
            |interval, mib: u64, quiet| Some(Some(Dedup { interval, bytes_per_second: mib << 20, quiet }));
        assert_eq!(dedup(&["vzfsd"]), of(hours(24), 20, hours(1)));
        let given = ["vzfsd", "--dedup-interval", "2h", "--dedup-rate", "7", "--dedup-quiet", "3d"];
        assert_eq!(dedup(&given), of(hours(2), 7, hours(72)));
        assert_eq!(dedup(&["vzfsd", "--dedup-interval", "never"]), Some(None));
        assert!(Args::try_parse_from(["vzfsd", "--dedup-quiet", "never"]).is_err());
    }
}
