//! Layers built of arbitrary operations: what the builder writes is valid, says what was put in, and merges and compares without surprises.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vzfs::tree::{Content, Entry, Meta, NodeId, Tree, TreeBuilder, diff};
use vzfs::types::{Digest, FileKind, NameRef, Timestamp};
use vzfs_fuzz::{FuzzName, assert_sound, read_all};

#[derive(Arbitrary, Debug)]
enum Op {
    Insert { dir: u8, name: FuzzName, meta: FuzzMeta, content: FuzzContent },
    Link { dir: u8, name: FuzzName, node: u8 },
    Whiteout { dir: u8, name: FuzzName },
    Remove { dir: u8, name: FuzzName },
    Opaque { node: u8, opaque: bool },
    SetContent { node: u8, content: FuzzContent },
    SetMeta { node: u8, meta: FuzzMeta },
}

#[derive(Arbitrary, Debug)]
struct FuzzMeta {
    kind: u8,
    perm: u16,
    uid: u32,
    rdev: u32,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Arbitrary, Debug)]
enum FuzzContent {
    Fitting(u8),
    Blob { digest: u8, size: u64, allocated: u64 },
    Symlink(Vec<u8>),
    None,
}

impl FuzzMeta {
    fn meta(&self, kind: FileKind) -> Meta {
        let xattrs =
            self.xattrs.iter().map(|(name, value)| (name.as_slice().into(), value.as_slice().into()));
        Meta {
            kind,
            perm: self.perm,
            uid: self.uid,
            gid: !self.uid,
            rdev: self.rdev,
            mtime: Timestamp::new(self.mtime.0, self.mtime.1),
            xattrs: xattrs.collect(),
        }
    }
}

impl FuzzContent {
    fn content(&self, kind: FileKind) -> Content {
        let digest = |byte: u8| Digest::of(&[byte]);
        match self {
            FuzzContent::Fitting(byte) => match kind {
                FileKind::File => Content::Blob { digest: digest(*byte), size: 1, allocated_bytes: 0 },
                FileKind::Symlink => Content::Symlink([*byte | 1][..].into()),
                _ => Content::None,
            },
            FuzzContent::Blob { digest: byte, size, allocated } => {
                Content::Blob { digest: digest(*byte), size: *size, allocated_bytes: *allocated }
            }
            FuzzContent::Symlink(target) => Content::Symlink(target.as_slice().into()),
            FuzzContent::None => Content::None,
        }
    }
}

fn build(ops: &[Op]) -> TreeBuilder {
    let mut tree = TreeBuilder::new(Meta::new(FileKind::Dir, 0o755));
    let mut nodes = vec![tree.root()];
    let pick = |nodes: &[NodeId], index: u8| nodes[index as usize % nodes.len()];
    for op in ops {
        let dir_and_name = match op {
            Op::Insert { dir, name, .. }
            | Op::Link { dir, name, .. }
            | Op::Whiteout { dir, name }
            | Op::Remove { dir, name } => Some((pick(&nodes, *dir), name.bytes())),
            _ => None,
        };
        let named = dir_and_name.as_ref().and_then(|(dir, name)| Some((*dir, NameRef::new(name).ok()?)));
        match (op, named) {
            (Op::Insert { meta, content, .. }, Some((dir, name))) => {
                let kind = FileKind::from_u8(meta.kind % 7 + 1).unwrap_or(FileKind::File);
                if let Ok(node) = tree.insert(dir, name, meta.meta(kind), content.content(kind)) {
                    assert_eq!(tree.get(dir, name), Some(Entry::Node(node)));
                    nodes.push(node);
                }
            }
            (Op::Link { node, .. }, Some((dir, name))) => drop(tree.link(dir, name, pick(&nodes, *node))),
            (Op::Whiteout { .. }, Some((dir, name))) => drop(tree.whiteout(dir, name)),
            (Op::Remove { .. }, Some((dir, name))) => drop(tree.remove(dir, name)),
            (Op::Opaque { node, opaque }, _) => tree.set_opaque(pick(&nodes, *node), *opaque),
            (Op::SetContent { node, content }, _) => {
                let node = pick(&nodes, *node);
                tree.set_content(node, content.content(tree.meta(node).kind));
            }
            (Op::SetMeta { node, meta }, _) => {
                let node = pick(&nodes, *node);
                *tree.meta_mut(node) = meta.meta(tree.meta(node).kind);
            }
            _ => {}
        }
    }
    tree
}

fn finished(tree: TreeBuilder) -> Option<Tree> {
    let image = tree.finish().ok()?;
    let tree = Tree::from_bytes(image.bytes.clone()).expect("what was written can be read");
    tree.validate().expect("what was written is valid");
    assert_sound(&tree, &image.bytes);
    read_all(&tree);
    Some(tree)
}

fuzz_target!(|input: (Vec<Op>, Vec<Op>)| {
    let (Some(lower), Some(upper)) = (finished(build(&input.0)), finished(build(&input.1))) else { return };
    assert!(diff(&lower, &lower).is_empty());
    assert_eq!(diff(&lower, &upper).len(), diff(&upper, &lower).len());
    let mut merged = TreeBuilder::new(Meta::new(FileKind::Dir, 0o755));
    merged.apply_layer(&lower).expect("a valid layer");
    merged.apply_layer(&upper).expect("a valid layer");
    // Two layers may give one blob two sizes, or paths that are too long together; nothing else can be wrong with their merge.
    if let Some(merged) = finished(merged) {
        assert!(merged.is_base());
    }
});
