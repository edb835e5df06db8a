//! The packages in a tree, for package managers whose database is a text file.

use std::io::Read;

use super::{Store, StoreError};
use crate::api::Package;
use crate::tree::{Content, Entry, TreeBuilder};
use crate::types::{Digest, NameRef};

/// Databases larger than this are no package lists (a full Debian desktop has 5 MB).
const MAX_DATABASE_BYTES: u64 = 256 << 20;

/// A package database found in a tree: read it once its blob is committed.
pub(super) struct Database {
    blob: Digest,
    parse: fn(&str) -> Vec<Package>,
}

impl Database {
    /// The package database of a tree, if there is one that this program can read.
    pub(super) fn find(builder: &TreeBuilder) -> Option<Database> {
        let dpkg = blob_at(builder, &[b"var", b"lib", b"dpkg", b"status"]);
        let apk = || blob_at(builder, &[b"lib", b"apk", b"db", b"installed"]);
        dpkg.map(|blob| Database { blob, parse: dpkg_packages })
            .or_else(|| apk().map(|blob| Database { blob, parse: apk_packages }))
    }
}

impl Store {
    /// The packages that a database lists, by name.
    pub(super) fn packages(&self, database: &Database) -> Result<Vec<Package>, StoreError> {
        let file = self.blobs.open_blob(&database.blob)?;
        let mut bytes = Vec::new();
        let read = file.take(MAX_DATABASE_BYTES).read_to_end(&mut bytes);
        read.map_err(StoreError::io("read", format!("blob {}", database.blob)))?;
        let mut packages = (database.parse)(&String::from_utf8_lossy(&bytes));
        packages.sort();
        packages.dedup();
        Ok(packages)
    }
}

/// What `all` has and `known` has not.
pub(super) fn new_packages(all: Vec<Package>, known: &[Package]) -> Vec<Package> {
    let known: std::collections::BTreeSet<&Package> = known.iter().collect();
    all.into_iter().filter(|package| !known.contains(package)).collect()
}

/// The blob of the regular file at a path; no symbolic links are followed.
fn blob_at(builder: &TreeBuilder, path: &[&[u8]]) -> Option<Digest> {
    let mut node = builder.root();
    for part in path {
        match builder.get(node, NameRef::new(part).ok()?)? {
            Entry::Node(child) => node = child,
            Entry::Whiteout => return None,
        }
    }
    match builder.content(node) {
        Content::Blob { digest, .. } => Some(*digest),
        _ => None,
    }
}

/// `/var/lib/dpkg/status`: stanzas of `Field: value`, of which the installed ones count.
fn dpkg_packages(text: &str) -> Vec<Package> {
    let field = |stanza: &str, name: &str| {
        let mut lines = stanza.lines();
        lines
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(|value| value.trim().to_owned()))
    };
    let mut found = Vec::new();
    for stanza in text.split("\n\n") {
        // "hold" in the first word is an installed package too.
        let installed = field(stanza, "Status").is_some_and(|status| status.ends_with(" ok installed"));
        let (Some(name), Some(version)) = (field(stanza, "Package"), field(stanza, "Version")) else {
            continue;
        };
        if installed {
            found.push((name, field(stanza, "Architecture").unwrap_or_default(), version));
        }
    }
    // dpkg itself has the native architecture.
    let native =
        found.iter().find(|(name, ..)| name == "dpkg").map(|(_, architecture, _)| architecture.clone());
    let name = |name: String, architecture: String| match &native {
        Some(native) if *native != architecture && architecture != "all" => format!("{name}:{architecture}"),
        _ => name,
    };
    found
        .into_iter()
        .map(|(n, architecture, version)| Package { name: name(n, architecture), version })
        .collect()
}

/// `/lib/apk/db/installed`: stanzas of `P:name` and `V:version`.
fn apk_packages(text: &str) -> Vec<Package> {
    let stanzas = text.split("\n\n");
    stanzas
        .filter_map(|stanza| {
            let field = |name| stanza.lines().find_map(|line| line.strip_prefix(name));
            Some(Package { name: field("P:")?.to_owned(), version: field("V:")?.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases() {
        let dpkg = "Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21\n\n\
                    Package: libc6\nStatus: install ok installed\nArchitecture: i386\nVersion: 2.36\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n";
        let names: Vec<_> =
            dpkg_packages(dpkg).into_iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        assert_eq!(names, ["dpkg 1.21", "libc6:i386 2.36"]);
        let apk = apk_packages("C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\n\nP:busybox\nV:1.36\n");
        assert_eq!(apk.len(), 2);
        assert_eq!(new_packages(apk.clone(), &apk[..1]), apk[1..]);
    }
}
