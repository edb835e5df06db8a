//! Replies that grow while they are sent: event streams and tars.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::error::{Refusal, Told, api_error};
use crate::api::{ApiError, EVENTS_CONTENT_TYPE, ErrorCode, Event, TAR_CONTENT_TYPE};
use crate::store::{Events, StoreError};

/// Events that wait for a slow reader. Progress beyond them is dropped, everything else waits.
const EVENT_QUEUE: usize = 64;
/// Bytes of a tar sent at a time: large enough that passing them on costs nothing beside reading them.
const TAR_CHUNK_BYTES: usize = 256 << 10;
/// Chunks of a tar that wait for a slow reader.
const TAR_QUEUE: usize = 4;

/// A channel as a body. An error ends the connection without the last chunk, which the reader sees.
struct ChannelBody<T> {
    /// Taken out of the channel before, to see whether the action begins well.
    first: Option<T>,
    rest: Receiver<T>,
}

impl<T: Unpin> Stream for ChannelBody<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.rest.poll_recv(context),
        }
    }
}

/// Runs a long action on a blocking thread and streams what it tells, and at last its result or its error.
///
/// A reader that goes away does not stop the action: it ends as if somebody had read it.
pub(super) fn events<T: Serialize, E: Told>(
    action: impl FnOnce(&dyn Events) -> Result<T, E> + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
    tokio::task::spawn_blocking(move || {
        let events = ChannelEvents(sender);
        let last = match action(&events) {
            Ok(value) => Event::result(&value).unwrap_or_else(|error| Event::Error {
                error: ApiError::new(ErrorCode::Internal, format!("cannot write the result: {error}")),
            }),
            Err(error) => Event::Error { error: error.told() },
        };
        if let Some(line) = line(&last) {
            let _ = events.0.blocking_send(Ok(line));
        }
    });
    let body = Body::from_stream(ChannelBody { first: None, rest: receiver });
    ([(CONTENT_TYPE, EVENTS_CONTENT_TYPE)], body).into_response()
}

struct ChannelEvents(Sender<Result<Bytes, io::Error>>);

impl Events for ChannelEvents {
    fn progress(&self, done: u64, total: Option<u64>, unit: &'static str, what: &'static str) {
        let event = Event::Progress { done, total, unit: unit.to_owned(), what: what.to_owned() };
        if let Some(line) = line(&event) {
            let _ = self.0.try_send(Ok(line));
        }
    }

    fn log(&self, message: &str) {
        if let Some(line) = line(&Event::Log { message: message.to_owned() }) {
            let _ = self.0.blocking_send(Ok(line));
        }
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

fn line(event: &Event) -> Option<Bytes> {
    event
        .to_line()
        .map(Bytes::from)
        .inspect_err(|error| tracing::error!(%error, "cannot write an event"))
        .ok()
}

/// Runs an export on a blocking thread and streams what it writes. What fails before the first bytes is an ordinary
/// refusal; what fails later cuts the stream off.
pub(super) async fn tar(
    export: impl FnOnce(&mut dyn Write) -> Result<(), StoreError> + Send + 'static,
) -> Result<Response, Refusal> {
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, ApiError>>(TAR_QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut writer = ChannelWriter { sender, buffer: Vec::with_capacity(TAR_CHUNK_BYTES) };
        let result = export(&mut writer);
        // A reader that went away is no failure of ours: nobody is there to be told.
        match result {
            Ok(()) => {
                let _ = writer.send();
            }
            Err(error) if !writer.sender.is_closed() => {
                let _ = writer.sender.blocking_send(Err(api_error(&error)));
            }
            Err(_) => {}
        }
    });
    let first = match receiver.recv().await {
        Some(Err(error)) => return Err(Refusal(error)),
        first => first,
    };
    let body = Body::from_stream(ChannelBody { first, rest: receiver });
    Ok(([(CONTENT_TYPE, TAR_CONTENT_TYPE)], body).into_response())
}

struct ChannelWriter {
    sender: Sender<Result<Bytes, ApiError>>,
    buffer: Vec<u8>,
}

impl ChannelWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(TAR_CHUNK_BYTES));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader went away");
        self.sender.blocking_send(Ok(chunk.into())).map_err(gone)
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(TAR_CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == TAR_CHUNK_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    /// Keeps what is there: small chunks would cost more than they gain, and the end sends the rest.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
