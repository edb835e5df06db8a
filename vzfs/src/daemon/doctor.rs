//! What this host offers, and what each lack costs.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::idle::{self, IdleDriver};
use crate::api::{CheckStatus, Doctor, DoctorCheck};
use crate::sandbox::{self, Confinement};
use crate::store::Store;
use crate::sys;

/// The first kernel with FUSE passthrough.
const PASSTHROUGH_KERNEL: (u32, u32) = (6, 9);
/// The first kernel whose FUSE can be mounted with other ids.
const ID_SHIFT_KERNEL: (u32, u32) = (6, 12);
/// The first kernel with `mount_setattr`, by which blobs are protected from their own readers.
const OLDEST_KERNEL: (u32, u32) = (5, 12);
/// Open files that a few hundred VEs need.
const ENOUGH_FILES: u64 = 65_536;
/// Bit of `CAP_SYS_ADMIN` in a capability set.
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at everything once. Nothing is changed.
pub(super) fn look(store: &Store) -> Doctor {
    let kernel = Kernel::running();
    let privileged = has_capability(CAP_SYS_ADMIN);
    let checks = vec![
        kernel_check(&kernel),
        fuse_check(),
        privilege_check(privileged),
        passthrough_check(store, &kernel, privileged),
        shift_check(&kernel),
        protection_check(store.dir()),
        sandbox_check(sandbox::confinement()),
        reflink_check(store),
        files_check(),
        idle_check(&IdleDriver::here(), idle::is_kept_awake()),
        program_check("crun", "programs cannot be run in VEs with `vzfs ve exec`"),
        program_check("mmdebstrap", "Debian templates cannot be built, only imported"),
    ];
    Doctor { checks }
}

struct Kernel {
    release: String,
    version: (u32, u32),
}

impl Kernel {
    fn running() -> Kernel {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Kernel { release, version }
    }
}

fn check(name: &str, status: CheckStatus, found: impl Into<String>, cost: &str) -> DoctorCheck {
    let cost = if status == CheckStatus::Ok { "" } else { cost };
    DoctorCheck { name: name.to_owned(), status, found: found.into(), cost: cost.to_owned() }
}

fn kernel_check(kernel: &Kernel) -> DoctorCheck {
    let status = if kernel.version >= OLDEST_KERNEL { CheckStatus::Ok } else { CheckStatus::Degraded };
    let cost = "before Linux 5.12 blobs cannot be protected from a VE that opens them for writing";
    check("kernel", status, format!("Linux {}", kernel.release), cost)
}

fn fuse_check() -> DoctorCheck {
    let cost = "VEs cannot be mounted: load the module fuse, and make /dev/fuse available";
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => check("fuse device", CheckStatus::Ok, "/dev/fuse opens", cost),
        Err(error) => check("fuse device", CheckStatus::Missing, format!("/dev/fuse: {error}"), cost),
    }
}

fn privilege_check(privileged: bool) -> DoctorCheck {
    let uid = rustix::process::geteuid().as_raw();
    let cost =
        "VEs cannot be mounted as root filesystems, and there is no passthrough: run the daemon as root";
    if privileged {
        check("privileges", CheckStatus::Ok, format!("user {uid} with CAP_SYS_ADMIN"), cost)
    } else {
        check("privileges", CheckStatus::Missing, format!("user {uid} without CAP_SYS_ADMIN"), cost)
    }
}

fn passthrough_check(store: &Store, kernel: &Kernel, privileged: bool) -> DoctorCheck {
    let name = "passthrough";
    let cost = "the daemon moves every byte that VEs read and write, and each mount caches shared files anew";
    // A mount that exists knows best.
    if let Some(works) = store.passthrough() {
        let status = if works { CheckStatus::Ok } else { CheckStatus::Degraded };
        return check(name, status, if works { "in use by a mount" } else { "not in use by a mount" }, cost);
    }
    if kernel.version < PASSTHROUGH_KERNEL {
        let found = format!("Linux {} (it came with 6.9)", kernel.release);
        return check(name, CheckStatus::Degraded, found, cost);
    }
    if !privileged {
        return check(name, CheckStatus::Degraded, "it needs CAP_SYS_ADMIN", cost);
    }
    match kernel_option(kernel, "CONFIG_FUSE_PASSTHROUGH") {
        Some(false) => check(name, CheckStatus::Degraded, "the kernel was built without it", cost),
        Some(true) => check(name, CheckStatus::Ok, "the kernel has it; the first mount will tell", cost),
        None => check(name, CheckStatus::Ok, "the kernel is new enough; the first mount will tell", cost),
    }
}

fn shift_check(kernel: &Kernel) -> DoctorCheck {
    let name = "id shift";
    let cost =
        "VEs cannot have users of their own on the host (`--id-shift`): root of a VE is the host's root";
    if kernel.version < ID_SHIFT_KERNEL {
        let found = format!("Linux {} (it came with 6.12)", kernel.release);
        return check(name, CheckStatus::Degraded, found, cost);
    }
    // Any range will do: the namespace ends here.
    match sys::user_namespace(1, 1) {
        Ok(_) => check(name, CheckStatus::Ok, "the kernel is new enough, and user namespaces work", cost),
        Err(error) => check(name, CheckStatus::Degraded, format!("a user namespace: {error}"), cost),
    }
}

fn protection_check(store: &Path) -> DoctorCheck {
    let cost =
        "a program in a VE that opens a shared file for writing is stopped by the daemon's checks alone";
    match sys::read_only_clone(store) {
        Ok(_) => check("blob protection", CheckStatus::Ok, "open_tree and mount_setattr work", cost),
        Err(error) => check(
            "blob protection",
            CheckStatus::Degraded,
            format!("open_tree or mount_setattr: {error}"),
            cost,
        ),
    }
}

fn sandbox_check(found: Confinement) -> DoctorCheck {
    let spare = found.spare().bits().count_ones();
    let status = if spare == 0 && found.filtered { CheckStatus::Ok } else { CheckStatus::Degraded };
    let calls = if found.filtered { "system calls are filtered" } else { "system calls are not filtered" };
    let found = match spare {
        0 => format!("{} capabilities, {calls}", found.effective.bits().count_ones()),
        spare => format!("{spare} capabilities more than needed, {calls}"),
    };
    let cost = "a fault in the daemon can do more to the host: start it with --sandbox on, on a kernel with CONFIG_SECCOMP_FILTER";
    check("sandbox", status, found, cost)
}

fn reflink_check(store: &Store) -> DoctorCheck {
    let cost = "the first write to a shared file copies it whole, which takes time and space for large files: use XFS or \
                Btrfs for the store";
    let (status, found) = match store.reflinks() {
        true => (CheckStatus::Ok, "the store's filesystem shares blocks between files"),
        false => (CheckStatus::Degraded, "the store's filesystem does not share blocks between files"),
    };
    check("reflinks", status, found, cost)
}

fn files_check() -> DoctorCheck {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let enough = limit.is_none_or(|limit| limit >= ENOUGH_FILES);
    let status = if enough { CheckStatus::Ok } else { CheckStatus::Degraded };
    let found = limit.map_or("no limit".to_owned(), |limit| format!("{limit} open files"));
    check(
        "open files",
        status,
        found,
        "VEs that hold many files open get EMFILE: raise LimitNOFILE of the service",
    )
}

/// Whether processors halt as soon as they are idle; what that costs is in `benches/README.md`.
fn idle_check(driver: &IdleDriver, kept_awake: bool) -> DoctorCheck {
    let cost = "each request of a program in a VE to the daemon waits for a halted processor: for faster requests, at the cost of power, \
                vzfsd --idle-processors awake, or echo 200000 >/sys/module/haltpoll/parameters/guest_halt_poll_ns";
    let (status, found) = match driver.poll_ns {
        Some(0) if kept_awake => (
            CheckStatus::Ok,
            "haltpoll, which does not poll: the daemon keeps them awake while requests come".to_owned(),
        ),
        Some(0) => (CheckStatus::Degraded, "haltpoll, which does not poll".to_owned()),
        Some(limit) => (CheckStatus::Ok, format!("haltpoll, for up to {limit} ns")),
        None => (CheckStatus::Ok, format!("the idle driver is {}", driver.name)),
    };
    check("idle processors", status, found, cost)
}

fn program_check(name: &str, cost: &str) -> DoctorCheck {
    match find_program(name) {
        Some(path) => check(name, CheckStatus::Ok, path.display().to_string(), cost),
        None => check(name, CheckStatus::Missing, "not in the path", cost),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        fs::metadata(file)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> bit & 1 == 1)
}

/// Whether the running kernel was built with an option; `None` when it does not say.
fn kernel_option(kernel: &Kernel, option: &str) -> Option<bool> {
    let boot = format!("/boot/config-{}", kernel.release);
    let config: Box<dyn Read> = match File::open("/proc/config.gz") {
        Ok(file) => Box::new(flate2::read::GzDecoder::new(file)),
        Err(_) => Box::new(File::open(boot).ok()?),
    };
    let mut lines = BufReader::new(config).lines().map_while(Result::ok);
    Some(lines.any(|line| line.strip_prefix(option).is_some_and(|value| value == "=y")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_machine_that_halts_at_once_is_told_of() {
        let status = |poll_ns, kept_awake| {
            idle_check(&IdleDriver { name: "any".to_owned(), poll_ns }, kept_awake).status
        };
        assert_eq!(status(Some(0), false), CheckStatus::Degraded);
        assert_eq!(status(Some(0), true), CheckStatus::Ok);
        assert_eq!(status(Some(200_000), false), CheckStatus::Ok);
        assert_eq!(status(None, false), CheckStatus::Ok);
    }
}
