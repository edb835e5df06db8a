//! A real point release reaches many VEs that are at work, and is taken back while the daemon is killed: no program sees an error.

#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use vzfs_tests::measure::{ms, report, spread};
use vzfs_tests::{Host, Setup, debian};

/// VEs in the short form, which runs with all tests; `VZFS_UPDATE_VES` says how many are to be there otherwise.
const VES: usize = 40;
/// How often the daemon is killed while VEs go back.
const KILLS: usize = 3;
/// Files that each VE reads, of those that the release changes and of those that it does not.
const FILES_OF_A_KIND: usize = 60;
/// What a VE rests between two rounds, so that two hundred of them leave some of the machine to others.
const REST: Duration = Duration::from_millis(150);
/// What programs in a VE list.
const LISTED: &str = "usr/bin";

fn ves() -> usize {
    std::env::var("VZFS_UPDATE_VES").map_or(VES, |text| text.parse().expect("a number"))
}

/// The two states of the release, as far as the load looks at them.
struct Release {
    /// Digest of each file's content before and after.
    files: Vec<(PathBuf, [u64; 2])>,
    /// Names that both have.
    listed: BTreeSet<String>,
    /// A library that is replaced, and its content before.
    library: (PathBuf, Vec<u8>),
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// All regular files below a folder, without symbolic links to them.
fn files_of(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable")) {
            let kind = entry.file_type().expect("known");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path().strip_prefix(root).expect("below it").to_owned());
            }
        }
    }
    files.sort_unstable();
    files
}

fn names(folder: &Path) -> std::io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !names.insert(name.clone()) {
            return Err(std::io::Error::other(format!("{name} is listed twice")));
        }
    }
    Ok(names)
}

impl Release {
    fn new([old, new]: &[PathBuf; 2]) -> Release {
        let (mut changed, mut same) = (Vec::new(), Vec::new());
        for path in files_of(old) {
            let Ok(after) = fs::read(new.join(&path)) else { continue };
            let before = fs::read(old.join(&path)).expect("readable");
            let both = [digest(&before), digest(&after)];
            if before == after { same.push((path, both)) } else { changed.push((path, both)) }
        }
        // What is merged or made anew in a VE is neither the old nor the new file.
        changed.retain(|(path, _)| path.starts_with("usr"));
        let spread = |files: Vec<(PathBuf, [u64; 2])>| {
            let step = files.len().div_ceil(FILES_OF_A_KIND).max(1);
            files.into_iter().step_by(step)
        };
        assert!(changed.len() >= FILES_OF_A_KIND, "the release changes {} files only", changed.len());
        let library = changed.iter().map(|(path, _)| path).find(|path| path.ends_with("libcrypto.so.3"));
        let library = library.expect("OpenSSL is among what was fixed").clone();
        let content = fs::read(old.join(&library)).expect("readable");
        let [before, after] = [old, new].map(|tree| names(&tree.join(LISTED)).expect("readable"));
        Release {
            library: (library, content),
            files: spread(changed).chain(spread(same)).collect(),
            listed: &before & &after,
        }
    }
}

/// What the load saw.
#[derive(Default)]
struct Seen {
    errors: Mutex<Vec<String>>,
    rounds: AtomicU64,
}

impl Seen {
    fn note(&self, ve: usize, what: &str, error: impl std::fmt::Display) {
        let mut errors = self.errors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        errors.push(format!("ve-{ve}: {what}: {error}"));
    }

    fn check(&self, ve: usize, what: &str, result: std::io::Result<()>) {
        if let Err(error) = result {
            self.note(ve, what, error);
        }
    }
}

/// Ends the load with its scope, in whatever way that ends.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One VE at work until `stop`: reads, lists, writes, runs programs.
fn work(ve: usize, root: &Path, release: &Release, stop: &AtomicBool, seen: &Seen) {
    let (library, content) = &release.library;
    let library = match File::open(root.join(library)) {
        Ok(file) => file,
        Err(error) => return seen.note(ve, "opening the library", error),
    };
    let mut log = match OpenOptions::new().append(true).create(true).open(root.join("var/log/load")) {
        Ok(file) => file,
        Err(error) => return seen.note(ve, "creating a log", error),
    };
    let mut round = ve;
    while !stop.load(Ordering::Relaxed) {
        for (path, [old, new]) in release.files.iter().cycle().skip(round * 7).take(4) {
            match fs::read(root.join(path)) {
                Ok(bytes) if [*old, *new].contains(&digest(&bytes)) => {}
                Ok(bytes) => {
                    seen.note(ve, "reading", format!("{} is torn, {} bytes", path.display(), bytes.len()))
                }
                Err(error) => seen.note(ve, "reading", format!("{}: {error}", path.display())),
            }
        }
        // Who has a file open keeps it.
        let (mut part, at) = ([0; 4096], (round * 4096) % (content.len() - 4096));
        match library.read_exact_at(&mut part, at as u64) {
            Ok(()) if part == content[at..at + 4096] => {}
            Ok(()) => seen.note(ve, "reading an open file", "it has changed"),
            Err(error) => seen.note(ve, "reading an open file", error),
        }
        match round % 4 {
            0 => match names(&root.join(LISTED)) {
                Ok(names) if names.is_superset(&release.listed) => {}
                Ok(_) => seen.note(ve, "listing", "names are missing"),
                Err(error) => seen.note(ve, "listing", error),
            },
            1 => seen.check(ve, "writing", write(root, &mut log, round)),
            2 => {
                let ran = Command::new("chroot")
                    .arg(root)
                    .args(["perl", "-e", "print 6 * 7"])
                    .stdin(Stdio::null())
                    .output();
                match ran {
                    Ok(output) if output.stdout == b"42" => {}
                    Ok(output) => seen.note(ve, "running perl", String::from_utf8_lossy(&output.stderr)),
                    Err(error) => seen.note(ve, "running perl", error),
                }
            }
            _ => {}
        }
        round += 1;
        seen.rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(REST);
    }
}

fn write(root: &Path, log: &mut File, round: usize) -> std::io::Result<()> {
    writeln!(log, "round {round}")?;
    let (new, file) = (root.join("etc/load.new"), root.join("etc/load.conf"));
    fs::write(&new, format!("round={round}\n"))?;
    fs::rename(&new, &file)?;
    if fs::read(&file)? != format!("round={round}\n").as_bytes() {
        return Err(std::io::Error::other("what was written is not there"));
    }
    fs::create_dir(root.join("srv/load"))?;
    fs::remove_dir(root.join("srv/load"))
}

/// Whether each VE shows the state with this index, of every file.
fn check_state(host: &Host, release: &Release, state: usize) {
    for ve in 1..=ves() {
        for (path, digests) in &release.files {
            let bytes = fs::read(host.root(&format!("ve-{ve}")).join(path)).expect("readable");
            assert_eq!(digest(&bytes), digests[state], "{} of ve-{ve}", path.display());
        }
    }
}

/// Numbers of all VEs' reports in an update, by field.
fn numbers(host: &Host, update: &str, fields: [&str; 2]) -> BTreeMap<String, Vec<Duration>> {
    let mut found = BTreeMap::<String, Vec<Duration>>::new();
    for ve in 1..=ves() {
        let shown = host.json(["update", "show", update, &format!("ve-{ve}")]);
        for field in fields {
            let micros = shown["report"][field].as_u64().unwrap_or_else(|| panic!("no {field} in {shown}"));
            found.entry(field.to_owned()).or_default().push(Duration::from_micros(micros));
        }
    }
    found
}

fn tell(host: &Host, update: &str, what: &str) {
    for (field, times) in numbers(host, update, ["micros", "pause_micros"]) {
        let times = spread(times);
        report(
            &format!("{what}, {field} of a VE, median and slowest"),
            format!("{}, {}", ms(times.median), ms(times.worst)),
        );
    }
}

#[test]
fn a_point_release_reaches_ves_at_work_and_goes_back_under_kills() {
    let trees = debian::release();
    let release = Release::new(&trees);
    let host = Host::with(Setup::default());
    for (version, tree) in ["12.0", "12.1"].iter().zip(&trees) {
        host.vzfs(["template", "import", &format!("debian@{version}"), tree.to_str().expect("text")]).ok();
    }
    host.vzfs(["ve", "create", "ve", "-t", "debian@12.0", "--count", &ves().to_string()]).ok();
    for ve in 1..=ves() {
        host.vzfs(["ve", "mount", &format!("ve-{ve}")]).ok();
    }
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    let update = std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for ve in 1..=ves() {
            let (root, release, stop, seen) = (host.root(&format!("ve-{ve}")), &release, &stop, &seen);
            scope.spawn(move || work(ve, &root, release, stop, seen));
        }
        std::thread::sleep(Duration::from_secs(3));
        let begin = Instant::now();
        let args = ["update", "--all", "-t", "debian@12.1", "--canary", "2", "--batch", "25", "--yes"];
        let done = host.json(args);
        report(&format!("a point release to {} VEs at work", ves()), ms(begin.elapsed()));
        std::thread::sleep(Duration::from_secs(3));
        done
    });
    let errors = seen.errors.into_inner().expect("no thread panicked");
    assert!(
        errors.is_empty(),
        "{} errors in {:?} rounds: {:#?}",
        errors.len(),
        seen.rounds,
        &errors[..errors.len().min(20)]
    );
    report("rounds of the load meanwhile", seen.rounds.load(Ordering::Relaxed));
    check_state(&host, &release, 1);
    let id = id_of(&update);
    tell(&host, &id, "forward");

    // And back, with the daemon killed meanwhile. The load's open library is the new one now.
    let back = Release {
        library: (release.library.0.clone(), fs::read(trees[1].join(&release.library.0)).expect("readable")),
        ..release
    };
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for ve in 1..=ves() {
            let (root, release, stop, seen) = (host.root(&format!("ve-{ve}")), &back, &stop, &seen);
            scope.spawn(move || work(ve, &root, release, stop, seen));
        }
        std::thread::sleep(Duration::from_secs(3));
        let begin = Instant::now();
        // A kill may hit the request itself; then nothing was begun, or it goes on by itself.
        let mut client = host.command(["update", "rollback", &id]);
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("vzfs runs");
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(400));
            host.kill_daemon();
        }
        let _ = client.wait();
        let back = until_rolled_back(&host, &id);
        report("back again, with the daemon killed three times", ms(begin.elapsed()));
        std::thread::sleep(Duration::from_secs(3));
        tell(&host, &back, "back");
    });
    let errors = seen.errors.into_inner().expect("no thread panicked");
    assert!(
        errors.is_empty(),
        "{} errors in {:?} rounds: {:#?}\n{}",
        errors.len(),
        seen.rounds,
        &errors[..errors.len().min(20)],
        host.log()
    );
    check_state(&host, &back, 0);
    // Nothing was copied: each VE has its log, its configuration, and nothing else.
    for ve in host.json(["ve", "list"]).as_array().expect("a list") {
        let bytes = ve["private_bytes"].as_u64().expect("a number");
        assert!(bytes < 256 << 10, "{} has {bytes} bytes of its own", ve["name"]);
    }
}

fn id_of(update: &Value) -> String {
    update["id"].as_u64().unwrap_or_else(|| panic!("no number in {update}")).to_string()
}

/// Waits until every VE has been brought back, and tells by which update; begins it once more if no daemon has heard of it.
fn until_rolled_back(host: &Host, id: &str) -> String {
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < Duration::from_secs(120), "it does not end:\n{}", host.log());
        std::thread::sleep(Duration::from_millis(100));
        // A daemon that is being started again does not answer.
        let asked = host.vzfs(["--format", "json", "update", "history"]);
        if asked.code != 0 {
            continue;
        }
        let history = asked.json();
        let mut updates = history.as_array().expect("a list").iter();
        let back = updates.find(|update| update["rolls_back"].as_u64() == id.parse().ok());
        match back.map(|update| update["state"].as_str().unwrap_or_default()) {
            Some("done") => return back.map(id_of).unwrap_or_default(),
            Some("running") => {}
            Some(state) => panic!("the way back is {state}: {history}"),
            None => drop(host.vzfs(["update", "rollback", id])),
        }
    }
}

/// What dpkg and apt say inside a VE, each with what it is allowed to say.
const CONSISTENT: &str = r#"
test -z "$(dpkg --audit)"
apt-get check -qq
dpkg --verify | grep -v " c /etc/nginx/nginx.conf$" | { ! grep .; }
test "$(dpkg-query -W -f '${Status}' jq)" = "install ok installed"
if dpkg-query -W -f '${Status}' procps 2>/dev/null | grep -qx "install ok installed"; then exit 1; fi
jq -n 6*7 | grep -qx 42; test ! -e /usr/bin/top; id bob >/dev/null; grep -qx '# mine' /etc/nginx/nginx.conf
perl -MConfig -e 1; python3 -c "import ssl, sqlite3"; openssl version >/dev/null; nginx -t 2>/dev/null
"#;

#[test]
fn packages_stay_consistent_across_a_point_release_and_back() {
    let host = Host::with(Setup::default());
    for (version, tree) in ["12.0", "12.1"].iter().zip(debian::release()) {
        host.vzfs(["template", "import", &format!("debian@{version}"), tree.to_str().expect("text")]).ok();
    }
    host.vzfs(["ve", "create", "web", "-t", "debian@12.0"]).ok();
    host.sh(
        "web",
        r#"set -e; export DEBIAN_FRONTEND=noninteractive; apt-get update -qq
        apt-get install -y -qq --no-install-recommends jq >/dev/null 2>&1; apt-get remove -y -qq procps >/dev/null 2>&1
        useradd -m bob; echo '# mine' >> /etc/nginx/nginx.conf"#,
    )
    .ok();
    let version =
        |package: &str| host.sh("web", &format!("dpkg-query -W -f '${{Version}}' {package}")).ok().text();
    let packages = ["openssl", "perl", "libssl3"];
    let before = packages.map(version);
    host.sh("web", CONSISTENT).ok();
    let done = host.json(["update", "web", "-t", "debian@12.1", "--yes"]);
    host.sh("web", CONSISTENT).ok();
    let after = packages.map(version);
    for (package, (before, after)) in packages.iter().zip(before.iter().zip(&after)) {
        assert_ne!(before, after, "{package} was not updated");
    }
    host.sh("web", "echo later > /etc/later; echo '# more' >> /etc/nginx/nginx.conf").ok();
    host.vzfs(["update", "rollback", &id_of(&done)]).ok();
    host.sh("web", CONSISTENT).ok();
    assert_eq!(packages.map(version), before);
    assert_eq!(
        host.sh("web", "cat /etc/later; tail -n 1 /etc/nginx/nginx.conf").ok().text(),
        "later\n# more\n"
    );
}
