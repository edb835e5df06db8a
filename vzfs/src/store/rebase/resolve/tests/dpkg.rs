//! The same with the real dpkg, which must find nothing wrong afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::*;

fn run(command: &mut Command) -> String {
    let output = command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().expect("it runs");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// Makes a package file.
fn build(dir: &Path, name: &str, version: &str, fields: &str, files: &[(&str, &str)]) {
    let tree = dir.join(format!("{name}_{version}"));
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n{fields}"
    );
    let conffiles: String = files
        .iter()
        .filter(|(path, _)| path.starts_with("etc/"))
        .map(|(path, _)| format!("/{path}\n"))
        .collect();
    let control = [("DEBIAN/control", control.as_str()), ("DEBIAN/conffiles", &conffiles)];
    for (path, text) in files.iter().chain(&control) {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        fs::write(path, text).expect("write");
    }
    let sums: String = files
        .iter()
        .filter(|(path, _)| !path.starts_with("etc/"))
        .map(|(path, _)| run(Command::new("md5sum").arg(path).current_dir(&tree)))
        .collect();
    fs::write(tree.join("DEBIAN/md5sums"), sums).expect("write");
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(dir));
}

fn dpkg(root: &Path, debs: &Path, arguments: &[&str], packages: &[&str]) -> String {
    let files = packages.iter().map(|package| match package.split_once('_') {
        Some(_) => debs.join(format!("{package}_all.deb")),
        None => package.into(),
    });
    let mut command = Command::new("dpkg");
    run(command
        .arg(format!("--root={}", root.display()))
        .args(["--force-confold", "--no-triggers"])
        .args(arguments)
        .args(files))
}

fn root(dir: &Path, name: &str) -> PathBuf {
    let root = dir.join(name);
    for part in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/bin", "usr/share/doc", "etc", "opt"] {
        fs::create_dir_all(root.join(part)).expect("folder");
    }
    fs::write(root.join("var/lib/dpkg/status"), "").expect("write");
    root
}

/// Path -> inode number and text, of all regular files; directories with a slash at the end. Without locks and logs.
fn files(root: &Path) -> BTreeMap<String, (u64, String)> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("list") {
            let path = entry.expect("entry").path();
            let text = path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
            let meta = path.symlink_metadata().expect("stat");
            if meta.is_dir() {
                found.insert(text + "/", (0, String::new()));
                todo.push(path);
            } else if !text.starts_with("var/log/") && !text.contains("/lock") {
                found.insert(text, (meta.ino(), fs::read_to_string(&path).expect("read")));
            }
        }
    }
    found
}

impl Scene {
    /// Does to the VE what was done between two looks at a folder: a file with another inode number is a new file.
    fn follow(
        self,
        before: &BTreeMap<String, (u64, String)>,
        after: &BTreeMap<String, (u64, String)>,
    ) -> Scene {
        let mut scene = self;
        for (path, file) in after.iter().filter(|(path, file)| before.get(*path) != Some(file)) {
            scene = match path.strip_suffix('/') {
                Some(dir) => scene.mkdir(dir),
                None => scene.replace(path, &file.1),
            };
        }
        for path in before.keys().rev().filter(|path| !after.contains_key(*path)) {
            scene = match path.strip_suffix('/') {
                Some(dir) => scene.rmdir(dir),
                None => scene.remove(path),
            };
        }
        scene
    }
}

#[test]
fn dpkg_finds_nothing_wrong() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("scratch folder");
    let debs = dir.path();
    build(
        debs,
        "bash",
        "1",
        "",
        &[("usr/bin/bash", "1"), ("usr/bin/extra", "1"), ("etc/bashrc", "a\nb\nc\n"), ("etc/profile", "a\n")],
    );
    build(
        debs,
        "bash",
        "2",
        "",
        &[
            ("usr/bin/bash", "2"),
            ("etc/bashrc", "A\nb\nc\n"),
            ("etc/profile", "b\n"),
            ("usr/bin/extra", "2"),
            ("usr/bin/new", "2"),
        ],
    );
    build(debs, "ssl", "1", "", &[("usr/bin/ssl", "1"), ("usr/share/doc/ssl/same", "x")]);
    build(debs, "ssl", "1.1", "", &[("usr/bin/ssl", "1.1"), ("usr/share/doc/ssl/same", "x")]);
    build(
        debs,
        "ssl",
        "2",
        "",
        &[("usr/bin/ssl", "2"), ("usr/share/doc/ssl/same", "y"), ("usr/share/ssl/added", "2")],
    );
    build(debs, "gone", "1", "", &[("usr/bin/gone", "1"), ("etc/gone", "1")]);
    build(debs, "gone", "2", "", &[("usr/bin/gone", "2"), ("etc/gone", "1"), ("usr/bin/gone2", "2")]);
    build(debs, "left", "1", "", &[("usr/bin/left", "1"), ("etc/left", "1")]);
    build(debs, "left", "2", "", &[("usr/bin/left", "2"), ("etc/left", "1"), ("usr/share/left/x", "2")]);
    build(debs, "old", "1", "", &[("usr/bin/old", "1")]);
    build(debs, "fresh", "1", "", &[("usr/bin/fresh", "1")]);
    build(debs, "own", "1", "Depends: bash, ssl (>= 1.1)\n", &[("usr/bin/own", "1"), ("etc/own", "1")]);
    build(debs, "taker", "1", "Replaces: bash (<= 2)\n", &[("usr/bin/extra", "taken")]);

    let (old, new) = (root(debs, "old-base"), root(debs, "new-base"));
    dpkg(&old, debs, &["-i"], &["bash_1", "ssl_1", "gone_1", "left_1", "old_1"]);
    dpkg(&new, debs, &["-i"], &["bash_1", "ssl_1", "gone_1", "left_1", "old_1"]);
    dpkg(&new, debs, &["-i"], &["bash_2", "ssl_2", "gone_2", "left_2", "fresh_1"]);
    dpkg(&new, debs, &["-P"], &["old"]);
    let [before, update] = [&old, &new].map(|root| files(root));
    fn borrowed(files: &BTreeMap<String, (u64, String)>) -> Vec<(&str, &str)> {
        files.iter().map(|(path, (_, text))| (path.as_str(), text.as_str())).collect()
    }
    let scene = Scene::new(&borrowed(&before), &borrowed(&update));

    // The old base's folder goes on as the VE's.
    let ve = old;
    dpkg(&ve, debs, &["-i"], &["ssl_1.1", "own_1"]);
    dpkg(&ve, debs, &["-P"], &["gone"]);
    dpkg(&ve, debs, &["-r"], &["left"]);
    dpkg(&ve, debs, &["-i"], &["taker_1"]);
    fs::write(ve.join("etc/bashrc"), "a\nb\nC\n").expect("write");
    fs::write(ve.join("etc/profile"), "c\n").expect("write");
    let moved = scene.follow(&before, &files(&ve)).go();

    let result = root(debs, "result");
    for (path, text) in moved.shown() {
        let path = result.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        fs::write(path, text).expect("write");
    }
    assert_eq!(dpkg(&result, debs, &["--audit"], &[]), "");
    // What the VE changed by hand, and nothing else.
    let verify = dpkg(&result, debs, &["--verify"], &[]);
    assert_eq!(verify, "??5?????? c /etc/bashrc\n??5?????? c /etc/profile\n");
    let list = run(Command::new("dpkg-query")
        .arg(format!("--admindir={}", result.join("var/lib/dpkg").display()))
        .args(["-W", "-f", "${db:Status-Abbrev}${Package} ${Version}\\n"]));
    assert_eq!(list, "ii bash 2\nii fresh 1\nrc left 1\nii own 1\nii ssl 1.1\nii taker 1\n");
    moved.lacks(&["usr/share/ssl", "usr/bin/gone2", "usr/share/left", "usr/bin/old"]);
    moved.shows(&[
        ("usr/bin/bash", "2"),
        ("usr/bin/extra", "taken"),
        ("etc/bashrc", "A\nb\nC\n"),
        ("etc/profile.dpkg-dist", "b\n"),
    ]);
    // And dpkg goes on from there.
    dpkg(&result, debs, &["-P"], &["own", "taker", "left"]);
    dpkg(&result, debs, &["-i"], &["ssl_2", "bash_2"]);
    assert_eq!(dpkg(&result, debs, &["--audit"], &[]), "");
}
