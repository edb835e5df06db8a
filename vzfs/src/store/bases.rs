//! Bases: the layers of a stack merged into one tree, once for each distinct list of layers and the rules by which they are merged.

use super::records::BaseRecord;
use super::rules::checked;
use super::stack::build_base;
use super::{Store, StoreError};
use crate::api::StackItem;
use crate::merge::Rules;
use crate::meta::Table;
use crate::types::Digest;

/// Changing how stacks are merged means another number: a base that was made in the old way is then not found, and made anew for new VEs. Changes of
/// the tables of rules are noticed without it.
const MERGING: &str = "vzfs base 1\n";

impl Store {
    /// The base of a stack, made if this is the first VE with that list of layers. The caller holds `adding`.
    pub(super) fn base_of(&self, stack: &[StackItem]) -> Result<Digest, StoreError> {
        let [os, apps @ ..] = stack else { return Err(StoreError::NoOs { fits: None }) };
        if apps.is_empty() {
            return Ok(os.layer);
        }
        let own = self.own_rules(stack);
        let rules = Rules::new(checked(&own)?);
        let key = stack_key(stack, &rules);
        if let Some(base) = self.known_base(&key)? {
            return Ok(base);
        }
        let _building = self.building.lock();
        // Another request may have made it while this one waited.
        if let Some(base) = self.known_base(&key)? {
            return Ok(base);
        }
        let layers = apps
            .iter()
            .map(|item| Ok((item.spec.clone(), self.trees.open(&item.layer)?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let os_tree = self.trees.open(&os.layer)?;
        let started = std::time::Instant::now();
        let result = build_base(&os_tree, &layers, &rules, &self.blobs)?;
        // The merged blobs are durable when build_base returns, the tree when put does; then the record may say so (S1).
        self.trees.put(&result.image)?;
        let base = result.image.digest;
        tracing::info!(
            base = %base.short(),
            templates = stack.len(),
            took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "made a base"
        );
        for note in &result.notes {
            tracing::info!(base = %base.short(), "{note}");
        }
        let layers = stack.iter().map(|item| item.layer).collect();
        self.meta.put(
            Table::Base,
            &key.to_hex(),
            &BaseRecord { base, layers, rules: own, notes: result.notes },
        )?;
        Ok(base)
    }

    fn known_base(&self, key: &Digest) -> Result<Option<Digest>, StoreError> {
        Ok(self.meta.get::<BaseRecord>(Table::Base, &key.to_hex())?.map(|record| record.base))
    }

    /// Bytes of content in a base.
    pub(super) fn base_bytes(&self, base: &Digest) -> Result<u64, StoreError> {
        if let Some(bytes) = self.base_bytes.lock().get(base) {
            return Ok(*bytes);
        }
        let bytes = self.trees.open(base)?.stats().logical_bytes;
        self.base_bytes.lock().insert(*base, bytes);
        Ok(bytes)
    }
}

/// Under which key the base of a stack is remembered.
pub(super) fn stack_key(stack: &[StackItem], rules: &Rules) -> Digest {
    let mut bytes = MERGING.as_bytes().to_vec();
    bytes.extend_from_slice(Digest::of(&rules.fingerprint()).as_bytes());
    for item in stack {
        bytes.extend_from_slice(item.layer.as_bytes());
    }
    Digest::of(&bytes)
}
