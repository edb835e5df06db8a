use std::sync::atomic::{AtomicU64, Ordering};

/// Tells how much of what was written is durable, so that a sync with nothing new to sync costs nothing.
///
/// Writers call [`Watermark::advance`] after each write and before they report it; whoever syncs calls [`Watermark::settle`]. A sync that is
/// under way in another thread is not waited for but done again: its result is not known yet.
#[derive(Debug)]
pub struct Watermark {
    written: AtomicU64,
    durable: AtomicU64,
}

impl Default for Watermark {
    /// As if something was written: what an earlier process left may not be durable.
    fn default() -> Self {
        Watermark { written: AtomicU64::new(1), durable: AtomicU64::new(0) }
    }
}

impl Watermark {
    /// Something was written.
    pub fn advance(&self) {
        self.written.fetch_add(1, Ordering::AcqRel);
    }

    /// Runs `sync` unless everything written before this call is durable already.
    ///
    /// # Errors
    /// Those of `sync`; the next call then tries again.
    pub fn settle<E>(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let written = self.written.load(Ordering::Acquire);
        if self.durable.load(Ordering::Acquire) >= written {
            return Ok(());
        }
        sync()?;
        self.durable.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_only_what_is_new_and_again_after_a_failure() {
        let mark = Watermark::default();
        let synced = |mark: &Watermark| {
            let mut ran = false;
            mark.settle(|| {
                ran = true;
                Ok::<(), ()>(())
            })
            .map(|()| ran)
        };
        assert_eq!(mark.settle(|| Err("disk")), Err("disk"));
        assert_eq!(synced(&mark), Ok(true));
        assert_eq!(synced(&mark), Ok(false));
        mark.advance();
        assert_eq!(synced(&mark), Ok(true));
        assert_eq!(synced(&mark), Ok(false));
    }
}
