//! Versions of templates of a real Debian: built, patched, upgraded across a point release; applications that follow; old versions and the VEs
//! on them stay as they are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use vzfs_tests::host::host_sh;
use vzfs_tests::measure::{ms, report};
use vzfs_tests::{Host, Setup, debian, sample, text};

/// The release as it came out, without what was fixed since.
const OS: &str = r#"
name = "debian"
version = "12"
kind = "os"
packages = ["apt", "ca-certificates"]
recommends = false
exclude = ["opt/left-out/**", "var/cache/ldconfig/aux-cache"]
source_date_epoch = 1700000000
[os]
suite = "bookworm"
variant = "minbase"
mirrors = MIRRORS
"#;

const TOOL: &str = r#"
name = "tool"
version = "1"
kind = "app"
on = "debian@12"
packages = ["tree"]
exclude = ["var/cache/ldconfig/aux-cache"]
scripts = ["tree --version > /etc/tool/built-with"]
[[files]]
path = "/etc/tool/config"
source = "tool.conf"
[[merge]]
path = "etc/tool/*.list"
rule = "lines"
"#;

fn timed(host: &Host, command: &[&str]) {
    let begin = Instant::now();
    host.vzfs(command).ok();
    report(&command[..3].join(" "), ms(begin.elapsed()));
}

fn package(template: &Value, name: &str) -> Option<String> {
    let packages = template["packages"].as_array().expect("packages");
    let found = packages.iter().find(|package| package["name"] == name)?;
    Some(found["version"].as_str().expect("a version").to_owned())
}

/// `version how from` of each version.
fn history(host: &Host, name: &str) -> Vec<String> {
    let versions = host.json(["template", "history", name]);
    let line = |version: &Value| {
        let origin = &version["origin"];
        let from = origin["from"].as_str().unwrap_or_default();
        format!(
            "{} {} {from}",
            version["version"].as_str().unwrap_or_default(),
            origin["how"].as_str().unwrap_or_default()
        )
        .trim_end()
        .to_owned()
    };
    versions.as_array().expect("a list").iter().map(line).collect()
}

fn ino(host: &Host, ve: &str, path: &str) -> u64 {
    fs::metadata(host.root(ve).join(path)).expect("there").ino()
}

fn host_with_debian() -> Host {
    let host = Host::with(Setup::default());
    let [main, _] = debian::sources();
    let os = OS.replace("MIRRORS", &format!("{main:?}"));
    for (name, content) in [("debian.toml", &os[..]), ("tool.toml", TOOL), ("tool.conf", "colour = green\n")]
    {
        fs::write(host.scratch().join(name), content).expect("writable");
    }
    timed(&host, &["template", "build", text(&host.scratch().join("debian.toml"))]);
    timed(&host, &["template", "build", text(&host.scratch().join("tool.toml"))]);
    host
}

#[test]
fn a_debian_is_patched_and_upgraded_and_its_applications_follow() {
    let host = host_with_debian();
    patched_with_everything(&host);
    upgraded(&host);
    a_patched_application_follows_with_its_patches(&host);
}

/// Leaves debian@12.1 with what follows it, and the VE `old` as it was before.
fn patched_with_everything(host: &Host) {
    let overlay = host.scratch().join("overlay");
    fs::create_dir_all(overlay.join("etc/apt")).expect("writable");
    let [_, with_fixes] = debian::sources();
    fs::write(overlay.join("etc/apt/sources.list"), with_fixes.join("\n") + "\n").expect("writable");
    fs::write(overlay.join("etc/motd"), "patched\n").expect("writable");
    // What a VE was given by hand becomes an application without a definition.
    host.mounted("debian", &["hand"]);
    host.sh("hand", "echo by hand > /etc/site; useradd --no-create-home site").ok();
    host.vzfs(["ve", "commit", "hand", "site@1"]).ok();
    host.vzfs(["ve", "create", "old", "-t", "debian@12", "-t", "tool@1", "-t", "site@1"]).ok();
    host.vzfs(["ve", "mount", "old"]).ok();
    host.vzfs(["template", "tag", "debian@12", "stable"]).ok();
    let before = [host.digest("debian@12"), host.digest("tool@1"), host.digest("site@1")];
    let tree = "find / -xdev -type f -not -path '/proc/*' -printf '%i %s %T@ %p\\n' | sort | md5sum";
    let shown = host.sh("old", tree).ok().text();

    // A patch with a package, a folder of replacements, a file, a removal and a command; applications follow.
    let config = host.scratch().join("tool.conf");
    let file = format!("{}:/etc/placed:0640", text(&config));
    let patch = |version: &'static str| {
        ["template", "patch", "debian@12", "--to", version, "--package", "less", "--overlay"]
            .into_iter()
            .chain([
                text(&overlay),
                "--file",
                &file,
                "--remove",
                "/etc/issue.net",
                "--run",
                "echo ran > /etc/ran; mkdir /opt/left-out; echo x > /opt/left-out/x",
            ])
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let planned = host.json([patch("12.1"), vec!["--cascade".into(), "--dry-run".into()]].concat());
    let steps = planned["steps"].to_string();
    for part in ["install less", "place /etc/placed", "debian@12.1", "tool@1+debian12.1", "site@1+debian12.1"]
    {
        assert!(steps.contains(part), "{part} is not planned: {steps}");
    }
    assert_eq!(history(host, "debian"), ["12 built"], "a dry run makes nothing");
    let begin = Instant::now();
    let made = host.json([patch("12.1"), vec!["--cascade".into()]].concat());
    report("template patch with a package, two applications following", ms(begin.elapsed()));
    assert_eq!(made["template"]["kind"], "os");
    let followed: Vec<_> =
        made["cascade"].as_array().expect("a list").iter().map(|done| done["to"].as_str()).collect();
    assert_eq!(followed, [Some("site@1+debian12.1"), Some("tool@1+debian12.1")], "{made}");
    assert_eq!(history(host, "debian"), ["12 built", "12.1 patched debian@12"]);
    assert_eq!(history(host, "tool"), ["1 built", "1+debian12.1 rebuilt tool@1"]);
    let recipes =
        ["tool@1", "tool"].map(|version| host.json(["template", "show", version])["recipe"].clone());
    assert!(recipes[0].is_string() && recipes[0] == recipes[1], "{recipes:?}");
    assert_eq!(history(host, "site"), ["1 committed", "1+debian12.1 reapplied site@1"]);
    assert_eq!(host.json(["template", "show", "tool"])["merge"][0]["rule"], "lines");

    // The same patch again is the same template.
    host.vzfs(patch("12.again")).ok();
    assert_eq!(host.digest("debian@12.again"), host.digest("debian@12.1"));
    host.vzfs(["template", "rm", "debian@12.again"]).ok();

    // What it says that is different is what is different.
    let diff = host.json(["template", "diff", "debian@stable", "debian@12.1"]);
    let packages: Vec<_> =
        diff["packages"].as_array().expect("a list").iter().map(|p| p["name"].as_str()).collect();
    assert_eq!(packages, [Some("less")]);
    let kind_of = |path: &str| {
        let files = diff["files"].as_array().expect("a list");
        files
            .iter()
            .find(|change| change["path"] == path)
            .map(|change| change["kind"].as_str().unwrap_or_default())
    };
    for (path, kind) in [
        ("usr/bin/less", "added"),
        ("etc/motd", "changed"),
        ("etc/issue.net", "deleted"),
        ("etc/placed", "added"),
    ] {
        assert_eq!(kind_of(path), Some(kind), "{path}");
    }
    for path in ["usr/bin/dpkg", "opt/left-out/x", "var/log/apt/history.log", "usr/sbin/policy-rc.d"] {
        assert_eq!(kind_of(path), None, "{path}");
    }
    assert!(
        host.vzfs(["template", "diff", "debian@12", "debian@12.1"])
            .ok()
            .text()
            .contains("1 added, 0 changed")
    );

    // A VE on the new versions has it all, and works.
    host.vzfs(["ve", "create", "new", "-t", "debian", "-t", "tool", "-t", "site"]).ok();
    host.vzfs(["ve", "mount", "new"]).ok();
    let expected = "patched\nran\nby hand\ncolour = green\n640 0 0\n";
    let look = "cat /etc/motd /etc/ran /etc/site /etc/tool/config; stat -c '%a %u %g' /etc/placed";
    assert_eq!(host.sh("new", look).ok().text(), expected);
    host.sh("new", "tree /etc/tool; less --version; id site; test ! -e /etc/issue.net").ok();
    assert_eq!(host.sh("new", "dpkg --audit; dpkg --verify | grep -v ' c /' || true").ok().text(), "");
    assert_eq!(ino(host, "new", "usr/bin/dpkg"), ino(host, "old", "usr/bin/dpkg"), "an unchanged file");

    // Nobody who was there has noticed.
    assert_eq!([host.digest("debian@12"), host.digest("tool@1"), host.digest("site@1")], before);
    assert_eq!(host.sh("old", tree).ok().text(), shown);
    assert_eq!(host.diff("old"), Vec::new());
    let ves = host.json(["ve", "list"]);
    let names: Vec<_> = ves.as_array().expect("a list").iter().map(|ve| ve["name"].as_str()).collect();
    assert_eq!(names, ["hand", "new", "old"].map(Some), "a patch leaves its throw-away VE behind");
}

/// Across the point release.
fn upgraded(host: &Host) {
    timed(host, &["template", "patch", "debian@12.1", "--to", "12.2", "--upgrade", "--cascade"]);
    let diff = host.json(["template", "diff", "debian@12.1", "debian@12.2"]);
    let upgraded = diff["packages"].as_array().expect("a list");
    assert!(!upgraded.is_empty(), "nothing was fixed since the release");
    report(
        "packages upgraded",
        format!(
            "{} of {}",
            upgraded.len(),
            host.json(["template", "show", "debian@12.2"])["packages"].as_array().map_or(0, Vec::len)
        ),
    );
    assert_eq!(
        history(host, "tool").last().map(String::as_str),
        Some("1+debian12.2 rebuilt tool@1+debian12.1")
    );
    host.vzfs(["ve", "create", "newer", "-t", "debian", "-t", "tool", "-t", "site"]).ok();
    assert_eq!(
        host.sh("newer", "dpkg --audit; apt-get check -qq; cat /etc/motd /etc/site").ok().text(),
        "patched\nby hand\n"
    );
    assert_eq!(host.sh("newer", "dpkg --verify | grep -v ' c /' || true").ok().text(), "");
}

fn a_patched_application_follows_with_its_patches(host: &Host) {
    let (first, second) = (host.scratch().join("first"), host.scratch().join("second"));
    for (dir, content) in [(&first, "first\n"), (&second, "second\n")] {
        fs::create_dir_all(dir.join("etc/tool")).expect("writable");
        fs::write(dir.join("etc/tool/patched"), content).expect("writable");
    }
    let overlay = |version: &'static str, from: &'static str, dir: &Path| {
        host.vzfs(["template", "patch", from, "--to", version, "--overlay", text(dir)]).ok();
    };
    overlay("1.1", "tool", &first);
    overlay("1.2", "tool", &second);
    let ends = ["1.1 patched tool@1+debian12.2", "1.2 patched tool@1.1"];
    assert!(history(host, "tool").ends_with(&ends.map(str::to_owned)), "{:?}", history(host, "tool"));
    assert!(package(&host.json(["template", "show", "tool@1.2"]), "tree").is_some());
    // What it is made of is kept: the folders are not needed any more.
    fs::remove_dir_all(&first).expect("removed");
    let recipe = host.scratch().join("recipe.tar");
    host.vzfs(["template", "recipe", "tool", text(&recipe)]).ok();
    let members = host_sh("tar -tf \"$1\"", [&recipe]).text();
    for member in
        ["./definition.toml", "./sources/0", "./patches/1/overlay/etc/tool/patched", "./patches/2/patch.json"]
    {
        assert!(members.lines().any(|line| line == member), "{member} is missing:\n{members}");
    }
    fs::remove_file(host.scratch().join("tool.conf")).expect("removed");
    let cascade = ["--cascade", "--cascade-version", "tool=7"];
    host.vzfs(
        ["template", "patch", "debian", "--to", "12.3", "--run", "echo x > /etc/x"].iter().chain(&cascade),
    )
    .ok();
    host.vzfs(["ve", "create", "web", "-t", "debian@12.3", "-t", "tool@7"]).ok();
    let look = "cat /etc/x /etc/tool/patched /etc/tool/config; tree --version >/dev/null";
    assert_eq!(host.sh("web", look).ok().text(), "x\nsecond\ncolour = green\n");
    assert_eq!(host.json(["template", "show", "tool@7"])["origin"]["from"], "tool@1.2");
    // Nothing is left to follow.
    assert_eq!(host.json(["template", "cascade", "debian"]), serde_json::json!([]));
}

/// What is refused, on a template that is no Debian.
#[test]
fn patches_tags_and_cascades_are_refused_with_reasons() {
    let host = Host::with(Setup { size_mib: 2048, ..Setup::default() });
    let source = host.scratch().join("source");
    sample::make(&source);
    let import = |spec: &str, os: Option<&str>| {
        let os = os.map(|os| ["--os", os]);
        host.vzfs(["template", "import", spec, text(&source)].iter().chain(os.iter().flatten())).ok();
    };
    import("sample@1", None);
    fs::write(source.join("etc/app"), "app\n").expect("writable");
    fs::write(source.join("etc/hostname"), "the application's\n").expect("writable");
    fs::write(source.join("usr/bin/tool"), "#!/bin/sh\n# the application's\n").expect("writable");
    import("app@1", Some("sample"));
    // No package tells a time and no program runs: the newest file's time it is.
    let file = format!("{}:/etc/new", text(&source.join("etc/app")));
    host.vzfs(["template", "patch", "sample", "--to", "2", "--file", &file]).ok();
    host.vzfs(["template", "patch", "sample@1", "--to", "2.again", "--file", &file]).ok();
    assert_eq!(host.digest("sample@2"), host.digest("sample@2.again"));
    let steps = &host.json(["template", "show", "sample@2"])["origin"]["steps"];
    assert_eq!(steps[0], "place /etc/new (mode 0644)");
    host.vzfs(["template", "patch", "sample", "--to", "2", "--file", &file])
        .refused(4, &["sample@2", "exists"]);
    host.vzfs(["template", "patch", "sample", "--to", "3"]).refused(2, &["changes nothing"]);
    host.vzfs(["template", "patch", "nothing", "--to", "3", "--file", &file]).refused(3, &["nothing"]);
    host.vzfs(["template", "patch", "sample", "--to", "3", "--remove", "/not/there"])
        .refused(3, &["/not/there"]);
    host.vzfs(["template", "patch", "app", "--to", "3", "--file", &file, "--cascade"])
        .refused(5, &["OS templates"]);
    host.vzfs(["template", "recipe", "sample", "-"]).refused(3, &["sample@2.again", "definition"]);

    // The application's own changes come along; where they would hide a fix, they do not.
    let cascade = host.json(["template", "cascade", "sample@2"]);
    assert_eq!(cascade[0]["to"], "app@1+sample2", "{cascade}");
    host.vzfs(["ve", "create", "web", "-t", "sample@2", "-t", "app"]).ok();
    host.vzfs(["ve", "mount", "web"]).ok();
    assert_eq!(
        fs::read_to_string(host.root("web").join("etc/hostname")).expect("there"),
        "the application's\n"
    );
    assert!(host.root("web").join("etc/new").exists());
    fs::write(source.join("usr/bin/tool"), "#!/bin/sh\n# fixed\n").expect("writable");
    let fix = format!("{}:/usr/bin/tool:0755", text(&source.join("usr/bin/tool")));
    let patch = ["template", "patch", "sample@2", "--to", "3", "--file", &fix, "--cascade"];
    host.vzfs(patch).refused(1, &["app@1+sample2"]);
    let refused = host.vzfs(["--format", "json", "template", "cascade", "sample@3"]).expect_code(1).json();
    assert!(refused[0]["error"].as_str().is_some_and(|why| why.contains("/usr/bin/tool")), "{refused}");

    // With a rule for the file it is clear whose counts.
    fs::write(source.join("usr/bin/tool"), "#!/bin/sh\n# the application's again\n").expect("writable");
    let rule = ["--os", "sample@1", "--merge", "usr/bin/tool=keep"];
    host.vzfs(["template", "import", "app@9", text(&source)].iter().chain(&rule)).ok();
    let cascade = host.json(["template", "cascade", "sample@3"]);
    assert_eq!(cascade[0]["template"]["merge"][0]["rule"], "keep", "{cascade}");
    host.vzfs(["ve", "create", "fixed", "-t", "sample@3", "-t", "app"]).ok();
    host.vzfs(["ve", "mount", "fixed"]).ok();
    assert_eq!(
        fs::read_to_string(host.root("fixed").join("usr/bin/tool")).expect("there"),
        "#!/bin/sh\n# fixed\n"
    );

    // Tags.
    host.vzfs(["template", "tag", "sample@1", "stable"]).ok();
    assert_eq!(host.json(["template", "show", "sample@stable"])["version"], "1");
    let moved = host.json(["template", "tag", "sample@2", "stable"]);
    assert_eq!((&moved["before"], &moved["now"]), (&"1".into(), &"2".into()));
    host.vzfs(["template", "import", "sample@stable", text(&source)]).refused(4, &["sample@stable"]);
    host.vzfs(["template", "import", "sample@other", text(&source)]).ok();
    host.vzfs(["template", "tag", "sample@2", "other"]).refused(4, &["sample@other", "version"]);
    host.vzfs(["template", "tag", "sample@2.again", "gone"]).ok();
    host.vzfs(["template", "rm", "sample@2.again"]).refused(4, &["tagged", "gone", "--force"]);
    host.vzfs(["template", "rm", "sample@2.again", "--dry-run"]).refused(4, &["gone"]);
    host.vzfs(["template", "rm", "sample@2.again", "--force"]).ok();
    host.vzfs(["template", "show", "sample@gone"]).refused(3, &["sample@gone"]);
    host.vzfs(["template", "untag", "sample", "gone"]).refused(3, &["no tag gone"]);
    // Durable at once, whatever becomes of the daemon.
    host.kill();
    host.start();
    assert_eq!(host.json(["template", "show", "sample@stable"])["version"], "2");
    assert!(host.vzfs(["template", "history", "sample"]).ok().text().contains("stable"));
    host.vzfs(["template", "untag", "sample", "stable"]).ok();
    host.vzfs(["ve", "create", "x", "-t", "sample@stable"]).refused(3, &["sample@stable"]);
}
