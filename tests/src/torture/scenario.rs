//! What can be tried, each by a name and a seed.

use std::time::{Duration, Instant};

use super::inside::Failure;
use super::load::{kill_again_and_again, under_load, ves};
use super::power::{Scene, Size};
use super::program::Program;
use super::random::Random;
use super::{failing, full};
use crate::host::host_sh;
use crate::{Host, HostFs, Setup};

/// A kind of fault under a kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scenario {
    /// The power fails under a workload inside of this process.
    Power(HostFs),
    /// The power fails under a real daemon and its mounts.
    PowerWithDaemon(HostFs),
    /// The daemon is killed while programs work in VEs.
    Kills,
    /// The supervisor is killed, and the mounts end.
    SupervisorKills,
    /// The supervisor is killed, alone or with its daemon, and a service manager has what it held.
    ManagedKills,
    /// The daemon is replaced while programs work in VEs.
    Restarts,
    /// VEs are moved between two versions while programs work in them and the daemon is killed.
    UpdatesUnderKills,
    /// The disk is full, and full again.
    Full(HostFs),
    /// The disk fails for a while, again and again.
    FailingDisk(HostFs),
}

/// How much of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// Seconds: with all tests.
    Short,
    /// What one round of hours takes.
    Long,
}

/// What was tried.
#[derive(Clone, Debug)]
pub struct Tried {
    /// So many faults.
    pub faults: usize,
    /// What else is worth telling.
    pub detail: String,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 13] = [
        Scenario::Power(HostFs::Xfs),
        Scenario::Power(HostFs::Ext4),
        Scenario::PowerWithDaemon(HostFs::Xfs),
        Scenario::PowerWithDaemon(HostFs::Ext4),
        Scenario::Kills,
        Scenario::SupervisorKills,
        Scenario::ManagedKills,
        Scenario::Restarts,
        Scenario::UpdatesUnderKills,
        Scenario::Full(HostFs::Xfs),
        Scenario::Full(HostFs::Ext4),
        Scenario::FailingDisk(HostFs::Xfs),
        Scenario::FailingDisk(HostFs::Ext4),
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Power(HostFs::Xfs) => "power-xfs",
            Scenario::Power(HostFs::Ext4) => "power-ext4",
            Scenario::PowerWithDaemon(HostFs::Xfs) => "power-daemon-xfs",
            Scenario::PowerWithDaemon(HostFs::Ext4) => "power-daemon-ext4",
            Scenario::Kills => "kills",
            Scenario::SupervisorKills => "supervisor-kills",
            Scenario::ManagedKills => "managed-kills",
            Scenario::Restarts => "restarts",
            Scenario::UpdatesUnderKills => "updates-under-kills",
            Scenario::Full(HostFs::Xfs) => "full-xfs",
            Scenario::Full(HostFs::Ext4) => "full-ext4",
            Scenario::FailingDisk(HostFs::Xfs) => "failing-disk-xfs",
            Scenario::FailingDisk(HostFs::Ext4) => "failing-disk-ext4",
        }
    }

    /// What a fault is.
    pub fn fault(self) -> &'static str {
        match self {
            Scenario::Power(_) | Scenario::PowerWithDaemon(_) => "power failures",
            Scenario::Kills => "SIGKILLs of the daemon",
            Scenario::SupervisorKills => "SIGKILLs of the supervisor",
            Scenario::ManagedKills => "SIGKILLs of the supervisor under a service manager",
            Scenario::Restarts => "replacements of the daemon",
            Scenario::UpdatesUnderKills => "SIGKILLs during updates",
            Scenario::Full(_) => "operations refused by a full disk",
            Scenario::FailingDisk(_) => "failures of the disk for a while",
        }
    }

    /// Tries it.
    ///
    /// # Errors
    /// What was lost. The scenarios with programs panic instead.
    pub fn run(self, seed: u64, effort: Effort) -> Result<Tried, Failure> {
        let long = effort == Effort::Long;
        match self {
            Scenario::Power(fs) => {
                let size = Size { operations: 250, crashes: if long { 150 } else { 60 } };
                let scratch =
                    tempfile::tempdir_in("/var/tmp").map_err(|error| format!("a scratch folder: {error}"))?;
                let done = Scene::new(scratch.path(), fs).run(seed, size)?;
                Ok(Tried { faults: done.crashes, detail: done.to_string() })
            }
            Scenario::PowerWithDaemon(fs) => {
                let size = Size { operations: 150, crashes: if long { 100 } else { 15 } };
                let done = Scene::run_with_daemon(fs, seed, size, if long { 12 } else { 3 })?;
                Ok(Tried { faults: done.crashes, detail: done.to_string() })
            }
            Scenario::Kills => {
                let host = Host::with_sample(&[]);
                let names = ves(&host, "w", 5);
                let kills = if long { 30 } else { 6 };
                let programs = under_load(&host, &names, seed, |failed| {
                    kill_again_and_again(&host, kills, failed);
                });
                Ok(worked(programs, kills))
            }
            Scenario::Restarts => {
                let host = Host::with_sample(&[]);
                let names = ves(&host, "w", 5);
                let restarts = if long { 20 } else { 4 };
                let programs = under_load(&host, &names, seed, |failed| {
                    for _ in 0..restarts {
                        host.vzfs(["daemon", "restart"]).ok();
                        std::thread::sleep(Duration::from_millis(100));
                        if failed() {
                            return;
                        }
                    }
                });
                Ok(worked(programs, restarts))
            }
            Scenario::SupervisorKills => supervisor_kills(seed, if long { 8 } else { 2 }),
            Scenario::ManagedKills => managed_kills(seed, if long { 24 } else { 6 }),
            Scenario::UpdatesUnderKills => updates(seed, if long { 6 } else { 2 }),
            Scenario::Full(fs) => full::run(fs, seed),
            Scenario::FailingDisk(fs) => failing::run(fs, seed, if long { 8 } else { 2 }),
        }
    }
}

impl std::str::FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Scenario, String> {
        let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Scenario::ALL.iter().map(|scenario| scenario.name()).collect();
            format!("there is no scenario {text}: there are {}", names.join(", "))
        })
    }
}

fn worked(programs: Vec<Program>, faults: usize) -> Tried {
    let operations: u64 = programs.iter().map(|program| program.count).sum();
    let slowest = programs.iter().map(|program| program.slowest).max().unwrap_or_default();
    let count = programs.len();
    programs.into_iter().for_each(Program::check);
    let detail = format!("{operations} operations in {count} VEs, the longest {} ms", slowest.as_millis());
    Tried { faults, detail }
}

/// The mounts end under working programs, and come back with the next supervisor and everything that was acknowledged.
fn supervisor_kills(seed: u64, rounds: usize) -> Result<Tried, Failure> {
    let host = Host::with_sample(&[]);
    let mut operations = 0;
    let mut random = Random::new(seed);
    for round in 0..rounds {
        let names = ves(&host, &format!("r{round}w"), 4);
        let programs: Vec<Program> = std::thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .map(|ve| {
                    let mut program = Program::new(&host.root(ve), random.number());
                    scope.spawn(move || {
                        while program.work().is_ok() {}
                        program
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(300 + random.below(900) as u64));
            host.kill_supervisor();
            threads.into_iter().map(|thread| thread.join().expect("a program panicked")).collect()
        });
        host.start();
        operations += programs.iter().map(|program| program.count).sum::<u64>();
        programs.into_iter().for_each(Program::check_but_for_the_last);
    }
    Ok(Tried {
        faults: rounds,
        detail: format!("{operations} operations, all that were acknowledged are there"),
    })
}

/// The mounts stay under working programs when the supervisor dies: before, with or long after its daemon. Now and then a daemon is killed by itself too.
fn managed_kills(seed: u64, kills: usize) -> Result<Tried, Failure> {
    let host = Host::with_sample_in(Setup { size_mib: 2048, managed: true, ..Setup::default() }, &[]);
    let names = ves(&host, "w", 5);
    let mut random = Random::new(seed);
    let programs = under_load(&host, &names, seed, |failed| {
        for round in 0..kills {
            std::thread::sleep(Duration::from_millis(random.below(400) as u64));
            match round % 3 {
                // The old daemon and the next one meet.
                0 => host.kill_supervisor(),
                1 => host.kill(),
                _ => {
                    host.kill_daemon();
                    std::thread::sleep(Duration::from_millis(random.below(60) as u64));
                    host.kill_supervisor();
                }
            }
            host.start();
            if failed() {
                return;
            }
        }
    });
    let kept = host.manager().kept();
    if kept != 3 * names.len() {
        return Err(format!("the service manager keeps {kept} descriptors of {} mounts", names.len()));
    }
    Ok(worked(programs, kills))
}

/// How long an update of some VEs may take that is cut short now and then.
const UPDATE_PATIENCE: Duration = Duration::from_secs(60);

fn updates(seed: u64, rounds: usize) -> Result<Tried, Failure> {
    let host = Host::with_sample_in(Setup { size_mib: 2048, ..Setup::default() }, &[]);
    let next = host.scratch().join("next");
    let script = "cp -a \"$1\" \"$2\" && printf 'new\n' > \"$2/usr/bin/tool\" && head -c 300000 /dev/urandom > \"$2/usr/lib/more\"";
    host_sh(script, [&host.scratch().join("source"), &next]);
    host.vzfs(["template", "import", "sample@2", next.to_str().expect("a path of this test")]).ok();
    let names = ves(&host, "w", 5);
    let mut random = Random::new(seed);
    let mut kills = 0;
    let mut late = None;
    let programs = under_load(&host, &names, seed, |failed| {
        for round in 0..rounds {
            let version = ["sample@2", "sample@1"][round % 2];
            host.vzfs(["update", "--all", "-t", version, "--yes", "--detach"]).ok();
            for _ in 0..1 + random.below(2) {
                std::thread::sleep(Duration::from_millis(random.below(120) as u64));
                let killed = host.kill_daemon();
                kills += 1;
                host.wait_for_another(killed);
            }
            let begin = Instant::now();
            let arrived = || {
                let listed = host.json(["ve", "list"]);
                let there =
                    listed.as_array().is_some_and(|all| all.iter().all(|ve| ve["templates"][0] == version));
                // It exits with 0 when everything of the update is done.
                there && host.vzfs(["update", "follow", &(round + 1).to_string()]).code == 0
            };
            while !arrived() && !failed() {
                if begin.elapsed() > UPDATE_PATIENCE {
                    late = Some(format!(
                        "the update to {version} does not come to its end: {}",
                        host.json(["ve", "list"])
                    ));
                    return;
                }
                std::thread::sleep(Duration::from_millis(30));
            }
            if failed() {
                return;
            }
        }
    });
    let tried = worked(programs, kills);
    late.map_or(Ok(tried), Err)
}
