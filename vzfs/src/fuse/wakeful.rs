//! Keeps idle processors from halting while many requests come in.
//!
//! A program in a VE and the thread that answers it wait for each other, mostly on two processors. In a virtual machine a processor that has nothing to do
//! halts, and to wake it takes longer than most requests do (`benches/README.md`). While somebody demands a latency of 0 in `/dev/cpu_dma_latency`, idle
//! processors poll instead (Documentation/power/pm_qos_interface.rst of the kernel). That costs the machine processor time, so that it is demanded only
//! as long as request follows request.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tracing::warn;

/// So many requests within [`TICK`], and processors are kept awake.
const MANY: u64 = 8;
/// Fewer within [`TICK`], and they may halt again.
const FEW: u64 = 4;
/// So long that a program which syncs all the time counts: it waits for the disk in between, and the disk's interrupts for a processor.
const TICK: Duration = Duration::from_millis(8);
/// In microseconds: at once.
const NO_LATENCY: i32 = 0;
/// What the kernel takes for no demand (`PM_QOS_CPU_LATENCY_DEFAULT_VALUE`).
const ANY_LATENCY: i32 = 2_000_000_000;

/// What keeps them awake, one for all mounts.
#[derive(Debug)]
pub struct Wakeful {
    device: File,
    requests: AtomicU64,
    awake: AtomicBool,
    began: Instant,
    /// When [`MANY`] requests were last counted, in nanoseconds since `began`.
    counted_ns: AtomicU64,
    /// Lets them halt again.
    keeper: Thread,
}

impl Wakeful {
    /// With the open device, whose demand ends with it.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn new(device: File) -> io::Result<Arc<Wakeful>> {
        let (send, receive) = std::sync::mpsc::channel::<Weak<Wakeful>>();
        let keeper = std::thread::Builder::new().name("wakeful".to_owned()).spawn(move || {
            if let Ok(wakeful) = receive.recv() {
                keep(&wakeful);
            }
        })?;
        let wakeful = Arc::new(Wakeful {
            device,
            requests: AtomicU64::new(0),
            awake: AtomicBool::new(false),
            began: Instant::now(),
            counted_ns: AtomicU64::new(0),
            keeper: keeper.thread().clone(),
        });
        // It ends when it is not told.
        let _ = send.send(Arc::downgrade(&wakeful));
        Ok(wakeful)
    }

    /// A request has come.
    pub(super) fn note(&self) {
        // Relaxed here and below: what is decided late, or twice, does no harm.
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(MANY) && !self.awake.load(Ordering::Relaxed) {
            self.consider(self.began.elapsed());
        }
    }

    /// So many requests have come since the last time.
    fn consider(&self, now: Duration) {
        // Enough for centuries.
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before = Duration::from_nanos(self.counted_ns.swap(now_ns, Ordering::Relaxed));
        if now.saturating_sub(before) <= TICK && !self.awake.swap(true, Ordering::Relaxed) {
            self.demand(NO_LATENCY);
            self.keeper.unpark();
        }
    }

    fn demand(&self, latency_us: i32) {
        if let Err(error) = (&self.device).write_all(&latency_us.to_ne_bytes()) {
            warn!(%error, "cannot tell the kernel whether processors may halt");
        }
    }
}

impl Drop for Wakeful {
    fn drop(&mut self) {
        self.keeper.unpark();
    }
}

/// Lets processors halt when hardly any requests come any more; for as long as there is somebody to do it for.
fn keep(wakeful: &Weak<Wakeful>) {
    let mut seen = 0;
    while let Some(wakeful) = wakeful.upgrade() {
        let is_awake = wakeful.awake.load(Ordering::Relaxed);
        let requests = wakeful.requests.load(Ordering::Relaxed);
        if is_awake && requests.saturating_sub(seen) < FEW {
            wakeful.demand(ANY_LATENCY);
            wakeful.awake.store(false, Ordering::Relaxed);
        }
        seen = requests;
        drop(wakeful);
        if is_awake { std::thread::sleep(TICK) } else { std::thread::park() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was demanded so far.
    fn demands(file: &tempfile::NamedTempFile) -> Vec<i32> {
        let bytes = std::fs::read(file.path()).expect("readable");
        bytes.chunks(4).map(|bytes| i32::from_ne_bytes(bytes.try_into().expect("four"))).collect()
    }

    fn wakeful() -> (tempfile::NamedTempFile, Arc<Wakeful>) {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        let wakeful = Wakeful::new(file.reopen().expect("open")).expect("a thread");
        (file, wakeful)
    }

    #[test]
    fn many_requests_keep_processors_awake_until_there_are_few() {
        let (file, wakeful) = wakeful();
        for _ in 0..2 {
            let before = demands(&file).len();
            while demands(&file).len() == before {
                (0..MANY).for_each(|_| wakeful.note());
            }
            let patience = Instant::now() + Duration::from_secs(60);
            while demands(&file).len() < before + 2 {
                assert!(Instant::now() < patience, "they may halt again some time");
                std::thread::sleep(TICK);
            }
            assert_eq!(demands(&file)[before..], [NO_LATENCY, ANY_LATENCY]);
        }
    }

    #[test]
    fn requests_now_and_then_do_not() {
        let (file, wakeful) = wakeful();
        wakeful.consider(Duration::from_secs(1));
        wakeful.consider(Duration::from_secs(1) + TICK + Duration::from_nanos(1));
        wakeful.consider(Duration::from_secs(2));
        assert_eq!(demands(&file), [0; 0]);
        wakeful.consider(Duration::from_secs(2) + TICK);
        assert_eq!(demands(&file), [NO_LATENCY]);
    }
}
