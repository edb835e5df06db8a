//! The daemon's control interface over its Unix socket: one connection a request, on a runtime of this thread.

use std::io::Write;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use vzfs::api::{ApiError, Event};

use crate::error::{Exit, Failure, Result};
use crate::progress::Progress;

/// More than any reply that is not a stream; a larger one is not from our daemon.
const MAX_LINE_BYTES: usize = 256 << 20;

/// A client of one daemon.
pub(crate) struct Client {
    runtime: Runtime,
    socket: PathBuf,
}

impl Client {
    /// Does not connect yet: each request does.
    pub(crate) fn new(socket: &Path) -> Result<Client> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::io("cannot set up the connection", &e))?;
        Ok(Client { runtime, socket: socket.to_owned() })
    }

    /// `GET path`.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None)
    }

    /// `POST path` with a JSON body.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::POST, path, Some(encode(body)?))
    }

    /// `PATCH path` with a JSON body.
    pub(crate) fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::PATCH, path, Some(encode(body)?))
    }

    /// `DELETE path`.
    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::DELETE, path, None)
    }

    /// `POST path` with an event stream as the reply: shows progress, returns the result.
    pub(crate) fn events<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
        progress: &Progress,
    ) -> Result<T> {
        let body = body.map(encode).transpose()?;
        self.stream(Method::POST, path, body, progress, &mut |line| progress.log(line))
    }

    /// `GET path` with an event stream as the reply: shows progress, gives away the lines for people, returns the result.
    pub(crate) fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        progress: &Progress,
        log: &mut dyn FnMut(&str),
    ) -> Result<T> {
        self.stream(Method::GET, path, None, progress, log)
    }

    fn stream<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        progress: &Progress,
        log: &mut dyn FnMut(&str),
    ) -> Result<T> {
        self.wait_for(async {
            let mut reply = self.send(method, path, body).await?.into_body();
            let mut pending = Vec::new();
            while let Some(chunk) = next_chunk(&mut reply, "the reply").await? {
                pending.extend_from_slice(&chunk);
                while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if line.trim_ascii().is_empty() {
                        continue;
                    }
                    match decode(&line, path)? {
                        Event::Progress { done, total, unit, what } => {
                            progress.step(&what, done, total, &unit)
                        }
                        Event::Log { message } => log(&message),
                        Event::Result { value } => return decode(value.to_string().as_bytes(), path),
                        Event::Error { error } => return Err(error.into()),
                    }
                }
                if pending.len() > MAX_LINE_BYTES {
                    return Err(nonsense(path, "a line without an end"));
                }
            }
            Err(cut_off("the daemon's report"))
        })
    }

    /// `GET path` with an archive as the reply, written to `out`; returns its size.
    pub(crate) fn download(&self, path: &str, out: &mut dyn Write, progress: &Progress) -> Result<u64> {
        self.wait_for(async {
            let mut reply = self.send(Method::GET, path, None).await?.into_body();
            let mut done_bytes = 0;
            while let Some(chunk) = next_chunk(&mut reply, "the archive").await? {
                out.write_all(&chunk).map_err(|e| Failure::io("cannot write the archive", &e))?;
                done_bytes += chunk.len() as u64;
                progress.step("exporting", done_bytes, None, "bytes");
            }
            Ok(done_bytes)
        })
    }

    /// Runs a request to its end, or to Ctrl-C.
    fn wait_for<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            tokio::select! {
                done = request => done,
                _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
            }
        })
    }

    fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<T> {
        self.wait_for(async {
            let reply = self.send(method, path, body).await?;
            let bytes = collect(reply.into_body()).await?;
            decode(&bytes, path)
        })
    }

    /// Sends a request; a reply that is a refusal becomes the failure it tells.
    async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|e| Failure::unreachable(&self.socket, &e))?;
        let broken = |e: hyper::Error| {
            Failure::new(Exit::Failure, format!("the daemon at {} hung up: {e}", self.socket.display()))
                .with_hint("its log tells why (journalctl -u vzfsd)")
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Errors of the connection reach us through the body as well.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "vzfs");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| Failure::new(Exit::Failure, format!("cannot ask for {path}: {e}")))?;
        let reply = sender.send_request(request).await.map_err(broken)?;
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let bytes = collect(reply.into_body()).await?;
        Err(refusal(status, &bytes, path))
    }
}

/// The next piece of a body, `None` at its end; a body that breaks off is a failure.
async fn next_chunk(body: &mut Incoming, what: &str) -> Result<Option<Bytes>> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(_)) => return Err(cut_off(what)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(&mut body, "the reply").await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_LINE_BYTES {
            return Err(Failure::new(Exit::Failure, "the daemon's reply has no end"));
        }
    }
    Ok(bytes)
}

fn refusal(status: StatusCode, bytes: &[u8], path: &str) -> Failure {
    match serde_json::from_slice::<ApiError>(bytes) {
        Ok(error) => error.into(),
        Err(_) => {
            let text = String::from_utf8_lossy(bytes);
            let text = text.lines().next().unwrap_or_default();
            nonsense(path, &format!("status {status} {text}"))
        }
    }
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body)
        .map_err(|e| Failure::new(Exit::Failure, format!("cannot write the request: {e}")))
}

fn decode<T: DeserializeOwned>(bytes: &[u8], path: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| nonsense(path, &e.to_string()))
}

fn nonsense(path: &str, why: &str) -> Failure {
    Failure::new(Exit::Failure, format!("the daemon's reply to {path} is not understood: {why}"))
        .with_hint("vzfs and vzfsd should be of the same version")
}

fn cut_off(what: &str) -> Failure {
    Failure::new(Exit::Failure, format!("{what} was cut off: the daemon failed or was stopped meanwhile"))
        .with_hint("its log tells why (journalctl -u vzfsd)")
}
