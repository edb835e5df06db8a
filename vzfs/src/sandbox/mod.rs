//! What the processes of the daemon, and the threads that answer VEs, may do: capabilities (capabilities(7)) and system calls (seccomp(2)).
//!
//! `doc/SECURITY.md` has the threat model. In short: whoever finds a fault in the code that answers a VE's requests gets what that thread may do, and not
//! what root may do. What is allowed is written down in tables, each line with its reason ([`capabilities`], [`calls`]); the tests compare the tables with
//! what the kernel says of running threads.
//!
//! # Rules
//! 1. Capabilities and filters belong to threads. A process gives up its own before it has a second thread, and threads inherit.
//! 2. Programs that the daemon starts run as root and get the bounding set back by execve(2): so that holds what they need. They inherit filters, so the
//!    filter of a process refuses only what no container has, with the error that a missing capability gives.
//! 3. The threads of a session start no program, so their filter allows a list and refuses the rest.
//! 4. A refused call fails with `EPERM` and never kills: VEs depend on this process.
//! 5. `no_new_privs` is not set: it would take their setuid bits from the programs of VEs.
//! 6. What a kernel does not have is warned of once, and gone without.

pub mod calls;
pub mod capabilities;
mod filter;

use std::sync::Once;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::sys;

/// Whose the calling thread is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The process that holds the mounts' connections and starts the daemon.
    Supervisor,
    /// The daemon.
    Daemon,
    /// A thread of the daemon that answers a mount's requests.
    Session,
}

/// What a process is confined to, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confinement {
    /// The capabilities in effect.
    pub effective: CapabilitySet,
    /// System calls are filtered.
    pub filtered: bool,
}

impl Confinement {
    /// The capabilities in effect that the daemon does not need; none when its own are limited to what it needs.
    pub fn spare(&self) -> CapabilitySet {
        self.effective - capabilities::set(&capabilities::DAEMON)
    }
}

/// Confines the calling thread, and those that it starts, to its role. For a process: called before it has other threads.
pub fn enter(role: Role) {
    static WARNED: Once = Once::new();
    let done = match role {
        Role::Supervisor => enter_process(&capabilities::SUPERVISOR),
        Role::Daemon => enter_process(&capabilities::DAEMON),
        Role::Session => {
            // The filter allows no change of capabilities.
            let kept = keep(capabilities::set(&capabilities::SESSION));
            let filter = sys::filter_system_calls(&filter::allowing(&calls::SESSION), false);
            [("capabilities", kept), ("system calls", filter)]
        }
    };
    for (what, error) in done.into_iter().filter_map(|(what, done)| Some((what, done.err()?))) {
        // There may be hundreds of sessions.
        let warn = || tracing::warn!(%error, ?role, "{what} cannot be confined");
        if role == Role::Session { WARNED.call_once(warn) } else { warn() }
    }
}

fn enter_process(list: &[capabilities::Kept]) -> [(&'static str, std::io::Result<()>); 2] {
    // Each step takes a capability that the next one takes away.
    let filter = sys::filter_system_calls(&filter::refusing(&calls::REFUSED), true);
    let bounded = bound(capabilities::set(&capabilities::BOUNDING));
    [("capabilities", bounded.and(keep(capabilities::set(list)))), ("system calls", filter)]
}

/// Takes all others from what programs that this thread starts can have.
fn bound(kept: CapabilitySet) -> std::io::Result<()> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => remove_capability_from_bounding_set(capability)?,
            Ok(_) => {}
            // Beyond the kernel's last one.
            Err(_) => break,
        }
    }
    Ok(())
}

/// Gives all others up, if the thread has them.
fn keep(kept: CapabilitySet) -> std::io::Result<()> {
    // A kernel without them has nothing to inherit.
    let _ = clear_ambient_capability_set();
    let permitted = capabilities(None)?.permitted & kept;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable: none })?)
}

/// What this process's first thread is confined to; nothing where the kernel does not say.
pub fn confinement() -> Confinement {
    confinement_in("/proc/self/status")
}

fn confinement_in(status: &str) -> Confinement {
    let status = std::fs::read_to_string(status).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let effective = field("CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok());
    Confinement {
        effective: CapabilitySet::from_bits_retain(effective.unwrap_or(u64::MAX)),
        // SECCOMP_MODE_FILTER.
        filtered: field("Seccomp:") == Some("2"),
    }
}

#[cfg(test)]
mod tests;
