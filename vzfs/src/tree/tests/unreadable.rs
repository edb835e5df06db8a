//! Trees of which parts cannot be read (invariant 6): each answer is the true one or an error, whenever a page is lost and whoever asks.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::damage::read_everything;
use super::*;

/// A tree of some ten pages with many of everything, stored and opened.
fn stored() -> (tempfile::TempDir, TreeStore, Arc<Tree>) {
    let mut b = new();
    for at in 0..20 {
        let sub = add(&mut b, ROOT, &format!("directory-{at}"), dir());
        for file_at in 0..20 {
            let node = add(&mut b, sub, &format!("file-{file_at}"), file(&format!("{at}/{file_at}")));
            if file_at % 5 == 0 {
                let value = format!("{at}-{file_at}").repeat(20).into_bytes().into();
                b.meta_mut(node).xattrs.insert(b"user.text"[..].into(), value);
                b.link(ROOT, name(&format!("link-{at}-{file_at}")), node).expect("links");
            }
            add(&mut b, sub, &format!("symlink-{file_at}"), symlink(&format!("../{at}/").repeat(20)));
        }
    }
    let image = b.finish().expect("fit");
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let store = TreeStore::at(folder.path()).expect("opens");
    store.put(&image).expect("stored");
    let tree = store.open(&image.digest).expect("opens");
    (folder, store, tree)
}

/// Loses pages, and the file that they could be read from again.
fn lose(tree: &Tree, pages: impl IntoIterator<Item = usize>) -> File {
    pages.into_iter().for_each(|page| tree.mapping().lose(page));
    tree.mapping().with_file(File::open("/dev/null").expect("every host has it"))
}

/// Everything that can be asked, as a text. The questions are named by what a sound tree has.
fn ask(tree: &Tree, question: &Question) -> Result<String, TreeError> {
    soundly_read(|| {
        Ok(match question {
            Question::Node(ino) => {
                format!("{:?}", tree.node(*ino).map(|view| (view.meta(), view.content().to_content())))
            }
            Question::Names(ino) => format!(
                "{:?}",
                tree.node(*ino)
                    .map(|view| view.names().map(|(dir, name)| (dir, name.to_name())).collect::<Vec<_>>())
            ),
            Question::Lookup(dir, name) => format!(
                "{:?}",
                tree.lookup(*dir, NameRef::new(name).expect("legal")).map(|entry| entry.target)
            ),
            Question::List(dir) => format!(
                "{:?}",
                tree.entries(*dir, None)
                    .map(|entry| (entry.name.to_name(), entry.target))
                    .collect::<Vec<_>>()
            ),
            Question::Walk => format!("{:?}", tree.walk().collect::<Vec<_>>()),
            Question::Blobs => format!("{:?}", tree.blobs().collect::<Vec<_>>()),
        })
    })
}

#[derive(Debug)]
enum Question {
    Node(Ino),
    Names(Ino),
    Lookup(Ino, Vec<u8>),
    List(Ino),
    Walk,
    Blobs,
}

fn questions(tree: &Tree) -> Vec<(Question, String)> {
    let mut questions = vec![Question::Walk, Question::Blobs];
    for node in tree.inodes() {
        questions.extend([Question::Node(node.ino()), Question::Names(node.ino())]);
        if node.kind() == FileKind::Dir {
            questions.push(Question::List(node.ino()));
            questions.push(Question::Lookup(node.ino(), b"not there".to_vec()));
            let names =
                tree.entries(node.ino(), None).map(|entry| Question::Lookup(node.ino(), entry.name.to_vec()));
            questions.extend(names);
        }
    }
    let answered = |question| {
        let answer = ask(tree, &question).expect("readable");
        (question, answer)
    };
    questions.into_iter().map(answered).collect()
}

#[test]
fn whoever_asks_for_a_lost_page_is_told_and_others_are_answered() {
    let (_folder, _store, tree) = stored();
    let questions = questions(&tree);
    let mut precise = 0;
    for page in 0..tree.mapping().pages() {
        let file = lose(&tree, [page]);
        let (mut told, mut answered) = (0, 0);
        for (question, answer) in &questions {
            match ask(&tree, question) {
                Ok(now) => {
                    assert_eq!(now, *answer, "{question:?} with page {page} lost");
                    answered += 1;
                }
                Err(TreeError::Unreadable { tree: named }) => {
                    assert_eq!(named, tree.digest().to_hex());
                    told += 1;
                }
                Err(error) => unreachable!("{question:?}: {error}"),
            }
        }
        assert!(told > 0, "page {page} is of use");
        let is_mostly_answered = told * 4 < questions.len();
        precise += usize::from(is_mostly_answered);
        assert!(answered > 0, "what needs no table is answered");
        assert!(matches!(tree.validate(), Err(TreeError::Unreadable { .. })));
        assert!(matches!(TreeBuilder::from_tree(&tree), Err(TreeError::Unreadable { .. })));
        tree.mapping().with_file(file);
        assert!(matches!(tree.mapping().mend(Duration::ZERO), Mended::Whole));
    }
    // All but the root's entries and the index, which are needed for most.
    assert!(precise * 4 > tree.mapping().pages() * 3, "{precise} of {} pages", tree.mapping().pages());
    for (question, answer) in &questions {
        assert_eq!(ask(&tree, question).expect("whole"), *answer);
    }
}

#[test]
fn what_is_read_while_pages_come_and_go_is_true_or_an_error() {
    let (_folder, _store, tree) = stored();
    let questions = questions(&tree);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..3000 {
                tree.mapping().lose(round * 7 % tree.mapping().pages());
                if round % 3 == 0 {
                    std::thread::yield_now();
                }
                let _other = tree.mapping().mend(Duration::ZERO);
            }
            done.store(true, Ordering::Relaxed);
        });
        let ask_all = || {
            let mut at = 0;
            while !done.load(Ordering::Relaxed) {
                let (question, answer) = &questions[at % questions.len()];
                if let Ok(now) = ask(&tree, question) {
                    assert!(now == *answer, "{question:?}");
                }
                at += 1;
            }
        };
        scope.spawn(ask_all);
        ask_all();
    });
}

#[test]
fn a_restored_tree_is_shown_to_those_who_have_the_lost_one() {
    let (folder, store, tree) = stored();
    let questions = questions(&tree);
    let path = folder.path().join(tree.digest().to_hex());
    let image = TreeImage::from_bytes(tree.bytes().to_vec());
    // One that is only in use is the source of its own repair.
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(store.in_use(&tree.digest()), Some(image.clone()));
    store.restore(&image).expect("restored");
    // In place, as a disk loses it.
    let file = std::fs::File::options().write(true).open(&path).or_else(|_| {
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        std::fs::File::options().write(true).open(&path)
    });
    file.expect("opens").set_len(100).expect("cut off");
    assert!(matches!(tree.validate(), Err(TreeError::Unreadable { .. })));
    assert_eq!(store.in_use(&tree.digest()), None);
    assert!(matches!(store.open(&tree.digest()), Ok(open) if Arc::ptr_eq(&open, &tree)));
    store.restore(&image).expect("restored");
    for (question, answer) in &questions {
        assert_eq!(ask(&tree, question).expect("whole"), *answer);
    }
    tree.validate().expect("whole");
}

#[test]
fn nothing_is_stored_that_was_made_of_what_cannot_be_read() {
    let (_folder, store, tree) = stored();
    let _file = lose(&tree, [1]);
    let other = finish(sample());
    let image = TreeImage::from_bytes(other.bytes().to_vec());
    let stored = soundly(|| {
        let _zeros = tree.walk().count();
        store.put(&image)
    });
    assert!(matches!(stored, Err(TreeError::Unreadable { .. })), "{stored:?}");
    assert!(matches!(store.open(&image.digest), Err(TreeError::Missing(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Invariants 5 and 6: any pages at once.
    #[test]
    fn any_lost_pages_are_survived_and_noticed(lost in proptest::collection::vec(any::<prop::sample::Index>(), 1..40)) {
        let (_folder, _store, tree) = stored();
        let _file = lose(&tree, lost.into_iter().map(|page| page.index(tree.mapping().pages())));
        read_everything(&tree);
        prop_assert!(matches!(tree.validate(), Err(TreeError::Unreadable { .. })), "noticed");
    }
}
