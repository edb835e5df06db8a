//! Bad input: a clear error that names the thing and the way out, a non-zero exit code, nothing half-made left behind.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use vzfs_tests::host::{finish, host_sh};
use vzfs_tests::{Host, Setup, sample, text};

fn host() -> Host {
    let host = Host::with(Setup { size_mib: 2048, ..Setup::default() });
    let source = host.scratch().join("source");
    sample::make(&source);
    host.vzfs(["template", "import", "sample@1", text(&source)]).ok();
    host
}

/// What a refused command must leave as it was: the catalog, the blobs, and the staging area empty.
fn state(host: &Host) -> String {
    let list = "cd \"$1\" && find blobs trees data -type f 2>/dev/null | LC_ALL=C sort";
    let files = host_sh(list, [host.store()]).text();
    format!("{}\n{}\n{files}", host.json(["template", "list"]), host.json(["ve", "list"]))
}

#[test]
fn unknown_names_are_named() {
    let host = host();
    for (command, word) in [
        (&["template", "show", "nothing"][..], "nothing"),
        (&["template", "show", "sample@9"], "sample@9"),
        (&["template", "rm", "nothing@1"], "nothing"),
        (&["template", "verify", "nothing"], "nothing"),
        (&["template", "diff", "sample", "nothing"], "nothing"),
        (&["ve", "show", "ghost"], "ghost"),
        (&["ve", "mount", "ghost"], "ghost"),
        (&["ve", "umount", "ghost"], "ghost"),
        (&["ve", "diff", "ghost"], "ghost"),
        (&["ve", "rm", "ghost"], "ghost"),
        (&["ve", "create", "new", "-t", "nothing"], "nothing"),
        (&["ve", "commit", "ghost", "x@1"], "ghost"),
    ] {
        host.vzfs(command).refused(3, &[word]);
    }
    // An export that fails leaves no file, not even a part of one.
    let file = host.scratch().join("x.tar");
    host.vzfs(["ve", "export", "ghost", text(&file)]).refused(3, &["ghost"]);
    host.vzfs(["template", "export", "nothing", text(&file)]).refused(3, &["nothing"]);
    assert!(!file.exists());
    assert_eq!(host.json(["ve", "list"]), serde_json::json!([]));
}

#[test]
fn duplicate_names_are_refused() {
    let host = host();
    host.vzfs(["ve", "create", "web", "-t", "sample"]).ok();
    host.vzfs(["ve", "create", "n-2", "-t", "sample"]).ok();
    let before = state(&host);
    host.vzfs(["ve", "create", "web", "-t", "sample"]).refused(4, &["web", "exists"]);
    host.vzfs(["ve", "create", "n", "-t", "sample", "--count", "3"]).refused(4, &["n-2"]);
    host.vzfs(["ve", "rename", "n-2", "web"]).refused(4, &["web"]);
    let source = host.scratch().join("source");
    host.vzfs(["template", "import", "sample@1", text(&source)]).refused(4, &["sample@1"]);
    assert_eq!(state(&host), before, "all of --count or none; nothing else changed");
}

#[test]
fn illegal_names_are_refused_before_anything_happens() {
    let host = host();
    let long = "x".repeat(64);
    for name in ["", "..", "a/b", "-x", "with space", "caf\u{e9}", "new\nline", &long] {
        let code = host.vzfs(["ve", "create", "-t", "sample", "--", name]).code;
        assert_eq!(code, 2, "VE name {name:?}");
    }
    for reference in ["@1", "a@", "a/b@1", "../x@1", "a@1@2", "a b@1"] {
        let code = host.vzfs(["template", "import", reference, "/tmp"]).code;
        assert_eq!(code, 2, "template name {reference:?}");
    }
    host.vzfs(["template", "import", "noversion", "/tmp"]).refused(2, &["noversion"]);
    assert_eq!(host.json(["ve", "list"]), serde_json::json!([]));
}

#[test]
fn wrong_usage_has_its_own_code() {
    let host = host();
    for command in [
        &["nonsense"][..],
        &["ve"],
        &["ve", "create", "x"],
        &["ve", "create", "x", "-t", "sample", "--count", "0"],
    ] {
        assert_eq!(host.vzfs(command).code, 2, "{command:?}");
    }
}

#[test]
fn sources_that_cannot_be_read_leave_nothing() {
    let host = host();
    let before = state(&host);
    let at = |name: &str| host.scratch().join(name);
    let absent = at("absent");
    let outcome = host.vzfs(["template", "import", "bad@1", text(&absent)]);
    assert!([3, 5].contains(&outcome.code), "{}: {}", outcome.code, outcome.error());
    assert!(outcome.error().contains("absent"), "{}", outcome.error());

    fs::write(at("garbage.tar"), vec![0x5a; 70_000]).expect("writable");
    fs::write(at("empty.tar"), b"").expect("writable");
    host_sh(
        r#"cd "$1"; tar -cf whole.tar -C source .; gzip -1 -k whole.tar; xz -0 -k whole.tar
           size=$(stat -c %s whole.tar); head -c $((size / 2)) whole.tar > cut.tar
           size=$(stat -c %s whole.tar.gz); head -c $((size / 2)) whole.tar.gz > cut.tar.gz
           size=$(stat -c %s whole.tar.xz); head -c $((size / 2)) whole.tar.xz > cut.tar.xz"#,
        [host.scratch()],
    );
    for name in ["garbage.tar", "empty.tar", "cut.tar", "cut.tar.gz", "cut.tar.xz"] {
        host.vzfs(["template", "import", "bad@1", text(&at(name))]).refused(5, &[name]);
    }
    // An OCI layout that was copied only half.
    host_sh(
        "mkdir \"$1/oci\"; echo '{\"imageLayoutVersion\":\"1.0.0\"}' > \"$1/oci/oci-layout\"",
        [host.scratch()],
    );
    let outcome = host.vzfs(["template", "import", "bad@1", text(&at("oci"))]);
    assert!([3, 5].contains(&outcome.code), "{}: {}", outcome.code, outcome.error());
    assert_eq!(state(&host), before);
}

/// Writes hostile archives into a folder, one a way of being hostile.
const HOSTILE: &str = r#"
import io, os, sys, tarfile
out = sys.argv[1]
def tar(name, *members):
    with tarfile.open(os.path.join(out, name), "w") as archive:
        root = tarfile.TarInfo("."); root.type = tarfile.DIRTYPE; root.mode = 0o755
        archive.addfile(root)
        for member, data in members:
            member.size = len(data) if member.type == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(data) if member.type == tarfile.REGTYPE else None)
def entry(name, type=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name); info.type = type; info.linkname = link; info.mode = 0o644
    return info
tar("dotdot.tar", (entry("../../escaped"), b"x"))
tar("inner-dotdot.tar", (entry("a/../../escaped"), b"x"))
tar("absolute.tar", (entry("/escaped"), b"x"))
tar("hardlink-outside.tar", (entry("link", tarfile.LNKTYPE, "../../../etc/passwd"), b""))
tar("hardlink-absolute.tar", (entry("link", tarfile.LNKTYPE, "/etc/passwd"), b""))
tar("through-symlink.tar", (entry("out", tarfile.SYMTYPE, "/tmp"), b""), (entry("out/escaped"), b"x"))
"#;

#[test]
fn hostile_archives_are_refused_and_touch_nothing() {
    let host = host();
    host_sh("python3 -c \"$1\" \"$2\"", [HOSTILE.as_ref(), host.scratch().as_os_str()]);
    let before = state(&host);
    let archives =
        ["dotdot", "inner-dotdot", "absolute", "hardlink-outside", "hardlink-absolute", "through-symlink"];
    for archive in archives {
        let file = host.scratch().join(format!("{archive}.tar"));
        let outcome = host.vzfs(["template", "import", "bad@1", text(&file)]);
        // Inside the tree an absolute name or a link target has one harmless reading (from the template's own root),
        // which is accepted; everything else must be refused. Either way nothing outside may be touched.
        let harmless = ["absolute", "hardlink-absolute"].contains(&archive);
        if harmless && outcome.code == 0 {
            host.vzfs(["template", "rm", "bad@1"]).ok();
        } else {
            outcome.refused(5, &[archive]);
        }
        for outside in ["/escaped", "/tmp/escaped", "/var/tmp/escaped"] {
            assert!(!Path::new(outside).exists(), "{archive} has made {outside}");
        }
    }
    assert_eq!(host.json(["template", "list"]).as_array().map(Vec::len), Some(1));
    assert!(before.contains("sample"));
}

#[test]
fn a_bomb_is_stopped_before_it_fills_the_disk() {
    let host = host();
    let before = state(&host);
    let used = host.used_bytes();
    // 6 GiB that are no holes, in a few MB of gzip (the same compressed member again and again); the disk has 2 GiB.
    let bomb = host.scratch().join("bomb.tar.gz");
    let script = r#"
import gzip, sys, tarfile
size = 6 << 30
info = tarfile.TarInfo("bomb"); info.size = size
member = gzip.compress(bytes(range(256)) * (4096 * 16), compresslevel=6)
with open(sys.argv[1], "wb") as out:
    out.write(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
    for n in range(size // (256 * 4096 * 16)):
        out.write(member)
"#;
    host_sh("python3 -c \"$1\" \"$2\"", [script.as_ref(), bomb.as_os_str()]);
    let outcome = host.vzfs(["template", "import", "bomb@1", text(&bomb)]);
    assert!([5, 8].contains(&outcome.code), "{}: {}", outcome.code, outcome.error());
    assert_eq!(state(&host), before);
    assert!(host.used_bytes() < used + (64 << 20), "what was staged is still there");
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let host = Host::with(Setup { size_mib: 400, ..Setup::default() });
    let source = host.scratch().join("source");
    sample::make(&source);
    host.vzfs(["template", "import", "sample@1", text(&source)]).ok();
    let before = state(&host);
    let large = host.scratch().join("large");
    host_sh("mkdir \"$1\"; head -c 600000000 /dev/urandom > \"$1/large\"", [&large]);
    host.vzfs(["template", "import", "large@1", text(&large)]).refused(8, &[]);
    assert_eq!(state(&host), before);

    // A program in a VE gets ENOSPC, and everything goes on when there is space again (XFS frees it a moment later).
    host.mounted("sample", &["full"]);
    let script = "head -c 600000000 /dev/zero | tr '\\0' x > \"$1/large\" && exit 1; test -s \"$1/large\"; rm \"$1/large\"; \
                  for try in $(seq 50); do echo fine > \"$1/after\" && exit; sleep 0.1; done; exit 1";
    host_sh(script, [host.root("full")]);
    assert_eq!(fs::read_to_string(host.root("full").join("after")).expect("read"), "fine\n");
    host.vzfs(["template", "verify", "sample"]).ok();
}

#[test]
fn a_store_has_one_daemon() {
    let host = host();
    let mut second = host.daemon_command();
    let outcome = finish(&mut second);
    assert_ne!(outcome.code, 0);
    assert!(
        outcome.error().contains(text(&host.store())) || outcome.text().contains(text(&host.store())),
        "{}",
        outcome.error()
    );
    host.vzfs(["store", "info"]).ok();
}

#[test]
fn a_store_from_the_future_and_a_folder_that_is_no_store_are_refused() {
    let host = Host::without_daemon(Setup { size_mib: 512, ..Setup::default() });
    host.start();
    host.stop();
    let format = host.store().join("format");
    let original = fs::read_to_string(&format).expect("a store has a format file");
    fs::write(&format, "vzfs store 999\n").expect("writable");
    let outcome = finish(&mut host.daemon_command());
    assert_ne!(outcome.code, 0);
    let told = outcome.text() + &outcome.error();
    assert!(told.contains("999"), "{told}");
    fs::write(&format, original).expect("writable");
    host.start();
    host.stop();

    let foreign = host.scratch().join("foreign");
    host_sh("mkdir \"$1\"; echo precious > \"$1/file\"", [&foreign]);
    let outcome = finish(&mut host.daemon_command_for(&foreign));
    assert_ne!(outcome.code, 0, "a folder with other files in it was taken for a store");
    let left: Vec<PathBuf> =
        fs::read_dir(&foreign).expect("there").flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, [foreign.join("file")]);
}

#[test]
fn a_daemon_that_is_not_there_is_told_with_the_way_out() {
    let host = Host::without_daemon(Setup { size_mib: 512, ..Setup::default() });
    let socket = host.socket();
    host.vzfs(["store", "info"]).refused(6, &[text(&socket), "vzfsd"]);
    // A socket file that a dead daemon has left.
    drop(UnixListener::bind(&socket).expect("bound"));
    assert!(socket.exists());
    host.vzfs(["ve", "list"]).refused(6, &[text(&socket)]);
    host.start();
    host.vzfs(["ve", "list"]).ok();
}

#[test]
fn definitions_with_mistakes_are_refused_with_line_and_column() {
    let host = host();
    let before = state(&host);
    let file = host.scratch().join("wrong.toml");
    let head = "name = \"wrong\"\nversion = \"1\"\n";
    for (body, words) in [
        ("kind = \"app\"\non = \"sample@1\"\npakages = [\"nginx\"]\n", &["wrong.toml", "pakages"][..]),
        ("kind = \"app\"\non = \"sample@1\"\npackages = \"nginx\"\n", &["wrong.toml"]),
        ("kind = \"nonsense\"\n", &["wrong.toml", "nonsense"]),
        ("kind = \"app\"\non = \"sample@1\npackages = []\n", &["wrong.toml"]),
    ] {
        fs::write(&file, format!("{head}{body}")).expect("writable");
        let outcome = host.vzfs(["template", "build", text(&file)]).refused(5, words);
        let error = outcome.error();
        let line_and_column = error.contains("line 3")
            || error.contains("line 4")
            || error.contains(":3:")
            || error.contains(":4:");
        let line_and_column = line_and_column || error.contains(":5:") || error.contains("line 5");
        assert!(line_and_column, "no line and column told for {body:?}:\n{error}");
    }
    fs::write(
        &file,
        "name = \"wrong\"\nversion = \"1\"\nkind = \"app\"\non = \"nothing@1\"\npackages = []\n",
    )
    .expect("writable");
    let outcome = host.vzfs(["template", "build", text(&file)]);
    assert!([3, 5].contains(&outcome.code), "{}: {}", outcome.code, outcome.error());
    assert!(outcome.error().contains("nothing"), "{}", outcome.error());
    host.vzfs(["template", "build", "/no/such/file.toml"]).refused(3, &["/no/such/file.toml"]);
    assert_eq!(state(&host), before);
}

#[test]
fn stacks_that_do_not_fit_and_templates_in_use_are_refused() {
    let host = host();
    let source = host.scratch().join("source");
    host_sh("echo other > \"$1/etc/other\"", [&source]);
    host.vzfs(["template", "import", "other@1", text(&source)]).ok();
    host.vzfs(["ve", "create", "base", "-t", "sample"]).ok();
    host.vzfs(["ve", "mount", "base"]).ok();
    fs::write(host.root("base").join("etc/app"), "app").expect("writable");
    host.vzfs(["ve", "commit", "base", "app@1"]).ok();
    let before = state(&host);

    host.vzfs(["ve", "create", "misfit", "-t", "other", "-t", "app"]).refused(5, &["app", "sample"]);
    host.vzfs(["ve", "create", "misfit", "-t", "app"]).refused(5, &["OS template", "sample"]);
    host.vzfs(["ve", "create", "misfit", "-t", "sample", "-t", "other"]).refused(5, &["other"]);
    host.vzfs(["ve", "create", "misfit", "-t", "sample", "-t", "app", "-t", "app"]).refused(5, &["app"]);
    host.vzfs(["template", "rm", "sample@1"]).refused(4, &["base"]);
    host.vzfs(["ve", "umount", "base"]).ok();
    host.vzfs(["ve", "rm", "base"]).ok();
    host.vzfs(["template", "rm", "sample@1"]).refused(4, &["app"]);
    assert!(before.contains("app"));
}

#[test]
fn mount_points_that_cannot_be_used_are_refused() {
    let host = host();
    host.vzfs(["ve", "create", "web", "-t", "sample"]).ok();
    host.vzfs(["ve", "create", "two", "-t", "sample"]).ok();
    let file = host.scratch().join("a-file");
    fs::write(&file, "").expect("writable");
    let outcome = host.vzfs(["ve", "mount", "web", text(&file)]);
    assert!(outcome.code != 0 && outcome.error().contains("a-file"), "{}", outcome.error());
    let inside = host.store().join("blobs");
    assert_ne!(
        host.vzfs(["ve", "mount", "web", text(&inside)]).code,
        0,
        "mounted over the store's own blobs"
    );
    assert_eq!(host.json(["ve", "show", "web"])["mounted"], false);

    let place = host.scratch().join("place");
    fs::create_dir(&place).expect("writable");
    host.vzfs(["ve", "mount", "web", text(&place)]).ok();
    host.vzfs(["ve", "mount", "two", text(&place)]).refused(4, &["place"]);
    // Busy, until the program that is in it leaves, or with --force.
    let busy = fs::File::open(place.join("etc/hostname")).expect("open");
    host.vzfs(["ve", "umount", "web"]).refused(4, &["web"]);
    assert_eq!(host.json(["ve", "show", "web"])["mounted"], true);
    drop(busy);
    host.vzfs(["ve", "umount", "web"]).ok();
}

#[test]
fn a_stale_mount_point_is_cleared() {
    let host = host();
    host.mounted("sample", &["web"]);
    host.kill();
    // Whatever a killed daemon leaves there (a dead mount answers ENOTCONN), the next one mounts the VE again.
    host.start();
    assert_eq!(fs::read_to_string(host.root("web").join("etc/conf.d/one")).expect("read"), "one\n");
    host.vzfs(["ve", "umount", "web"]).ok();
}

#[test]
fn damage_is_found_and_named() {
    let host = host();
    let find = "find \"$1\" -type f -size +1000k | head -n 1";
    let blob = host_sh(find, [host.store().join("blobs")]).text();
    let blob = blob.trim();
    assert!(!blob.is_empty());
    host_sh("chmod u+w \"$1\"; printf X | dd of=\"$1\" bs=1 seek=1234 conv=notrunc status=none", [blob]);
    host.vzfs(["template", "verify", "sample"]).expect_code(7);
    let digest =
        Path::new(blob).file_name().and_then(|name| name.to_str()).expect("a blob's name is its digest");
    let report = finish(
        host.command(["--format", "json", "template", "verify", "sample"]).stdin(std::process::Stdio::null()),
    );
    assert!(report.text().contains(digest), "{}", report.text());
}
