//! What a template was built of, kept with it so that it can be built again: an archive with
//!
//! | member | what |
//! |---|---|
//! | `definition.toml` | the definition as it was written |
//! | `sources.json` | the member for each file that the definition names |
//! | `sources/N` | such a file |
//! | `patches/N/patch.json` | the patches made since, from 1 |
//! | `patches/N/files/M`, `patches/N/overlay/` | what a patch places |
//!
//! The name, version and OS of the template are not taken from it: they are what the template has. Equal recipes are equal bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vzfs::api::Template;

use super::definition::Definition;
use super::os::Scratch;
use super::patch::Patch;
use crate::commands::Context;
use crate::error::{Exit, Failure, Result};
use crate::exec::{host_path, need};

/// A recipe in a folder of its own, which is removed at the end.
pub(super) struct Recipe {
    scratch: Scratch,
}

impl Recipe {
    fn empty() -> Result<Recipe> {
        need("tar", "tar")?;
        let recipe = Recipe { scratch: Scratch::new()? };
        make_dir(&recipe.dir())?;
        Ok(recipe)
    }

    /// The recipe of a template that is about to be built.
    pub(super) fn of(definition: &Definition) -> Result<Recipe> {
        let recipe = Recipe::empty()?;
        let dir = recipe.dir();
        write(&dir.join("definition.toml"), definition.text.as_bytes())?;
        let mut members = BTreeMap::new();
        make_dir(&dir.join("sources"))?;
        for file in &definition.files {
            let Some(source) = &file.source else { continue };
            let member = format!("sources/{}", members.len());
            // One that is named twice was read twice, and is the same.
            if members.contains_key(source) {
                continue;
            }
            write(&dir.join(&member), &file.content)?;
            members.insert(source.clone(), member);
        }
        write_json(&dir.join("sources.json"), &members)?;
        Ok(recipe)
    }

    /// The recipe that is kept with a template, if there is one.
    pub(super) fn fetch(context: &Context, template: &Template) -> Result<Option<Recipe>> {
        if template.recipe.is_none() {
            return Ok(None);
        }
        let recipe = Recipe::empty()?;
        let path = recipe.archive();
        let mut file = std::fs::File::create(&path).map_err(|e| cannot("write", &path, &e))?;
        let url = format!("/v1/templates/{}/recipe", template.spec());
        context.client.download(&url, &mut file, &context.progress())?;
        drop(file);
        let mut unpack = tar();
        unpack
            .args(["--extract", "--preserve-permissions", "--file"])
            .arg(&path)
            .arg("--directory")
            .arg(recipe.dir());
        run(unpack, &format!("unpacking what {} was built of", template.spec()))?;
        Ok(Some(recipe))
    }

    /// Where it is unpacked.
    fn dir(&self) -> PathBuf {
        self.scratch.path().join("recipe")
    }

    fn archive(&self) -> PathBuf {
        self.scratch.path().join("recipe.tar")
    }

    /// The definition.
    pub(super) fn definition(&self) -> Result<Definition> {
        let dir = self.dir();
        let members: BTreeMap<PathBuf, String> = read_json(&dir.join("sources.json"))?;
        Definition::load_with(&dir.join("definition.toml"), &|source| {
            let member = members.get(source).ok_or(io::ErrorKind::NotFound)?;
            std::fs::read(dir.join(member))
        })
    }

    fn patch_dir(&self, number: usize) -> PathBuf {
        self.dir().join("patches").join(number.to_string())
    }

    /// The patches, in the order in which they are made.
    pub(super) fn patches(&self) -> Result<Vec<Patch>> {
        let dirs = (1..).map(|number| self.patch_dir(number)).take_while(|dir| dir.exists());
        dirs.map(|dir| read_json::<Patch>(&dir.join("patch.json"))?.with_contents(&dir)).collect()
    }

    /// Adds a patch after those that are there.
    pub(super) fn add(&self, patch: &Patch) -> Result<()> {
        let number = (1..).find(|number| !self.patch_dir(*number).exists()).unwrap_or(1);
        let dir = self.patch_dir(number);
        make_dir(&dir)?;
        make_dir(&dir.join("files"))?;
        for (number, file) in patch.files.iter().enumerate() {
            write(&dir.join("files").join(number.to_string()), &file.content)?;
        }
        if let Some(overlay) = &patch.overlay {
            make_dir(&dir.join("overlay"))?;
            // All of it: the modes, owners, links and attributes are what is placed.
            let mut copy = Command::new("cp");
            copy.env_clear()
                .env("PATH", host_path())
                .args(["--archive", "--"])
                .arg(overlay.join("."))
                .arg(dir.join("overlay"));
            run(copy, &format!("copying {}", overlay.display()))?;
        }
        write_json(&dir.join("patch.json"), patch)
    }

    /// Writes the archive and tells where it is.
    pub(super) fn pack(&self) -> Result<PathBuf> {
        settle(&self.dir())?;
        let mut pack = tar();
        pack.args(["--create", "--sort=name", "--format=pax", "--file"]);
        pack.arg(self.archive()).arg(PAX).arg("--directory").arg(self.dir()).arg(".");
        run(pack, "packing what the template is built of")?;
        Ok(self.archive())
    }
}

/// What the pax format would put in besides: times that mean nothing, the number of the process.
const PAX: &str = "--pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f";

/// Takes what comes from this run only (times, the umask) from a folder; overlays keep what they have.
fn settle(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| cannot("read", dir, &e))? {
        let entry = entry.map_err(|e| cannot("read", dir, &e))?;
        let path = entry.path();
        if entry.file_name() == "overlay" {
            continue;
        }
        let file = std::fs::File::open(&path).map_err(|e| cannot("open", &path, &e))?;
        let is_dir = file.metadata().is_ok_and(|meta| meta.is_dir());
        if is_dir {
            settle(&path)?;
        }
        settle_one(&path, &file, if is_dir { 0o755 } else { 0o644 })?;
    }
    let this = std::fs::File::open(dir).map_err(|e| cannot("open", dir, &e))?;
    settle_one(dir, &this, 0o755)
}

fn settle_one(path: &Path, file: &std::fs::File, mode: u32) -> Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    let set = file.set_permissions(mode).and_then(|()| file.set_modified(std::time::UNIX_EPOCH));
    set.map_err(|e| cannot("set the time of", path, &e))
}

fn tar() -> Command {
    let mut tar = Command::new("tar");
    tar.env_clear().env("PATH", host_path()).env("LANG", "C.UTF-8");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls"]);
    tar
}

fn run(mut command: Command, what: &str) -> Result<()> {
    let output = command.output().map_err(|e| Failure::io(format!("{what} failed"), &e))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(Exit::Failure, format!("{what} failed: {}", why.trim())))
}

fn cannot(action: &str, path: &Path, e: &io::Error) -> Failure {
    Failure::io(format!("cannot {action} {}", path.display()), e)
}

fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| cannot("make", path, &e))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|e| cannot("write", path, &e))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value);
    write(
        path,
        &text.map_err(|e| Failure::new(Exit::Failure, format!("cannot write {}: {e}", path.display())))?,
    )
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(|e| cannot("read", path, &e))?;
    let wrong =
        |e| Failure::new(Exit::Damage, format!("what the template was built of is not understood: {e}"));
    serde_json::from_slice(&text).map_err(wrong)
}
