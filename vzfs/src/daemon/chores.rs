//! What the daemon does for the whole store by itself from time to time, at a pace that leaves the disk to the VEs.

use std::sync::Arc;
use std::time::Duration;

use super::config::{Dedup, Scrub};
use crate::api::{DedupRequest, VerifyStore};
use crate::store::{Pace, Store, StoreError};
use crate::types::Timestamp;

/// After a failure, and when somebody does it by hand at the moment it is due.
const RETRY: Duration = Duration::from_secs(600);

/// Work that is due an interval after its last end.
pub(super) trait Chore: Copy + Send + 'static {
    /// What it does, for the log.
    const WHAT: &'static str;

    /// From one end to the next beginning.
    fn interval(&self) -> Duration;

    /// When it was done last.
    fn last(&self, store: &Store) -> Result<Option<Timestamp>, StoreError>;

    /// Does it. What was found is in the log and in the status.
    fn work(&self, store: &Store) -> Result<(), StoreError>;
}

impl Chore for Scrub {
    const WHAT: &'static str = "check of the store";

    fn interval(&self) -> Duration {
        self.interval
    }

    fn last(&self, store: &Store) -> Result<Option<Timestamp>, StoreError> {
        Ok(store.verify_status()?.last.map(|report| report.finished))
    }

    fn work(&self, store: &Store) -> Result<(), StoreError> {
        let pace = Pace::BytesPerSecond(self.bytes_per_second);
        store.verify_store(&VerifyStore::default(), pace, &()).map(drop)
    }
}

impl Chore for Dedup {
    const WHAT: &'static str = "search for equal private files";

    fn interval(&self) -> Duration {
        self.interval
    }

    fn last(&self, store: &Store) -> Result<Option<Timestamp>, StoreError> {
        Ok(store.dedup_status()?.last.map(|report| report.finished))
    }

    fn work(&self, store: &Store) -> Result<(), StoreError> {
        let request = DedupRequest { quiet_secs: Some(self.quiet.as_secs()), ..DedupRequest::default() };
        store.dedup(&request, Pace::BytesPerSecond(self.bytes_per_second), &()).map(drop)
    }
}

/// Does a chore whenever it is due, for ever; nothing if there is none. Whoever starts this stops it by dropping it; work that goes on then ends by
/// itself when the store closes.
pub(super) async fn run<C: Chore>(store: Arc<Store>, chore: Option<C>) {
    let Some(chore) = chore else { return std::future::pending().await };
    loop {
        let wait = match chore.last(&store) {
            Ok(last) => until_due(last, Timestamp::now(), chore.interval()),
            Err(error) => {
                tracing::error!(%error, what = C::WHAT, "cannot tell when it was done last");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
        if !wait.is_zero() {
            // Somebody may have done it meanwhile.
            continue;
        }
        let worked_on = Arc::clone(&store);
        match tokio::task::spawn_blocking(move || chore.work(&worked_on)).await {
            Ok(Ok(())) => {}
            // The daemon is ending, and this with it.
            Ok(Err(StoreError::Closing)) => return std::future::pending().await,
            Ok(Err(error)) => {
                tracing::warn!(%error, what = C::WHAT, "what was scheduled did not come to its end");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                tracing::error!(%error, what = C::WHAT, "what was scheduled failed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// How long until the next time. What was never done is due at once.
fn until_due(last: Option<Timestamp>, now: Timestamp, interval: Duration) -> Duration {
    let Some(last) = last else { return Duration::ZERO };
    // A clock that was set back must not put it off for ever.
    let passed = now.secs.saturating_sub(last.secs);
    let passed = u64::try_from(passed).map_or(interval, Duration::from_secs);
    interval.saturating_sub(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chores_are_due_an_interval_after_the_last() {
        let at = |secs| Timestamp::new(secs, 0);
        let interval = Duration::from_secs(100);
        assert_eq!(until_due(None, at(5), interval), Duration::ZERO);
        assert_eq!(until_due(Some(at(1000)), at(1030), interval), Duration::from_secs(70));
        assert_eq!(until_due(Some(at(1000)), at(5000), interval), Duration::ZERO);
        assert_eq!(until_due(Some(at(1000)), at(10), interval), Duration::ZERO, "the clock was set back");
    }
}
