//! The real Debian tree that the tests work with: made once with mmdebstrap, kept between runs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::FlockOperation;

/// What is in it: enough for real work of many kinds, about 22,000 files.
const PACKAGES: &[&str] = &[
    "acl",
    "attr",
    "ca-certificates",
    "gcc",
    "git",
    "libc6-dev",
    "libcap2-bin",
    "make",
    "nginx-light",
    "perl",
    "postgresql",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "rsync",
    "sqlite3",
    "xz-utils",
];

/// What is in the two states of a release: programs that the point release and the security updates replace.
const RELEASE_PACKAGES: &[&str] =
    &["ca-certificates", "nginx-light", "openssl", "perl", "procps", "python3", "xz-utils"];

/// The folder with the tree; the first call of all makes it (half a minute), also across processes.
pub fn tree() -> PathBuf {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| make("debian", PACKAGES, &[])).clone()
}

/// The same system before and after its updates: as the distribution's main archive has it, and with its security fixes and updates.
pub fn release() -> [PathBuf; 2] {
    static TREES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    let make = || {
        let [main, all] = sources();
        [("debian-main", main), ("debian-updated", all)]
            .map(|(name, sources)| make(name, RELEASE_PACKAGES, &sources))
    };
    TREES.get_or_init(make).clone()
}

/// The sources of packages that this machine has for the release, as `sources.list` and mmdebstrap have them: those of the release as it came
/// out, and all, with its fixes.
pub fn sources() -> [Vec<String>; 2] {
    let format = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let output =
        Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]).output();
    let output = output.expect("apt-get is there");
    let mut all: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains(" bookworm") && line.ends_with(" main"))
        .map(str::to_owned)
        .collect();
    all.sort_unstable();
    all.dedup();
    let main: Vec<_> = all.iter().filter(|source| source.contains(" bookworm ")).cloned().collect();
    assert!(
        !main.is_empty() && main.len() < all.len(),
        "this machine's package sources have no updates apart"
    );
    [main, all]
}

fn make(name: &str, packages: &[&str], sources: &[String]) -> PathBuf {
    crate::require_root();
    let cache =
        std::env::var_os("VZFS_TEST_CACHE").map_or_else(|| "/var/tmp/vzfs-test-cache".into(), PathBuf::from);
    fs::create_dir_all(&cache).expect("the cache folder can be made (VZFS_TEST_CACHE)");
    // Another run of the tests may be making it at this moment: it is waited for.
    let lock = fs::File::create(cache.join("lock")).expect("the cache folder is writable");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("flock works");
    let (ready, list) = (cache.join(name), cache.join(format!("{name}.packages")));
    let wanted = packages.join(",");
    if fs::read_to_string(&list).is_ok_and(|made_of| made_of == wanted)
        && ready.join("etc/debian_version").exists()
    {
        return ready;
    }
    let partial = cache.join(format!("{name}.partial"));
    for old in [&partial, &ready] {
        if old.exists() {
            fs::remove_dir_all(old).expect("an old tree can be removed");
        }
    }
    let output = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--include", &wanted])
        .args(["--aptopt=Apt::Install-Recommends \"false\"", "bookworm"])
        .arg(&partial)
        .args(sources)
        .output()
        .expect("mmdebstrap is installed (scripts/setup test)");
    assert!(
        output.status.success(),
        "mmdebstrap could not make the Debian tree:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // pip inside a VE must trust whom this machine trusts.
    let trusted = "etc/ssl/certs/ca-certificates.crt";
    if let Ok(bundle) = fs::read(PathBuf::from("/").join(trusted)) {
        fs::write(partial.join(trusted), bundle).expect("the tree is writable");
    }
    fs::rename(&partial, &ready).expect("the tree can be renamed");
    fs::write(&list, wanted).expect("the cache folder is writable");
    ready
}
