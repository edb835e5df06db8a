//! The disk is full: programs are told so, nothing is damaged, and removing makes room.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;

use super::inside::Failure;
use super::random::Random;
use super::scenario::Tried;
use crate::{Host, HostFs, Setup, write_synced};

/// Operations that each VE goes on trying on the full disk.
const TRIES: usize = 200;
/// Tries after which the disk is filled up again with what they have given back.
const FILLED_UP_EVERY: usize = 10;
/// Changes of an attribute, of [`ATTRIBUTE_BYTES`] each: together several times what the database has set aside for its log.
const CHANGES: usize = 12_000;
const ATTRIBUTE_BYTES: usize = 3000;
/// Directories made and removed at once: work for the database alone.
const DIRECTORIES: usize = 40;
/// How long a removed file's space may take to come back.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fills the disk from two VEs, works on it when it is full, and empties it again.
pub fn run(fs: HostFs, seed: u64) -> Result<Tried, Failure> {
    let host = Host::with_sample_in(Setup { fs, size_mib: 400, ..Setup::default() }, &["a", "b", "c"]);
    let kept = host.root("c").join("kept");
    let content = Random::new(seed).bytes(100_000);
    write_synced(&kept, &content).map_err(|error| format!("before the disk is full: {error}"))?;

    // While there is a block for its name.
    let last = host.disk().join("last");
    File::create(&last).map_err(|error| error.to_string())?;

    let mut fillers: Vec<Filler> = ["a", "b"].iter().map(|ve| Filler::new(&host.root(ve), seed)).collect();
    let mut refused = 0;
    std::thread::scope(|scope| {
        let threads: Vec<_> = fillers.iter_mut().map(|filler| scope.spawn(|| filler.fill())).collect();
        for thread in threads {
            refused += thread.join().map_err(|_| "a program panicked".to_owned())??;
        }
        Ok::<_, Failure>(())
    })?;
    let source = host.scratch().join("large");
    let noise = Random::new(!seed).bytes(30_000_000);
    fs::create_dir(&source)
        .and_then(|()| fs::write(source.join("noise"), noise))
        .map_err(|error| error.to_string())?;
    let import = host.vzfs(["template", "import", "large@1", source.to_str().expect("a path of this test")]);
    let said = String::from_utf8_lossy(&import.stderr).into_owned();
    if import.code == 0 || !said.contains("space") {
        return Err(format!("an import into a full store ends with {}: {said}", import.code));
    }
    refused += 1;
    sound(&host, &kept, &content)?;
    changes_find_room(&host, &kept, &last)?;
    sound(&host, &kept, &content)?;

    // The full store opens, after an orderly end and after none.
    host.stop();
    host.start();
    host.kill();
    host.start();
    sound(&host, &kept, &content)?;
    for filler in &fillers {
        filler.check()?;
    }

    // What is removed in a full store is gone, and its space comes back.
    for filler in &mut fillers {
        filler.empty()?;
    }
    let begin = Instant::now();
    let roomy = host.root("a").join("roomy");
    while let Err(error) = write_synced(&roomy, &content) {
        if begin.elapsed() > PATIENCE {
            return Err(format!("after everything was removed: {error}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    host.vzfs(["ve", "create", "d", "-t", "sample"]).ok();
    sound(&host, &kept, &content)?;
    Ok(Tried { faults: refused, detail: "removing worked in the full store, and made room".to_owned() })
}

/// Takes the disk's last block, and then changes what is in the database alone: for this, the store has kept space.
fn changes_find_room(host: &Host, path: &Path, last: &Path) -> Result<(), Failure> {
    let mut filler = File::options().write(true).open(last).map_err(|error| error.to_string())?;
    for len in [1 << 20, 4 << 10, 1] {
        while filler.write_all(&vec![1; len]).and_then(|()| filler.sync_data()).is_ok() {}
    }
    let restarts = || host.json(["daemon", "status"])["restarts"].as_u64();
    let before = restarts();
    for number in 0..CHANGES {
        let value = vec![number as u8; ATTRIBUTE_BYTES];
        rustix::fs::setxattr(path, "user.changed", &value, XattrFlags::empty())
            .map_err(|error| format!("change {number} in a full store: {error}"))?;
    }
    if restarts() == before {
        return Err("the database was not short of space".to_owned());
    }
    drop(filler);
    fs::remove_file(last).map_err(|error| error.to_string())
}

/// What was synced is there, every VE is listed, and nothing is damaged.
fn sound(host: &Host, kept: &Path, content: &[u8]) -> Result<(), Failure> {
    match fs::read(kept) {
        Ok(found) if found == content => {}
        Ok(found) => return Err(format!("a synced file has {} other bytes", found.len())),
        Err(error) => return Err(format!("a synced file: {error}")),
    }
    for command in [&["ve", "list"][..], &["store", "verify"], &["store", "df"]] {
        let outcome = host.vzfs(command);
        if outcome.code != 0 {
            return Err(format!("vzfs {}: {}", command.join(" "), String::from_utf8_lossy(&outcome.stderr)));
        }
    }
    Ok(())
}

/// A program that fills its folder.
struct Filler {
    folder: PathBuf,
    random: Random,
    /// With the content that they must have; of those that were not synced, only that they are there.
    files: Vec<(PathBuf, Option<Vec<u8>>)>,
    number: usize,
}

impl Filler {
    fn new(root: &Path, seed: u64) -> Filler {
        let folder = root.join("fill");
        fs::create_dir(&folder).expect("there is space yet");
        Filler { folder, random: Random::new(seed), files: Vec::new(), number: 0 }
    }

    /// Fills the disk, and goes on trying then. Counts what was refused for want of space.
    fn fill(&mut self) -> Result<usize, Failure> {
        let (mut refused, mut tries) = (0, 0);
        while tries < TRIES {
            if refused > 0 && tries % FILLED_UP_EVERY == 0 {
                refused += self.fill_up()?;
            }
            match self.step(refused > 0) {
                Ok(()) => tries += usize::from(refused > 0),
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    refused += 1;
                    tries += 1;
                }
                Err(error) => {
                    return Err(format!("{}: {error}, not that the disk is full", self.folder.display()));
                }
            }
        }
        Ok(refused + self.fill_up()?)
    }

    /// Takes what the removals among the tries have given back. Counts what was refused.
    fn fill_up(&mut self) -> Result<usize, Failure> {
        let mut refused = 0;
        for len in [1 << 20, 64 << 10, 4 << 10] {
            loop {
                self.number += 1;
                let path = self.folder.join(format!("f{}", self.number));
                let content = self.random.bytes(len);
                match File::create(&path).and_then(|mut file| file.write_all(&content)) {
                    Ok(()) => self.files.push((path, None)),
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        if path.exists() {
                            self.files.push((path, None));
                        }
                        refused += 1;
                        break;
                    }
                    Err(error) => return Err(format!("{}: {error}", path.display())),
                }
            }
        }
        Ok(refused)
    }

    fn step(&mut self, is_full: bool) -> io::Result<()> {
        self.number += 1;
        let path = self.folder.join(format!("f{}", self.number));
        match self.random.below(if is_full { 6 } else { 2 }) {
            0 | 1 => {
                let len = if is_full { 1 + self.random.below(20_000) } else { 4_000_000 };
                let content = self.random.bytes(len);
                File::create(&path)?;
                self.files.push((path.clone(), None));
                write_synced(&path, &content)?;
                self.files.last_mut().expect("just pushed").1 = Some(content);
                Ok(())
            }
            2 => {
                for _ in 0..DIRECTORIES {
                    fs::create_dir(&path)?;
                    fs::remove_dir(&path)?;
                }
                Ok(())
            }
            3 if !self.files.is_empty() => {
                let at = self.random.below(self.files.len());
                fs::rename(&self.files[at].0, &path)?;
                self.files[at].0 = path;
                Ok(())
            }
            4 if !self.files.is_empty() => {
                let at = self.random.below(self.files.len());
                fs::remove_file(&self.files[at].0)?;
                self.files.swap_remove(at);
                Ok(())
            }
            _ => {
                let template = self.folder.with_file_name("etc/passwd");
                File::options().append(true).open(template)?.write_all(b"more")
            }
        }
    }

    fn check(&self) -> Result<(), Failure> {
        for (path, content) in &self.files {
            let found = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            if content.as_ref().is_some_and(|content| *content != found) {
                return Err(format!("{}: it is not what was synced", path.display()));
            }
        }
        Ok(())
    }

    fn empty(&mut self) -> Result<(), Failure> {
        for (path, _) in self.files.drain(..) {
            fs::remove_file(&path)
                .map_err(|error| format!("removing {} from a full store: {error}", path.display()))?;
        }
        Ok(())
    }
}
