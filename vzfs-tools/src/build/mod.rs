//! Template builds (placeholder).
use std::path::Path;

use crate::commands::Context;
use crate::error::Result;

pub(crate) fn run(_context: &Context, _file: &Path, _dry_run: bool) -> Result<()> {
    Ok(())
}
