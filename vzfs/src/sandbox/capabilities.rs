//! The capabilities of each role, and why.

use rustix::thread::CapabilitySet;

/// A capability that is kept, and what for.
pub type Kept = (CapabilitySet, &'static str);

/// Of the supervisor. It writes to connections and starts the daemon; neither takes a capability.
pub const SUPERVISOR: [Kept; 1] =
    [(CapabilitySet::DAC_READ_SEARCH, "starts the daemon also from a folder that others own and closed")];

/// Of the daemon.
pub const DAEMON: [Kept; 9] = [
    (CapabilitySet::SYS_ADMIN, "mounts; registers backing files; a filter without no_new_privs"),
    (
        CapabilitySet::SYS_PTRACE,
        "asks in /proc for rights of programs in VEs, and for replaced files that they run",
    ),
    (CapabilitySet::DAC_OVERRIDE, "imports folders, and mounts on folders, that others own and closed"),
    (CapabilitySet::FOWNER, "reads such folders without changing their access times"),
    (CapabilitySet::CHOWN, "gives the socket to the group that may look"),
    (CapabilitySet::SETUID, "maps the user ids of VEs that have ids of their own"),
    (CapabilitySet::SETGID, "maps the group ids of VEs that have ids of their own"),
    (CapabilitySet::SYS_NICE, "moves a VE to another template before others get the processor"),
    (CapabilitySet::NET_BIND_SERVICE, "serves numbers for monitoring at a port below 1024"),
];

/// Of the threads that answer requests. All files that they open or make are root's.
pub const SESSION: [Kept; 2] = [
    (CapabilitySet::SYS_ADMIN, "registers backing files"),
    (CapabilitySet::SYS_PTRACE, "asks in /proc for rights of programs in VEs"),
];

/// What programs that the daemon starts can have: what the daemon itself keeps, as the supervisor starts it; what `vzfs ve exec` and crun need to enter
/// a VE; and what crun gives the program inside.
pub const BOUNDING: [Kept; 19] = [
    (CapabilitySet::SYS_ADMIN, "the daemon; crun's namespaces and mounts"),
    (CapabilitySet::SYS_PTRACE, "the daemon"),
    (CapabilitySet::DAC_OVERRIDE, "the daemon; programs in VEs"),
    (CapabilitySet::FOWNER, "the daemon; programs in VEs"),
    (CapabilitySet::CHOWN, "the daemon; programs in VEs"),
    (CapabilitySet::SETUID, "the daemon; crun; programs in VEs"),
    (CapabilitySet::SETGID, "the daemon; crun; programs in VEs"),
    (CapabilitySet::SYS_NICE, "the daemon"),
    (CapabilitySet::NET_BIND_SERVICE, "the daemon; programs in VEs"),
    (CapabilitySet::NET_ADMIN, "crun's loopback in a network of its own"),
    (CapabilitySet::SYS_RESOURCE, "crun's limits of the program"),
    (CapabilitySet::SETPCAP, "crun gives the program fewer; programs in VEs"),
    (CapabilitySet::SETFCAP, "crun's user namespace; programs in VEs: package managers"),
    (CapabilitySet::AUDIT_WRITE, "programs in VEs: login, su"),
    (CapabilitySet::FSETID, "programs in VEs: package managers"),
    (CapabilitySet::KILL, "programs in VEs"),
    (CapabilitySet::MKNOD, "programs in VEs: package managers"),
    (CapabilitySet::NET_RAW, "programs in VEs: ping"),
    (CapabilitySet::SYS_CHROOT, "crun; programs in VEs"),
];

/// The capabilities of a table.
pub fn set(table: &[Kept]) -> CapabilitySet {
    table.iter().fold(CapabilitySet::empty(), |set, (capability, _)| set | *capability)
}
