//! A program in a VE that knows what must be there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;

/// A program in a VE: it does one operation after the other, each of which fails if it is carried out twice or not at all, and knows what its folder must
/// hold.
pub struct Program {
    folder: PathBuf,
    template: PathBuf,
    /// What its folder holds.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Open files without a name, with their content.
    nameless: Vec<(File, Vec<u8>)>,
    state: u64,
    /// Operations so far.
    pub count: u64,
    /// The longest that one took.
    pub slowest: Duration,
}

impl Program {
    /// In a new folder of a VE that has the sample.
    pub fn new(root: &Path, seed: u64) -> Program {
        let folder = root.join("work");
        fs::create_dir(&folder).expect("mkdir");
        Program {
            folder,
            template: root.join("var/lib/app/data"),
            files: BTreeMap::new(),
            nameless: Vec::new(),
            state: seed,
            count: 0,
            slowest: Duration::ZERO,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    fn some_file(&mut self) -> Option<String> {
        let at = self.random(self.files.len().max(1) as u64) as usize;
        self.files.keys().nth(at).cloned()
    }

    /// Works until it is told to stop. No operation may fail.
    pub fn run(mut self, stop: &AtomicBool) -> Program {
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = self.work() {
                panic!("{}: operation {}: {error}", self.folder.display(), self.count);
            }
        }
        self
    }

    /// One operation, drawn at random.
    ///
    /// # Errors
    /// What the system said; it may or may not have been carried out.
    pub fn work(&mut self) -> std::io::Result<()> {
        let begin = Instant::now();
        let operation = self.random(12);
        self.step(operation)?;
        self.slowest = self.slowest.max(begin.elapsed());
        self.count += 1;
        Ok(())
    }

    fn step(&mut self, operation: u64) -> std::io::Result<()> {
        let new = format!("f{}", self.count);
        let path = self.folder.join(&new);
        let old = self.some_file();
        let old_path = old.as_ref().map(|old| self.folder.join(old));
        match (operation, old, old_path) {
            (0 | 1, ..) => {
                let content = format!("content of {new}").into_bytes();
                File::create_new(&path)?.write_all(&content)?;
                self.files.insert(new, content);
            }
            (2, Some(old), Some(from)) => {
                fs::rename(from, path)?;
                let content = self.files.remove(&old).expect("known");
                self.files.insert(new, content);
            }
            (3, Some(old), Some(from)) => {
                fs::hard_link(&from, &path)?;
                fs::remove_file(from)?;
                let content = self.files.remove(&old).expect("known");
                self.files.insert(new, content);
            }
            (4, Some(old), Some(from)) => {
                fs::remove_file(from)?;
                self.files.remove(&old);
            }
            (5, ..) => {
                fs::create_dir(&path)?;
                fs::create_dir(path.join("inner"))?;
                fs::remove_dir(path.join("inner"))?;
                fs::remove_dir(path)?;
            }
            (6, Some(old), Some(from)) => {
                OpenOptions::new().append(true).open(from)?.write_all(b", more")?;
                self.files.get_mut(&old).expect("known").extend_from_slice(b", more");
            }
            (7, Some(old), Some(from)) => {
                assert_eq!(fs::read(from)?, self.files[&old]);
            }
            (8, ..) => {
                std::os::unix::fs::symlink("somewhere", &path)?;
                assert_eq!(fs::read_link(&path)?, Path::new("somewhere"));
                fs::remove_file(path)?;
            }
            (9, Some(_), Some(from)) => {
                rustix::fs::setxattr(&from, "user.once", b"v", XattrFlags::CREATE)?;
                rustix::fs::removexattr(&from, "user.once")?;
            }
            (10, ..) => {
                let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
                fs::remove_file(&path)?;
                let content = format!("nameless {new}").into_bytes();
                file.write_all(&content)?;
                self.nameless.push((file, content));
                if self.nameless.len() > 8 {
                    let at = self.random(8) as usize;
                    let (file, content) = self.nameless.swap_remove(at);
                    check_nameless(file, &content)?;
                }
            }
            _ => {
                assert_eq!(fs::metadata(&self.template)?.len(), 3_000_000);
                let mut listed: Vec<_> = fs::read_dir(&self.folder)?
                    .map(|entry| Ok(entry?.file_name().into_string().expect("text")))
                    .collect::<std::io::Result<_>>()?;
                listed.sort();
                assert!(listed.iter().eq(self.files.keys()), "{listed:?} is not {:?}", self.files.keys());
            }
        }
        Ok(())
    }

    /// After an operation that failed because the mount went away, on its next mount: what was acknowledged is there, and of the operation under
    /// way all or nothing, or what lies between its two halves.
    pub fn check_but_for_the_last(self) {
        drop(self.nameless);
        let mut strange = Vec::new();
        for entry in fs::read_dir(&self.folder).expect("listed") {
            let name = entry.expect("listed").file_name().into_string().expect("text");
            let content = fs::read(self.folder.join(&name)).ok();
            if self.files.get(&name) != content.as_ref() {
                strange.push(name);
            }
        }
        let gone = self.files.keys().filter(|name| !self.folder.join(name).exists()).count();
        assert!(strange.len() + gone <= 2, "{}: {strange:?}, and {gone} are gone", self.folder.display());
    }

    /// What is there at the end is what the operations left.
    pub fn check(self) {
        for (file, content) in self.nameless {
            check_nameless(file, &content).expect("still open");
        }
        let listed = fs::read_dir(&self.folder).expect("listed").count();
        assert_eq!(listed, self.files.len(), "{}", self.folder.display());
        for (name, content) in &self.files {
            let path = self.folder.join(name);
            assert_eq!(&fs::read(&path).expect("read"), content, "{}", path.display());
            assert_eq!(fs::metadata(&path).expect("stat").nlink(), 1);
        }
    }
}

fn check_nameless(mut file: File, content: &[u8]) -> std::io::Result<()> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    assert_eq!(text, content);
    assert_eq!(file.metadata()?.nlink(), 0);
    Ok(())
}
