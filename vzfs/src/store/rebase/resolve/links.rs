//! The links in `/etc/alternatives`: they follow from the merged databases, of which each side knew only its own choices.

use std::collections::{BTreeMap, BTreeSet};

use super::files::ALTERNATIVES_LINKS;
use super::{Item, Resolver};
use crate::api::Generate;
use crate::merge::alternative_links;
use crate::meta::EntryRecord;
use crate::store::StoreError;
use crate::tree::{ContentRef, Tree};
use crate::types::{FileKind, Ino, NameRef};

/// What one of them wants of a link.
struct Wish {
    /// Where to; `None`: that there is none.
    target: Option<Vec<u8>>,
    master: Vec<u8>,
}

/// What merged databases in automatic mode want.
#[derive(Default)]
pub(super) struct Wanted {
    by_link: BTreeMap<Vec<u8>, Wish>,
}

impl Wanted {
    /// Adds what a database of this name wants.
    pub(super) fn add(&mut self, master: &[u8], database: &[u8]) {
        for link in alternative_links(master, database).unwrap_or_default() {
            self.by_link.insert(link.name, Wish { target: link.target, master: master.to_vec() });
        }
    }
}

impl<'a> Resolver<'a> {
    /// Decides about the links, now that all databases are merged. Where neither side has the right one, update-alternatives is to be run.
    pub(super) fn settle_links(&mut self) -> Result<(), StoreError> {
        let mut stale = BTreeSet::new();
        for item in std::mem::take(&mut self.links) {
            let own = self.own_link(item)?;
            let [old, new] = self.base_links(item);
            let wanted = self.wanted.by_link.remove(item.place.1.as_bytes());
            match wanted {
                Some(wish) if wish.target == new => self.take(item),
                Some(wish) if wish.target == own => {}
                Some(wish) => {
                    stale.insert(wish.master);
                }
                // Only one side changed the database, or somebody has chosen by hand.
                None if own.is_some() && (own == old || own == new) => self.take(item),
                None => {}
            }
        }
        for (name, wish) in std::mem::take(&mut self.wanted.by_link) {
            if self.shown_link(&name)? != wish.target {
                stale.insert(wish.master);
            }
        }
        for master in stale {
            let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+-".contains(byte);
            let path = [ALTERNATIVES_LINKS, &master].concat();
            let path = super::text::shown(&path);
            match std::str::from_utf8(&master) {
                Ok(name) if master.iter().all(is_plain) && !name.starts_with('-') => {
                    let command = format!("update-alternatives --auto {name}");
                    self.resolved.generate.push(Generate { path, command });
                }
                _ => {
                    self.resolved.notes.push(format!("/{path} may lead to another alternative than the best"))
                }
            }
        }
        Ok(())
    }

    /// Where the VE's link leads.
    fn own_link(&self, item: &Item<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        match item.hidden.by {
            Some(EntryRecord::Node(ino, FileKind::Symlink)) => {
                self.sides.volume.read_link(ino).map(Some).map_err(self.sides.failed())
            }
            _ => Ok(None),
        }
    }

    fn base_links(&self, item: &Item<'_>) -> [Option<Vec<u8>>; 2] {
        let (delta, change) = (self.sides.delta, item.hidden.change);
        [target(&delta.old, change.old), target(&delta.new, change.new)]
    }

    /// Where a link will lead that nothing is decided about.
    fn shown_link(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let path = [ALTERNATIVES_LINKS, name].concat();
        let delta = self.sides.delta;
        let dir = delta.new.resolve(ALTERNATIVES_LINKS).map(|view| view.ino());
        let name = NameRef::new(name).map(NameRef::to_name);
        if let (Some(dir), Ok(name)) = (dir, name)
            && let Some(change) = delta.name(dir, &name)
        {
            return Ok(target(&delta.new, change.new));
        }
        let Some(ino) = self.sides.volume.resolve(&path).map_err(self.sides.failed())? else {
            return Ok(None);
        };
        if self.sides.volume.attr(ino).map_err(self.sides.failed())?.kind != FileKind::Symlink {
            return Ok(None);
        }
        self.sides.volume.read_link(ino).map(Some).map_err(self.sides.failed())
    }
}

fn target(tree: &Tree, node: Option<(Ino, FileKind)>) -> Option<Vec<u8>> {
    match tree.node(node?.0)?.content() {
        ContentRef::Symlink(target) => Some(target.to_vec()),
        _ => None,
    }
}
