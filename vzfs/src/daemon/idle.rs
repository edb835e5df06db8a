//! What idle processors do on this machine, and whether the daemon keeps them awake.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use super::IdleChoice;
use crate::fuse::Wakeful;

/// By which a latency is demanded of the kernel.
const DEVICE: &str = "/dev/cpu_dma_latency";
/// On a larger machine most idle processors would poll for nobody.
const MAX_PROCESSORS: usize = 8;

/// The kernel's driver for idle processors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdleDriver {
    /// Its name; `none` without one.
    pub name: String,
    /// For `haltpoll`, a virtual machine's (Documentation/virt/guest-halt-polling.rst): how long they poll at most before they halt.
    pub poll_ns: Option<u64>,
}

impl IdleDriver {
    /// The one of this machine.
    pub fn here() -> IdleDriver {
        IdleDriver::read(Path::new("/sys"))
    }

    /// The one in use, from where sysfs is mounted.
    fn read(sys: &Path) -> IdleDriver {
        let read = |path: &str| fs::read_to_string(sys.join(path)).map(|text| text.trim().to_owned());
        let name = read("devices/system/cpu/cpuidle/current_driver").unwrap_or_else(|_| "none".to_owned());
        let limit = read("module/haltpoll/parameters/guest_halt_poll_ns").ok();
        let poll_ns = limit.filter(|_| name == "haltpoll").and_then(|limit| limit.parse().ok());
        IdleDriver { name, poll_ns }
    }
}

/// What keeps processors awake, if they are to be.
pub(super) fn wakeful(choice: IdleChoice) -> Option<Arc<Wakeful>> {
    let processors = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    if !is_wanted(choice, &IdleDriver::here(), processors) {
        return None;
    }
    let device = File::options().write(true).open(DEVICE);
    match device.and_then(Wakeful::new) {
        Ok(wakeful) => Some(wakeful),
        Err(error) => {
            tracing::warn!(%error, device = DEVICE, "idle processors cannot be kept awake: requests take longer");
            None
        }
    }
}

fn is_wanted(choice: IdleChoice, driver: &IdleDriver, processors: usize) -> bool {
    match choice {
        IdleChoice::Auto => driver.poll_ns == Some(0) && processors <= MAX_PROCESSORS,
        IdleChoice::Awake => true,
        IdleChoice::Halt => false,
    }
}

/// Whether this process keeps processors awake when many requests come in.
pub(super) fn is_kept_awake() -> bool {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return false };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == Path::new(DEVICE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_and_its_limit() {
        let sys = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("folders");
            fs::write(path, text).expect("a file");
        };
        let read = || {
            let IdleDriver { name, poll_ns } = IdleDriver::read(sys.path());
            (name, poll_ns)
        };
        assert_eq!(read(), ("none".to_owned(), None), "a machine without one");
        write("module/haltpoll/parameters/guest_halt_poll_ns", "0\n");
        write("devices/system/cpu/cpuidle/current_driver", "haltpoll\n");
        assert_eq!(read(), ("haltpoll".to_owned(), Some(0)));
        write("module/haltpoll/parameters/guest_halt_poll_ns", "200000\n");
        assert_eq!(read(), ("haltpoll".to_owned(), Some(200_000)));
        write("devices/system/cpu/cpuidle/current_driver", "intel_idle\n");
        assert_eq!(read(), ("intel_idle".to_owned(), None), "another one is in use");
    }

    #[test]
    fn only_small_virtual_machines_that_do_not_poll_are_kept_awake_unasked() {
        let driver = |poll_ns| IdleDriver { name: "any".to_owned(), poll_ns };
        assert!(is_wanted(IdleChoice::Auto, &driver(Some(0)), 8));
        assert!(!is_wanted(IdleChoice::Auto, &driver(Some(0)), 9));
        assert!(!is_wanted(IdleChoice::Auto, &driver(Some(1)), 2));
        assert!(!is_wanted(IdleChoice::Auto, &driver(None), 2));
        assert!(is_wanted(IdleChoice::Awake, &driver(None), 100));
        assert!(!is_wanted(IdleChoice::Halt, &driver(Some(0)), 2));
    }
}
