//! The socket: who may listen there, and who may connect.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Gid, Mode};
use tokio::net::{UnixListener, UnixStream};

use super::DaemonError;
use super::rights::Peer;

/// After an accept that failed, as it does when descriptors have run out: trying at once would only burn the CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The control socket. Connections come from root, from the daemon's own user, and from those whom the socket's group lets in; others are closed unread.
pub struct Listener {
    inner: UnixListener,
    uid: u32,
    /// Whether others come in who may look.
    has_readers: bool,
}

impl Listener {
    /// Listens on `path`, which only its owner may connect to, and the members of the group `readers`. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// [`DaemonError::SocketTaken`] when somebody does, [`DaemonError::NotASocket`] when it is another kind of file.
    pub fn bind(path: &Path, readers: Option<Gid>) -> Result<Listener, DaemonError> {
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
        let mode = match readers {
            Some(group) => {
                chown(path, None, Some(group.as_raw())).map_err(failed("give to its group"))?;
                0o660
            }
            None => 0o600,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("protect"))?;
        Ok(Listener { inner, uid: rustix::process::geteuid().as_raw(), has_readers: readers.is_some() })
    }
}

impl axum::serve::Listener for Listener {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        let mut is_told = false;
        loop {
            let stream = match self.inner.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Once until it succeeds: it is tried several times a second.
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) => {
                    let is_admin = peer.uid() == 0 || peer.uid() == self.uid;
                    if is_admin || self.has_readers {
                        return (stream, Peer { uid: peer.uid(), is_admin });
                    }
                    tracing::warn!(uid = peer.uid(), "refused a connection");
                }
                Err(error) => tracing::warn!(%error, "refused a connection whose user is not known"),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Peer> {
        Ok(Peer { uid: self.uid, is_admin: true })
    }
}

/// Takes the socket file away at the end.
pub(super) fn remove_socket(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, socket = %path.display(), "cannot remove the socket");
    }
}
