//! Files without packages.

use super::*;

#[test]
fn nothing_hidden_is_nothing_to_decide() {
    let moved = Scene::new(&[("a", "1")], &[("a", "2")]).replace("b", "own").go();
    moved.shows(&[("a", "2"), ("b", "own")]);
    assert!(moved.resolved.edits.is_empty() && moved.resolved.notes.is_empty());
}

#[test]
fn a_copy_of_the_old_content_takes_the_new() {
    let moved = Scene::new(&[("usr/p", "1"), ("usr/q", "1")], &[("usr/p", "2"), ("usr/q", "2")])
        .write("usr/p", "1")
        .replace("usr/q", "1")
        .go();
    moved.shows(&[("usr/p", "2"), ("usr/q", "2")]);
    assert!(moved.is_shared("usr/p") && moved.is_shared("usr/q"));
    assert_eq!(moved.shadowed(), [""; 0]);
}

#[test]
fn attributes_of_a_copy_stay() {
    let moved =
        Scene::new(&[("usr/p", "1")], &[("usr/p", "2")]).write("usr/p", "1").chmod("usr/p", 0o600).go();
    moved.shows(&[("usr/p", "2")]);
    assert_eq!(moved.scene.volume.attr(moved.scene.ino("usr/p")).expect("there").perm, 0o600);
}

#[test]
fn a_copy_of_the_new_content_is_shared_again() {
    let scene = Scene::new(&[("usr/p", "1"), ("usr/q", "1")], &[("usr/p", "2"), ("usr/q", "2")]);
    let moved = scene.replace("usr/p", "2").replace("usr/q", "2").chmod("usr/q", 0o4755).go();
    assert!(moved.is_shared("usr/p") && !moved.is_shared("usr/q"));
    let attr = moved.scene.volume.attr(moved.scene.ino("usr/q")).expect("there");
    assert_eq!((attr.perm, attr.size), (0o4755, 1));
    moved.shows(&[("usr/q", "2")]);
    assert_eq!(moved.shadowed(), [""; 0]);
}

#[test]
fn what_the_update_removes_goes_unless_the_ve_changed_it() {
    let old = [("usr/p", "1"), ("etc/q", "1"), ("srv/r", "1"), ("l", "-> a")];
    let moved = Scene::new(&old, &[("usr/", ""), ("etc/", ""), ("srv/", "")])
        .write("usr/p", "1")
        .write("etc/q", "own")
        .write("srv/r", "own")
        .replace("l", "-> a")
        .go();
    moved.lacks(&["usr/p", "l"]);
    moved.shows(&[("etc/q", "own"), ("srv/r", "own")]);
    assert_eq!(moved.shadowed(), ["etc/q: deleted, own"]);
}

#[test]
fn accounts_are_merged_and_the_ves_count() {
    let [root, a, b] =
        ["root:x:0:0::/root:/bin/sh\n", "a:x:100:100::/:/bin/sh\n", "b:x:101:101::/:/bin/sh\n"];
    let new = format!("{root}{a}");
    let own = format!("{}{b}", root.replace("/bin/sh", "/bin/zsh"));
    let moved = Scene::new(&[("etc/passwd", root)], &[("etc/passwd", &new)])
        .replace("etc/passwd", &own)
        .chmod("etc/passwd", 0o640)
        .go();
    let merged = format!("{}{a}{b}", root.replace("/bin/sh", "/bin/zsh"));
    moved.shows(&[("etc/passwd", &merged)]);
    assert_eq!(moved.scene.volume.attr(moved.scene.ino("etc/passwd")).expect("there").perm, 0o640);
    assert_eq!(moved.merged(), [("etc/passwd", "passwd")]);
    assert_eq!(moved.shadowed(), [""; 0]);
}

#[test]
fn what_both_added_has_no_ancestor() {
    let moved = Scene::new(&[("etc/", "")], &[("etc/shells", "/bin/sh\n/bin/a\n")])
        .replace("etc/shells", "/bin/sh\n/bin/b\n")
        .go();
    moved.shows(&[("etc/shells", "/bin/sh\n/bin/a\n/bin/b\n")]);
}

#[test]
fn configuration_is_merged_line_by_line() {
    let moved =
        Scene::new(&[("etc/c", "a\nb\nc\n")], &[("etc/c", "A\nb\nc\n")]).write("etc/c", "a\nb\nC\n").go();
    moved.shows(&[("etc/c", "A\nb\nC\n")]);
    assert_eq!(moved.merged(), [("etc/c", "text")]);
    assert!(moved.scene.ino("etc/c").is_private());
}

#[test]
fn configuration_in_conflict_keeps_the_ves_and_puts_the_other_beside() {
    let scene = || Scene::new(&[("etc/d/c", "a\n")], &[("etc/d/c", "b\n")]).write("etc/d/c", "c\n");
    let moved = scene().go();
    moved.shows(&[("etc/d/c", "c\n"), ("etc/d/c.dpkg-dist", "b\n")]);
    assert_eq!(moved.shadowed(), ["etc/d/c: changed, own, beside etc/d/c.dpkg-dist"]);
    let moved = scene().on_conflict(OnConflict::Take).go();
    moved.shows(&[("etc/d/c", "b\n"), ("etc/d/c.dpkg-old", "c\n")]);
    assert_eq!(moved.shadowed(), [""; 0]);
    assert_eq!(
        moved.resolved.notes,
        ["/etc/d/c: the update's is taken (both sides changed line 1), the VE's own is c.dpkg-old now"]
    );
    let error = scene().on_conflict(OnConflict::Fail).error();
    assert!(
        error.contains("VE web") && error.contains("/etc/d/c is changed by the VE and by the update"),
        "{error}"
    );
    assert!(error.contains("both sides changed line 1"), "{error}");
}

#[test]
fn a_refused_move_stores_nothing() {
    let old = [("etc/a", "a\nb\nc\n"), ("etc/z", "a\n")];
    let new = [("etc/a", "A\nb\nc\n"), ("etc/z", "b\n")];
    let scene = Scene::new(&old, &new).write("etc/a", "a\nb\nC\n").write("etc/z", "c\n");
    let (scene, before) = (scene.on_conflict(OnConflict::Fail), 4);
    assert_eq!(scene.blob_count(), before);
    assert!(scene.error().contains("/etc/z"));
    assert_eq!(scene.blob_count(), before);
}

#[test]
fn programs_in_conflict_are_not_mixed() {
    let scene =
        || Scene::new(&[("usr/p", "a\nb\nc\n")], &[("usr/p", "A\nb\nc\n")]).write("usr/p", "a\nb\nC\n");
    let moved = scene().go();
    moved.shows(&[("usr/p", "a\nb\nC\n")]);
    moved.lacks(&["usr/p.dpkg-dist"]);
    assert_eq!(moved.shadowed(), ["usr/p: changed, own"]);
    let moved = scene().on_conflict(OnConflict::Take).go();
    moved.shows(&[("usr/p", "A\nb\nc\n"), ("usr/p.vzfs-old", "a\nb\nC\n")]);
    assert!(moved.is_shared("usr/p"));
}

#[test]
fn state_of_programs_is_not_mixed() {
    let moved = Scene::new(&[("var/lib/x", "a\nb\nc\n")], &[("var/lib/x", "A\nb\nc\n")])
        .write("var/lib/x", "a\nb\nC\n")
        .go();
    moved.shows(&[("var/lib/x", "a\nb\nC\n")]);
    assert_eq!(moved.shadowed(), ["var/lib/x: changed, own"]);
}

#[test]
fn a_directory_where_something_would_be_put_beside() {
    for on_conflict in [OnConflict::Keep, OnConflict::Take] {
        let moved = Scene::new(&[("etc/c", "a\n")], &[("etc/c", "b\n")])
            .write("etc/c", "c\n")
            .mkdir("etc/c.dpkg-dist")
            .mkdir("etc/c.dpkg-old")
            .on_conflict(on_conflict)
            .go();
        moved.shows(&[("etc/c", "c\n")]);
        assert_eq!(moved.shadowed(), ["etc/c: changed, own"]);
    }
    let long = format!("etc/{}", "x".repeat(250));
    let moved = Scene::new(&[(&long, "a\n")], &[(&long, "b\n")]).write(&long, "c\n").go();
    assert_eq!(moved.shadowed(), [format!("{long}: changed, own")]);
}

#[test]
fn an_earlier_file_beside_is_replaced() {
    let moved = Scene::new(&[("etc/c", "a\n")], &[("etc/c", "b\n")])
        .write("etc/c", "c\n")
        .replace("etc/c.dpkg-dist", "old")
        .go();
    moved.shows(&[("etc/c.dpkg-dist", "b\n")]);
}

#[test]
fn other_kinds_of_files_are_not_followed() {
    let scene = || {
        let old = [("etc/a", "1"), ("usr/b", "1"), ("usr/d", "1"), ("usr/secret", "1")];
        let new = [("etc/a", "2"), ("usr/b", "2"), ("usr/d", "2"), ("usr/secret", "1")];
        Scene::new(&old, &new)
            .replace("etc/a", "-> ../usr/secret")
            .replace("usr/b", "-> /usr/secret")
            .remove("usr/d")
            .mkdir("usr/d")
            .replace("usr/d/own", "x")
    };
    let moved = scene().go();
    moved.shows(&[
        ("etc/a", "-> ../usr/secret"),
        ("etc/a.dpkg-dist", "2"),
        ("usr/b", "-> /usr/secret"),
        ("usr/d/own", "x"),
    ]);
    assert_eq!(
        moved.shadowed(),
        ["etc/a: changed, own, beside etc/a.dpkg-dist", "usr/b: changed, own", "usr/d: changed, own"]
    );
    let moved = scene().on_conflict(OnConflict::Take).go();
    moved.shows(&[("etc/a", "2"), ("usr/b", "2"), ("usr/b.vzfs-old", "-> /usr/secret"), ("usr/d/own", "x")]);
    assert_eq!(moved.shadowed(), ["usr/d: changed, own"]);
}

#[test]
fn links_are_decided_by_where_they_lead() {
    let old = [("a", "-> 1"), ("b", "-> 1"), ("c", "-> 1")];
    let new = [("a", "-> 2"), ("b", "-> 2"), ("c", "-> 2")];
    let moved = Scene::new(&old, &new).replace("a", "-> 1").replace("b", "-> 2").replace("c", "-> 3").go();
    moved.shows(&[("a", "-> 2"), ("b", "-> 2"), ("c", "-> 3")]);
    assert!(moved.is_shared("a") && moved.is_shared("b"));
    assert_eq!(moved.shadowed(), ["c: changed, own"]);
}

#[test]
fn what_the_ve_removed_stays_removed_and_is_told() {
    let old = [("a", "1"), ("b", "1"), ("var/cache/c", "1")];
    for on_conflict in [OnConflict::Keep, OnConflict::Take, OnConflict::Fail] {
        let moved = Scene::new(&old, &[("a", "2"), ("var/cache/c", "2")])
            .remove("a")
            .remove("b")
            .remove("var/cache/c")
            .on_conflict(on_conflict)
            .go();
        moved.lacks(&["a", "b", "var/cache/c"]);
        assert_eq!(moved.shadowed(), ["a: changed, removed"]);
        assert_eq!(
            moved.resolved.notes,
            ["the update's /a is not shown, as the VE has removed what was there"]
        );
    }
}

#[test]
fn what_is_below_directories_of_the_ve() {
    let old = [("usr/d/a", "1"), ("usr/d/b", "1"), ("usr/e/a", "1"), ("usr/f/a", "1")];
    let new = [("usr/d/a", "2"), ("usr/d/b", "1"), ("usr/d/n", "1"), ("usr/e/a", "2"), ("usr/f/a", "1")];
    let scene = || {
        let scene = Scene::new(&old, &new).remove("usr/d/a").remove("usr/d/b").rmdir("usr/d");
        scene.remove("usr/e/a").rmdir("usr/e").mkdir("usr/e").replace("usr/e/own", "x")
    };
    let moved = scene().go();
    assert_eq!(
        moved.shadowed(),
        ["usr/d/a: changed, directory", "usr/d/n: added, directory", "usr/e/a: changed, directory"]
    );
    moved.shows(&[("usr/e/own", "x"), ("usr/f/a", "1")]);
    let error = scene().on_conflict(OnConflict::Fail).error();
    assert!(error.contains("a directory above /usr/e/a"), "{error}");
}

#[test]
fn a_directory_that_both_made() {
    let new = [
        ("usr/d/same", "1"),
        ("usr/d/other", "1"),
        ("usr/d/missing", "1"),
        ("usr/d/l", "-> 1"),
        ("usr/d/s/", ""),
    ];
    let scene = || {
        let scene =
            Scene::new(&[("usr/", "")], &new).mkdir("usr/d").mkdir("usr/d/s").replace("usr/d/same", "1");
        scene.replace("usr/d/other", "own").replace("usr/d/l", "-> 1")
    };
    let moved = scene().go();
    moved.shows(&[("usr/d/same", "1"), ("usr/d/missing", "1"), ("usr/d/other", "own"), ("usr/d/l", "-> 1")]);
    assert_eq!(moved.shadowed(), ["usr/d/other: added, own"]);
    let error = scene().on_conflict(OnConflict::Fail).error();
    assert!(error.contains("/usr/d/other"), "{error}");
}

#[test]
fn derived_files_stay_until_they_are_made_anew() {
    let paths = ["etc/ld.so.cache", "usr/lib/locale/locale-archive", "var/cache/x"];
    let old = paths.map(|path| (path, "1"));
    let new = paths.map(|path| (path, "2"));
    let scene = || {
        let scene = Scene::new(&old, &new).replace(paths[0], "own").replace(paths[1], "own");
        scene.replace(paths[2], "own")
    };
    for on_conflict in [OnConflict::Keep, OnConflict::Take, OnConflict::Fail] {
        let moved = scene().on_conflict(on_conflict).go();
        moved.shows(&paths.map(|path| (path, "own")));
        assert_eq!(
            moved.generate(),
            [("etc/ld.so.cache", "ldconfig"), ("usr/lib/locale/locale-archive", "locale-gen")]
        );
        assert_eq!((moved.shadowed(), moved.resolved.notes), (vec![], vec![]));
    }
    // What is the template's is the next template's.
    let moved = Scene::new(&old, &new).write(paths[0], "1").go();
    moved.shows(&[(paths[0], "2")]);
    assert_eq!(moved.generate(), []);
}

#[test]
fn rules_of_templates() {
    let scene = |path: &str| {
        Scene::new(&[(path, "a\nb\nc\n")], &[(path, "A\nb\nc\n")]).write(path, "a\nb\nC\n").chmod(path, 0o600)
    };
    for on_conflict in [OnConflict::Keep, OnConflict::Take, OnConflict::Fail] {
        for (rule, expected) in
            [(Rule::Keep, "a\nb\nC\n"), (Rule::Take, "A\nb\nc\n"), (Rule::Text, "A\nb\nC\n")]
        {
            let moved = scene("var/lib/x").rule("var/lib/*", rule).on_conflict(on_conflict).go();
            moved.shows(&[("var/lib/x", expected)]);
            assert_eq!(moved.scene.volume.attr(moved.scene.ino("var/lib/x")).expect("there").perm, 0o600);
            assert_eq!(moved.shadowed().len(), usize::from(rule == Rule::Keep));
        }
    }
}

#[test]
fn logs_and_backups_stay_the_ves() {
    let paths = ["var/log/x", "etc/passwd-", "var/lib/dpkg/status-old"];
    let moved = Scene::new(&paths.map(|path| (path, "1\n")), &paths.map(|path| (path, "1\n2\n")));
    let moved = paths.iter().fold(moved, |scene, path| scene.write(path, "1\n3\n")).go();
    moved.shows(&paths.map(|path| (path, "1\n3\n")));
    assert_eq!((moved.shadowed(), moved.merged()), (vec![], vec![]));
}

/// A database of update-alternatives, with the priorities of its choices.
fn database(choices: &[(&str, i32)]) -> String {
    let choices: String = choices.iter().map(|(path, priority)| format!("{path}\n{priority}\n")).collect();
    format!("auto\n/usr/bin/editor\n\n{choices}\n")
}

#[test]
fn alternatives_follow_the_merged_databases() {
    let (path, link) = ("var/lib/dpkg/alternatives/editor", "etc/alternatives/editor");
    let old = database(&[("/bin/nano", 40)]);
    let base = [(path, old.as_str()), (link, "-> /bin/nano")];
    for (theirs, own, expected) in
        [(60, 50, "-> /bin/emacs"), (45, 50, "-> /bin/vim"), (50, 50, "-> /bin/emacs")]
    {
        let new = database(&[("/bin/emacs", theirs), ("/bin/nano", 40)]);
        let vim = database(&[("/bin/nano", 40), ("/bin/vim", own)]);
        let moved = Scene::new(&base, &[(path, &new), (link, "-> /bin/emacs")])
            .replace(path, &vim)
            .replace(link, "-> /bin/vim")
            .on_conflict(OnConflict::Fail)
            .go();
        assert_eq!(moved.text(link), expected);
        assert_eq!(moved.merged(), [(path, "alternatives")]);
        assert_eq!((moved.shadowed(), moved.generate()), (vec![], vec![]));
    }
}

#[test]
fn an_alternative_that_neither_side_shows_is_set_anew() {
    let (path, link) = ("var/lib/dpkg/alternatives/editor", "etc/alternatives/editor");
    // The VE removed the best, the update added one that is better than the rest and worse than the best.
    let old = database(&[("/bin/ed", 10), ("/bin/nano", 40)]);
    let new = database(&[("/bin/ed", 10), ("/bin/mg", 20), ("/bin/nano", 40)]);
    let own = database(&[("/bin/ed", 10)]);
    let moved = Scene::new(&[(path, &old), (link, "-> /bin/nano")], &[(path, &new), (link, "-> /bin/nano")])
        .replace(path, &own)
        .replace(link, "-> /bin/ed")
        .go();
    moved.shows(&[(path, &database(&[("/bin/ed", 10), ("/bin/mg", 20)]))]);
    assert_eq!(moved.generate(), [(link, "update-alternatives --auto editor")]);
}

#[test]
fn alternatives_that_somebody_chose_stay() {
    let (path, link) = ("var/lib/dpkg/alternatives/editor", "etc/alternatives/editor");
    let old = "auto\n/usr/bin/editor\n\n/bin/nano\n40\n\n";
    let new = "auto\n/usr/bin/editor\n\n/bin/emacs\n60\n/bin/nano\n40\n\n";
    let moved = Scene::new(&[(path, old), (link, "-> /bin/nano")], &[(path, new), (link, "-> /bin/emacs")])
        .replace(path, &old.replace("auto", "manual"))
        .replace(link, "-> /bin/mine")
        .on_conflict(OnConflict::Take)
        .go();
    moved.shows(&[(path, &new.replace("auto", "manual")), (link, "-> /bin/mine")]);
    assert_eq!((moved.shadowed(), moved.generate()), (vec![], vec![]));
}

#[test]
fn too_large_is_not_merged() {
    let large = "x\n".repeat(crate::merge::MAX_INPUT_BYTES / 2 + 1);
    let scene = Scene::new(&[("etc/c", "a\n")], &[("etc/c", "b\n")]).write("etc/c", &large);
    let resolved = scene.resolve(false).expect("decided");
    assert_eq!(resolved.shadowed.len(), 1);
    assert!(resolved.merged.is_empty());
}

#[test]
fn a_damaged_blob_is_named() {
    let scene = Scene::new(&[("etc/c", "a\nb\nc\n")], &[("etc/c", "A\nb\nc\n")]).write("etc/c", "a\nb\nC\n");
    let digest = crate::types::Digest::of(b"A\nb\nc\n");
    let path = scene.fixture.blobs.path(&digest);
    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "X\nb\nc\n").expect("damage");
    let error = scene.error();
    assert!(error.contains("damaged") && error.contains(&digest.to_hex()), "{error}");
}

#[test]
fn a_ve_that_goes_on_meanwhile_makes_the_move_begin_again() {
    let scene = Scene::new(&[("etc/c", "a\nb\nc\n")], &[("etc/c", "A\nb\nc\n")]).write("etc/c", "a\nb\nC\n");
    let edits = scene.resolve(false).expect("decided").edits;
    let scene = scene.write("etc/c", "a\nb\nD\n");
    let error = scene.volume.rebase(&scene.delta, &edits, |_, _| Ok(())).expect_err("refused");
    assert!(matches!(error, VolumeError::Changed), "{error}");
    scene.go().shows(&[("etc/c", "A\nb\nD\n")]);
}
