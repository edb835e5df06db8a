//! Moving VEs from the stack that they have to another, mounted or not.

mod resolve;

use super::{Store, StoreError};
use crate::api::{OnConflict, RebaseReport, StackItem};
use crate::types::{TemplateRef, VeName};

/// How to move a VE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebase {
    /// What wins where both sides changed a file.
    pub on_conflict: OnConflict,
    /// Change nothing, only tell.
    pub dry_run: bool,
}

impl Store {
    /// The stack that a VE would have: of the templates that it has now, those that `wanted` names in the version that it says, all others in
    /// the newest version that fits. With no `wanted`, the newest of everything.
    ///
    /// # Errors
    /// A template of `wanted` is unknown or not one of the VE's; an application has no version that fits the OS.
    pub fn next_stack(&self, ve: &VeName, wanted: &[TemplateRef]) -> Result<Vec<StackItem>, StoreError> {
        let slot = self.slot(ve)?;
        let record = slot.record();
        let has = |name| record.stack.iter().any(|item| item.spec.name == name);
        if let Some(other) = wanted.iter().find(|wanted| !has(wanted.name.clone())) {
            return Err(StoreError::Invalid(format!("VE {ve} has no template {}", other.name)));
        }
        let reference = |item: &StackItem| {
            let named = wanted.iter().find(|wanted| wanted.name == item.spec.name);
            named.cloned().unwrap_or_else(|| TemplateRef { name: item.spec.name.clone(), version: None })
        };
        let references: Vec<_> = record.stack.iter().map(reference).collect();
        self.catalog.read().stack(&references)
    }

    /// Moves a VE to another stack: its base becomes the new stack's, in one step that is durable on return; what it changed itself stays. A mounted VE's
    /// programs keep the files that they have open. To have the stack already is no error.
    ///
    /// # Errors
    /// With [`OnConflict::Fail`], [`StoreError::Invalid`] naming the first conflict; then nothing was changed.
    pub fn rebase(&self, ve: &VeName, to: &[StackItem], how: Rebase) -> Result<RebaseReport, StoreError> {
        let _ = (to, how);
        Err(StoreError::Invalid(format!("VE {ve} cannot be moved yet")))
    }
}
