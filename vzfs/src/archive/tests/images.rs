//! Import of OCI image layouts.

use sha2::Digest as _;

use super::hostile::Tar;
use super::*;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Layout<'a>(&'a World);

impl<'a> Layout<'a> {
    fn new(world: &'a World) -> Self {
        std::fs::create_dir_all(world.path("image/blobs/sha256")).expect("mkdir");
        std::fs::write(world.path("image/oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("write");
        Layout(world)
    }

    /// Stores a blob and returns its descriptor.
    fn add(&self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(self.0.path("image/blobs/sha256").join(&digest), bytes).expect("write");
        serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    fn add_json(&self, media_type: &str, value: &serde_json::Value) -> serde_json::Value {
        self.add(media_type, value.to_string().as_bytes())
    }

    fn manifest(&self, layers: &[serde_json::Value]) -> serde_json::Value {
        self.add_json(MANIFEST, &serde_json::json!({"schemaVersion": 2, "layers": layers}))
    }

    fn import(&self, manifests: &[serde_json::Value]) -> Result<Tree, ArchiveError> {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(self.0.path("image/index.json"), index.to_string()).expect("write");
        let source = Source::detect(&self.0.path("image")).expect("detect");
        assert!(matches!(source, Source::OciLayout(_)));
        self.0.import(&source)
    }

    fn import_layers(&self, layers: &[Vec<u8>]) -> Result<Tree, ArchiveError> {
        let layers: Vec<_> = layers.iter().map(|layer| self.add(LAYER, layer)).collect();
        self.import(&[self.manifest(&layers)])
    }
}

#[test]
fn layers_apply_in_order_with_their_whiteouts() {
    let world = World::new();
    let layout = Layout::new(&world);
    let lower = Tar::new()
        .dir("etc")
        .file("etc/keep", b"lower")
        .file("etc/gone", b"lower")
        .dir("opt")
        .dir("opt/a")
        .file("opt/a/old", b"lower")
        .file("opt/b", b"lower")
        .dir_mode("usr", 0o700)
        .file("usr/file", b"lower")
        .file("replaced", b"lower")
        .dir("dir-to-file")
        .file("dir-to-file/x", b"lower")
        .end();
    // The opaque mark comes after an entry of its own layer, which it must not hide.
    let upper = Tar::new()
        .file("etc/.wh.gone", b"")
        .file("etc/.wh.never-there", b"")
        .file("missing/.wh.never-there", b"")
        .file("opt/new", b"upper")
        .file("opt/.wh..wh..opq", b"")
        .file("usr/other", b"upper")
        .link("usr/linked", "usr/file")
        .file("replaced", b"upper")
        .file(".wh.replaced", b"")
        .file("dir-to-file", b"upper")
        .file(".wh..wh.plnk", b"")
        .end();
    let tree = layout.import_layers(&[lower, upper]).expect("import");
    assert_eq!(world.content(&tree, "etc/keep"), b"lower");
    for gone in ["etc/gone", "etc/.wh.gone", "opt/a", "opt/b", "opt/.wh..wh..opq", ".wh..wh.plnk", "missing"]
    {
        assert!(!has(&tree, gone), "{gone}");
    }
    assert_eq!(world.content(&tree, "opt/new"), b"upper");
    assert_eq!(world.content(&tree, "replaced"), b"upper");
    assert_eq!(world.content(&tree, "dir-to-file"), b"upper");
    assert_eq!(
        node(&tree, "usr").attr().perm,
        0o700,
        "a parent that a layer does not describe stays as it was"
    );
    assert_eq!(node(&tree, "usr/linked").attr().ino, node(&tree, "usr/file").attr().ino);
}

#[test]
fn compressed_layers_and_platforms() {
    let world = World::new();
    let layout = Layout::new(&world);
    let plain = Tar::new().file("plain", b"1").end();
    let zstd = zstd::encode_all(&Tar::new().file("zstd", b"2").end()[..], 1).expect("zstd");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut &Tar::new().file("gzip", b"3").end()[..], &mut gzip).expect("gzip");
    let image = layout.manifest(&[
        layout.add(LAYER, &plain),
        layout.add("application/vnd.oci.image.layer.v1.tar+zstd", &zstd),
        layout.add("application/vnd.docker.image.rootfs.diff.tar.gzip", &gzip.finish().expect("gzip")),
    ]);
    let for_platform = |os: &str, architecture: &str, mut manifest: serde_json::Value| {
        manifest["platform"] = serde_json::json!({"os": os, "architecture": architecture});
        manifest
    };
    let host = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let other = layout.manifest(&[layout.add(LAYER, &Tar::new().file("wrong", b"").end())]);
    let images = [
        for_platform("linux", "s390x", other.clone()),
        for_platform("linux", host, image.clone()),
        for_platform("unknown", "unknown", other.clone()),
    ];
    let nested = layout.add_json(INDEX, &serde_json::json!({"manifests": images}));
    for manifests in [&images[..], &[nested]] {
        let tree = layout.import(manifests).expect("import");
        assert!(has(&tree, "plain") && has(&tree, "zstd") && has(&tree, "gzip") && !has(&tree, "wrong"));
    }
    let error = layout.import(&images[..1]).expect_err("no platform").to_string();
    assert!(error.contains("no image for linux/"), "{error}");
    let error = layout.import(&[image, other]).expect_err("two").to_string();
    assert!(error.contains("2 images"), "{error}");
}

#[test]
fn what_does_not_match_is_refused() {
    let world = World::new();
    let layout = Layout::new(&world);
    let layer = layout.add(LAYER, &Tar::new().file("file", b"content").end());
    let import = |layer: serde_json::Value| {
        layout.import(&[layout.manifest(&[layer])]).map(|_| ()).expect_err("refused")
    };

    let mut wrong_size = layer.clone();
    wrong_size["size"] = 1.into();
    assert!(import(wrong_size).to_string().contains("instead of 1"));
    for digest in ["sha256:../../../../etc/passwd", "sha512:00", "md5:00", "sha256:ABC"] {
        let mut wrong = layer.clone();
        wrong["digest"] = digest.into();
        assert!(
            matches!(import(wrong), ArchiveError::Archive { reason: Reason::Unsupported(_), .. }),
            "{digest}"
        );
    }
    let mut wrong_type = layer.clone();
    wrong_type["mediaType"] = "application/wasm".into();
    assert!(import(wrong_type).to_string().contains("application/wasm"));

    // A changed layer of the same size: also when the change breaks the tar itself.
    let digest = layer["digest"].as_str().expect("text")["sha256:".len()..].to_owned();
    let path = world.path("image/blobs/sha256").join(digest);
    let good = std::fs::read(&path).expect("read");
    for at in [0, 600, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).expect("write");
        let error = import(layer.clone());
        assert!(
            matches!(error, ArchiveError::Archive { reason: Reason::Mismatch { .. }, .. }),
            "{at}: {error}"
        );
    }
    std::fs::remove_file(&path).expect("remove");
    assert!(import(layer).to_string().contains("cannot open sha256:"));
    assert_eq!(world.blobs.list().expect("list").count(), 0);
}

#[test]
fn endless_indexes_end() {
    let world = World::new();
    let layout = Layout::new(&world);
    let mut index = layout.add_json(INDEX, &serde_json::json!({"manifests": []}));
    for _ in 0..6 {
        index = layout.add_json(INDEX, &serde_json::json!({"manifests": [index]}));
    }
    let error = layout.import(&[index]).expect_err("endless").to_string();
    assert!(error.contains("without end"), "{error}");
}
