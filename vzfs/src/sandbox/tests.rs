use std::io;
use std::process::Command;

use super::*;

/// In a thread of its own, as nothing of this can be taken back. The tests run as root; others have nothing to lose.
fn in_thread(role: Role, check: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        match role {
            Role::Session => enter(role),
            // Without TSYNC, which would confine the other tests too.
            Role::Supervisor | Role::Daemon => {
                sys::filter_system_calls(&filter::refusing(&calls::REFUSED), false).expect("filters");
            }
        }
        check();
    });
    thread.join().expect("as checked");
}

fn refused<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

#[test]
fn a_session_opens_files_and_starts_threads_but_no_programs() {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("scratch");
    in_thread(Role::Session, move || {
        std::fs::write(file.path(), "content").expect("written");
        std::thread::spawn(|| assert!(refused(Command::new("/bin/true").status()))).join().expect("a thread");
        assert!(refused(Command::new("/bin/true").status()));
        assert!(refused(std::net::UdpSocket::bind("127.0.0.1:0")));
        assert!(refused(
            rustix::mount::unmount("/none", rustix::mount::UnmountFlags::empty()).map_err(Into::into)
        ));
    });
}

#[test]
fn a_session_has_no_other_capabilities() {
    let before = capabilities(None).expect("told").permitted;
    in_thread(Role::Session, move || {
        let found = confinement_in("/proc/thread-self/status");
        let expected = before & capabilities::set(&capabilities::SESSION);
        assert_eq!(found, Confinement { effective: expected, filtered: true });
    });
}

#[test]
fn what_acts_on_the_host_is_refused_and_programs_start() {
    let ask = || rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    in_thread(Role::Daemon, move || {
        assert_eq!(ask(), Err(rustix::io::Errno::PERM));
        let program = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(298, None, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1 # perf_event_open, with an address that is none
assert os.fork() or os._exit(0) is None";
        assert!(Command::new("python3").args(["-c", program]).status().expect("python3").success());
    });
}

#[test]
fn tables_name_each_thing_once() {
    for table in [&capabilities::DAEMON[..], &capabilities::SESSION, &capabilities::BOUNDING] {
        assert_eq!(capabilities::set(table).bits().count_ones() as usize, table.len());
    }
    let bounding = capabilities::set(&capabilities::BOUNDING);
    assert!(bounding.contains(capabilities::set(&capabilities::DAEMON)));
    let mut calls = calls::SESSION.to_vec();
    calls.sort_unstable();
    calls.dedup();
    assert_eq!(calls.len(), calls::SESSION.len());
}
