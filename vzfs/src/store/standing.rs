//! Where VEs stand, and what they may have to go back to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use super::slot::Slot;
use super::{Catalog, Store};
use crate::api::StackItem;
use crate::meta::Meta;
use crate::types::{TemplateSpec, VeId, VeName};

/// A VE and what it stands on; costs nothing but the look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VeStanding {
    /// Its number, which stays when it is renamed.
    pub id: VeId,
    /// Its name.
    pub name: VeName,
    /// Free texts by name.
    pub labels: BTreeMap<String, String>,
    /// The templates that it stands on, the OS first.
    pub stack: Vec<StackItem>,
    /// Where it is mounted.
    pub mounted: Option<PathBuf>,
    /// Whether it is to be mounted whenever the daemon starts.
    pub wanted: bool,
}

/// Somebody who may still move VEs to stacks that they do not have: forward, or back to where they were.
pub trait WaysBack: Send + Sync {
    /// The ways that need a template. Called with the catalog locked: nothing may be asked of the store.
    fn ways_back(&self, spec: &TemplateSpec) -> Vec<WayBack>;
}

/// A way that a VE may still go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WayBack {
    /// The rollout that would take it there.
    pub update: u64,
    /// The VE.
    pub ve: VeId,
    /// The stack that the VE must have now, for otherwise that rollout would leave it alone.
    pub at: Vec<StackItem>,
}

impl Store {
    /// Where each VE stands, by name.
    pub fn standings(&self) -> Vec<VeStanding> {
        let slots = self.slots();
        slots.iter().map(|slot| standing(slot)).collect()
    }

    /// Where the VE with this number stands; `None` if there is none, or it is being removed.
    pub fn standing(&self, id: VeId) -> Option<VeStanding> {
        let slot = self.catalog.read().ves.values().find(|slot| slot.id == id).cloned();
        slot.map(|slot| standing(&slot))
    }

    /// From now on, templates that this one needs stay (S4).
    pub fn heed_ways_back(&self, ways: Weak<dyn WaysBack>) {
        *self.ways_back.lock() = Some(ways);
    }

    /// The rollouts that need a template, in order. The caller has the catalog locked.
    pub(super) fn updates_needing(&self, catalog: &Catalog, spec: &TemplateSpec) -> Vec<u64> {
        let ways: Option<Arc<dyn WaysBack>> = self.ways_back.lock().as_ref().and_then(Weak::upgrade);
        let ways = ways.map(|ways| ways.ways_back(spec)).unwrap_or_default();
        let stands = |way: &WayBack| {
            catalog.ves.values().any(|slot| slot.id == way.ve && slot.record().stack == way.at)
        };
        let mut updates: Vec<u64> = ways.iter().filter(|way| stands(way)).map(|way| way.update).collect();
        updates.sort_unstable();
        updates.dedup();
        updates
    }

    /// The database, for records that stand beside the store's own.
    pub(crate) fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }
}

fn standing(slot: &Slot) -> VeStanding {
    let shown = slot.shown.read();
    VeStanding {
        id: slot.id,
        name: shown.record.name.clone(),
        labels: shown.record.labels.clone(),
        stack: shown.record.stack.clone(),
        mounted: shown.mounted.clone(),
        wanted: shown.record.mountpoint.is_some(),
    }
}
