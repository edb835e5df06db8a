//! A base of which a part cannot be read: each operation does what it does with a sound one, or fails and changes nothing.

use std::fs::File;
use std::time::Duration;

use super::*;
use crate::meta::MetaError;
use crate::tree::TreeStore;

/// Directories with files, symbolic links, attributes and hard links; some pages. `d0` to `d9` each have `f0` to `f29`, `empty` is a directory.
fn base(store: &Store) -> (TreeStore, Arc<Tree>) {
    let batch = store.blobs.batch();
    let mut tree = TreeBuilder::new(TreeMeta::new(FileKind::Dir, 0o755));
    let root = tree.root();
    tree.insert(root, name("empty"), TreeMeta::new(FileKind::Dir, 0o755), Content::None).expect("insert");
    let content = blob(&batch, b"content");
    for dir_at in 0..10 {
        let dir = TreeMeta::new(FileKind::Dir, 0o755);
        let dir = tree.insert(root, name(&format!("d{dir_at}")), dir, Content::None).expect("insert");
        for at in 0..30 {
            let mut meta = TreeMeta::new(FileKind::File, 0o600 + at);
            meta.xattrs.insert(b"user.at"[..].into(), vec![at as u8; 100].into());
            let file = tree.insert(dir, name(&format!("f{at}")), meta, content.clone()).expect("insert");
            tree.link(dir, name(&format!("link{at}")), file).expect("link");
            let target = Content::Symlink(format!("{dir_at}/{at}/").repeat(9).into_bytes().into());
            tree.insert(dir, name(&format!("s{at}")), TreeMeta::new(FileKind::Symlink, 0o777), target)
                .expect("insert");
        }
    }
    batch.commit().expect("commit");
    let image = tree.finish().expect("finish");
    let folder = store.dir.path().join("trees");
    std::fs::create_dir(&folder).expect("folder");
    let trees = TreeStore::at(&folder).expect("opens");
    trees.put(&image).expect("stored");
    let tree = trees.open(&image.digest).expect("opens");
    (trees, tree)
}

/// A result as text, without what differs from one VE to another.
fn text<T: std::fmt::Debug>(result: Result<T>) -> Result<String> {
    match result {
        Err(error @ (VolumeError::Tree(_) | VolumeError::Meta(MetaError::Unfounded))) => Err(error),
        other => Ok(format!("{:?}", plain(other))),
    }
}

type Step = fn(&Volume) -> Result<String>;

fn at(volume: &Volume, path: &str) -> Result<Ino> {
    volume.resolve(path.as_bytes())?.ok_or(VolumeError::NotFound)
}

fn looked_up(volume: &Volume, dir: &str, entry: &str) -> Result<String> {
    let dir = at(volume, dir)?;
    text(volume.lookup(dir, name(entry)).map(|attr| (attr.ino, attr.kind, attr.perm, attr.nlink, attr.size)))
}

fn listed(volume: &Volume, dir: &str) -> Result<String> {
    let mut names = Vec::new();
    let done = volume.read_dir(at(volume, dir)?, 0, |entry| {
        names.push((entry.name.to_vec(), entry.ino, entry.cookie));
        true
    });
    text(done.map(|()| names))
}

/// Questions, and changes that must fail or not by what the base has.
const STEPS: [(&str, Step); 16] = [
    ("lookup", |volume| looked_up(volume, "d3", "f7")),
    ("lookup of what is not there", |volume| looked_up(volume, "d3", "f70")),
    ("a whole directory", |volume| listed(volume, "d5")),
    ("the root", |volume| listed(volume, "")),
    ("read_link", |volume| text(volume.read_link(at(volume, "d9/s29")?))),
    ("xattr", |volume| text(volume.xattr(at(volume, "d4/f11")?, b"user.at"))),
    ("xattr_names", |volume| text(volume.xattr_names(at(volume, "d4/f11")?))),
    ("read", |volume| {
        let mut buffer = [0; 20];
        let read = volume.read(at(volume, "d7/link3")?, 0, &mut buffer);
        text(read.map(|len| buffer[..len].to_vec()))
    }),
    ("create what is there", |volume| {
        let dir = at(volume, "d2")?;
        text(volume.create(dir, name("f5"), NewNode::new(FileKind::File, 0o644), Caller::ROOT).map(|_| ()))
    }),
    ("create what is not there", |volume| {
        let dir = at(volume, "d2")?;
        text(volume.create(dir, name("new"), NewNode::new(FileKind::Dir, 0o755), Caller::ROOT).map(|_| ()))
    }),
    ("rmdir of a full directory", |volume| text(volume.rmdir(Ino::ROOT, name("d8")))),
    ("rmdir", |volume| text(volume.rmdir(Ino::ROOT, name("empty")))),
    ("unlink", |volume| text(volume.unlink(at(volume, "d1")?, name("link8")))),
    ("rename over", |volume| {
        text(volume.rename(at(volume, "d1")?, name("f1"), at(volume, "d6")?, name("f2"), RenameMode::Replace))
    }),
    ("chmod", |volume| {
        let set = SetAttr { perm: Some(0o700), ..SetAttr::default() };
        text(volume.set_attr(at(volume, "d0/f9")?, set, Caller::ROOT).map(|attr| attr.nlink))
    }),
    ("open for writing", |volume| {
        let opened = volume.open_file(at(volume, "d0/f20")?, true, Sharing::Served);
        let size = |open| Ok(volume.backing_file(&open)?.metadata().map(|metadata| metadata.len()).ok());
        text(opened.and_then(size))
    }),
];

/// What a step does with a VE of its own: its result, and what the VE has changed afterwards.
fn tried(
    store: &Store,
    base: &Arc<Tree>,
    step: Step,
    lost: Option<usize>,
) -> (Result<String>, Vec<(String, ChangeKind)>) {
    let scene = Scene::new(store, Arc::clone(base));
    let file = lost.map(|page| {
        base.mapping().lose(page);
        base.mapping().with_file(File::open("/dev/null").expect("every host has it"))
    });
    let result = step(&scene.volume);
    if let Some(file) = file {
        base.mapping().with_file(file);
        assert!(matches!(base.mapping().mend(Duration::ZERO), crate::sys::Mended::Whole));
    }
    assert_eq!(scene.volume.check().expect("readable again"), Vec::<String>::new());
    let changed = scene.changed();
    (result, changed)
}

#[test]
fn nothing_is_answered_and_nothing_is_changed_by_what_cannot_be_read() {
    let store = Store::new();
    let (_trees, base) = base(&store);
    let (mut told, mut done) = (0, 0);
    for (what, step) in STEPS {
        let (sound, changed) = tried(&store, &base, step, None);
        let sound = sound.expect("readable");
        for page in 0..base.mapping().pages() {
            let (result, now) = tried(&store, &base, step, Some(page));
            match result {
                Ok(result) => {
                    assert_eq!((&result, &now), (&sound, &changed), "{what} with page {page} lost");
                    done += 1;
                }
                Err(_) => {
                    assert_eq!(now, [], "{what} with page {page} lost");
                    told += 1;
                }
            }
        }
    }
    assert!(told > 30 && done > told, "{told} told, {done} done");
}

#[test]
fn what_can_be_read_again_is_answered_without_an_error() {
    let store = Store::new();
    let (_trees, base) = base(&store);
    let scene = Scene::new(&store, Arc::clone(&base));
    let ask = || {
        let link = at(&scene.volume, "d9/s29").and_then(|link| scene.volume.read_link(link));
        (looked_up(&scene.volume, "d5", "f1").expect("readable"), link.expect("readable"))
    };
    let sound = ask();
    for page in 0..base.mapping().pages() {
        // Whoever meets it first puts it back.
        base.mapping().lose(page);
        assert_eq!(ask(), sound, "page {page}");
        let _whole = base.mapping().mend(Duration::ZERO);
    }
}
