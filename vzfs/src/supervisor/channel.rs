//! Messages with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message. INIT requests, the largest part, have about a hundred bytes, and paths four thousand.
const MESSAGE_BYTES: usize = 64 << 10;
/// Descriptors of one message.
const DESCRIPTORS: usize = 2;

/// One end of the socket between supervisor and daemon.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two connected ends.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let flags = SocketFlags::CLOEXEC;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Channel { socket: a }, Channel { socket: b }))
    }

    /// An end that was handed over.
    pub fn from_socket(socket: OwnedFd) -> Channel {
        Channel { socket }
    }

    /// The socket.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Sends a message; it arrives whole, even if this process dies at once.
    ///
    /// # Errors
    /// `EPIPE` when the other side is gone.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let slices = [IoSlice::new(&bytes)];
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &slices, &mut ancillary, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    /// Waits for a message; `None` when the other side is gone.
    ///
    /// # Errors
    /// What comes is no such message.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(&self.socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            // The other side died with unread messages.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            received => received?,
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other("a message or its descriptors did not fit"));
        }
        let descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, descriptors)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::super::Report;
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_though_the_sender_is_gone() {
        let (a, b) = Channel::pair().expect("sockets");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"content").expect("written");
        a.send(&Report::Failed("why".to_owned()), &[file.as_fd(), a.as_fd()]).expect("sent");
        a.send(&Report::Ready, &[]).expect("sent");
        drop((a, file));
        let (message, mut descriptors) = b.receive::<Report>().expect("a message").expect("not the end");
        assert!(matches!(message, Report::Failed(why) if why == "why"));
        assert_eq!(descriptors.len(), 2);
        let mut file = std::fs::File::from(descriptors.remove(0));
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("readable");
        assert_eq!(text, "content");
        drop(descriptors);
        assert!(
            matches!(b.receive::<Report>().expect("a message"), Some((Report::Ready, none)) if none.is_empty())
        );
        assert!(b.receive::<Report>().expect("the end").is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (a, b) = Channel::pair().expect("sockets");
        a.send(&vec![1, 2, 3], &[]).expect("sent");
        assert!(b.receive::<Report>().is_err());
    }
}
