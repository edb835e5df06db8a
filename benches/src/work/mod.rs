//! What the systems are made to do: rows of the table.

mod files;
mod rows;

use std::path::Path;

use anyhow::Result;

use crate::run::{inside, run, sh};
use crate::system::Touches;

pub use rows::ROWS;

/// One row.
pub struct Row {
    /// Its name, for `--rows`.
    pub name: &'static str,
    /// What is done.
    pub what: &'static str,
    /// What the caches hold at the start.
    pub caches: Caches,
    /// Whether it changes the tree.
    pub touches: Touches,
    /// What is timed.
    pub work: Work,
    /// The largest ratio to the kernel's overlayfs that vzfs may have.
    pub goal: Option<f64>,
    /// Needs the huge file in the tree.
    pub huge: bool,
}

/// What the caches hold when the clock starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caches {
    /// What the preparation left there.
    AsPrepared,
    /// The same work has been done twice: what the first time leaves behind may cost the second something.
    Warm,
    /// Nothing.
    Cold,
}

/// What is timed.
pub enum Work {
    /// A shell script in the tree.
    Script {
        /// Run before, not timed.
        before: &'static str,
        /// What is timed.
        script: &'static str,
        /// Run afterwards, not timed, also when something failed.
        after: &'static str,
    },
    /// System calls of this process: makes ready what the clock does not see, and returns the rest.
    Calls(fn(&Path) -> Result<Ready>),
    /// The same script in many VEs at once.
    Many {
        /// How many VEs.
        ves: usize,
        /// What is timed.
        script: &'static str,
    },
    /// Making a VE, until a first program has run in it.
    FirstUse,
}

/// Work that is ready to be timed.
pub type Ready = Box<dyn FnOnce() -> Result<()>>;

impl Work {
    /// How many VEs it wants to have.
    pub fn ves(&self) -> usize {
        match self {
            Work::Many { ves, .. } => *ves,
            Work::FirstUse => 0,
            Work::Script { .. } | Work::Calls(_) => 1,
        }
    }

    /// Prepares the work in these VEs. What it returns is timed.
    ///
    /// # Errors
    /// What the preparation says.
    pub fn prepare(&self, roots: &[&Path]) -> Result<Ready> {
        match self {
            Work::Script { before, script, .. } => {
                for root in roots {
                    sh(root, before)?;
                }
                many(roots, script)
            }
            Work::Many { script, .. } => many(roots, script),
            Work::Calls(prepare) => match roots {
                [root] => prepare(root),
                _ => anyhow::bail!("system calls are made in one VE"),
            },
            Work::FirstUse => anyhow::bail!("the first use of a VE has no VE before"),
        }
    }

    /// Ends what the preparation began.
    ///
    /// # Errors
    /// What it says.
    pub fn finish(&self, roots: &[&Path]) -> Result<()> {
        if let Work::Script { after, .. } = self {
            for root in roots {
                sh(root, after)?;
            }
        }
        Ok(())
    }
}

/// A script in all of these at once.
fn many(roots: &[&Path], script: &'static str) -> Result<Ready> {
    let mut commands: Vec<_> = roots.iter().map(|root| inside(root, script)).collect();
    Ok(Box::new(move || {
        std::thread::scope(|scope| {
            let running: Vec<_> =
                commands.iter_mut().map(|command| scope.spawn(move || run(command).map(drop))).collect();
            running.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that ran a script panicked")))
            })
        })
    }))
}
