//! Small encodings and texts from outside: ACLs, names, references, digests, times, paths in JSON, patterns, template definitions.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vzfs::acl::{self, Acl};
use vzfs::api::{path_bytes, path_text, rfc3339};
use vzfs::archive::Exclude;
use vzfs::types::{Digest, FileKind, NameRef, TemplateName, TemplateRef, TemplateSpec, VeName, Version};

#[path = "../../vzfs-tools/src/build/definition.rs"]
#[allow(dead_code)]
mod definition;
#[path = "../../vzfs-tools/src/error.rs"]
#[allow(dead_code)]
mod error;

static DEFINITION: LazyLock<PathBuf> = LazyLock::new(|| vzfs_fuzz::scratch().join("definition.toml"));

fuzz_target!(|bytes: &[u8]| {
    let Some((what, rest)) = bytes.split_first() else { return };
    match what % 4 {
        0 => acls(rest),
        1 => definitions(rest),
        2 => names(rest),
        _ => paths(rest),
    }
});

fn acls(bytes: &[u8]) {
    if let Some(decoded) = Acl::decode(bytes) {
        let encoded = decoded.encode();
        let again = Acl::decode(&encoded).expect("what was encoded");
        assert_eq!(again.encode(), encoded);
        assert_eq!(again.permissions(), decoded.permissions());
        for perm in [0, 0o7, 0o640, 0o777] {
            assert_eq!(decoded.clone().after_chmod(perm).permissions(), perm & 0o777);
            assert!(Acl::decode(&decoded.inherited(perm).encode()).is_some());
        }
    }
    for kind in [FileKind::File, FileKind::Dir, FileKind::Symlink] {
        let inherited = acl::inherit(Some(bytes), kind, 0o6751, 0o022);
        assert!(inherited.perm <= 0o7777);
        assert!(inherited.access.is_none_or(|access| Acl::decode(&access).is_some()));
    }
}

fn definitions(bytes: &[u8]) {
    // A definition may name files beside it: none are there.
    std::fs::write(&*DEFINITION, bytes).expect("written");
    if let Err(failure) = definition::Definition::load(&DEFINITION) {
        assert!(!failure.message.is_empty());
    }
}

/// What parses is what it says it is: its text parses to the same value.
fn names(bytes: &[u8]) {
    fn round_trip<T: std::str::FromStr + ToString + PartialEq>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{text:?}");
        }
    }
    if let Ok(name) = NameRef::new(bytes) {
        assert!((1..1 << 57).contains(&name.hash57()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    round_trip::<Digest>(text);
    round_trip::<TemplateName>(text);
    round_trip::<TemplateRef>(text);
    round_trip::<TemplateSpec>(text);
    round_trip::<VeName>(text);
    round_trip::<Version>(text);
    let versions: Vec<Version> = text.split(' ').filter_map(|part| part.parse().ok()).collect();
    for a in &versions {
        for b in &versions {
            assert_eq!(a.cmp(b), b.cmp(a).reverse());
            for c in versions.iter().filter(|_| a <= b) {
                assert!(!(b <= c && a > c), "{a} {b} {c}");
            }
        }
    }
    if let Some(time) = rfc3339::parse(text) {
        assert_eq!(rfc3339::parse(&rfc3339::format(time)), Some(time), "{text:?}");
    }
}

fn paths(bytes: &[u8]) {
    assert_eq!(path_bytes(&path_text(bytes)).as_deref(), Some(bytes));
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(path) = path_bytes(text)
    {
        assert_eq!(path_bytes(&path_text(&path)), Some(path));
    }
    let _ = Exclude::new(bytes.split(|byte| *byte == b'\n')).is_empty();
}
