//! A service manager for tests: does for a daemon what systemd does for a service with `Type=notify` and an fd store (sd_notify(3), sd_listen_fds(3)).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;
/// What a message may bring.
const DESCRIPTORS: usize = 16;
/// Ends the thread that listens.
const END: &str = "END";

/// Keeps descriptors from one start of a daemon to the next.
pub struct Manager {
    name: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// With their names.
    kept: Vec<(String, OwnedFd)>,
    /// Every message, one line each.
    told: Vec<String>,
}

impl Manager {
    /// Listens on an abstract socket of its own.
    pub fn new() -> Manager {
        let mut number = [0; 8];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty()).expect("random");
        let name = format!("vzfs-test-manager-{:016x}", u64::from_ne_bytes(number));
        let socket = UnixDatagram::bind_addr(&address(&name)).expect("a name of its own");
        let state = Arc::new(Mutex::new(State::default()));
        let listening = Arc::clone(&state);
        std::thread::spawn(move || while receive(&socket, &listening) {});
        Manager { name, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many descriptors are kept.
    pub fn kept(&self) -> usize {
        self.state().kept.len()
    }

    /// All that was told so far, each message with its lines joined by blanks.
    pub fn told(&self) -> Vec<String> {
        self.state().told.clone()
    }

    /// The command, told of this manager and with what it has kept. It must be started at once, and keeps its process id.
    pub fn command(&self, command: &Command) -> Command {
        // Only the process itself knows the number that it must be told.
        let mut managed = Command::new("/bin/sh");
        managed.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]).arg(command.get_program());
        managed.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => managed.env(name, value),
                None => managed.env_remove(name),
            };
        }
        let state = self.state();
        let names: Vec<&str> = state.kept.iter().map(|(name, _)| name.as_str()).collect();
        managed.env("NOTIFY_SOCKET", format!("@{}", self.name));
        managed.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let kept: Vec<OwnedFd> = state.kept.iter().map(|(_, kept)| double(kept, names.len())).collect();
        // SAFETY: between fork and exec the closure makes system calls only, on descriptors that it owns.
        unsafe { managed.pre_exec(move || place(&kept)) };
        managed
    }
}

impl Default for Manager {
    fn default() -> Manager {
        Manager::new()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let told = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(END.as_bytes(), &address(&self.name)));
        drop(told);
    }
}

fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).expect("legal")
}

/// A double of a descriptor that is in nobody's way when `count` of them get their numbers.
fn double(descriptor: &OwnedFd, count: usize) -> OwnedFd {
    let beyond = FIRST + RawFd::try_from(count).expect("not so many");
    rustix::io::fcntl_dupfd_cloexec(descriptor, beyond).expect("a descriptor")
}

/// Makes the descriptors the numbers from [`FIRST`] on.
fn place(descriptors: &[OwnedFd]) -> io::Result<()> {
    for (number, descriptor) in (FIRST..).zip(descriptors) {
        // SAFETY: takes integers; what had the number is not used in the child any more.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn receive(socket: &UnixDatagram, state: &Mutex<State>) -> bool {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket.as_fd(), &mut slices, &mut ancillary, flags);
    let text = match received {
        Ok(received) => String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(),
        Err(error) => panic!("a service manager cannot read: {error}"),
    };
    if text == END {
        return false;
    }
    let lines: Vec<&str> = text.lines().collect();
    let value = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let name = value("FDNAME").unwrap_or("stored").to_owned();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.told.push(lines.join(" "));
    if value("FDSTOREREMOVE") == Some("1") {
        state.kept.retain(|(kept, _)| *kept != name);
    }
    if value("FDSTORE") == Some("1") {
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // As systemd does: the newest first.
                descriptors.for_each(|descriptor| state.kept.insert(0, (name.clone(), descriptor)));
            }
        }
    }
    true
}
