//! What the process behind a request may keep on a file that it changes.
//!
//! The protocol says it with flags (`FUSE_OPEN_KILL_SUIDGID`, `FATTR_KILL_SUIDGID`, `FUSE_SETXATTR_ACL_KILL_SGID`), which fuser 0.18 does
//! not pass on, and not at all for fallocate and copy_file_range. The ids of a request are not enough: they lack the other groups
//! and the capabilities, and with `FUSE_ALLOW_IDMAP` only requests that create something have any. The process waits for
//! the answer, so it is looked up in `/proc`; its own threads cannot change its credentials meanwhile. Nobody does that for
//! a file without such bits.

use std::fs;

use crate::types::IdShift;
use crate::volume::Rights;

/// Bits of a capability set.
const CAP_FOWNER: u64 = 1 << 3;
const CAP_FSETID: u64 = 1 << 4;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The process behind a request.
pub(super) struct Process {
    pid: u32,
    /// The ids of the request, which are the host's; `None` where a shift hides them.
    ids: Option<(u32, u32)>,
    shift: Option<IdShift>,
    /// What the kernel has said already.
    keeps_privileges: Option<bool>,
    /// It copies a file.
    copying: bool,
}

impl Process {
    pub(super) fn new(pid: u32, ids: (u32, u32), shift: Option<IdShift>) -> Process {
        Process {
            pid,
            ids: if shift.is_some() { None } else { Some(ids) },
            shift,
            keeps_privileges: None,
            copying: false,
        }
    }

    /// With the kernel's own word on setuid and setgid bits, which writes carry.
    pub(super) fn told(self, keeps_privileges: bool) -> Process {
        Process { keeps_privileges: Some(keeps_privileges), ..self }
    }

    /// As one that copies a file, or not; see [`super::overlays`].
    pub(super) fn copying(self, copying: bool) -> Process {
        Process { copying, ..self }
    }

    /// Whether it may see `trusted.*` attributes: `CAP_SYS_ADMIN` on the host.
    pub(super) fn sees_trusted(&self) -> bool {
        let Some(found) = Credentials::read(self.pid) else { return false };
        match self.ids {
            // Under other ids (an overlayfs acts as who mounted it): the capabilities are not known, but root's.
            Some((uid, gid)) if (uid, gid) != (found.uid, found.gid) => uid == 0,
            _ => found.capabilities & CAP_SYS_ADMIN != 0 && has_host_capabilities(self.pid),
        }
    }

    fn credentials(&self) -> Option<Credentials> {
        let found = Credentials::read(self.pid)?;
        // A server in the kernel (nfsd) acts under other ids than its own.
        self.ids.is_none_or(|ids| ids == (found.uid, found.gid)).then_some(found)
    }

    fn to_host(&self, id: u32) -> Option<u32> {
        self.shift.map_or(Some(id), |shift| shift.to_host(id))
    }
}

/// A process that cannot be seen has no rights: what it could have kept goes.
impl Rights for Process {
    fn keeps_privileges(&self) -> bool {
        if let Some(told) = self.keeps_privileges {
            return told;
        }
        // ext4 asks for the capability on the host, also from root in a user namespace.
        self.credentials().is_some_and(|found| found.may_set_ids()) && has_host_capabilities(self.pid)
    }

    fn keeps_all_on_chown(&self) -> bool {
        self.copying
    }

    fn keeps_setgid(&self, uid: u32, gid: u32) -> bool {
        let Some(found) = self.credentials() else { return false };
        let (Some(uid), Some(gid)) = (self.to_host(uid), self.to_host(gid)) else { return false };
        let in_group = found.gid == gid || found.groups.contains(&gid);
        in_group
            || (found.may_set_ids()
                && is_mapped(self.pid, "uid_map", uid)
                && is_mapped(self.pid, "gid_map", gid))
    }

    fn may_change_mode(&self, uid: u32) -> bool {
        let (Some(found), Some(uid)) = (self.credentials(), self.to_host(uid)) else { return false };
        found.uid == uid || (found.capabilities & CAP_FOWNER != 0 && is_mapped(self.pid, "uid_map", uid))
    }
}

/// What `/proc/PID/status` says of a process or thread, in the ids of the host.
#[derive(Debug, PartialEq, Eq)]
struct Credentials {
    /// Filesystem user and group id.
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// The effective ones, in its own user namespace.
    capabilities: u64,
}

impl Credentials {
    fn read(pid: u32) -> Option<Credentials> {
        Credentials::parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Credentials> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // Real, effective, saved, filesystem.
        let last = |name| field(name)?.split_whitespace().nth(3)?.parse().ok();
        let groups =
            field("Groups")?.split_whitespace().map(|group| group.parse().ok()).collect::<Option<_>>()?;
        let capabilities = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
        Some(Credentials { uid: last("Uid")?, gid: last("Gid")?, groups, capabilities })
    }

    fn may_set_ids(&self) -> bool {
        self.capabilities & CAP_FSETID != 0
    }
}

/// Whether a process's capabilities count on the host: it is in no user namespace of its own.
fn has_host_capabilities(pid: u32) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).ok();
    namespace("self").is_some_and(|own| namespace(&pid.to_string()) == Some(own))
}

/// Whether the host's id has a number in the process's user namespace.
fn is_mapped(pid: u32, map: &str, id: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/{map}")).is_ok_and(|map| maps(&map, id))
}

/// Lines of: first id inside, first id of the reader's namespace, count.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().skip(1).map(str::parse::<u64>);
        matches!((numbers.next(), numbers.next()), (Some(Ok(first)), Some(Ok(count)))
            if (first..first.saturating_add(count)).contains(&id.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let status =
            "Name:\tsh\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000010\n";
        let found = Credentials { uid: 4, gid: 8, groups: vec![9, 10], capabilities: 0x10 };
        assert_eq!(Credentials::parse(status), Some(found));
        let none = status.replace("9 10 ", "").replace("10\n", "ef\n");
        let found = Credentials { uid: 4, gid: 8, groups: vec![], capabilities: 0xef };
        assert_eq!(Credentials::parse(&none), Some(found));
        assert_eq!(Credentials::parse("Name:\tsh\n"), None);
    }

    #[test]
    fn maps_are_read() {
        let map = "         0     100000      65536\n     70000       1000          1\n";
        for (id, mapped) in
            [(99_999, false), (100_000, true), (165_535, true), (165_536, false), (1000, true)]
        {
            assert_eq!(maps(map, id), mapped, "{id}");
        }
        assert!(maps("0 0 4294967295", 0) && !maps("", 0) && !maps("0 1", 1));
    }

    #[test]
    fn unseen_processes_have_no_rights() {
        // No process has the number 0.
        let process = Process::new(0, (0, 0), None);
        assert!(!process.keeps_privileges() && !process.keeps_setgid(0, 0) && !process.may_change_mode(0));
    }

    #[test]
    fn ids_of_another_do_not_count() {
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let process = |ids| Process::new(std::process::id(), ids, None);
        assert!(process(own).keeps_setgid(own.0, own.1));
        assert!(process(own).may_change_mode(own.0));
        let other = process((own.0 + 1, own.1));
        assert!(!other.keeps_setgid(own.0, own.1) && !other.may_change_mode(own.0));
    }
}
