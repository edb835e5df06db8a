//! The disk fails for a while, again and again: who needs it is told so, what was synced stays, and when the disk is well everything works again.
//!
//! A failed write can make the host's filesystem give up for good. Then it is mounted anew, as an administrator does; otherwise nobody helps.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::disk::{Disk, Failing};
use super::inside::Failure;
use super::random::Random;
use super::scenario::Tried;
use crate::host::host_sh;
use crate::{Host, HostFs, Setup, write_synced};

/// Memory that the disk may take.
const DISK_BYTES: u64 = 600 << 20;
/// How long it may take until everything works again. A daemon that has just started waits for some twenty seconds before it starts again.
const PATIENCE: Duration = Duration::from_secs(90);
/// VEs at work.
const WORKERS: [&str; 3] = ["a", "b", "c"];
/// A file of the template that is hardly ever in memory.
const LARGE: &str = "var/lib/app/data";
const LARGE_BYTES: usize = 3_000_000;
/// Files that a worker keeps; beyond that it removes some.
const FILES: usize = 40;

/// Lets the disk fail so often: reads first, then writes, then as the seed wants it.
pub fn run(fs: HostFs, seed: u64, rounds: usize) -> Result<Tried, Failure> {
    let folder = tempfile::tempdir_in("/var/tmp").map_err(|error| format!("a scratch folder: {error}"))?;
    let disk: Disk<()> = Disk::new(&folder.path().join("served"), DISK_BYTES);
    disk.format(fs);
    let device = Some(PathBuf::from(disk.device()));
    let host = Host::with_sample_in(Setup { fs, device, ..Setup::default() }, &WORKERS);
    host.mounted("sample@1", &["quiet"]);
    let quiet = Quiet::new(&host, seed)?;
    let mut random = Random::new(seed);
    let mut workers: Vec<Worker> =
        WORKERS.iter().map(|ve| Worker::new(&host.root(ve), &mut random)).collect();
    let mut mounts = 0;
    for round in 0..rounds {
        let failing = match (round, random.below(3)) {
            (0, _) | (2.., 0) => Failing { reads: true, writes: false },
            (1, _) | (2.., 1) => Failing { reads: false, writes: true },
            _ => Failing { reads: true, writes: true },
        };
        fail_for_a_while(&host, &disk, failing, &mut random, &mut workers, &quiet)?;
        let during = |what: Failure| format!("round {round}, {failing:?}: {what}");
        mounts += usize::from(recover(&host).map_err(during)?);
        for worker in &mut workers {
            worker.check().map_err(during)?;
        }
        quiet.read().map_err(|what| during(format!("a VE that does not write: {what}")))?;
    }
    // What was in the host's caches alone is gone.
    host.cut_power();
    for worker in &mut workers {
        worker.check().map_err(|what| format!("after a power failure at the end: {what}"))?;
    }
    let check = host.vzfs(["store", "check"]);
    if check.code != 0 {
        return Err(format!("vzfs store check: {}", check.error()));
    }
    let (synced, refused) = workers
        .iter()
        .fold((0, 0), |(synced, refused), worker| (synced + worker.synced, refused + worker.refused));
    if refused == 0 {
        return Err("nobody noticed that the disk failed".to_owned());
    }
    let detail = format!(
        "{synced} operations synced, {refused} refused, the host's filesystem was mounted anew {mounts} times"
    );
    Ok(Tried { faults: rounds, detail })
}

/// Programs work, the disk fails at some moment, and is well again at another.
fn fail_for_a_while(
    host: &Host,
    disk: &Disk<()>,
    failing: Failing,
    random: &mut Random,
    workers: &mut [Worker],
    quiet: &Quiet,
) -> Result<(), Failure> {
    if failing.reads {
        // Another process maps the trees anew, so that their pages can be dropped.
        host.vzfs(["daemon", "restart"]).ok();
        // It may tell of a failure before; pages that stay dirty are just not dropped.
        host_sh("sync -f \"$1\" || true", [host.disk()]);
    }
    let stop = AtomicBool::new(false);
    let mut pause = |most: usize| std::thread::sleep(Duration::from_millis(random.below(most) as u64));
    std::thread::scope(|scope| {
        let mut threads: Vec<_> =
            workers.iter_mut().map(|worker| scope.spawn(|| worker.work(&stop))).collect();
        pause(500);
        if failing.reads {
            fs::write("/proc/sys/vm/drop_caches", "3").map_err(|error| error.to_string())?;
        }
        // From here on it is in memory.
        let read = quiet.read().map_err(|what| format!("before the disk fails: {what}"));
        disk.fail(failing);
        let stop = &stop;
        threads.push(scope.spawn(move || read.and_then(|()| quiet.go_on(host, stop))));
        pause(1500);
        disk.fail(Failing::default());
        pause(500);
        stop.store(true, Ordering::Relaxed);
        let ended =
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a program panicked".to_owned())?);
        ended.collect::<Result<Vec<()>, Failure>>().map(drop)
    })
}

/// Waits until all VEs can be written again. Whether the host's filesystem had to be mounted anew.
fn recover(host: &Host) -> Result<bool, Failure> {
    let well = |ve: &str| write_synced(&host.root(ve).join("probe"), b"well");
    let mut mounted_anew = false;
    let begin = Instant::now();
    while let Some(error) = WORKERS.iter().find_map(|ve| well(ve).err()) {
        if !mounted_anew && write_synced(&host.disk().join("probe"), b"well").is_err() {
            host.unmount_disk();
            host.power_on();
            mounted_anew = true;
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("the disk is well, and a VE is not: {error}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(mounted_anew)
}

/// A VE whose program reads what is in memory.
struct Quiet {
    /// A file of the template.
    template: PathBuf,
    hostname: Vec<u8>,
    /// A file that the VE wrote.
    own: PathBuf,
    content: Vec<u8>,
}

impl Quiet {
    fn new(host: &Host, seed: u64) -> Result<Quiet, Failure> {
        let root = host.root("quiet");
        let (template, own) = (root.join("etc/hostname"), root.join("kept"));
        let content = Random::new(seed).bytes(10_000);
        let hostname = fs::read(&template).map_err(|error| error.to_string())?;
        write_synced(&own, &content).map_err(|error| error.to_string())?;
        Ok(Quiet { template, hostname, own, content })
    }

    fn read(&self) -> Result<(), Failure> {
        same(fs::read(&self.template), &self.hostname, &self.template)?;
        same(fs::read(&self.own), &self.content, &self.own)
    }

    /// Reads all the time, and must not notice anything, unless the host's filesystem has shut down, as XFS does: that refuses what it has in memory, too.
    fn go_on(&self, host: &Host, stop: &AtomicBool) -> Result<(), Failure> {
        while !stop.load(Ordering::Relaxed) {
            if let Err(what) = self.read()
                && File::open(host.disk()).is_ok()
            {
                return Err(format!("a VE whose data is in memory: {what}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Compares what was read with what is there.
fn same(found: io::Result<impl AsRef<[u8]>>, content: &[u8], path: &Path) -> Result<(), Failure> {
    match found {
        Ok(found) if found.as_ref() == content => Ok(()),
        Ok(_) => Err(format!("{}: it is not what was written", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// What a name must show.
enum Expected {
    /// This content.
    Is(Vec<u8>),
    /// Nothing: it was removed.
    Gone,
    /// This, or nothing: whether it was removed or renamed is not known.
    MayBeGone(Vec<u8>),
    /// One of two: whether it was replaced is not known.
    Either(Vec<u8>, Vec<u8>),
    /// Whatever there is: it was never synced.
    Anything,
}

/// A program that syncs all it does, and knows what must be there.
struct Worker {
    root: PathBuf,
    folder: PathBuf,
    random: Random,
    number: usize,
    names: BTreeMap<String, Expected>,
    /// Names of renames that were not acknowledged: one of the two has the file.
    pairs: Vec<(String, String)>,
    synced: usize,
    refused: usize,
}

impl Worker {
    fn new(root: &Path, random: &mut Random) -> Worker {
        let folder = root.join("work");
        fs::create_dir(&folder).expect("the disk is well");
        Worker {
            root: root.to_owned(),
            folder,
            random: Random::new(random.number()),
            number: 0,
            names: BTreeMap::new(),
            pairs: Vec::new(),
            synced: 0,
            refused: 0,
        }
    }

    fn work(&mut self, stop: &AtomicBool) -> Result<(), Failure> {
        while !stop.load(Ordering::Relaxed) {
            match self.step() {
                Ok(()) => self.synced += 1,
                // EIO, or EROFS when the host's filesystem has given up.
                Err(error) if matches!(error.raw_os_error(), Some(5 | 30)) => self.refused += 1,
                Err(error) => {
                    return Err(format!("{}: operation {}: {error}", self.folder.display(), self.number));
                }
            }
        }
        Ok(())
    }

    /// One operation with its sync. Before it begins, what is known is what it may leave; after it, what it must.
    fn step(&mut self) -> io::Result<()> {
        self.number += 1;
        let new = format!("f{}", self.number);
        let path = self.folder.join(&new);
        let certain = self.names.iter().filter_map(|(name, expected)| match expected {
            Expected::Is(content) => Some((name, content)),
            _ => None,
        });
        let certain: Vec<(&String, &Vec<u8>)> = certain.collect();
        let known = self.random.pick(&certain).map(|(name, content)| ((*name).clone(), (*content).clone()));
        let kind = if certain.len() > FILES { 3 } else { self.random.below(6) };
        match (kind, known) {
            (1, Some((old, content))) => {
                self.names.insert(old.clone(), Expected::MayBeGone(content.clone()));
                self.names.insert(new.clone(), Expected::MayBeGone(content.clone()));
                self.pairs.push((old.clone(), new.clone()));
                fs::rename(self.folder.join(&old), &path)?;
                self.sync()?;
                self.pairs.pop();
                self.names.insert(old, Expected::Gone);
                self.names.insert(new, Expected::Is(content));
            }
            (2, Some((old, content))) => {
                let replacement = self.content();
                self.names.insert(new.clone(), Expected::Anything);
                write_synced(&path, &replacement)?;
                self.names.insert(old.clone(), Expected::Either(content, replacement.clone()));
                fs::rename(&path, self.folder.join(&old))?;
                self.sync()?;
                self.names.insert(new, Expected::Gone);
                self.names.insert(old, Expected::Is(replacement));
            }
            (3, Some((old, content))) => {
                self.names.insert(old.clone(), Expected::MayBeGone(content));
                fs::remove_file(self.folder.join(&old))?;
                self.sync()?;
                self.names.insert(old, Expected::Gone);
            }
            (4, Some((old, content))) => {
                let found = fs::read(self.folder.join(&old))?;
                assert!(found == content, "{}: {old} is not what was synced", self.folder.display());
            }
            (5, _) => {
                let found = fs::read(self.root.join(LARGE))?;
                assert_eq!(found.len(), LARGE_BYTES, "{}: a file of the template", self.folder.display());
            }
            _ => {
                let content = self.content();
                self.names.insert(new.clone(), Expected::Anything);
                write_synced(&path, &content)?;
                self.names.insert(new, Expected::Is(content));
            }
        }
        Ok(())
    }

    fn content(&mut self) -> Vec<u8> {
        let len = 1 + self.random.below(40_000);
        self.random.bytes(len)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Compares all names with what must be there, on a disk that is well; what was not known is known afterwards.
    fn check(&mut self) -> Result<(), Failure> {
        for (old, new) in std::mem::take(&mut self.pairs) {
            if !self.folder.join(&old).exists() && !self.folder.join(&new).exists() {
                return Err(format!("{}: neither {old} nor {new} is there", self.folder.display()));
            }
        }
        for (name, expected) in &mut self.names {
            let path = self.folder.join(name);
            let wrong = |what: &str| Err(format!("{}: {what}", path.display()));
            let found = match fs::read(&path) {
                Ok(found) => Some(found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return wrong(&error.to_string()),
            };
            let right = match (&*expected, &found) {
                (Expected::Anything, _) | (Expected::MayBeGone(_) | Expected::Gone, None) => true,
                (Expected::Is(content) | Expected::MayBeGone(content), Some(found)) => content == found,
                (Expected::Either(one, other), Some(found)) => one == found || other == found,
                (Expected::Is(_) | Expected::Either(..), None) | (Expected::Gone, Some(_)) => false,
            };
            match found {
                _ if !right => return wrong("it is not what was synced"),
                // It may be in memory alone.
                Some(_) if matches!(expected, Expected::Anything) => {
                    fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                    *expected = Expected::Gone;
                }
                Some(found) => *expected = Expected::Is(found),
                None => *expected = Expected::Gone,
            }
        }
        self.sync().map_err(|error| format!("{}: {error}", self.folder.display()))
    }
}
