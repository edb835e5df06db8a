//! Bases and VEs with packages of dpkg's.

use super::*;

/// A package: name, version, further fields (`Field: value\n`), files (path, content).
#[derive(Clone, Copy)]
pub(super) struct Deb<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    pub(super) fields: &'a str,
    pub(super) files: &'a [(&'a str, &'a str)],
}

pub(super) const fn deb<'a>(name: &'a str, version: &'a str, files: &'a [(&'a str, &'a str)]) -> Deb<'a> {
    Deb { name, version, fields: "", files }
}

impl<'a> Deb<'a> {
    const fn with(self, fields: &'a str) -> Deb<'a> {
        Deb { fields, ..self }
    }

    fn stanza(&self) -> String {
        let Deb { name, version, fields, .. } = self;
        format!(
            "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n{fields}\n"
        )
    }

    fn list(&self) -> String {
        let mut lines: Vec<String> = vec!["/.".to_owned()];
        for (path, _) in self.files {
            let parents = path.match_indices('/').map(|(at, _)| format!("/{}", &path[..at]));
            lines.extend(parents.chain([format!("/{path}")]));
        }
        lines.dedup();
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn md5sums(&self) -> String {
        // What the numbers are does not matter here, but that they follow from the content.
        let sum = |text: &str| crate::types::Digest::of(text.as_bytes()).short();
        self.files.iter().map(|(path, text)| format!("{} {path}\n", sum(text))).collect()
    }

    /// Its files, those of dpkg's own included.
    fn all(&self) -> Vec<(String, String)> {
        let info = |extension| format!("var/lib/dpkg/info/{}.{extension}", self.name);
        let own = [(info("list"), self.list()), (info("md5sums"), self.md5sums())];
        self.files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).chain(own).collect()
    }
}

pub(super) const STATUS: &str = "var/lib/dpkg/status";

pub(super) fn table(debs: &[Deb<'_>]) -> String {
    debs.iter().map(Deb::stanza).collect()
}

/// A base with packages, and the directories that every system has.
pub(super) fn tree(debs: &[Deb<'_>], more: &Entries<'_>) -> Vec<(String, String)> {
    const DIRS: [&str; 6] = ["etc/", "usr/bin/", "usr/lib/", "usr/sbin/", "usr/share/", "var/lib/dpkg/info/"];
    let mut entries: Vec<_> = DIRS.iter().map(|dir| ((*dir).to_owned(), String::new())).collect();
    entries.extend(more.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
    entries.extend(debs.iter().flat_map(Deb::all));
    entries.push((STATUS.to_owned(), table(debs)));
    entries
}

fn scene(old: &[Deb<'_>], new: &[Deb<'_>]) -> Scene {
    scene_with(tree(old, &[]), tree(new, &[]))
}

fn scene_with(old: Vec<(String, String)>, new: Vec<(String, String)>) -> Scene {
    Scene::new(&borrowed(&old), &borrowed(&new))
}

pub(super) fn borrowed(entries: &[(String, String)]) -> Vec<(&str, &str)> {
    entries.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect()
}

impl Scene {
    /// As `dpkg -i` does: every file anew, those that the version has not any more gone.
    pub(super) fn install(self, before: Option<Deb<'_>>, deb: Deb<'_>, table: &str) -> Scene {
        let (old, new) = (before.map(|before| before.all()).unwrap_or_default(), deb.all());
        let mut scene = self;
        for (path, text) in &new {
            scene = scene.with_parents(path).replace(path, text);
        }
        for (path, _) in old.iter().filter(|(path, _)| new.iter().all(|(other, _)| other != path)) {
            scene = scene.remove(path);
        }
        scene.replace(STATUS, table)
    }

    /// As `dpkg --purge` does.
    pub(super) fn purge(self, deb: Deb<'_>, table: &str) -> Scene {
        let scene = deb.all().iter().fold(self, |scene, (path, _)| scene.remove(path));
        scene.replace(STATUS, table)
    }

    fn with_parents(self, path: &str) -> Scene {
        let mut scene = self;
        for (at, _) in path.match_indices('/') {
            if scene.volume.resolve(&path.as_bytes()[..at]).expect("resolve").is_none() {
                scene = scene.mkdir(&path[..at]);
            }
        }
        scene
    }
}

impl Moved {
    /// What `dpkg --verify` looks at: each installed package has the files that its checksums name.
    #[track_caller]
    fn verifies(&self, debs: &[Deb<'_>]) {
        assert_eq!(self.text(STATUS), table(debs));
        let shown = self.shown();
        for deb in debs {
            for (path, text) in deb.all() {
                assert_eq!(shown.get(&path), Some(&text), "{path} of {}", deb.name);
            }
        }
        let lists =
            shown.keys().filter(|path| path.starts_with("var/lib/dpkg/info/") && path.ends_with(".list"));
        assert_eq!(lists.count(), debs.len());
    }
}

const BASH: Deb<'_> = deb("bash", "5.1", &[("usr/bin/bash", "bash 5.1")]);
const BASH_NEW: Deb<'_> = deb("bash", "5.2", &[("usr/bin/bash", "bash 5.2"), ("usr/share/bash/n", "5.2")]);
const SSL: Deb<'_> =
    deb("openssl", "3.0.0", &[("usr/bin/openssl", "ssl 3.0.0"), ("usr/lib/ssl/same", "same")]);
const SSL_OWN: Deb<'_> =
    deb("openssl", "3.0.1", &[("usr/bin/openssl", "ssl 3.0.1"), ("usr/lib/ssl/same", "same")]);
const SSL_NEW: Deb<'_> = deb(
    "openssl",
    "3.0.2",
    &[
        ("usr/bin/openssl", "ssl 3.0.2"),
        ("usr/lib/ssl/same", "other"),
        ("usr/lib/ssl/added", "3.0.2"),
        ("usr/share/openssl/deep/er", "3.0.2"),
    ],
);
const NGINX: Deb<'_> = deb("nginx", "1.22", &[("usr/sbin/nginx", "nginx 1.22")]);

#[test]
fn packages_of_the_ve_and_of_the_update_side_by_side() {
    let moved = scene(&[BASH, SSL], &[BASH_NEW, SSL_NEW])
        .install(None, NGINX, &table(&[BASH, NGINX, SSL]))
        .on_conflict(OnConflict::Fail)
        .go();
    moved.verifies(&[BASH_NEW, NGINX, SSL_NEW]);
    assert_eq!(moved.merged(), [(STATUS, "stanzas")]);
    assert_eq!((moved.shadowed(), moved.resolved.notes), (vec![], vec![]));
}

#[test]
fn a_package_that_the_ve_upgraded_stays_whole() {
    for on_conflict in [OnConflict::Keep, OnConflict::Take] {
        let moved = scene(&[BASH, SSL], &[BASH_NEW, SSL_NEW])
            .install(Some(SSL), SSL_OWN, &table(&[BASH, SSL_OWN]))
            .on_conflict(on_conflict)
            .go();
        // Also a file with the old base's content, which is one of the VE's version.
        moved.verifies(&[BASH_NEW, SSL_OWN]);
        moved.lacks(&["usr/lib/ssl/added", "usr/share/openssl"]);
        assert_eq!(
            moved.shadowed(),
            [
                "usr/bin/openssl: changed, own, openssl 3.0.1 3.0.2",
                "usr/lib/ssl/added: added, own, openssl 3.0.1 3.0.2",
                "usr/lib/ssl/same: changed, own, openssl 3.0.1 3.0.2",
                "usr/share/openssl/deep/er: added, own, openssl 3.0.1 3.0.2",
            ]
        );
        assert_eq!(
            moved.resolved.notes,
            ["openssl: the update brings 3.0.2, the VE keeps its own 3.0.1, which is older"]
        );
    }
}

#[test]
fn a_package_that_both_upgraded_is_refused_when_that_is_wanted() {
    let scene = scene(&[SSL], &[SSL_NEW]).install(Some(SSL), SSL_OWN, &table(&[SSL_OWN]));
    let error = scene.on_conflict(OnConflict::Fail).error();
    assert!(error.contains("VE web") && error.contains("the package openssl"), "{error}");
    assert!(error.contains("the update brings 3.0.2, the VE keeps its own 3.0.1"), "{error}");
}

#[test]
fn a_newer_package_of_the_ve_is_no_older_one() {
    let own = deb("openssl", "3.0.10", &[("usr/bin/openssl", "ssl 3.0.10")]);
    let moved = scene(&[SSL], &[SSL_NEW]).install(Some(SSL), own, &table(&[own])).go();
    moved.verifies(&[own]);
    assert_eq!(moved.resolved.notes[0], "openssl: the update brings 3.0.2, the VE keeps its own 3.0.10");
}

#[test]
fn a_package_that_the_ve_removed_stays_removed() {
    let moved = scene(&[BASH, SSL], &[BASH_NEW, SSL_NEW])
        .purge(SSL, &table(&[BASH]))
        .on_conflict(OnConflict::Fail)
        .go();
    moved.verifies(&[BASH_NEW]);
    moved.lacks(&[
        "usr/bin/openssl",
        "usr/lib/ssl/added",
        "usr/share/openssl",
        "var/lib/dpkg/info/openssl.list",
    ]);
    assert_eq!(moved.resolved.notes[0], "openssl: the update brings 3.0.2, the VE has removed it");
    assert_eq!(moved.shadowed()[0], "usr/bin/openssl: changed, removed, openssl - 3.0.2");
    assert_eq!(moved.shadowed().len(), 4);
}

#[test]
fn a_removed_package_of_which_configuration_is_left() {
    let old = deb("a", "1", &[("etc/a", "1"), ("usr/a", "1")]);
    let new = deb("a", "2", &[("etc/a", "1"), ("usr/a", "2"), ("usr/b", "2")]);
    let left = "Package: a\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\nConffiles:\n /etc/a 00\n\n";
    let moved = scene(&[old], &[new])
        .remove("usr/a")
        .remove("var/lib/dpkg/info/a.md5sums")
        .replace("var/lib/dpkg/info/a.list", "/.\n/etc\n/etc/a\n")
        .replace(STATUS, left)
        .go();
    moved.shows(&[(STATUS, left), ("etc/a", "1"), ("var/lib/dpkg/info/a.list", "/.\n/etc\n/etc/a\n")]);
    moved.lacks(&["usr/a", "usr/b", "var/lib/dpkg/info/a.md5sums"]);
}

#[test]
fn a_package_that_the_update_removes_goes_unless_the_ve_has_its_own() {
    let moved = scene(&[BASH, SSL], &[BASH]).replace("srv", "x").go();
    moved.verifies(&[BASH]);
    let moved = scene(&[BASH, SSL], &[BASH]).install(Some(SSL), SSL_OWN, &table(&[BASH, SSL_OWN])).go();
    moved.verifies(&[BASH, SSL_OWN]);
    assert_eq!(moved.resolved.notes, ["openssl: the update removes it, the VE keeps its own 3.0.1"]);
    assert_eq!(moved.shadowed(), [""; 0]);
}

#[test]
fn what_an_installed_package_misses_afterwards_is_told() {
    let own = NGINX.with("Depends: openssl (>= 3), libc6\n");
    let moved = scene(&[BASH, SSL], &[BASH]).install(None, own, &table(&[BASH, own, SSL])).go();
    moved.verifies(&[BASH, own]);
    // That there is no libc6 was so before.
    assert_eq!(moved.resolved.notes, ["nginx 1.22 needs openssl (>= 3), which is not installed"]);
}

#[test]
fn the_same_version_on_both_sides_is_shared_again() {
    let moved = scene(&[BASH, SSL], &[BASH, SSL_NEW])
        .install(Some(SSL), SSL_NEW, &table(&[BASH, SSL_NEW]))
        .on_conflict(OnConflict::Fail)
        .go();
    moved.verifies(&[BASH, SSL_NEW]);
    assert!(moved.is_shared("usr/bin/openssl") && moved.is_shared("var/lib/dpkg/info/openssl.md5sums"));
    assert_eq!((moved.shadowed(), moved.resolved.notes), (vec![], vec![]));
}

#[test]
fn another_build_of_the_same_version_is_another() {
    let own = deb("openssl", "3.0.2", &[("usr/bin/openssl", "ssl 3.0.2, own")]);
    let moved = scene(&[SSL], &[SSL_NEW]).install(Some(SSL), own, &table(&[own])).go();
    moved.verifies(&[own]);
    moved.lacks(&["usr/lib/ssl/added"]);
}

#[test]
fn a_package_that_both_added() {
    let new = deb("nginx", "1.24", &[("usr/sbin/nginx", "nginx 1.24"), ("usr/share/nginx/x", "1.24")]);
    let moved = scene(&[BASH], &[BASH, new]).install(None, NGINX, &table(&[BASH, NGINX])).go();
    moved.verifies(&[BASH, NGINX]);
    moved.lacks(&["usr/share/nginx"]);
    assert_eq!(
        moved.resolved.notes,
        ["nginx: the update brings 1.24, the VE keeps its own 1.22, which is older"]
    );
}

#[test]
fn files_that_another_package_of_the_update_has_are_not_hidden() {
    let [old, own] = [deb("a", "1", &[("usr/a", "1")]), deb("a", "2", &[("usr/a", "2")])];
    let new = deb("a", "3", &[("usr/a", "3"), ("usr/share/both/x", "3"), ("usr/share/a", "3")]);
    let other = deb("b", "3", &[("usr/share/both/x", "3")]);
    let scene = scene_with(tree(&[old], &[]), tree(&[new, other], &[]));
    let moved = scene.install(Some(old), own, &table(&[own])).go();
    moved.verifies(&[own, other]);
    moved.lacks(&["usr/share/a"]);
}

#[test]
fn files_of_a_package_that_the_ve_changed_by_hand() {
    let old = deb("bash", "5.1", &[("usr/bin/bash", "1"), ("usr/lib/bash/a", "1"), ("usr/lib/bash/b", "1")]);
    let new = deb("bash", "5.2", &[("usr/bin/bash", "2"), ("usr/lib/bash/a", "2"), ("usr/lib/bash/b", "2")]);
    let scene = || {
        scene(&[old], &[new])
            .write("usr/bin/bash", "own")
            .write("usr/lib/bash/a", "own")
            .remove("usr/lib/bash/b")
    };
    let moved = scene().go();
    moved.shows(&[("usr/bin/bash", "own"), ("usr/lib/bash/a", "own"), (STATUS, &table(&[new]))]);
    assert_eq!(
        moved.shadowed(),
        [
            "usr/bin/bash: changed, own, bash 5.1 5.2",
            "usr/lib/bash/a: changed, own, bash 5.1 5.2",
            "usr/lib/bash/b: changed, removed, bash 5.1 5.2",
        ]
    );
    assert_eq!(
        moved.resolved.notes[0],
        "bash 5.1 -> 5.2: the VE keeps its own /usr/bin/bash, /usr/lib/bash/a"
    );
    let moved = scene().on_conflict(OnConflict::Take).go();
    moved.shows(&[("usr/bin/bash", "2"), ("usr/bin/bash.vzfs-old", "own"), ("usr/lib/bash/a", "2")]);
    let error = scene().on_conflict(OnConflict::Fail).error();
    assert!(error.contains("/usr/bin/bash"), "{error}");
}

#[test]
fn conffiles_are_those_of_the_update_with_the_ves_content() {
    let conffiles = |sum: &str| format!("Conffiles:\n /etc/a {sum}\n /opt/a.conf {sum}\n");
    let (first, second) = (conffiles("11"), conffiles("22"));
    let old = deb("a", "1", &[("etc/a", "1\n"), ("opt/a.conf", "1\n")]).with(&first);
    let new = deb("a", "2", &[("etc/a", "2\n"), ("opt/a.conf", "2\n")]).with(&second);
    // Something else has changed the table, so that it is merged.
    let moved = scene(&[old], &[new])
        .install(None, NGINX, &table(&[old, NGINX]))
        .write("etc/a", "3\n")
        .write("opt/a.conf", "3\n")
        .go();
    assert_eq!(moved.text(STATUS), table(&[new, NGINX]));
    moved.shows(&[("etc/a", "3\n"), ("etc/a.dpkg-dist", "2\n"), ("opt/a.conf.dpkg-dist", "2\n")]);
    assert_eq!(moved.shadowed()[1], "opt/a.conf: changed, own, beside opt/a.conf.dpkg-dist, a 1 2");
}

#[test]
fn a_held_package_is_told_of() {
    let held = table(&[SSL]).replace("install ok", "hold ok");
    let moved = scene(&[SSL], &[SSL_NEW]).replace(STATUS, &held).go();
    assert_eq!(moved.text(STATUS), table(&[SSL_NEW]).replace("install ok", "hold ok"));
    moved.shows(&[("usr/bin/openssl", "ssl 3.0.2")]);
    assert_eq!(
        moved.resolved.notes,
        ["openssl: the VE holds it at 3.0.0, but has the template's files, which are 3.0.2 now"]
    );
}

#[test]
fn a_held_package_that_the_update_removes_or_makes_another_of() {
    let held = table(&[SSL]).replace("install ok", "hold ok");
    let own = table(&[BASH]) + &held;
    let moved = scene(&[BASH, SSL], &[BASH_NEW]).replace(STATUS, &own).go();
    moved.verifies(&[BASH_NEW]);
    let mut new = tree(&[SSL_NEW], &[]);
    for (_, text) in new.iter_mut().filter(|(path, _)| path == STATUS) {
        *text = text.replace("amd64", "all");
    }
    let moved = scene_with(tree(&[SSL], &[]), new).replace(STATUS, &held).go();
    assert_eq!(moved.text(STATUS), table(&[SSL_NEW]).replace("amd64", "all"));
}

#[test]
fn a_pending_trigger_is_no_package_of_the_ves() {
    let pending = table(&[SSL])
        .replace("ok installed", "ok triggers-pending")
        .replace("\n\n", "\nTriggers-Pending: x\n\n");
    let moved = scene(&[SSL], &[SSL_NEW]).replace(STATUS, &pending).go();
    moved.shows(&[("usr/bin/openssl", "ssl 3.0.2"), ("usr/lib/ssl/added", "3.0.2")]);
    assert!(moved.text(STATUS).contains("triggers-pending") && moved.text(STATUS).contains("3.0.2"));
}

#[test]
fn files_of_dpkgs_own_follow_the_package() {
    let script = "var/lib/dpkg/info/bash.postinst";
    let old = tree(&[BASH], &[(script, "1"), ("var/lib/dpkg/info/bash.prerm", "1")]);
    let new = tree(&[BASH_NEW], &[(script, "2"), ("var/lib/dpkg/info/bash.prerm", "2")]);
    for on_conflict in [OnConflict::Keep, OnConflict::Take, OnConflict::Fail] {
        let moved = scene_with(old.clone(), new.clone())
            .write(script, "own")
            .remove("var/lib/dpkg/info/bash.prerm")
            .on_conflict(on_conflict)
            .go();
        moved.shows(&[(script, "2"), ("var/lib/dpkg/info/bash.prerm", "2")]);
        assert_eq!(moved.shadowed(), [""; 0]);
    }
}

#[test]
fn files_that_a_package_of_the_ve_took_over_stay_its_own() {
    let old = deb("a", "1", &[("usr/a", "1"), ("usr/b", "1")]);
    let new = deb("a", "2", &[("usr/a", "2"), ("usr/b", "2"), ("usr/c", "2")]);
    let other = deb("z", "1", &[("usr/b", "1")]);
    for on_conflict in [OnConflict::Keep, OnConflict::Take, OnConflict::Fail] {
        let list = "var/lib/dpkg/info/a.list";
        let moved = scene(&[old], &[new])
            .install(None, other, &table(&[old, other]))
            .replace(list, &old.list().replace("/usr/b\n", ""))
            .on_conflict(on_conflict)
            .go();
        moved.shows(&[("usr/a", "2"), ("usr/b", "1"), ("usr/c", "2")]);
        let lines = moved.text(list);
        assert!(lines.contains("/usr/c\n") && !lines.contains("/usr/b\n"), "{lines}");
    }
}

#[test]
fn a_file_that_two_packages_have_is_told_of() {
    let new = deb("bash", "5.2", &[("usr/bin/bash", "bash 5.2"), ("usr/sbin/nginx", "bash 5.2")]);
    let scene = || scene(&[BASH], &[new]).install(None, NGINX, &table(&[BASH, NGINX]));
    let moved = scene().go();
    moved.shows(&[("usr/bin/bash", "bash 5.2"), ("usr/sbin/nginx", "nginx 1.22")]);
    assert_eq!(moved.shadowed(), ["usr/sbin/nginx: added, own, bash 5.1 5.2"]);
    assert_eq!(
        moved.resolved.notes,
        ["/usr/sbin/nginx: it belongs to bash of the update and to nginx of the VE, which stays"]
    );
    assert!(scene().on_conflict(OnConflict::Fail).error().contains("/usr/sbin/nginx"));
}

#[test]
fn what_a_ve_writes_into_its_table_is_not_repeated_at_length() {
    let own = deb("openssl", "3.0.1", &[("usr/bin/openssl", "ssl 3.0.1")]);
    let own_table = table(&[own]).replace("3.0.1", &format!("9\u{7}{}", "0".repeat(100_000)));
    let moved = scene(&[SSL], &[SSL_NEW]).install(Some(SSL), own, &own_table).go();
    assert!(moved.resolved.notes.iter().all(|note| note.len() < 400 && !note.contains('\u{7}')));
    assert!(moved.shadowed().iter().all(|line| line.len() < 400));
}

#[test]
fn paths_are_found_through_links_and_diversions() {
    let bin = ("bin", "-> usr/bin");
    let list = |name: &str| format!("var/lib/dpkg/info/{name}.list");
    let base = |version: &str, extra: &[(String, String)]| {
        let package = |name| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n"
            )
        };
        let mut entries = vec![
            (bin.0.to_owned(), bin.1.to_owned()),
            (STATUS.to_owned(), package("dash") + &package("bash")),
            ("var/lib/dpkg/diversions".to_owned(), "/bin/sh\n/bin/sh.distrib\ndash\n".to_owned()),
            (list("dash"), "/bin/dash\n/bin/sh\n".to_owned()),
            (list("bash"), "/bin/bash\n/bin/sh\n".to_owned()),
        ];
        let files = ["dash", "bash", "sh", "sh.distrib"];
        entries.extend(files.map(|file| (format!("usr/bin/{file}"), format!("{file} {version}"))));
        entries.extend_from_slice(extra);
        entries
    };
    let scene = scene_with(base("1", &[]), base("2", &[]));
    let files = ["usr/bin/dash", "usr/bin/bash", "usr/bin/sh", "usr/bin/sh.distrib"];
    let moved = files.iter().fold(scene, |scene, path| scene.write(path, "own")).go();
    assert_eq!(
        moved.shadowed(),
        [
            "usr/bin/bash: changed, own, bash 1 2",
            "usr/bin/dash: changed, own, dash 1 2",
            "usr/bin/sh: changed, own, dash 1 2",
            "usr/bin/sh.distrib: changed, own, bash 1 2",
        ]
    );
}

#[test]
fn packages_of_several_architectures() {
    let stanza = |architecture: &str, version: &str| {
        format!(
            "Package: libx\nStatus: install ok installed\nArchitecture: {architecture}\nVersion: {version}\nMulti-Arch: same\n\n"
        )
    };
    let base = |version: &str| {
        vec![
            (STATUS.to_owned(), stanza("amd64", version)),
            ("var/lib/dpkg/info/libx:amd64.list".to_owned(), "/usr/lib/x86/libx\n".to_owned()),
            ("usr/lib/x86/libx".to_owned(), version.to_owned()),
        ]
    };
    let moved = scene_with(base("1"), base("2"))
        .replace(STATUS, &(stanza("amd64", "1") + &stanza("i386", "1")))
        .replace("var/lib/dpkg/info/libx:i386.list", "/usr/lib/i386/libx\n")
        .go();
    assert_eq!(moved.text(STATUS), stanza("amd64", "2") + &stanza("i386", "1"));
    moved.shows(&[("usr/lib/x86/libx", "2")]);
}

#[test]
fn a_package_that_changes_its_architecture_stays_one() {
    let all = |text: &str| text.replace("amd64", "all");
    let old = tree(&[SSL], &[]);
    let mut new = tree(&[SSL_NEW], &[]);
    for (_, text) in new.iter_mut().filter(|(path, _)| path == STATUS) {
        *text = all(text);
    }
    let moved = scene_with(old, new).install(Some(SSL), SSL_OWN, &table(&[SSL_OWN])).go();
    moved.verifies(&[SSL_OWN]);
}

#[test]
fn triggers_and_diversions_of_a_package_come_from_its_side() {
    let (file, named, diversions) =
        ("var/lib/dpkg/triggers/File", "var/lib/dpkg/triggers/t", "var/lib/dpkg/diversions");
    let old =
        tree(&[SSL], &[(file, "/usr/x bash/noawait\n"), (named, "bash\n"), (diversions, "/a\n/b\nbash\n")]);
    let more = [
        (file, "/usr/x bash/noawait\n/usr/y openssl\n/usr/z bash\n"),
        (named, "bash\nopenssl/noawait\nzsh\n"),
        (diversions, "/a\n/b\nbash\n/c\n/d\nopenssl\n/e\n/f\nbash\n"),
    ];
    let moved = scene_with(old, tree(&[SSL_NEW], &more))
        .install(Some(SSL), SSL_OWN, &table(&[SSL_OWN]))
        .replace(file, "/usr/x bash/noawait\n/usr/o openssl\n")
        .replace(named, "bash\nown\n")
        .replace(diversions, "/a\n/b\nbash\n/g\n/h\n:\n")
        .go();
    moved.shows(&[
        (file, "/usr/x bash/noawait\n/usr/z bash\n/usr/o openssl\n"),
        (named, "bash\nown\nzsh\n"),
        (diversions, "/a\n/b\nbash\n/e\n/f\nbash\n/g\n/h\n:\n"),
    ]);
}

#[test]
fn a_package_table_that_is_none_stays_as_it_is() {
    let binary = "\u{0}x".repeat(100);
    for text in ["nonsense", "Package: a\n\nPackage: a\n", " \n x", &binary] {
        let moved = scene(&[SSL], &[SSL_NEW]).replace(STATUS, text).go();
        moved.shows(&[(STATUS, text), ("usr/bin/openssl", "ssl 3.0.2")]);
        assert_eq!(moved.shadowed(), [format!("{STATUS}: changed, own")]);
        assert!(moved.resolved.notes[0].contains("the VE's package table cannot be used"));
    }
}

#[test]
fn an_interrupted_dpkg_is_told_of() {
    let old = tree(&[SSL], &[("var/lib/dpkg/updates/", "")]);
    let new = tree(&[SSL_NEW], &[("var/lib/dpkg/updates/", "")]);
    let scene = || scene_with(old.clone(), new.clone()).write("usr/bin/openssl", "ssl 3.0.0");
    assert_eq!(scene().go().resolved.notes, [""; 0]);
    let moved = scene().replace("var/lib/dpkg/updates/0001", "Package: openssl\n").go();
    assert!(moved.resolved.notes[0].starts_with("dpkg is at work in the VE"));
}

#[test]
fn lists_of_the_ve_may_be_anything() {
    let moved = scene(&[SSL], &[SSL_NEW])
        .install(Some(SSL), SSL_OWN, &table(&[SSL_OWN]))
        .replace(
            "var/lib/dpkg/info/openssl.list",
            "\n/\n//\n/..\n/../../x\nusr\n/usr/lib/ssl/../ssl/added\n\u{0}\n",
        )
        .go();
    // A path that the list has, in whatever form, is the VE's business.
    moved.shows(&[("usr/lib/ssl/added", "3.0.2"), ("usr/bin/openssl", "ssl 3.0.1")]);
    let moved = scene(&[SSL], &[SSL_NEW])
        .install(Some(SSL), SSL_OWN, &table(&[SSL_OWN]))
        .replace("var/lib/dpkg/info/openssl.list", "-> /etc/shadow")
        .go();
    moved.lacks(&["usr/lib/ssl/added"]);
}

#[test]
fn and_back_again() {
    let scene = scene(&[BASH, SSL], &[BASH_NEW, SSL_NEW]);
    let back = Delta::between(&scene.delta.new, &scene.delta.old).expect("no collision");
    let own = table(&[BASH, NGINX, SSL_OWN]);
    let moved = scene.install(None, NGINX, &own).install(Some(SSL), SSL_OWN, &own).go();
    moved.verifies(&[BASH_NEW, NGINX, SSL_OWN]);
    let scene = Scene { delta: back, ..moved.scene };
    let moved = scene.go();
    moved.verifies(&[BASH, NGINX, SSL_OWN]);
}
