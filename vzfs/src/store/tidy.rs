//! The thread that removes private data files when the batches that took their records away are durable.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::reserve::Reserve;
use crate::volume::PrivateData;

/// How long a removed file may take up its space where there is enough: so many removals share one sync of the database.
const PATIENCE: Duration = Duration::from_millis(500);

/// Runs until it is dropped. What is to be removed then is removed at the next start.
pub(super) struct Tidier {
    data: Arc<PrivateData>,
    thread: Option<JoinHandle<()>>,
}

impl Tidier {
    pub(super) fn start(data: &Arc<PrivateData>, reserve: Arc<Reserve>) -> io::Result<Tidier> {
        let work = Arc::clone(data);
        let thread =
            std::thread::Builder::new().name("tidy".to_owned()).spawn(move || tidy(&work, &reserve))?;
        Ok(Tidier { data: Arc::clone(data), thread: Some(thread) })
    }
}

fn tidy(data: &PrivateData, reserve: &Reserve) {
    let mut failing = false;
    while data.wait(PATIENCE) {
        match data.settle() {
            Ok(_) => {
                failing = false;
                // It may have been given up, and there may be space for it now.
                reserve.keep();
            }
            Err(error) => {
                // Once for each time that it begins to fail.
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "removed files keep their space");
                }
            }
        }
    }
}

impl Drop for Tidier {
    fn drop(&mut self) {
        self.data.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that removes files panicked");
        }
    }
}
