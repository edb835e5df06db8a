//! The merge rules of stacks.

use super::{Store, StoreError};
use crate::api::{self, StackItem};
use crate::merge::{MergeRule, Rule, Rules};

/// Most rules of one template. Each is tried against each file that has to be merged.
const MAX_RULES: usize = 1000;

impl Store {
    /// The rules in effect for a stack: those of its templates, the topmost first, then the built-in ones.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when a template has a rule that this version does not know.
    pub fn merge_rules(&self, stack: &[StackItem]) -> Result<Rules, StoreError> {
        checked(&self.own_rules(stack)).map(Rules::new)
    }

    /// The rules of a stack's templates, the topmost first.
    pub(super) fn own_rules(&self, stack: &[StackItem]) -> Vec<api::MergeRule> {
        let catalog = self.catalog.read();
        let records = stack.iter().rev().filter_map(|item| catalog.templates.get(&item.spec));
        records.flat_map(|record| record.merge.iter().cloned()).collect()
    }
}

/// Rules as they are used, of rules as they are written.
pub(super) fn checked(rules: &[api::MergeRule]) -> Result<Vec<MergeRule>, StoreError> {
    let check = |written: &api::MergeRule| {
        let rule = written.rule.parse::<Rule>()?;
        MergeRule::new(&written.path, rule, written.generate.as_deref())
    };
    rules.iter().map(check).collect::<Result<_, _>>().map_err(|error| StoreError::Invalid(error.to_string()))
}

/// The rules of a template to be made, refused if one of them makes no sense.
pub(super) fn acceptable(rules: &[api::MergeRule]) -> Result<Vec<api::MergeRule>, StoreError> {
    if rules.len() > MAX_RULES {
        return Err(StoreError::Invalid(format!("a template has at most {MAX_RULES} merge rules")));
    }
    checked(rules)?;
    Ok(rules.to_vec())
}
