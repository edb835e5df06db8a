//! From the templates that somebody names to a stack that can stand: exactly one OS, first, and applications that were
//! made on it.

use std::sync::Arc;

use super::records::TemplateRecord;
use super::{Catalog, StoreError};
use crate::api::{OsIdentity, StackItem, TemplateKind};
use crate::types::{TemplateRef, TemplateSpec};

impl Catalog {
    /// The template a reference means: the tagged version for a tag, the newest version when it names none.
    pub(super) fn template(&self, reference: &TemplateRef) -> Result<Arc<TemplateRecord>, StoreError> {
        let newest = self.versions(reference).next_back();
        newest.cloned().ok_or_else(|| StoreError::UnknownTemplate(reference.clone()))
    }

    /// The templates that a reference can mean, oldest first.
    fn versions(
        &self,
        reference: &TemplateRef,
    ) -> impl DoubleEndedIterator<Item = &Arc<TemplateRecord>> + use<'_> {
        let name = reference.name.clone();
        // No version has the name of a tag (S6), so what is looked for first makes no difference.
        let version = reference.version.clone().map(|version| {
            let written = TemplateSpec { name: name.clone(), version };
            self.tags.get(&written).cloned().unwrap_or(written.version)
        });
        self.templates.values().filter(move |record| {
            record.spec.name == name && version.as_ref().is_none_or(|version| *version == record.spec.version)
        })
    }

    /// The stack, the OS first. An application named without a version means the newest one that fits the OS.
    pub(super) fn stack(&self, references: &[TemplateRef]) -> Result<Vec<StackItem>, StoreError> {
        let newest =
            references.iter().map(|reference| self.template(reference)).collect::<Result<Vec<_>, _>>()?;
        let mut systems = newest.iter().filter(|record| record.kind == TemplateKind::Os);
        let Some(os) = systems.next().cloned() else {
            let fits = newest
                .iter()
                .find_map(|app| app.os.as_ref())
                .map(|os| TemplateSpec { name: os.name.clone(), version: os.version.clone() });
            return Err(StoreError::NoOs { fits });
        };
        if let Some(second) = systems.next() {
            return Err(if second.spec.name == os.spec.name {
                StoreError::Twice(os.spec.name.clone())
            } else {
                StoreError::TwoOs(os.spec.clone(), second.spec.clone())
            });
        }
        let mut stack = vec![os.clone()];
        for (reference, newest) in references.iter().zip(newest) {
            if newest.kind == TemplateKind::Os {
                continue;
            }
            let fits = |app: &TemplateRecord| app.os.as_ref().is_some_and(|on| on.layer == os.layer);
            let app = self.versions(reference).rev().find(|app| fits(app)).cloned();
            let app = app.ok_or_else(|| unfit(&newest, &os))?;
            if stack.iter().any(|below| below.spec.name == app.spec.name) {
                return Err(StoreError::Twice(app.spec.name.clone()));
            }
            if let Some(needs) = app.requires.iter().find(|needs| !stack.iter().any(|b| b.spec == **needs)) {
                return Err(StoreError::Requires { app: app.spec.clone(), needs: needs.clone() });
            }
            stack.push(app);
        }
        Ok(stack.iter().map(|record| StackItem { spec: record.spec.clone(), layer: record.layer }).collect())
    }

    /// The OS template that a reference means, to make an application on.
    pub(super) fn os(&self, reference: &TemplateRef) -> Result<OsIdentity, StoreError> {
        let record = self.template(reference)?;
        record.os_identity().ok_or_else(|| {
            StoreError::Invalid(format!(
                "{} is an application template, not an OS to make one on",
                record.spec
            ))
        })
    }
}

fn unfit(app: &TemplateRecord, os: &TemplateRecord) -> StoreError {
    let fits = match &app.os {
        None => "nothing that is known".to_owned(),
        Some(on) => {
            let spec = TemplateSpec { name: on.name.clone(), version: on.version.clone() };
            // The name may have been given to something else since.
            if spec == os.spec {
                format!("an earlier {spec} with other content ({})", on.layer.short())
            } else {
                spec.to_string()
            }
        }
    };
    StoreError::Unfit { app: app.spec.clone(), os: os.spec.clone(), fits }
}
