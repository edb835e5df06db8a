//! The socket: who may listen there, and who may connect.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use super::DaemonError;

/// After an accept that failed, as it does when descriptors have run out: trying at once would only burn the CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The control socket. Connections come from root or from the daemon's own user; others are closed unread.
pub struct Listener {
    inner: UnixListener,
    uid: u32,
}

impl Listener {
    /// Listens on `path`, which only its owner may connect to. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// [`DaemonError::SocketTaken`] when somebody does, [`DaemonError::NotASocket`] when it is another kind of file.
    pub fn bind(path: &Path) -> Result<Listener, DaemonError> {
        let failed = |action: &str| DaemonError::io(format!("{action} {}", path.display()));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("make the folder of"))?;
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(DaemonError::NotASocket(path.to_owned()));
            }
            Ok(_) => match StdStream::connect(path) {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed("replace"))?;
                }
                // Also when connecting fails for another reason: somebody may be there.
                _ => return Err(DaemonError::SocketTaken(path.to_owned())),
            },
        }
        // The mask, and not a chmod after it, so that there is no moment at which others could connect.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let inner = bound.map_err(failed("listen on"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
        Ok(Listener { inner, uid: rustix::process::geteuid().as_raw() })
    }
}

impl axum::serve::Listener for Listener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = match self.inner.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == self.uid => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "refused a connection"),
                Err(error) => tracing::warn!(%error, "refused a connection whose user is not known"),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// Takes the socket file away at the end.
pub(super) fn remove_socket(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, socket = %path.display(), "cannot remove the socket");
    }
}
