//! Scheduled checks of the whole store, at a pace that leaves the disk to the VEs.

use std::sync::Arc;
use std::time::Duration;

use super::config::Scrub;
use crate::api::VerifyStore;
use crate::store::{Pace, Store, StoreError};
use crate::types::Timestamp;

/// After a failure, and when somebody checks by hand at the moment it is due.
const RETRY: Duration = Duration::from_secs(600);

/// Checks the store whenever it is due, for ever. Whoever starts this stops it by dropping it; a check that runs then ends by itself when the
/// store closes.
pub(super) async fn run(store: Arc<Store>, scrub: Scrub) {
    loop {
        let wait = match store.verify_status() {
            Ok(status) => {
                let last = status.last.map(|report| report.finished);
                until_due(last, Timestamp::now(), scrub.interval)
            }
            Err(error) => {
                tracing::error!(%error, "cannot tell when the store was checked last");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
        if !wait.is_zero() {
            // Somebody may have checked it meanwhile.
            continue;
        }
        let checked = Arc::clone(&store);
        let pace = Pace::BytesPerSecond(scrub.bytes_per_second);
        let check = move || checked.verify_store(&VerifyStore::default(), pace, &());
        match tokio::task::spawn_blocking(check).await {
            // What was found is in the log and in the status.
            Ok(Ok(_)) => {}
            Ok(Err(StoreError::Closing)) => return,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the scheduled check did not come to its end");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                tracing::error!(%error, "the scheduled check failed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// How long until the next check. A store that was never checked is new or was made by hand: it is due at once.
fn until_due(last: Option<Timestamp>, now: Timestamp, interval: Duration) -> Duration {
    let Some(last) = last else { return Duration::ZERO };
    // A clock that was set back must not put the check off for ever.
    let passed = now.secs.saturating_sub(last.secs);
    let passed = u64::try_from(passed).map_or(interval, Duration::from_secs);
    interval.saturating_sub(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_due_an_interval_after_the_last() {
        let at = |secs| Timestamp::new(secs, 0);
        let interval = Duration::from_secs(100);
        assert_eq!(until_due(None, at(5), interval), Duration::ZERO);
        assert_eq!(until_due(Some(at(1000)), at(1030), interval), Duration::from_secs(70));
        assert_eq!(until_due(Some(at(1000)), at(5000), interval), Duration::ZERO);
        assert_eq!(until_due(Some(at(1000)), at(10), interval), Duration::ZERO, "the clock was set back");
    }
}
