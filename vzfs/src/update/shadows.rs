//! What VEs do not show of their updates, remembered beyond the rollout: a fix that a VE's own file hides is hidden until somebody sees to it.
//!
//! A VE's list grows with each rollout's report, and shrinks when a rollout is taken back. Whether an entry still holds is found out when
//! it is looked at: it does as long as the VE has something of its own at that path, or at a directory above it.

use std::collections::{BTreeMap, HashSet};

use super::run::Halt;
use super::{UpdateError, Updates};
use crate::api::{RebaseReport, Shadowed, ShadowedBy, ShadowedFile, StackItem, VeShadows};
use crate::store::{StoreError, VeStanding};
use crate::types::{TemplateSpec, VeId, VeName};

impl Updates {
    /// What a VE does not show of its updates.
    ///
    /// # Errors
    /// There is no such VE; what it changed cannot be read.
    pub fn shadowed_in(&self, ve: &VeName) -> Result<VeShadows, UpdateError> {
        let member = self.fleet.members().into_iter().find(|member| member.name == *ve);
        let member = member.ok_or_else(|| StoreError::UnknownVe(ve.clone()))?;
        Ok(VeShadows { ve: ve.clone(), files: self.still_shadowed(&member)? })
    }

    /// The VEs that do not show something of their updates, by name.
    ///
    /// # Errors
    /// What one of them changed cannot be read.
    pub fn shadowed(&self) -> Result<Vec<VeShadows>, UpdateError> {
        let shadowing: HashSet<VeId> = self.journal.shadowing()?.into_iter().collect();
        let mut all = Vec::new();
        for member in self.fleet.members().into_iter().filter(|member| shadowing.contains(&member.id)) {
            let files = self.still_shadowed(&member)?;
            if !files.is_empty() {
                all.push(VeShadows { ve: member.name, files });
            }
        }
        Ok(all)
    }

    /// By path; of several rollouts that brought the same path, the last counts.
    fn still_shadowed(&self, member: &VeStanding) -> Result<Vec<ShadowedFile>, UpdateError> {
        let kept = self.journal.shadowed(member.id)?;
        if kept.is_empty() {
            return Ok(kept);
        }
        let own = match self.fleet.own_paths(&member.name) {
            // Removed since the list was made.
            Err(StoreError::UnknownVe(_) | StoreError::VeRemoving(_)) => return Ok(Vec::new()),
            own => own?,
        };
        let mut by_path = BTreeMap::new();
        for file in kept.into_iter().filter(|file| holds(&own, &file.shadowed)) {
            by_path.insert(file.shadowed.path.clone(), file);
        }
        Ok(by_path.into_values().collect())
    }

    /// U6. The list is by rollout and path, so that doing it again changes nothing.
    pub(super) fn remember_shadows(&self, id: u64, ve: VeId, report: &RebaseReport) -> Result<(), Halt> {
        let (undone, leads_back) = {
            let state = self.state.lock();
            let undone = state.rollouts.get(&id).and_then(|live| live.head.rolls_back);
            (undone, state.leads_back(id))
        };
        let before = self.journal.shadowed(ve)?;
        let mut files: Vec<ShadowedFile> = before
            .iter()
            .filter(|file| file.rollout != id && Some(file.rollout) != undone)
            .cloned()
            .collect();
        if !leads_back {
            let (from, to) = (other_than(&report.from, &report.to), other_than(&report.to, &report.from));
            files.extend(report.shadowed.iter().map(|shadowed| ShadowedFile {
                shadowed: shadowed.clone(),
                rollout: id,
                from: from.clone(),
                to: to.clone(),
            }));
        }
        if files != before {
            self.journal.put_shadowed(ve, &files)?;
        }
        Ok(())
    }
}

/// The templates of a stack that another does not have.
fn other_than(stack: &[StackItem], other: &[StackItem]) -> Vec<TemplateSpec> {
    stack.iter().filter(|item| !other.contains(item)).map(|item| item.spec.clone()).collect()
}

/// Whether the VE still has of its own what hides the file.
fn holds(own: &HashSet<String>, file: &Shadowed) -> bool {
    if file.by != ShadowedBy::Directory {
        return own.contains(&file.path);
    }
    let mut above = &*file.path;
    while let Some((directory, _)) = above.rsplit_once('/') {
        if own.contains(directory) {
            return true;
        }
        above = directory;
    }
    own.contains(&file.path)
}
