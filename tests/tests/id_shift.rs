//! VEs with users of their own on the host: one template, other owners in each, and nothing rewritten.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use vzfs_tests::host::{finish, host_sh, run};
use vzfs_tests::{Host, Setup, sample};

/// The overflow id: what an owner is shown as that has no number where one looks from.
const NOBODY: u32 = 65534;

/// A fingerprint as it must look with ids shifted by `first`.
fn shifted(fingerprint: &str, first: u32) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in fingerprint.lines() {
        let mut fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        // The first half of a name with a line end has no fields.
        for id in fields.iter_mut().skip(3).take(2) {
            *id = (id.parse::<u32>().expect("an id") + first).to_string();
        }
        lines.push(fields.join("\t"));
    }
    lines.join("\n") + "\n"
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    (metadata.uid(), metadata.gid())
}

/// Makes and mounts a VE with a shift.
fn shifted_ve(host: &Host, template: &str, name: &str, shift: &str) {
    host.vzfs(["ve", "create", name, "-t", template, "--id-shift", shift]).ok();
    host.vzfs(["ve", "mount", name]).ok();
}

/// Names and sizes of what the store has on its disk of contents and trees.
fn stored(host: &Host) -> String {
    host_sh(
        "cd \"$1\"; find blobs trees data -printf '%p %s %T@\\n' 2>/dev/null | sort || true",
        [host.store()],
    )
    .text()
}

/// Runs a command as a user of the host with these groups.
fn run_as(uid: u32, gid: u32, groups: &str, script: &str, root: &Path) -> vzfs_tests::Outcome {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string()]);
    if groups.is_empty() {
        command.arg("--clear-groups");
    } else {
        command.args(["--groups", groups]);
    }
    finish(command.args(["sh", "-ec", script, "script"]).arg(root).stdin(Stdio::null()))
}

#[test]
fn one_template_has_other_owners_in_each_ve() {
    let host = Host::with_sample(&["plain"]);
    let before = stored(&host);
    shifted_ve(&host, "sample", "one", "100000");
    shifted_ve(&host, "sample", "two", "1000000:20000");
    let (plain, one, two) = (host.root("plain"), host.root("one"), host.root("two"));

    let template = sample::fingerprint(&plain);
    assert_eq!(template, sample::fingerprint(&host.scratch().join("source")));
    assert_eq!(sample::fingerprint(&one), shifted(&template, 100_000));
    assert_eq!(sample::fingerprint(&two), shifted(&template, 1_000_000));

    // ACLs and capabilities name ids, too.
    let acl = |root: &Path| host_sh("getfacl -cnp \"$1/etc/conf.d/one\"", [root]).text();
    assert!(acl(&plain).contains("user:1234:r--") && acl(&plain).contains("group:5678:rw-"));
    assert!(acl(&one).contains("user:101234:r--") && acl(&one).contains("group:105678:rw-"), "{}", acl(&one));
    assert!(acl(&two).contains("user:1001234:r--"), "{}", acl(&two));
    let capability = |root: &Path| host_sh("getcap -n \"$1/usr/bin/capable\"", [root]).text();
    assert!(capability(&plain).trim_end().ends_with("cap_net_raw=ep"), "{}", capability(&plain));
    assert!(capability(&one).contains("cap_net_raw=ep [rootid=100000]"), "{}", capability(&one));
    assert!(capability(&two).contains("[rootid=1000000]"), "{}", capability(&two));

    for ve in ["one", "two"] {
        assert_eq!(host.diff(ve), Vec::new());
        let shown = host.json(["ve", "show", ve]);
        assert_eq!((&shown["private_inodes"], &shown["private_bytes"]), (&0.into(), &0.into()));
    }
    assert_eq!(stored(&host), before, "nothing was written for other owners");
}

#[test]
fn what_is_made_and_changed_belongs_to_the_shifted_ids() {
    let host = Host::with_sample(&[]);
    shifted_ve(&host, "sample", "one", "100000");
    let root = host.root("one");
    let make = r#"
cd "$1"/tmp; umask 022
echo new > file; mkdir dir; ln -s file link; mkfifo pipe; ln file hard; touch empty
chmod 2755 dir; touch dir/inside; cp /bin/true copy; setfacl -m u:101234:rw file; setfacl -d -m g:105678:rx dir; mkdir dir/below
"#;
    // A user in the range, as the host sees it.
    run_as(101_000, 102_000, "", make, &root).ok();
    for name in ["file", "dir", "link", "pipe", "hard", "empty", "dir/inside", "copy", "dir/below"] {
        assert_eq!(owner(root.join("tmp").join(name)), (101_000, 102_000), "{name}");
    }
    assert_eq!(fs::metadata(root.join("tmp/file")).expect("stat").nlink(), 2);

    // Users who have no number in the VE make nothing there: the host's root, and one above the range.
    for uid in [0, 99_999, 165_536] {
        let refused = run_as(uid, uid, "", "touch \"$1\"/tmp/foreign", &root).expect_code(1);
        assert!(refused.error().contains("Value too large"), "{uid}: {}", refused.error());
    }
    // Nobody gives a file to an id outside the range; the last one inside is fine.
    for (owners, fits) in
        [("100000:165535", true), ("165536:100000", false), ("100000:0", false), ("5", false)]
    {
        let outcome = finish(Command::new("chown").arg(owners).arg(root.join("tmp/empty")));
        assert_eq!(outcome.code == 0, fits, "{owners}: {}", outcome.error());
    }
    assert_eq!(owner(root.join("tmp/empty")), (100_000, 165_535));

    // Copy-up, by a writer who is not the owner, leaves owners as they are.
    assert_eq!(owner(root.join("var/lib/app/data")), (101_234, 105_678));
    run_as(
        101_234,
        100_000,
        "",
        "echo more >> \"$1\"/var/lib/app/data; chmod g+w \"$1\"/var/lib/app/none",
        &root,
    )
    .ok();
    host_sh("echo more >> \"$1\"/etc/hostname", [&root]);
    assert_eq!(owner(root.join("var/lib/app/data")), (101_234, 105_678));
    assert_eq!(owner(root.join("etc/hostname")), (100_000, 100_000));

    // Another shift shows the private files under other ids as well, and so does none; every restart keeps it.
    let inside: Vec<_> = ["tmp/file", "tmp/empty", "var/lib/app/data", "etc/hostname", "etc/passwd"].into();
    let owners = |root: &Path| inside.iter().map(|name| owner(root.join(name))).collect::<Vec<_>>();
    let own = [(1000, 2000), (0, 65_535), (1234, 5678), (0, 0), (0, 0)];
    let expect = |first: u32| own.map(|(uid, gid)| (uid + first, gid + first)).to_vec();
    assert_eq!(owners(&root), expect(100_000));
    host.vzfs(["ve", "set", "one", "--id-shift", "300000"]).refused(4, &["one", "mounted"]);
    let (changes, files) = (host.diff("one"), stored(&host));
    for (shift, first) in [("300000", 300_000), ("none", 0), ("2000000000:70000", 2_000_000_000)] {
        host.vzfs(["ve", "umount", "one"]).ok();
        host.vzfs(["ve", "set", "one", "--id-shift", shift]).ok();
        host.vzfs(["ve", "mount", "one"]).ok();
        assert_eq!(owners(&root), expect(first), "{shift}");
        assert_eq!(host.diff("one"), changes);
    }
    assert_eq!(stored(&host), files, "nothing was rewritten for other owners");
    host.stop();
    host.start();
    assert_eq!(owners(&root), expect(2_000_000_000), "after an orderly restart");
    host.kill();
    host.start();
    assert_eq!(owners(&root), expect(2_000_000_000), "after a kill");

    // Its mount is one like any other: in use it stays, gone behind the daemon's back it is made again.
    let inside = fs::File::open(root.join("etc/hostname")).expect("opens");
    host.vzfs(["ve", "umount", "one"]).refused(4, &["one"]);
    host.vzfs(["ve", "umount", "--force", "one"]).ok();
    assert!(!root.join("etc").exists());
    drop(inside);
    host.vzfs(["ve", "mount", "one"]).ok();
    run(Command::new("umount").arg(&root));
    host.vzfs(["ve", "mount", "one"]).ok();
    assert_eq!(owners(&root), expect(2_000_000_000), "after an unmount by hand");
}

#[test]
fn owners_outside_the_range_are_nobody() {
    let host = Host::with_sample(&[]);
    // The sample's 1234:5678 have no number here.
    shifted_ve(&host, "sample", "small", "100000:1000");
    let root = host.root("small");
    let file = root.join("var/lib/app/data");
    assert_eq!(owner(&file), (NOBODY, NOBODY));
    assert_eq!(owner(root.join("usr/bin/sgid")), (100_000, 100_050));
    // As the kernel has it for every filesystem: such a file is read as its mode allows and else left alone, also by root.
    let script = r#"
cd "$1/var/lib/app"
cmp data "$2/var/lib/app/data"
! chmod 0600 data 2>/dev/null || exit 10
! chown 100000 data 2>/dev/null || exit 11
! sh -c 'echo more >> data' 2>/dev/null || exit 12
! rm -f data 2>/dev/null || exit 13
"#;
    host_sh(script, [root.as_path(), &host.scratch().join("source")]);
    assert_eq!(host.diff("small"), Vec::new());
    host.vzfs(["ve", "umount", "small"]).ok();
    host.vzfs(["ve", "set", "small", "--id-shift", "100000:5679"]).ok();
    host.vzfs(["ve", "mount", "small"]).ok();
    assert_eq!(owner(&file), (101_234, 105_678), "a range that reaches further shows them");
}

#[test]
fn ranges_are_checked_shown_and_told_apart() {
    let host = Host::with_sample(&[]);
    for bad in ["0", "5:0", "4294967295", "1:4294967295", "x", "1:2:3", ""] {
        host.vzfs(["ve", "create", "bad", "-t", "sample", "--id-shift", bad]).refused(2, &["--id-shift"]);
    }
    host.vzfs(["ve", "create", "fleet", "-t", "sample", "--count", "3", "--id-shift", "100000"]).ok();
    for (ve, first) in [("fleet-1", 100_000), ("fleet-2", 165_536), ("fleet-3", 231_072)] {
        let shown = host.json(["ve", "show", ve]);
        assert_eq!(shown["id_shift"], serde_json::json!({ "first": first, "count": 65_536 }), "{ve}");
    }
    let far = ["ve", "create", "far", "-t", "sample", "--count", "3", "--id-shift", "4294800000"];
    host.vzfs(far).refused(5, &["4294931072", "4294967294"]);
    assert_eq!(host.json(["ve", "list"]).as_array().map(Vec::len), Some(3), "all or none");

    let warned = host.vzfs(["ve", "create", "near", "-t", "sample", "--id-shift", "165535:2"]).ok().error();
    assert!(warned.contains("warning") && warned.contains("fleet-1"), "{warned}");
    let apart = host.vzfs(["ve", "set", "near", "--id-shift", "99999:1"]).ok().error();
    assert!(!apart.contains("warning"), "{apart}");
    let table = host.vzfs(["ve", "list"]).ok().text();
    assert!(table.contains("IDS") && table.contains("99999:1"), "{table}");
    assert!(host.vzfs(["ve", "show", "near"]).ok().text().contains("99999 to 99999"));
    host.vzfs(["ve", "set", "near", "--id-shift", "none"]).ok();
    assert!(host.json(["ve", "show", "near"])["id_shift"].is_null());
    host.vzfs(["ve", "set", "nobody", "--id-shift", "none"]).refused(3, &["nobody"]);
    // A range survives the daemon, and a VE from before there were any has none.
    host.stop();
    host.start();
    assert_eq!(host.json(["ve", "show", "fleet-2"])["id_shift"]["first"], 165_536);
    assert!(host.vzfs(["store", "doctor"]).text().contains("id shift"));
}

/// Debian's programs in a user namespace: they see a machine like any other, and the host sees nobody with rights.
#[test]
fn debian_works_in_a_user_namespace() {
    let host = Host::with_debian(Setup::default());
    // A file capability and setuid programs that come with a template.
    host.mounted("debian", &["maker"]);
    let make = "cp /bin/chown /usr/local/bin/give; setcap cap_chown+ep /usr/local/bin/give
        cp /usr/bin/id /usr/local/bin/root-id; chmod 4755 /usr/local/bin/root-id
        cp /usr/bin/id /usr/local/bin/mail-id; chgrp mail /usr/local/bin/mail-id; chmod 2755 /usr/local/bin/mail-id";
    host.sh("maker", make).ok();
    host.vzfs(["ve", "commit", "maker", "tools@1"]).ok();
    host.vzfs(["ve", "create", "inner", "-t", "debian", "-t", "tools", "--id-shift", "200000"]).ok();
    host.vzfs(["ve", "mount", "inner"]).ok();
    let root = host.root("inner");
    let before = stored(&host);

    let map = host.sh("inner", "cat /proc/self/uid_map /proc/self/gid_map").ok().text();
    assert!(map.lines().all(|line| line.split_whitespace().eq(["0", "200000", "65536"])), "{map}");
    // What is mounted over the VE's own files belongs to the host.
    let list = "find / -xdev \\( -path /usr/local/bin -o -path /etc/hosts -o -path /etc/resolv.conf -o -path /proc \
        -o -path /sys -o -path /dev \\) -prune -o -printf '%p %U %G %m\\n' | sort";
    let (template, inside) = (host.sh("maker", list).ok().text(), host.sh("inner", list).ok().text());
    assert!(inside.lines().count() > 20_000, "{inside}");
    let different: Vec<_> = inside.lines().zip(template.lines()).filter(|(a, b)| a != b).take(10).collect();
    assert!(inside == template, "inside, the owners are the template's, but: {different:?}");
    assert!(owner(root.join("etc/shadow")) == (200_000, 200_042));
    assert_eq!(host.diff("inner"), Vec::new());
    assert_eq!(stored(&host), before);

    privileged_programs_work_inside(&host);
    the_host_is_out_of_reach(&host);
    packages_install(&host);
    rights_are_as_on_the_hosts_filesystem(&host);
}

fn privileged_programs_work_inside(host: &Host) {
    let script = r#"
touch /tmp/file; chown www-data /tmp/file
as() { setpriv --reuid www-data --regid www-data --init-groups "$@"; }
test "$(as root-id -u)" = 0
test "$(as mail-id -g)" = 8
as passwd -S | grep -q '^www-data '
! as chown mail /tmp/file 2>/dev/null
as give mail /tmp/file
test "$(stat -c %U /tmp/file)" = mail
# A capability that is set inside, and taken away by a write and by chown as anywhere.
cp /bin/chown /tmp/own-give; setcap cap_chown+ep /tmp/own-give
as /tmp/own-give www-data /tmp/file
test "$(stat -c %U /tmp/file)" = www-data
getcap /tmp/own-give | grep -q 'cap_chown=ep$'
chown mail /tmp/own-give; test -z "$(getcap /tmp/own-give)"
setcap cap_chown+ep /tmp/own-give; printf x >> /tmp/own-give; test -z "$(getcap /tmp/own-give)"
setcap cap_chown+ep /tmp/own-give
"#;
    host.sh("inner", script).ok();
    // What was set inside is worth nothing outside, and is worth the same under another number.
    let given = host.root("inner").join("tmp/own-give");
    let shown = run(Command::new("getcap").arg("-n").arg(&given)).text();
    assert!(shown.contains("cap_chown=ep [rootid=200000]"), "{shown}");
    for program in [given, host.root("inner").join("usr/local/bin/give")] {
        let script = format!("{} 0 /var/tmp", program.display());
        run_as(1000, 1000, "", &script, Path::new("/")).expect_code(1);
    }
    host.vzfs(["ve", "umount", "inner"]).ok();
    host.vzfs(["ve", "set", "inner", "--id-shift", "400000"]).ok();
    let again = "setpriv --reuid www-data --regid www-data --clear-groups /tmp/own-give mail /tmp/file; stat -c %U /tmp/file";
    assert_eq!(host.sh("inner", again).ok().text(), "mail\n");
    host.vzfs(["ve", "umount", "inner"]).ok();
    host.vzfs(["ve", "set", "inner", "--id-shift", "none"]).ok();
    assert_eq!(host.sh("inner", again).ok().text(), "mail\n");
    let plain = run(Command::new("getcap").arg("-n").arg(host.root("inner").join("tmp/own-give"))).text();
    assert!(plain.trim_end().ends_with("cap_chown=ep"), "{plain}");
    host.vzfs(["ve", "umount", "inner"]).ok();
    host.vzfs(["ve", "set", "inner", "--id-shift", "200000"]).ok();
    host.vzfs(["ve", "mount", "inner"]).ok();
}

fn the_host_is_out_of_reach(host: &Host) {
    let secret = host.scratch().join("secret");
    fs::write(&secret, "root's own").expect("written");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    let bind = format!("{}:/mnt/secret", secret.display());
    let read = |ve: &str| host.vzfs(["ve", "exec", ve, "--bind", &bind, "--", "cat", "/mnt/secret"]);
    assert_eq!(read("maker").ok().text(), "root's own");
    assert!(read("inner").expect_code(1).error().contains("Permission denied"));

    let mut sleep =
        host.command(["ve", "exec", "inner", "--", "sleep", "4711.25"]).spawn().expect("vzfs starts");
    let begin = Instant::now();
    let found = loop {
        let found = finish(Command::new("pgrep").args(["-n", "-f", "^sleep 4711.25"])).text();
        if let Ok(pid) = found.trim().parse::<i32>() {
            break pid;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "the program does not start");
        std::thread::sleep(Duration::from_millis(50));
    };
    let status = fs::read_to_string(format!("/proc/{found}/status")).expect("it runs");
    let line = |name| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    rustix::process::kill_process(Pid::from_raw(found).expect("a process"), Signal::KILL).expect("killed");
    let _ended = sleep.wait();
    assert_eq!(line("Uid:"), "Uid:\t200000\t200000\t200000\t200000");
    assert_eq!(line("Gid:"), "Gid:\t200000\t200000\t200000\t200000");

    // crun gives what it has as stdin, stdout and stderr to the program's user; nothing of the host is among it.
    let output = host.scratch().join("output");
    let file = fs::File::create(&output).expect("writable");
    for (ve, user) in [("inner", "root"), ("inner", "www-data"), ("maker", "www-data")] {
        let script = "cat; echo out; echo error >&2; echo end";
        let mut command = host.command(["ve", "exec", ve, "--user", user, "--", "sh", "-c", script]);
        command.stdin(fs::File::open("/dev/null").expect("opens"));
        command.stdout(file.try_clone().expect("cloned")).stderr(file.try_clone().expect("cloned"));
        assert!(command.status().expect("vzfs starts").success());
    }
    assert_eq!(fs::read_to_string(&output).expect("read"), "out\nerror\nend\n".repeat(3));
    for path in [Path::new("/dev/null"), &output] {
        assert_eq!(owner(path), (0, 0), "{}", path.display());
    }

    let outside = ["ve", "exec", "inner", "--user", "70000", "--", "true"];
    host.vzfs(outside).refused(125, &["70000", "65536"]);
}

fn packages_install(host: &Host) {
    let package = host.scratch().join("own.deb");
    let script = r#"
d=$(mktemp -d "$1/deb-XXXXXX"); mkdir -p "$d/DEBIAN" "$d/usr/lib/own" "$d/var/lib/own"
printf 'Package: own\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: own\n' > "$d/DEBIAN/control"
printf '#!/bin/sh\nset -e\nadduser --system --group --quiet own 2>/dev/null || useradd --system own\nchown own:own /var/lib/own\nchmod 2750 /var/lib/own\n' > "$d/DEBIAN/postinst"
chmod 755 "$d/DEBIAN/postinst"; seq 10000 > "$d/usr/lib/own/numbers"; chown -R 0:0 "$d"; chown 8:8 "$d/usr/lib/own/numbers"
dpkg-deb --build --root-owner-group "$d" "$2" >/dev/null
"#;
    host_sh(script, [host.scratch(), &package]);
    let bind = format!("{}:/mnt/own.deb:ro", package.display());
    let install = "dpkg -i /mnt/own.deb && dpkg --verify own && stat -c '%U %G %a' /var/lib/own /usr/lib/own/numbers && dpkg --audit";
    let exec = ["ve", "exec", "inner", "--bind", &bind, "--", "sh", "-ec", install];
    let text = host.vzfs(exec).ok().text();
    assert!(text.contains("own own 2750\nroot root 644\n"), "{text}");
    let inside: u32 = host.sh("inner", "id -u own").ok().text().trim().parse().expect("an id");
    assert_eq!(owner(host.root("inner").join("var/lib/own")).0, inside + 200_000);
    host.sh("inner", "apt-get update -q && apt-get install -yq --no-install-recommends tree && tree --version && dpkg --verify tree").ok();
}

/// Who may keep setuid, setgid and capabilities through which change: on a folder of the host's XFS shown inside, and on the VE.
fn rights_are_as_on_the_hosts_filesystem(host: &Host) {
    let script = r#"
cd "$1"
fresh() { rm -f f g; seq 5000 > f; seq 100 > g; chown "$1" f g; chmod "$2" f; setcap cap_chown+ep f; chmod a+rw g; }
owner() { setpriv --reuid 1000 --regid 1000 "$@"; }
root() { setpriv "$@"; }
copy='import os
f, g = os.open("f", os.O_RDWR), os.open("g", os.O_RDONLY)
os.copy_file_range(g, f, 50)'
for mode in 6755 2745 4711; do
  for owners in 1000:2000 0:0; do
    for who in "root --clear-groups" "root --clear-groups --inh-caps -fsetid --bounding-set -fsetid" "root --groups 2000 --inh-caps -fsetid --bounding-set -fsetid" \
               "owner --clear-groups" "owner --groups 2000"; do
      for what in "fallocate -l 90000 f" "fallocate -p -o 0 -l 4096 f" "truncate -s 5 f" "truncate -s 23893 f" \
                  "dd if=g of=f conv=notrunc status=none" "dd if=g of=f status=none" "setfacl -m u:77:r f" "setfacl -m u::rwx f" "chmod 6755 f" \
                  "chown 1000:2000 f" "chgrp 2000 f" "touch f" "python3 -c '$copy'"; do
        fresh "$owners" "$mode"
        if eval "$who $what" 2>/dev/null; then done=yes; else done=no; fi
        printf '%s %s %s: %s: %s %s %s\n' "$mode" "$owners" "$who" "${what%%
*}" "$done" "$(stat -c '%a %u:%g' f)" "$(getcap f)"
      done
    done
  done
done
# Inheritance from sgid folders, with and without membership.
rm -rf s; mkdir s; chgrp 2000 s; chmod 2777 s
owner --clear-groups sh -c 'touch s/a; mkdir s/b; umask 0; touch s/c; chmod 2755 s/c; mknod s/p p'
owner --groups 2000 sh -c 'touch s/d; chmod 2755 s/d; python3 -c "import os; os.open(\"s/e\", os.O_CREAT | os.O_WRONLY, 0o2775)"'
owner --clear-groups python3 -c 'import os; os.open("s/f", os.O_CREAT | os.O_WRONLY, 0o2775)'
find s -printf '%p %U:%G %m\n' | sort
"#;
    let folder = host.disk().join("folder");
    fs::create_dir_all(&folder).expect("writable");
    let bind = format!("{}:/mnt", folder.display());
    for (ve, first) in [("maker", 0), ("inner", 200_000)] {
        std::os::unix::fs::chown(&folder, Some(first), Some(first)).expect("chown");
        let on = |place: &str| {
            let exec = ["ve", "exec", ve, "--bind", &bind, "--", "sh", "-ec", script, "script", place];
            host.vzfs(exec).ok().text()
        };
        host.sh(ve, "mkdir -p /srv/rights").ok();
        let (expected, found) = (on("/mnt"), on("/srv/rights"));
        assert!(expected.lines().count() > 350, "{expected}");
        let different: Vec<_> = expected.lines().zip(found.lines()).filter(|(host, ve)| host != ve).collect();
        assert!(
            different.is_empty(),
            "{} on {ve} (XFS, then the VE): {:#?}",
            different.len(),
            &different[..different.len().min(20)]
        );
        assert_eq!(expected, found);
        run(Command::new("find").arg(&folder).args(["-mindepth", "1", "-delete"]));
    }
}
