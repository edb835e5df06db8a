//! Where rollouts are kept: one seam between what is decided and what is durable, so that tests can cut it at every write.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::{RebaseReport, RolloutHead, RolloutVe, ShadowedFile};
use crate::meta::{Meta, MetaError, Table};
use crate::types::{Timestamp, VeId};

/// Durable records of rollouts. A write is durable when it returns; writes of several threads may come in any order.
pub trait Journal: Send + Sync {
    /// A number that no rollout had.
    fn take_number(&self) -> Result<u64, MetaError>;
    /// Everything but the reports. Records of VEs whose rollout has no head are what a crash left of one that was being made or forgotten.
    fn load(&self) -> Result<Vec<Kept>, MetaError>;
    /// Keeps what is said of a rollout as a whole. The first time makes the rollout exist.
    fn put_head(&self, head: &RolloutHead) -> Result<(), MetaError>;
    /// Keeps a VE of a rollout and, if it is given, what moving the VE did.
    fn put_ve(&self, rollout: u64, ve: &RolloutVe, report: Option<&RebaseReport>) -> Result<(), MetaError>;
    /// What moving a VE did, as the move itself left it under [`report_key`], or [`Journal::put_ve`] since.
    fn report(&self, rollout: u64, ve: VeId) -> Result<Option<RebaseReport>, MetaError>;
    /// Removes a rollout's head, and what belongs to these VEs.
    fn forget(&self, rollout: u64, ves: &[VeId]) -> Result<(), MetaError>;
    /// Keeps what a VE does not show of its updates; nothing is kept of an empty list.
    fn put_shadowed(&self, ve: VeId, files: &[ShadowedFile]) -> Result<(), MetaError>;
    /// What a VE does not show of its updates.
    fn shadowed(&self, ve: VeId) -> Result<Vec<ShadowedFile>, MetaError>;
    /// The VEs of which something is kept there.
    fn shadowing(&self) -> Result<Vec<VeId>, MetaError>;
}

/// A rollout as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its number.
    pub id: u64,
    /// `None`: the rollout was never begun, or is forgotten.
    pub head: Option<RolloutHead>,
    /// Its VEs by number.
    pub ves: Vec<RolloutVe>,
}

/// The records in the store's database.
pub struct MetaJournal(Arc<Meta>);

/// Key in [`Table::Setting`] of the next rollout's number.
const NEXT_UPDATE: &str = "next_update";

impl MetaJournal {
    /// Keeps rollouts in this database.
    pub fn new(meta: Arc<Meta>) -> MetaJournal {
        MetaJournal(meta)
    }
}

/// Decimal with leading zeros, so that the order of keys is that of numbers.
fn head_key(rollout: u64) -> String {
    format!("{rollout:010}")
}

fn ve_key(rollout: u64, ve: VeId) -> String {
    format!("{rollout:010}/{:010}", ve.0)
}

/// Key in [`Table::UpdateReport`] of what moving a VE did.
pub(super) fn report_key(rollout: u64, ve: VeId) -> String {
    ve_key(rollout, ve)
}

fn unreadable(table: &'static str, key: &str, why: &dyn std::fmt::Display) -> MetaError {
    MetaError::Damaged { table, key: key.to_owned(), why: why.to_string() }
}

impl Journal for MetaJournal {
    fn take_number(&self) -> Result<u64, MetaError> {
        let number = self.0.get::<u64>(Table::Setting, NEXT_UPDATE)?.unwrap_or(1);
        self.0.put(Table::Setting, NEXT_UPDATE, &(number + 1))?;
        Ok(number)
    }

    fn load(&self) -> Result<Vec<Kept>, MetaError> {
        let mut rollouts: BTreeMap<u64, Kept> = BTreeMap::new();
        for (key, value) in self.0.list::<serde_json::Value>(Table::Update)? {
            let (number, ve) = key.split_once('/').map_or((&*key, None), |(number, ve)| (number, Some(ve)));
            let id: u64 = number.parse().map_err(|error| unreadable("update", &key, &error))?;
            let kept = rollouts.entry(id).or_insert_with(|| Kept { id, head: None, ves: Vec::new() });
            let damaged = |error: serde_json::Error| unreadable("update", &key, &error);
            if ve.is_some() {
                kept.ves.push(serde_json::from_value(value).map_err(damaged)?);
            } else {
                kept.head = Some(serde_json::from_value(value).map_err(damaged)?);
            }
        }
        Ok(rollouts.into_values().collect())
    }

    fn put_head(&self, head: &RolloutHead) -> Result<(), MetaError> {
        self.0.put(Table::Update, &head_key(head.id), head)
    }

    fn put_ve(&self, rollout: u64, ve: &RolloutVe, report: Option<&RebaseReport>) -> Result<(), MetaError> {
        let mut records = self.0.records().put(Table::Update, &ve_key(rollout, ve.id), ve)?;
        if let Some(report) = report {
            records = records.put(Table::UpdateReport, &report_key(rollout, ve.id), report)?;
        }
        records.commit()
    }

    fn report(&self, rollout: u64, ve: VeId) -> Result<Option<RebaseReport>, MetaError> {
        self.0.get(Table::UpdateReport, &report_key(rollout, ve))
    }

    fn forget(&self, rollout: u64, ves: &[VeId]) -> Result<(), MetaError> {
        let mut records = self.0.records().delete(Table::Update, &head_key(rollout));
        for ve in ves {
            records = records
                .delete(Table::UpdateReport, &report_key(rollout, *ve))
                .delete(Table::Update, &ve_key(rollout, *ve));
        }
        records.commit()
    }

    fn put_shadowed(&self, ve: VeId, files: &[ShadowedFile]) -> Result<(), MetaError> {
        if files.is_empty() {
            return self.0.delete(Table::Shadowed, &shadow_key(ve));
        }
        self.0.put(Table::Shadowed, &shadow_key(ve), &files)
    }

    fn shadowed(&self, ve: VeId) -> Result<Vec<ShadowedFile>, MetaError> {
        Ok(self.0.get(Table::Shadowed, &shadow_key(ve))?.unwrap_or_default())
    }

    fn shadowing(&self) -> Result<Vec<VeId>, MetaError> {
        let kept = self.0.list::<serde::de::IgnoredAny>(Table::Shadowed)?;
        let number = |(key, _): (String, _)| {
            key.parse().map(VeId).map_err(|error| unreadable("shadowed", &key, &error))
        };
        kept.into_iter().map(number).collect()
    }
}

fn shadow_key(ve: VeId) -> String {
    format!("{:010}", ve.0)
}

/// A pause until `until` has ended at `now`, or needs so much longer.
pub(super) fn time_left(until: Timestamp, now: Timestamp) -> std::time::Duration {
    let nanos = |time: Timestamp| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let left = u64::try_from((nanos(until) - nanos(now)).max(0)).unwrap_or(u64::MAX);
    std::time::Duration::from_nanos(left)
}
