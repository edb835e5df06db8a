//! Access to a root filesystem from outside: names are resolved as a program inside would see them, so that a
//! symbolic link in it can never lead to a file of the host.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};

use crate::error::{Exit, Failure, Result};

/// Larger user databases are not read.
const MAX_DATABASE_BYTES: u64 = 16 << 20;

/// A root filesystem.
#[derive(Debug)]
pub(crate) struct Rootfs {
    fd: OwnedFd,
    path: PathBuf,
}

/// A user as a process runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct User {
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// The other groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory.
    pub(crate) home: String,
}

impl Rootfs {
    /// The filesystem below `path`.
    pub(crate) fn open(path: &Path) -> Result<Rootfs> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty());
        let fd = fd.map_err(|e| Failure::io(format!("cannot open {}", path.display()), &e.into()))?;
        Ok(Rootfs { fd, path: path.to_owned() })
    }

    /// Where it is on the host.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn open_at(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        loop {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // The kernel gives up when something was renamed meanwhile.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// The type of the file that `path` leads to, or `None`.
    pub(crate) fn file_type(&self, path: &Path) -> Option<FileType> {
        self.mode(path).map(FileType::from_raw_mode)
    }

    /// The `st_mode` of what `path` leads to, or `None`.
    pub(crate) fn mode(&self, path: &Path) -> Option<u32> {
        let fd = self.open_at(path, OFlags::PATH, Mode::empty()).ok()?;
        Some(rustix::fs::fstat(fd).ok()?.st_mode)
    }

    /// The content of a file, or `None` when there is no such regular file.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<String>> {
        if self.file_type(path) != Some(FileType::RegularFile) {
            return Ok(None);
        }
        let what = || format!("cannot read {} in {}", path.display(), self.path.display());
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        let file = File::from(fd.map_err(|e| Failure::io(what(), &e.into()))?);
        let mut bytes = Vec::new();
        file.take(MAX_DATABASE_BYTES).read_to_end(&mut bytes).map_err(|e| Failure::io(what(), &e))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Makes or replaces a regular file, with the directories above it. A symbolic link at `path` is replaced.
    pub(crate) fn write(&self, path: &Path, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<()> {
        self.try_write(path, content, mode, owner).map_err(|e| {
            Failure::io(format!("cannot write {} in {}", path.display(), self.path.display()), &e)
        })
    }

    fn try_write(&self, path: &Path, content: &[u8], mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.make_dirs(path.parent().unwrap_or(Path::new("/")))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let mut file = File::from(rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(content)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        // After chown, which clears setuid and setgid.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(())
    }

    /// Opens a directory, making what is missing as root's with mode 0755.
    fn make_dirs(&self, dir: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = PathBuf::from("/");
        let mut fd = self.open_at(&at, flags, Mode::empty())?;
        for component in dir.components() {
            let Component::Normal(name) = component else { continue };
            at.push(name);
            fd = match self.open_at(&at, flags, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(fd.as_fd(), name, Mode::from_raw_mode(0o755))?;
                    let made = self.open_at(&at, flags, Mode::empty())?;
                    // Not the caller's umask.
                    rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                    made
                }
                other => other?,
            };
        }
        Ok(fd)
    }

    /// The directory that `path` leads to.
    pub(crate) fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?)
    }

    /// Removes what is at `path` (not what it leads to), with everything below a directory. It must be there.
    pub(crate) fn remove_all(&self, path: &Path) -> Result<()> {
        let removed = (|| {
            let parent = self.dir(path.parent().unwrap_or(Path::new("/")))?;
            remove_tree(parent.as_fd(), path.file_name().ok_or(io::ErrorKind::InvalidInput)?)
        })();
        let what = || format!("cannot remove {} in {}", path.display(), self.path.display());
        removed.map_err(|e| Failure::io(what(), &e))
    }

    /// Removes the file (not what it leads to) at `path`; that it is gone already is fine.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        let removed = (|| {
            let dir = self.open_at(path.parent().unwrap_or(Path::new("/")), OFlags::PATH, Mode::empty())?;
            let name = path.file_name().ok_or(rustix::io::Errno::INVAL)?;
            rustix::fs::unlinkat(&dir, name, AtFlags::empty())
        })();
        match removed {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => {
                let what = format!("cannot remove {} in {}", path.display(), self.path.display());
                Err(Failure::io(what, &e.into()))
            }
        }
    }

    /// The user that `USER[:GROUP]` names: names are looked up in this filesystem, numbers need no entry there.
    pub(crate) fn user(&self, text: &str) -> Result<User> {
        let passwd = self.read(Path::new("/etc/passwd"))?.unwrap_or_default();
        let group = self.read(Path::new("/etc/group"))?.unwrap_or_default();
        find_user(&passwd, &group, text)
            .map_err(|what| Failure::new(Exit::NotFound, format!("no {what} in {}", self.path.display())))
    }
}

/// Removes a name and what is below it, without following a link.
fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR) => {}
        removed => return Ok(removed?),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_tree(dir.as_fd(), name)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// See [`Rootfs::user`]; the error says what is not there.
fn find_user(passwd: &str, group: &str, text: &str) -> std::result::Result<User, String> {
    let (user, group_name) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let number = user.parse::<u32>().ok();
    // name:password:uid:gid:comment:home:shell
    let account = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|fields| {
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        let uid: u32 = uid.parse().ok()?;
        (name == user || number == Some(uid))
            .then(|| (name.to_owned(), uid, gid.parse().ok(), home.to_owned()))
    });
    let (name, uid, gid, home) = match (account, number, user) {
        (Some(account), ..) => account,
        (None, Some(uid), _) => (String::new(), uid, None, "/".to_owned()),
        // A filesystem without a passwd file still has its root.
        (None, None, "root") => ("root".to_owned(), 0, Some(0), "/root".to_owned()),
        (None, None, _) => return Err(format!("user {user:?}")),
    };
    // name:password:gid:member,member
    let groups: Vec<(&str, u32, &str)> = group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or_default()))
        })
        .collect();
    if let Some(wanted) = group_name {
        let found = groups.iter().find(|(name, ..)| *name == wanted).map(|(_, gid, _)| *gid);
        let gid = found.or(wanted.parse().ok()).ok_or_else(|| format!("group {wanted:?}"))?;
        // An explicit group is the only one.
        return Ok(User { uid, gid, groups: Vec::new(), home });
    }
    let gid = gid.unwrap_or(0);
    let member = |members: &str| !name.is_empty() && members.split(',').any(|member| member == name);
    let more = groups.iter().filter(|(_, id, members)| *id != gid && member(members)).map(|(_, id, _)| *id);
    Ok(User { uid, gid, groups: more.collect(), home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:www,syslog\nssl:x:101:www\n";

    #[test]
    fn users() {
        let user = |text| find_user(PASSWD, GROUP, text);
        let www = User { uid: 33, gid: 33, groups: vec![4, 101], home: "/var/www".into() };
        assert_eq!(user("www"), Ok(www.clone()));
        assert_eq!(user("33"), Ok(www));
        assert_eq!(user("www:adm").map(|u| (u.gid, u.groups)), Ok((4, vec![])));
        assert_eq!(user("1000:1000").map(|u| (u.uid, u.gid, u.home)), Ok((1000, 1000, "/".into())));
        assert!(user("nobody").is_err());
        assert!(user("root:nogroup").is_err());
        assert_eq!(find_user("", "", "root").map(|u| (u.uid, u.home)), Ok((0, "/root".into())));
    }

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let outside = dir.path().join("outside");
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("etc")).expect("made");
        std::fs::create_dir(&outside).expect("made");
        std::fs::write(outside.join("passwd"), "secret").expect("written");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("linked");
        std::os::unix::fs::symlink(outside.join("passwd"), inside.join("etc/passwd")).expect("linked");
        let root = Rootfs::open(&inside).expect("opens");
        assert_eq!(root.read(Path::new("/link/passwd")).expect("looks"), None);
        assert_eq!(root.read(Path::new("/etc/passwd")).expect("looks"), None);
        let me = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        root.write(Path::new("/etc/passwd"), b"mine", 0o644, me).expect("replaces the link");
        assert_eq!(std::fs::read(outside.join("passwd")).expect("there"), b"secret");
        assert_eq!(root.read(Path::new("etc/passwd")).expect("looks").as_deref(), Some("mine"));
        root.write(Path::new("/a/../b/c"), b"x", 0o4755, me).expect("makes directories");
        root.remove(Path::new("/etc/passwd")).expect("removes");
        root.remove(Path::new("/etc/passwd")).expect("gone is fine");
        root.remove_all(Path::new("/link")).expect("removes the link");
        assert!(outside.join("passwd").exists() && !inside.join("link").exists());
        std::os::unix::fs::symlink(&outside, inside.join("a/link")).expect("linked");
        root.remove_all(Path::new("/a")).expect("removes what is below");
        assert!(outside.join("passwd").exists() && !inside.join("a").exists());
        assert_eq!(root.remove_all(Path::new("/a")).expect_err("gone").exit, Exit::NotFound);
    }
}
