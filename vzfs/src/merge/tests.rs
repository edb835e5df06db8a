//! What holds for every rule, and what single rules promise.

use proptest::prelude::*;

use super::rules::AccountTable;
use super::*;

const LABELS: Labels<'_> = Labels { ours: "web@1", theirs: "db@2" };
const PASSWD: Rule = Rule::Accounts(AccountTable::Passwd);
const GROUP: Rule = Rule::Accounts(AccountTable::Group);
const ALL: [Rule; 15] = [
    Rule::Stanzas,
    Rule::Diversions,
    Rule::StatOverrides,
    Rule::PendingTriggers,
    Rule::Alternatives,
    PASSWD,
    GROUP,
    Rule::Accounts(AccountTable::Shadow),
    Rule::Accounts(AccountTable::Gshadow),
    Rule::SubIds,
    Rule::LineSet,
    Rule::Log,
    Rule::Text,
    Rule::Derived,
    Rule::LastWins,
];

fn try_merge(rule: Rule, base: &str, ours: &str, theirs: &str) -> Result<(String, Vec<String>), MergeError> {
    let versions = Versions { base: Some(base.as_bytes()), ours: ours.as_bytes(), theirs: theirs.as_bytes() };
    let merged = merge(rule, versions, LABELS)?;
    Ok((String::from_utf8(merged.bytes).expect("text"), merged.notes))
}

#[track_caller]
fn check(rule: Rule, base: &str, ours: &str, theirs: &str, expected: &str) {
    assert_eq!(try_merge(rule, base, ours, theirs), Ok((expected.to_owned(), Vec::new())));
}

#[track_caller]
fn check_noted(rule: Rule, [base, ours, theirs, expected]: [&str; 4], expected_note: &str) {
    let (text, notes) = try_merge(rule, base, ours, theirs).expect("well formed");
    assert_eq!(text, expected);
    assert_eq!(notes, [expected_note]);
}

fn package(name: &str, version: &str) -> String {
    format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
}

#[test]
fn no_package_is_forgotten() {
    let [libc, nginx, postgres] = ["libc6", "nginx", "postgresql"].map(|name| package(name, "1"));
    let (ours, theirs) = (format!("{libc}{nginx}"), format!("{libc}{postgres}"));
    check(Rule::Stanzas, &libc, &ours, &theirs, &format!("{libc}{nginx}{postgres}"));
    check(Rule::Stanzas, &libc, &theirs, &ours, &format!("{libc}{nginx}{postgres}"));
    // Unsorted tables keep the ancestor's order.
    let base = format!("{postgres}{libc}");
    let [a, b] = ["a", "b"].map(|name| package(name, "1"));
    check(Rule::Stanzas, &base, &format!("{base}{b}"), &format!("{base}{a}"), &format!("{base}{b}{a}"));
}

#[test]
fn packages_of_two_architectures_are_two() {
    let amd64 = package("libc6", "1");
    let i386 = amd64.replace("amd64", "i386");
    check(Rule::Stanzas, "", &amd64, &i386, &format!("{amd64}{i386}"));
}

#[test]
fn a_package_that_both_sides_upgrade() {
    let [old, new, newer] = ["1", "2", "3"].map(|version| package("a", version));
    let note = "package a:amd64: web@1 has version 2, db@2 has version 3; the latter counts";
    check_noted(Rule::Stanzas, [&old, &new, &newer, &newer], note);
}

#[test]
fn a_pending_trigger_does_not_bring_an_old_version_back() {
    let (old, new) = (package("a", "1"), package("a", "2"));
    let pending =
        old.replace("ok installed", "ok triggers-pending").replace("\n\n", "\nTriggers-Pending: x\n\n");
    let (text, notes) = try_merge(Rule::Stanzas, &old, &new, &pending).expect("well formed");
    assert!(text.contains("Version: 2\n") && text.contains("triggers-pending"), "{text}");
    assert_eq!(notes, [""; 0]);
}

/// dpkg refuses a whole table with an installed package that has triggers pending.
#[test]
fn the_state_of_a_package_is_not_mixed() {
    let state = |state: &str| format!("Package: a\nStatus: install ok {state}\nVersion: 1\n\n");
    let [base, ours, theirs] =
        ["triggers-pending\nTriggers-Pending: x", "installed", "triggers-pending\nTriggers-Pending: x y"]
            .map(state);
    check_noted(
        Rule::Stanzas,
        [&base, &ours, &theirs, &theirs],
        "package a: both sides changed its state; db@2 counts",
    );
    check_noted(
        Rule::Stanzas,
        [&base, &theirs, &ours, &ours],
        "package a: both sides changed its state; db@2 counts",
    );
}

#[test]
fn a_package_that_one_side_removes_and_one_changes() {
    let (old, new) = (package("a", "1"), package("a", "2"));
    let note = "package a:amd64: web@1 changes it, db@2 removes it; the latter counts";
    check_noted(Rule::Stanzas, [&old, &new, "\n", ""], note);
    let note = "package a:amd64: web@1 removes it, db@2 changes it; the latter counts";
    check_noted(Rule::Stanzas, [&old, "\n", &new, &new], note);
}

#[test]
fn a_package_that_somebody_asked_for_stays_asked_for() {
    let state = |auto| format!("Package: a\nArchitecture: amd64\nAuto-Installed: {auto}\n\n");
    check(Rule::Stanzas, "", &state(0), &state(1), &state(0));
    check(Rule::Stanzas, "", &state(1), &state(0), &state(0));
}

#[test]
fn long_fields_survive() {
    let base = "Package: a\nDescription: x\n long\n .\n text\nConffiles:\n /etc/a 00\n\n";
    let (b, c) = (package("b", "1"), package("c", "1"));
    check(Rule::Stanzas, base, &format!("{base}{b}"), &format!("{base}{c}"), &format!("{base}{b}{c}"));
}

#[test]
fn users_and_groups_are_united() {
    let (root, games) = ("root:x:0:0:root:/root:/bin/bash\n", "games:x:5:60::/usr/games:/usr/sbin/nologin\n");
    let (www, db) = ("www:x:33:33::/var/www:/usr/sbin/nologin\n", "db:x:101:101::/:/bin/sh\n");
    let base = format!("{root}{games}");
    let (ours, theirs) = (format!("{base}{www}"), format!("{base}{db}"));
    check(PASSWD, &base, &ours, &theirs, &format!("{base}{www}{db}"));
    check(PASSWD, &base, &format!("{root}{www}"), &theirs, &format!("{root}{www}{db}"));
    check(GROUP, "ssl:x:9:a,b\n", "ssl:x:9:a,b,www\n", "ssl:x:9:b,db\n", "ssl:x:9:b,www,db\n");
}

#[test]
fn an_id_with_two_names_is_noted() {
    let base = "root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/root:/bin/sh\n";
    let [www, db] = ["www", "db"].map(|name| format!("{name}:x:101:101::/:/bin/sh\n"));
    let note = "uid 101 belongs to www (web@1) and db (db@2)";
    let texts = [base, &format!("{base}{www}"), &format!("{base}{db}"), &format!("{base}{www}{db}")];
    check_noted(PASSWD, texts, note);
}

#[test]
fn the_same_user_made_twice() {
    let [ours, theirs] = [101, 102].map(|id| format!("www:x:{id}:33::/:/bin/sh\n"));
    let note = "www: web@1 and db@2 differ in field 3; the latter counts";
    check_noted(PASSWD, ["", &ours, &theirs, &theirs], note);
    // The day of the password change is no news.
    check(
        Rule::Accounts(AccountTable::Shadow),
        "",
        "w:!:19000::::::\n",
        "w:!:19001::::::\n",
        "w:!:19001::::::\n",
    );
}

#[test]
fn notes_hold_no_password() {
    let (ours, theirs) = ("w:$y$secret:1::::::\n", "w:$y$other:1::::::\n");
    let (_, notes) = try_merge(Rule::Accounts(AccountTable::Shadow), "", ours, theirs).expect("well formed");
    assert!(!notes.is_empty() && notes.iter().all(|note| !note.contains("$y$")), "{notes:?}");
}

#[test]
fn subordinate_ranges() {
    check(Rule::SubIds, "", "a:100000:65536\n", "b:165536:65536\n", "a:100000:65536\nb:165536:65536\n");
    let (ours, theirs) = ("a:100000:65536\n", "b:100000:65536\n");
    let note = "the ranges a:100000:65536 and b:100000:65536 of web@1 and db@2 overlap";
    check_noted(Rule::SubIds, ["", ours, theirs, &format!("{ours}{theirs}")], note);
}

#[test]
fn small_dpkg_tables() {
    let [a, b, c] = ["a", "b", "c"].map(|name| format!("/bin/{name}\n/bin/{name}.real\n{name}\n"));
    check(Rule::Diversions, &c, &format!("{c}{b}"), &format!("{c}{a}"), &format!("{c}{b}{a}"));
    check(
        Rule::StatOverrides,
        "",
        "root adm 0750 /x y\n",
        "root adm 0755 /z\n",
        "root adm 0750 /x y\nroot adm 0755 /z\n",
    );
    check(
        Rule::PendingTriggers,
        "ldconfig a\n",
        "ldconfig a b\n",
        "ldconfig c\nman x\n",
        "ldconfig b c\nman x\n",
    );
    check(Rule::LineSet, "/u a\n", "/u a\n/v b\n", "/u a\n/w c\n", "/u a\n/v b\n/w c\n");
    check(
        Rule::LineSet,
        "# x\n\n/bin/sh\n",
        "# x\n\n/bin/sh\n/bin/zsh\n",
        "# x\n\n/bin/fish\n",
        "# x\n\n/bin/zsh\n/bin/fish\n",
    );
    check(Rule::Log, "1\n", "1\n2\n", "1\n3\n", "1\n2\n3\n");
}

#[test]
fn alternatives_of_two_layers() {
    let base = "auto\n/usr/bin/editor\neditor.1\n/man/editor.1\n\n/bin/nano\n40\n/man/nano.1\n\n";
    let ours =
        "auto\n/usr/bin/editor\neditor.1\n/man/editor.1\n\n/bin/nano\n40\n/man/nano.1\n/bin/vim\n50\n\n\n";
    let theirs = "auto\n/usr/bin/editor\neditor.1\n/man/editor.1\neditor.de.1\n/man/de/editor.1\n\n\
                  /bin/ed\n-100\n/man/ed.1\n/man/de/ed.1\n/bin/nano\n40\n/man/nano.1\n\n\n";
    let expected = "auto\n/usr/bin/editor\neditor.1\n/man/editor.1\neditor.de.1\n/man/de/editor.1\n\n\
                    /bin/ed\n-100\n/man/ed.1\n/man/de/ed.1\n/bin/nano\n40\n/man/nano.1\n\n/bin/vim\n50\n\n\n\n";
    check(Rule::Alternatives, base, ours, theirs, expected);
    let links = alternative_links(b"editor", expected.as_bytes()).expect("well formed");
    let link = |name: &str, target: Option<&str>| AlternativeLink {
        name: name.into(),
        target: target.map(|target| target.as_bytes().to_vec()),
    };
    assert_eq!(links, [link("editor", Some("/bin/vim")), link("editor.1", None), link("editor.de.1", None)]);
    let chosen = expected.replacen("auto", "manual", 1);
    assert_eq!(alternative_links(b"editor", chosen.as_bytes()), Ok(Vec::new()));
}

#[test]
fn text() {
    let base = "a\nb\nc\nd\ne\n";
    check(Rule::Text, base, "a\nB\nc\nd\ne\n", "a\nb\nc\nd\nE\nf\n", "a\nB\nc\nd\nE\nf\n");
    check(Rule::Text, base, "b\nc\nd\ne\n", "a\nb\nc\nd", "b\nc\nd");
    check(Rule::Text, base, "x\nb\nc\nd\ne\n", "x\nb\nd\ne\n", "x\nb\nd\ne\n");
    assert_eq!(
        try_merge(Rule::Text, base, "a\nX\nc\nd\ne\n", "a\nY\nc\nd\ne\n"),
        Err(MergeError::Conflict { line: 2 })
    );
    assert_eq!(try_merge(Rule::Text, "a\0", "b\0", "c\0"), Err(MergeError::NotText));
    let added = Versions { base: None, ours: b"a\n", theirs: b"b\n" };
    assert!(merge(Rule::Text, added, LABELS).is_err());
}

#[test]
fn what_has_another_form_is_refused() {
    let cases = [
        (Rule::Stanzas, "no colon\n"),
        (Rule::Stanzas, " continuation first\n"),
        (Rule::Stanzas, "Version: 1\n\n"),
        (Rule::Stanzas, "Package: a\nPackage: b\n\n"),
        (Rule::Stanzas, "Package: a\n\nPackage: a\n\n"),
        (Rule::Diversions, "/a\n/b\n"),
        (Rule::StatOverrides, "root root /a\n"),
        (Rule::PendingTriggers, "\n"),
        (Rule::Alternatives, "perhaps\n/x\n\n"),
        (Rule::Alternatives, "auto\n/x\n\n/bin/a\nhigh\n\n"),
        (PASSWD, "root:x:0:0\n"),
        (PASSWD, "a:x:1:1:::\na:x:1:1:::\n"),
        (Rule::SubIds, "a:1:many\n"),
    ];
    for (rule, broken) in cases {
        assert!(try_merge(rule, "", broken, "x:1:1\n").is_err(), "{rule:?} {broken:?}");
        assert!(try_merge(rule, "x:1:1\n", "", broken).is_err(), "{rule:?} {broken:?}");
    }
}

/// Unique names in a shuffled order, as the records of a table of this rule.
fn records(rule: Rule, names: &[u16]) -> String {
    let record = |name: &u16| match rule {
        Rule::Stanzas => package(&format!("p{name}"), "1"),
        Rule::Diversions => format!("/{name}\n/{name}.real\np{name}\n"),
        Rule::StatOverrides => format!("root root 0755 /{name}\n"),
        Rule::PendingTriggers => format!("/{name} p{name}\n"),
        Rule::Accounts(AccountTable::Passwd) => format!("u{name}:x:{name}:{name}::/:/bin/sh\n"),
        Rule::Accounts(AccountTable::Group) => format!("u{name}:x:{name}:\n"),
        Rule::SubIds => format!("u{name}:{name}:1\n"),
        _ => format!("{name}\n"),
    };
    names.iter().map(record).collect()
}

const TABLES: [Rule; 8] = [
    Rule::Stanzas,
    Rule::Diversions,
    Rule::StatOverrides,
    Rule::PendingTriggers,
    PASSWD,
    GROUP,
    Rule::SubIds,
    Rule::LineSet,
];

proptest! {
    #[test]
    fn nothing_panics(
        which in 0..ALL.len(),
        base in "[a:0 \n/]{0,40}|(Package: [ab]\n|Version: [12]\n| x\n|\n){0,12}|auto\n/x\n(a\n|7\n|\n){0,9}",
        ours in "[a:0 \n/]{0,40}|(Package: [ab]\n|Version: [12]\n| x\n|\n){0,12}|auto\n/x\n(a\n|7\n|\n){0,9}",
        theirs in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        for base in [None, Some(base.as_bytes())] {
            for (ours, theirs) in [(ours.as_bytes(), &theirs[..]), (&theirs[..], ours.as_bytes())] {
                let _ = merge(ALL[which], Versions { base, ours, theirs }, LABELS);
            }
        }
        let _ = alternative_links(b"x", ours.as_bytes());
    }

    #[test]
    fn one_sided_and_equal_changes(which in 0..ALL.len(), base: Vec<u8>, side: Vec<u8>) {
        let (base, side) = (&base[..], &side[..]);
        for (ours, theirs) in [(side, base), (base, side), (side, side)] {
            let merged = merge(ALL[which], Versions { base: Some(base), ours, theirs }, LABELS).expect("nothing to decide");
            prop_assert_eq!(merged, Merged { bytes: side.to_vec(), notes: Vec::new() });
        }
    }

    /// Disjoint additions and removals: the same records whichever side comes first, all of them and nothing else; and in sorted
    /// tables the very same bytes.
    #[test]
    fn disjoint_changes_commute(
        which in 0..TABLES.len(),
        fates in prop::collection::btree_map(100_u16..999, 0_u8..5, 0..20),
        shuffled: bool,
    ) {
        // 0 kept, 1 removed by ours, 2 removed by theirs, 3 added by ours, 4 added by theirs
        let rule = TABLES[which];
        let table = |wanted: &[u8]| {
            let mut names: Vec<u16> = fates.iter().filter(|(_, fate)| wanted.contains(fate)).map(|(name, _)| *name).collect();
            if shuffled {
                names.sort_by_key(|name| name.reverse_bits());
            }
            names
        };
        let [base, ours, theirs] = [&[0, 1, 2][..], &[0, 2, 3], &[0, 1, 4]].map(|fates| records(rule, &table(fates)));
        let (text, notes) = try_merge(rule, &base, &ours, &theirs).expect("well formed");
        let (mirrored, _) = try_merge(rule, &base, &theirs, &ours).expect("well formed");
        prop_assert_eq!(notes, [""; 0]);
        let sorted = |text: &str| {
            let mut parts: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
            parts.sort();
            parts
        };
        prop_assert_eq!(sorted(&text), sorted(&records(rule, &table(&[0, 3, 4]))));
        prop_assert_eq!(sorted(&text), sorted(&mirrored));
        if !shuffled {
            prop_assert_eq!(&text, &mirrored);
        }
    }

    /// A text in which each side changes its own half merges to both changes.
    #[test]
    fn changes_of_separate_places_merge(
        head in prop::collection::vec("[a-c]\n", 0..8),
        tail in prop::collection::vec("[a-c]\n", 0..8),
        new_head in prop::collection::vec("[a-d]\n", 0..8),
        new_tail in prop::collection::vec("[a-d]\n", 0..8),
    ) {
        let middle = "== middle ==\n";
        let text = |head: &[String], tail: &[String]| format!("{}{middle}{}", head.concat(), tail.concat());
        let (ours, theirs) = (text(&new_head, &tail), text(&head, &new_tail));
        let (merged, _) = try_merge(Rule::Text, &text(&head, &tail), &ours, &theirs).expect("no conflict");
        prop_assert_eq!(merged, text(&new_head, &new_tail));
    }
}
