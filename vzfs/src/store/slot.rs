//! A VE in memory.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::mounts::Mounted;
use super::records::VeRecord;
use crate::types::VeId;
use crate::volume::{Holdings, Volume};

/// One VE: its record and what is open of it.
pub(super) struct Slot {
    pub id: VeId,
    /// Lock 3 of the store: one change of state at a time. Held for the time of a mount or an unmount.
    pub live: Mutex<Live>,
    /// Lock 6 of the store, a leaf held for moments: a list of VEs must not wait for a mount that hangs. Written only by who holds
    /// `live`.
    pub shown: RwLock<Shown>,
}

/// What is open.
#[derive(Default)]
pub(super) struct Live {
    pub mount: Option<Box<dyn Mounted>>,
    /// The VE is gone or going: whoever found the slot before must not open it again.
    pub removed: bool,
}

/// What lists show.
pub(super) struct Shown {
    pub record: Arc<VeRecord>,
    /// Where it is mounted now.
    pub mounted: Option<PathBuf>,
    pub passthrough: Option<bool>,
    /// The one volume (S2), as long as a mount or a request holds it.
    pub volume: Weak<Volume>,
    /// What it held when it was last closed; `None` when that is not known.
    pub holdings: Option<Holdings>,
}

impl Slot {
    pub(super) fn new(record: VeRecord) -> Slot {
        Slot {
            id: record.id,
            live: Mutex::new(Live::default()),
            shown: RwLock::new(Shown {
                record: Arc::new(record),
                mounted: None,
                passthrough: None,
                volume: Weak::new(),
                holdings: None,
            }),
        }
    }

    pub(super) fn record(&self) -> Arc<VeRecord> {
        self.shown.read().record.clone()
    }
}
