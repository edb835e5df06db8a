//! One of the two trees, and the thread that works in it: with the tree as its root folder, a umask, a working directory and
//! credentials of its own, as a program in a VE has them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use rustix::{fs::Gid, fs::Uid};

use super::ops::{SLOTS, User};
use super::raw;

/// An open descriptor.
pub(super) struct Slot {
    pub(super) fd: OwnedFd,
    pub(super) flags: OFlags,
}

/// What the thread of a side has.
#[derive(Default)]
pub(super) struct Inner {
    pub(super) slots: [Option<Slot>; SLOTS as usize],
}

type Job = Box<dyn FnOnce(&mut Inner) + Send>;

/// One of the two trees.
pub(super) struct Side {
    root: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    /// Enters the tree at `root`.
    pub(super) fn enter(root: &Path) -> Side {
        let (jobs, queue) = mpsc::channel::<Job>();
        let to = root.to_owned();
        let thread = std::thread::spawn(move || {
            raw::unshare_fs().expect("a thread may have its own root");
            let outside = Inner::root();
            rustix::process::chroot(&to).expect("the tree is there");
            rustix::process::chdir("/").expect("the tree has a root");
            let mut inner = Inner::default();
            for job in queue {
                job(&mut inner);
            }
            // The kernel lets go of a thread's root only after others know that the thread has ended.
            drop(inner);
            rustix::process::fchdir(&outside).expect("the old root is there");
            rustix::process::chroot(".").expect("root may");
        });
        Side { root: root.to_owned(), jobs: Some(jobs), thread: Some(thread) }
    }

    /// Runs something in the tree.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce(&mut Inner) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move |inner| drop(answer.send(work(inner))));
        self.jobs.as_ref().expect("the thread runs").send(job).expect("the thread runs");
        answered.recv().expect("the work does not panic")
    }

    /// Closes everything, leaves the tree, does `meanwhile` and enters it again.
    pub(super) fn reenter(&mut self, meanwhile: impl FnOnce()) {
        self.leave();
        meanwhile();
        *self = Side::enter(&self.root);
    }

    fn leave(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was told by `run`.
            let _ended = thread.join();
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Inner {
    /// The descriptor in a slot.
    pub(super) fn fd(&self, slot: u8) -> Result<&OwnedFd, Errno> {
        self.slots.get(usize::from(slot)).and_then(Option::as_ref).map(|slot| &slot.fd).ok_or(Errno::BADF)
    }

    /// Runs something with the rights, the umask and the working directory that a step asks for.
    pub(super) fn within<T>(
        &mut self,
        by: User,
        umask: u32,
        cwd: Option<u8>,
        work: impl FnOnce(&mut Inner) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let (uid, groups) = match by {
            User::Root => (0, vec![0]),
            User::Member => (1000, vec![100, 50]),
            User::Other => (2000, vec![2000]),
        };
        if let Some(slot) = cwd {
            rustix::process::fchdir(self.fd(slot)?)?;
        }
        let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(uid), groups[0]);
        set_thread_groups(&groups).expect("root may");
        // The saved ids stay root's: they lead back.
        set_thread_res_gid(gid, gid, Gid::ROOT).expect("root may");
        set_thread_res_uid(uid, uid, Uid::ROOT).expect("root may");
        rustix::process::umask(Mode::from_raw_mode(umask));
        let done = work(self);
        rustix::process::umask(Mode::from_raw_mode(0));
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).expect("the saved id allows it");
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).expect("root may");
        set_thread_groups(&[Gid::ROOT]).expect("root may");
        rustix::process::chdir("/").expect("the tree has a root");
        done
    }

    /// Opens the tree's root.
    pub(super) fn root() -> OwnedFd {
        rustix::fs::openat(CWD, "/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .expect("the tree has a root")
    }
}
