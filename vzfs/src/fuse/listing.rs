//! Directory listings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::convert::{ABSENT, file_attr, file_type};
use super::dispatch::{Dispatch, GENERATION};
use super::request::ino;

/// Entries prepared for one readdirplus reply: a page of 4 KiB holds at most 25, the kernel's largest buffer is 32 such pages.
const READDIRPLUS_AT_ONCE: usize = 800;

impl Dispatch {
    /// Names, types and numbers.
    pub(super) fn list(&self, node: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        let listed = ino(node).and_then(|dir| {
            self.volume.read_dir(dir, offset, |entry| {
                !reply.add(
                    INodeNo(entry.ino.get()),
                    entry.cookie,
                    file_type(entry.kind),
                    OsStr::from_bytes(entry.name),
                )
            })
        });
        match listed {
            Ok(()) => {
                reply.ok();
                self.listed(node);
            }
            Err(error) => reply.error(self.failed("readdir", node, &error)),
        }
    }

    /// Names with what a look-up of each would say.
    pub(super) fn list_with_attributes(&self, node: INodeNo, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut entries = Vec::new();
        let listed = ino(node).and_then(|dir| {
            // As many as the smallest entries could fill the largest buffer; the reply says when it is full.
            self.volume.read_dir(dir, offset, |entry| {
                entries.push((entry.name.to_vec(), entry.ino, entry.cookie));
                entries.len() < READDIRPLUS_AT_ONCE
            })
        });
        if let Err(error) = listed {
            return reply.error(self.failed("readdirplus", node, &error));
        }
        let longest = self.names_lifetime(node);
        for (name, child, cookie) in entries {
            let is_dot = name == b"." || name == b"..";
            // An entry that has just gone is still a name: node id 0 says that it was not looked up.
            let attr = self.attr_with_lifetime(child).ok();
            let node = attr.filter(|_| !is_dot).map_or(0, |(attr, _)| attr.ino.get());
            let (file, lifetime) =
                attr.map_or((ABSENT, Duration::ZERO), |(attr, lifetime)| (file_attr(&attr), lifetime));
            let full = reply.add(
                INodeNo(node),
                cookie,
                OsStr::from_bytes(&name),
                &lifetime.min(longest),
                &file,
                GENERATION,
            );
            if full {
                break;
            }
            if node != 0 && self.refer(child).is_err() {
                break;
            }
        }
        reply.ok();
        self.listed(node);
    }
}
