//! Import of an OCI image layout: `index.json` names a manifest, the manifest names layers, each a tar that is applied over
//! the ones before it. Every file is checked against the digest and the size that name it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::error::{ArchiveError, Reason, printable};
use super::limits::{Budget, Exclude, Limits, Progress};
use super::plant::Plant;
use super::unpack::{Dialect, Unpacking};
use crate::blobs::Batch;
use crate::tree::TreeBuilder;

/// Largest JSON document that is read; registries stop at 4 MiB.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// An index may name indexes; real ones do so once.
const MAX_INDEX_DEPTH: usize = 4;

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Reads the image for this host's platform into the batch and a new tree: all layers applied.
pub(super) fn import(
    dir: &Path,
    batch: &Batch<'_>,
    limits: &Limits,
    exclude: &Exclude,
    progress: &dyn Progress,
) -> Result<TreeBuilder, ArchiveError> {
    let failed = |reason| ArchiveError::Archive { archive: dir.to_owned(), reason };
    let image = Image { dir };
    let layers = image.layers().map_err(failed)?;
    let budget = Budget::new(limits);
    let unpacking = Unpacking { batch, budget: &budget, exclude, progress };
    let mut plant = Plant::new();
    for layer in &layers {
        check_layer_type(&layer.media_type).map_err(failed)?;
        let (path, file) = image.open(layer).map_err(failed)?;
        plant.begin_layer();
        let mut checked = Checked { input: file, sha256: Sha256::new() };
        let unpacked = unpacking.unpack(&path, &mut checked, Dialect::ImageLayer, &mut plant);
        // A layer that is not what its descriptor says is the reason also for whatever went wrong inside it.
        let digest = checked.finish().map_err(|source| ArchiveError::Io { action: "read", path, source })?;
        compare(layer, &digest).map_err(failed)?;
        unpacked?;
    }
    Ok(plant.builder)
}

struct Image<'a> {
    dir: &'a Path,
}

impl Image<'_> {
    fn layers(&self) -> Result<Vec<Descriptor>, Reason> {
        let layout: Layout = parse("oci-layout", &self.read_plain("oci-layout")?)?;
        if !layout.version.starts_with("1.") {
            return Err(Reason::Unsupported(format!(
                "image layout version {}",
                printable(layout.version.as_bytes())
            )));
        }
        let mut index: Index = parse("index.json", &self.read_plain("index.json")?)?;
        for _ in 0..MAX_INDEX_DEPTH {
            let chosen = choose(&index.manifests)?;
            let document = self.read(&chosen)?;
            if is_index(&chosen.media_type) {
                index = parse(&chosen.digest, &document)?;
            } else {
                let manifest: Manifest = parse(&chosen.digest, &document)?;
                return Ok(manifest.layers);
            }
        }
        Err(Reason::Image("indexes that name indexes without end".to_owned()))
    }

    /// A document that no descriptor names.
    fn read_plain(&self, name: &str) -> Result<Vec<u8>, Reason> {
        let mut bytes = Vec::new();
        let file = open_regular(&self.dir.join(name)).map_err(|error| cannot_open(name, &error))?;
        file.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(Reason::Limit { what: "bytes of image description", limit: MAX_DOCUMENT_BYTES });
        }
        Ok(bytes)
    }

    fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Reason> {
        if descriptor.size > MAX_DOCUMENT_BYTES {
            return Err(Reason::Limit { what: "bytes of image description", limit: MAX_DOCUMENT_BYTES });
        }
        let (_, file) = self.open(descriptor)?;
        let mut bytes = Vec::new();
        file.take(descriptor.size).read_to_end(&mut bytes)?;
        compare(descriptor, &hex(&Sha256::digest(&bytes)))?;
        Ok(bytes)
    }

    /// Opens what a descriptor names, and compares the sizes.
    fn open(&self, descriptor: &Descriptor) -> Result<(PathBuf, File), Reason> {
        let digest = sha256_of(descriptor)?;
        let path = self.dir.join("blobs/sha256").join(digest);
        let file = open_regular(&path).map_err(|error| cannot_open(&descriptor.digest, &error))?;
        let size = file.metadata()?.len();
        if size != descriptor.size {
            let why = format!("it has {size} bytes instead of {}", descriptor.size);
            return Err(Reason::Mismatch { file: descriptor.digest.clone(), why });
        }
        Ok((path, file))
    }
}

/// The image for this host among those of an index: by platform where the index tells it, and otherwise the only one.
fn choose(manifests: &[Descriptor]) -> Result<Descriptor, Reason> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture;
    let usable: Vec<_> = manifests
        .iter()
        .filter(|manifest| is_index(&manifest.media_type) || is_manifest(&manifest.media_type))
        .collect();
    let mut chosen: Vec<_> =
        usable.iter().filter(|manifest| manifest.platform.as_ref().is_some_and(fits)).collect();
    if chosen.is_empty() {
        chosen = usable.iter().filter(|manifest| manifest.platform.is_none()).collect();
    }
    chosen.dedup_by_key(|manifest| &manifest.digest);
    match chosen[..] {
        [only] => Ok((*only).clone()),
        [] => Err(Reason::Image(format!("no image for linux/{architecture} among {}", manifests.len()))),
        _ => Err(Reason::Image(format!(
            "{} images for linux/{architecture}; a layout with one is needed",
            chosen.len()
        ))),
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// How the layer is compressed shows in its bytes; that it is a tar at all shows here.
fn check_layer_type(media_type: &str) -> Result<(), Reason> {
    let known = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
    let rest = known.iter().find_map(|prefix| media_type.strip_prefix(prefix));
    let form = rest.and_then(|rest| rest.find("tar").map(|at| &rest[at + "tar".len()..]));
    match form {
        Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd") => Ok(()),
        _ => Err(Reason::Unsupported(format!("a layer of type \"{}\"", printable(media_type.as_bytes())))),
    }
}

/// The 64 digits of a descriptor's digest. Nothing else gets into a path.
fn sha256_of(descriptor: &Descriptor) -> Result<&str, Reason> {
    let digits = descriptor.digest.strip_prefix("sha256:");
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digits.filter(|digits| digits.len() == 64 && digits.bytes().all(is_digit)).ok_or_else(|| {
        Reason::Unsupported(format!("the digest \"{}\"", printable(descriptor.digest.as_bytes())))
    })
}

fn compare(descriptor: &Descriptor, actual: &str) -> Result<(), Reason> {
    if sha256_of(descriptor)? == actual {
        return Ok(());
    }
    let why = format!("its content has the digest sha256:{actual}");
    Err(Reason::Mismatch { file: descriptor.digest.clone(), why })
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, Reason> {
    serde_json::from_slice(bytes)
        .map_err(|error| Reason::Image(format!("{}: {error}", printable(name.as_bytes()))))
}

fn cannot_open(name: &str, error: &io::Error) -> Reason {
    Reason::Image(format!("cannot open {}: {error}", printable(name.as_bytes())))
}

/// Opens a regular file, and nothing that would make us wait.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// Computes the digest of all that is read.
struct Checked {
    input: File,
    sha256: Sha256,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.sha256.update(&buffer[..read]);
        Ok(read)
    }
}

impl Checked {
    fn finish(mut self) -> io::Result<String> {
        let mut buffer = vec![0; 128 << 10];
        while self.read(&mut buffer)? > 0 {}
        Ok(hex(&self.sha256.finalize()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
