//! A VE's base: one OS template and any number of application templates, made into one tree.
//!
//! Layers are applied in order, each as an overlay on what is there: whiteouts remove, the rest replaces or adds. Where
//! a layer changes a path that an earlier application layer changed too, the two *meet*, and the OS template's version of the
//! path decides as common ancestor (`os`, `ours`, `theirs`):
//!
//! 1. A change that only one of the two made is kept, for the content and for each attribute by itself. (A layer also holds what it did
//!    not change, as the directories above a file, or a file whose mode alone is another.)
//! 2. Files that both changed are merged by the rule of their path (module `merge`): that of a template of the stack, or a built-in one.
//! 3. Where that is impossible, the last layer wins. Whatever is thereby lost is in the notes, with the path and the templates.
//!
//! The result is a function of the templates, their rules and their order: the same stack gives the same tree digest on every host. With a single
//! application template it is the plain overlay.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use thiserror::Error;

use crate::blobs::{Batch, BlobError, BlobStore};
use crate::merge::{self, AlternativeLink, Labels, MergeError, Rule, Rules, Versions};
use crate::tree::{
    Content, Entry, Meta, NodeId, NodeView, Tree, TreeBuilder, TreeError, TreeImage, WalkEntry, check_sound,
    soundly,
};
use crate::types::{Digest, FileKind, NameRef, TemplateSpec};

/// Where update-alternatives keeps its database, and where the links that follow from it.
const ALTERNATIVES_DATABASE: &[u8] = b"var/lib/dpkg/alternatives/";
const ALTERNATIVES_LINKS: &[u8] = b"etc/alternatives/";

/// How many files that one template overlays of another are named one by one. Two versions of one interpreter meet in
/// thousands of files, and a list of them would bury every other note.
const MAX_NAMED_FILES: usize = 20;

/// A base, not stored yet, though the merged files in it are.
#[derive(Debug)]
pub struct StackResult {
    /// The tree.
    pub image: TreeImage,
    /// What a person should know about where templates met, a sentence each.
    pub notes: Vec<String>,
    /// Those of the notes that tell of changes that are lost because no rule could keep both sides'.
    pub losses: Vec<String>,
}

/// Why no base could be made.
#[derive(Debug, Error)]
pub enum StackError {
    /// A layer is damaged, or the result is no tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file to merge could not be read or is damaged, or a merged one could not be stored.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// Makes the base of the stack `os`, `apps[0]`, `apps[1]`, ... Merged files are durable in `blobs` when this returns; the
/// caller stores the tree.
pub fn build_base(
    os: &Tree,
    apps: &[(TemplateSpec, Arc<Tree>)],
    rules: &Rules,
    blobs: &BlobStore,
) -> Result<StackResult, StackError> {
    soundly(|| stack_up(os, apps, rules, blobs))
}

fn stack_up(
    os: &Tree,
    apps: &[(TemplateSpec, Arc<Tree>)],
    rules: &Rules,
    blobs: &BlobStore,
) -> Result<StackResult, StackError> {
    let mut stack = Stack {
        os,
        apps,
        rules,
        blobs,
        batch: blobs.batch(),
        builder: TreeBuilder::from_tree(os)?,
        touched: BTreeMap::new(),
        merged: HashMap::new(),
        notes: Vec::new(),
    };
    for at in 0..apps.len() {
        stack.apply(at)?;
    }
    let Stack { batch, builder, notes, .. } = stack;
    let image = builder.finish()?;
    check_sound()?;
    batch.commit()?;
    let losses = Note::render(notes.iter().filter(|note| note.loses));
    Ok(StackResult { image, notes: Note::render(&notes), losses })
}

struct Stack<'a> {
    os: &'a Tree,
    apps: &'a [(TemplateSpec, Arc<Tree>)],
    rules: &'a Rules,
    blobs: &'a BlobStore,
    batch: Batch<'a>,
    builder: TreeBuilder,
    /// The paths that the application layers applied so far have, and still show.
    touched: BTreeMap<Vec<u8>, Touch>,
    /// Files merged before, which the batch has but the store does not yet: a third layer may meet them.
    merged: HashMap<Digest, Vec<u8>>,
    notes: Vec<Note>,
}

#[derive(Default)]
struct Touch {
    /// Positions in `apps`, ascending.
    layers: Vec<usize>,
    /// Whether the last of them has a directory here. Directories alone are no change that could get lost.
    is_dir: bool,
}

/// One inode of one side.
#[derive(Clone)]
struct Object {
    meta: Meta,
    content: Content,
}

impl Object {
    fn of(view: &NodeView<'_>) -> Object {
        Object { meta: view.meta(), content: view.content().to_content() }
    }

    fn is_dir(&self) -> bool {
        self.meta.kind == FileKind::Dir
    }

    /// Whether it is the same thing, its attributes aside.
    fn is_same(&self, other: &Object) -> bool {
        let device = |object: &Object| object.meta.kind.is_device().then_some(object.meta.rdev);
        (self.meta.kind, device(self), &self.content) == (other.meta.kind, device(other), &other.content)
    }

    fn blob(&self) -> Option<(Digest, u64)> {
        match self.content {
            Content::Blob { digest, size, .. } => Some((digest, size)),
            _ => None,
        }
    }
}

/// A path that the layer being applied and an earlier one both have.
struct Meeting {
    path: Vec<u8>,
    /// `None`: removed.
    ours: Option<(NodeId, Object)>,
    theirs: Option<Object>,
    /// The templates of `ours`, for notes.
    ours_label: String,
}

impl Stack<'_> {
    fn apply(&mut self, at: usize) -> Result<(), StackError> {
        let (spec, layer) = &self.apps[at];
        let theirs_label = spec.to_string();
        let meetings = self.meet(layer, &theirs_label);
        self.builder.apply_layer(layer)?;
        let mut links = Vec::new();
        for meeting in meetings {
            links.extend(self.settle(meeting, &theirs_label)?);
        }
        self.set_alternatives(links)?;
        for (path, entry) in layer.walk() {
            let touch = self.touched.entry(path).or_default();
            touch.layers.push(at);
            touch.is_dir = matches!(entry, WalkEntry::Node(view) if view.kind() == FileKind::Dir);
        }
        Ok(())
    }

    /// Collects, before the layer is applied, where it meets earlier ones, and forgets what it hides.
    fn meet(&mut self, layer: &Tree, theirs_label: &str) -> Vec<Meeting> {
        let mut meetings = Vec::new();
        for (path, entry) in layer.walk() {
            let theirs = match &entry {
                WalkEntry::Node(view) => Some(Object::of(view)),
                WalkEntry::Whiteout => None,
            };
            let hides = match &entry {
                WalkEntry::Node(view) => view.kind() != FileKind::Dir || view.is_opaque(),
                WalkEntry::Whiteout => true,
            };
            // Parents come first, so that what an opaque directory hides no longer meets what it holds itself.
            if hides {
                self.forget_below(&path, theirs_label);
            }
            let Some(touch) = self.touched.get(&path) else { continue };
            let ours_label = self.label(&touch.layers);
            let ours = self.find(&path).map(|node| {
                let object = Object {
                    meta: self.builder.meta(node).clone(),
                    content: self.builder.content(node).clone(),
                };
                (node, object)
            });
            meetings.push(Meeting { path, ours, theirs, ours_label });
        }
        meetings
    }

    /// Notes and drops everything that earlier layers have below a path.
    fn forget_below(&mut self, path: &[u8], theirs_label: &str) {
        let from = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        let hidden: Vec<Vec<u8>> = self
            .touched
            .range(from.clone()..)
            .map(|(hidden, _)| hidden)
            .take_while(|hidden| hidden.starts_with(&from))
            .filter(|hidden| !hidden.is_empty())
            .cloned()
            .collect();
        let (mut files, mut layers) = (0_usize, Vec::new());
        for path in hidden {
            let Some(touch) = self.touched.remove(&path) else { continue };
            if !touch.is_dir {
                files += 1;
                layers.extend(touch.layers);
            }
        }
        if files > 0 {
            layers.sort_unstable();
            layers.dedup();
            let ours_label = self.label(&layers);
            let text =
                format!("{theirs_label} removes or replaces it, and with it {files} changes of {ours_label}");
            self.notes.push(Note::loss(path, text));
        }
    }

    /// Decides about one meeting, after the layer was applied. Returns the alternatives' links that follow.
    fn settle(&mut self, meeting: Meeting, theirs_label: &str) -> Result<Vec<AlternativeLink>, StackError> {
        let Meeting { path, ours, theirs, ours_label } = meeting;
        let labels = Labels { ours: &ours_label, theirs: theirs_label };
        let os = self.os.resolve(&path).map(|view| Object::of(&view));
        let ((node, ours), theirs) = match (ours, theirs) {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (ours, theirs) => {
                let what = match (ours.is_some_and(|(_, ours)| !ours.is_dir()), theirs.is_some()) {
                    (true, false) => "changes it, {} removes it; it is gone",
                    (false, true) => "removes it, {} has it; it is there",
                    // Both removed it, or `forget_below` has told about the directory.
                    _ => return Ok(Vec::new()),
                };
                self.notes
                    .push(Note::new(&path, format!("{ours_label} {}", what.replace("{}", theirs_label))));
                return Ok(Vec::new());
            }
        };
        let is_os = |side: &Object| os.as_ref().is_some_and(|os| os.is_same(side));
        if ours.meta.kind != theirs.meta.kind {
            // Attributes of different kinds of file do not compare. Where `theirs` is a directory, `ours` cannot come back.
            if is_os(&theirs) && !theirs.is_dir() && !ours.is_dir() {
                self.put_back(&path, node)?;
            } else if !is_os(&ours) && !ours.is_dir() {
                self.notes.push(Note::overlaid(&path, labels));
            }
            return Ok(Vec::new());
        }
        let os_meta = os.as_ref().map(|os| &os.meta).filter(|os| os.kind == ours.meta.kind);
        let (meta, disputed) = merge_meta(os_meta, &ours.meta, &theirs.meta);
        if !disputed.is_empty() {
            let what = disputed.join(", ");
            let text = format!("{ours_label} and {theirs_label} differ in {what}; the latter counts");
            self.notes.push(Note::loss(&path, text));
        }
        if ours.is_same(&theirs) || is_os(&ours) {
            // The overlay has it already, but for the attributes.
            if let Some(node) = self.find(&path) {
                *self.builder.meta_mut(node) = meta;
            }
        } else if is_os(&theirs) {
            self.put_back(&path, node)?;
            *self.builder.meta_mut(node) = Meta { rdev: ours.meta.rdev, ..meta };
        } else if ours.blob().is_some() {
            return self.merge_files(&path, [os.as_ref(), Some(&ours), Some(&theirs)], (node, meta), labels);
        } else {
            self.notes.push(Note::overlaid(&path, labels));
        }
        Ok(Vec::new())
    }

    /// Gives a path back to the inode that it led to before the layer, which changed attributes at most.
    fn put_back(&mut self, path: &[u8], node: NodeId) -> Result<(), StackError> {
        match self.place(path) {
            Some((dir, name)) => Ok(self.builder.link(dir, name, node)?),
            None => Ok(()),
        }
    }

    /// Merges a file that both sides changed.
    fn merge_files(
        &mut self,
        path: &[u8],
        versions: [Option<&Object>; 3],
        (before, meta): (NodeId, Meta),
        labels: Labels<'_>,
    ) -> Result<Vec<AlternativeLink>, StackError> {
        let rule = self.rules.rule_for(path);
        match rule {
            Rule::LastWins => self.notes.push(Note::overlaid(path, labels)),
            Rule::Take => {}
            Rule::Keep => {
                self.put_back(path, before)?;
                *self.builder.meta_mut(before) = meta;
            }
            Rule::Derived => {
                let Labels { ours, theirs } = labels;
                let text = format!(
                    "generated file of {theirs}; what {ours} has in it comes back when it is generated anew"
                );
                self.notes.push(Note::new(path, text));
            }
            _ => return self.merge_contents(path, rule, versions, meta, labels),
        }
        Ok(Vec::new())
    }

    fn merge_contents(
        &mut self,
        path: &[u8],
        rule: Rule,
        versions: [Option<&Object>; 3],
        meta: Meta,
        labels: Labels<'_>,
    ) -> Result<Vec<AlternativeLink>, StackError> {
        let blobs = versions.map(|version| version.and_then(Object::blob));
        let merged = if blobs.iter().flatten().any(|(_, size)| *size > merge::MAX_INPUT_BYTES as u64) {
            Err(MergeError::TooMuch)
        } else {
            let read = |blob: Option<(Digest, u64)>| blob.map(|blob| self.read(blob)).transpose();
            let [base, ours, theirs] = [read(blobs[0])?, read(blobs[1])?, read(blobs[2])?];
            let (ours, theirs) = (ours.unwrap_or_default(), theirs.unwrap_or_default());
            merge::merge(rule, Versions { base: base.as_deref(), ours: &ours, theirs: &theirs }, labels)
        };
        let merged = match merged {
            Ok(merged) => merged,
            Err(reason) => {
                let Labels { ours, theirs } = labels;
                let text = format!(
                    "{ours} and {theirs} both have it and cannot be merged ({reason}); the latter counts"
                );
                self.notes.push(Note::loss(path, text));
                return Ok(Vec::new());
            }
        };
        // What there is to say of `passwd-` was said of `passwd`.
        if !path.ends_with(b"-") && !path.ends_with(b"-old") {
            self.notes.extend(merged.notes.iter().map(|text| Note::new(path, text.clone())));
        }
        let stored = self.batch.add_bytes(&merged.bytes)?;
        let content = Content::Blob {
            digest: stored.digest,
            size: stored.size,
            allocated_bytes: stored.allocated_bytes,
        };
        // A new inode: other names of the old one did not meet anything.
        if let Some((dir, name)) = self.place(path) {
            self.builder.insert(dir, name, meta, content)?;
        }
        let links = match path.strip_prefix(ALTERNATIVES_DATABASE) {
            Some(name) => merge::alternative_links(name, &merged.bytes).unwrap_or_default(),
            None => Vec::new(),
        };
        self.merged.insert(stored.digest, merged.bytes);
        Ok(links)
    }

    /// Points the links in `/etc/alternatives` to what the merged databases prefer: each layer knew only its own choices.
    fn set_alternatives(&mut self, links: Vec<AlternativeLink>) -> Result<(), StackError> {
        for AlternativeLink { name, target } in links {
            let path = [ALTERNATIVES_LINKS, &name].concat();
            let Some((dir, name)) = self.place(&path) else { continue };
            let meta = match self.builder.get(dir, name) {
                Some(Entry::Node(node)) => self.builder.meta(node).clone(),
                // Without a folder for them there is no /etc/alternatives in use either.
                _ => Meta { kind: FileKind::Symlink, perm: 0o777, ..self.builder.meta(dir).clone() },
            };
            if meta.kind != FileKind::Symlink {
                continue;
            }
            self.notes.retain(|note| note.path != path);
            match target {
                Some(target) => {
                    self.builder.insert(dir, name, meta, Content::Symlink(target.into()))?;
                }
                None => {
                    self.builder.remove(dir, name);
                }
            }
        }
        Ok(())
    }

    fn read(&self, (digest, size): (Digest, u64)) -> Result<Vec<u8>, StackError> {
        match self.merged.get(&digest) {
            Some(bytes) => Ok(bytes.clone()),
            None => Ok(self.blobs.read(&digest, size)?),
        }
    }

    /// The directory and the name of a path, if the directory exists. The root has none.
    fn place<'p>(&self, path: &'p [u8]) -> Option<(NodeId, NameRef<'p>)> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (self.find(&path[..slash])?, &path[slash + 1..]),
            None => (self.builder.root(), path),
        };
        (self.builder.meta(dir).kind == FileKind::Dir).then_some((dir, NameRef::new(name).ok()?))
    }

    fn find(&self, path: &[u8]) -> Option<NodeId> {
        let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(self.builder.root(), |dir, name| {
            match self.builder.get(dir, NameRef::new(name).ok()?) {
                Some(Entry::Node(node)) => Some(node),
                _ => None,
            }
        })
    }

    fn label(&self, layers: &[usize]) -> String {
        layers.iter().map(|at| self.apps[*at].0.to_string()).collect::<Vec<_>>().join(" + ")
    }
}

/// Merges the attributes one by one, and names those that both sides changed differently. The kind and the device are `theirs`.
fn merge_meta(os: Option<&Meta>, ours: &Meta, theirs: &Meta) -> (Meta, Vec<&'static str>) {
    fn pick<T: PartialEq + Clone>(meta: [Option<&Meta>; 3], field: impl Fn(&Meta) -> &T) -> Option<T> {
        let [os, ours, theirs] = meta.map(|meta| meta.map(&field));
        if ours == theirs || os == theirs {
            ours.cloned()
        } else if os == ours {
            theirs.cloned()
        } else {
            None
        }
    }
    let sides = [os, Some(ours), Some(theirs)];
    let mut meta = theirs.clone();
    let mut disputed = Vec::new();
    match pick(sides, |meta| &meta.perm) {
        Some(perm) => meta.perm = perm,
        None => disputed.push("mode"),
    }
    match pick(sides, |meta| &meta.uid) {
        Some(uid) => meta.uid = uid,
        None => disputed.push("owner"),
    }
    match pick(sides, |meta| &meta.gid) {
        Some(gid) => meta.gid = gid,
        None => disputed.push("group"),
    }
    match pick(sides, |meta| &meta.xattrs) {
        Some(xattrs) => meta.xattrs = xattrs,
        None => disputed.push("extended attributes"),
    }
    // Builds of templates touch files at different times; the later one says when the content became what it is.
    meta.mtime = pick(sides, |meta| &meta.mtime).unwrap_or(ours.mtime.max(theirs.mtime));
    (meta, disputed)
}

struct Note {
    path: Vec<u8>,
    kind: NoteKind,
    /// Whether it tells of something that is lost.
    loses: bool,
}

enum NoteKind {
    Text(String),
    /// The second template's file replaces the first one's.
    Overlaid(String, String),
}

impl Note {
    fn new(path: &[u8], text: String) -> Note {
        Note { path: path.to_vec(), kind: NoteKind::Text(text), loses: false }
    }

    fn loss(path: &[u8], text: String) -> Note {
        Note { loses: true, ..Note::new(path, text) }
    }

    fn overlaid(path: &[u8], labels: Labels<'_>) -> Note {
        Note {
            path: path.to_vec(),
            kind: NoteKind::Overlaid(labels.ours.to_owned(), labels.theirs.to_owned()),
            loses: true,
        }
    }

    /// Sentences, with long runs of overlaid files cut short.
    fn render<'a>(notes: impl IntoIterator<Item = &'a Note>) -> Vec<String> {
        let mut sentences = Vec::new();
        let mut overlaid = BTreeMap::<(&str, &str), usize>::new();
        for Note { path, kind, .. } in notes {
            let path = String::from_utf8_lossy(path).replace(|c: char| c.is_control(), "\u{fffd}");
            match kind {
                NoteKind::Text(text) => sentences.push(format!("/{path}: {text}")),
                NoteKind::Overlaid(ours, theirs) => {
                    let text = format!("/{path}: {ours} and {theirs} both have it; the latter counts");
                    let count = overlaid.entry((ours, theirs)).or_default();
                    *count += 1;
                    if *count <= MAX_NAMED_FILES {
                        sentences.push(text);
                    }
                }
            }
        }
        for ((ours, theirs), count) in overlaid.into_iter().filter(|(_, count)| *count > MAX_NAMED_FILES) {
            let more = count - MAX_NAMED_FILES;
            sentences
                .push(format!("{more} more files that {ours} and {theirs} both have; the latter's count"));
        }
        sentences
    }
}

#[cfg(test)]
mod tests;
