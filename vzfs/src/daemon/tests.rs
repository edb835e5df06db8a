//! The control interface over a real socket, with a store without mounts.

#![allow(clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::api::{ApiError, ErrorCode, Event, Ve};
use crate::store::{BoxError, Mounted, Mounter};
use crate::types::{IdShift, VeName};
use crate::volume::Volume;

struct NoMounts;

impl Mounter for NoMounts {
    fn mount(
        &self,
        _: Arc<Volume>,
        _: &VeName,
        _: &Path,
        _: Option<IdShift>,
    ) -> Result<Box<dyn Mounted>, BoxError> {
        Err(std::io::Error::from(std::io::ErrorKind::PermissionDenied).into())
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn bind(path: &Path) -> Result<Listener, DaemonError> {
    runtime().block_on(async { Listener::bind(path, None) })
}

struct Server {
    dir: tempfile::TempDir,
    socket: PathBuf,
}

impl Server {
    fn start() -> Server {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder in /var/tmp");
        let socket = dir.path().join("run/socket");
        let store = Store::create_or_open(&dir.path().join("store"), Box::new(NoMounts)).expect("a store");
        let store = Arc::new(store);
        let commands = CommandRunner { program: "/absent/vzfs".into(), socket: socket.clone() };
        let updates = Updates::of_store(&store, commands).expect("no updates");
        let (listening, wait) = std::sync::mpsc::channel();
        let path = socket.clone();
        // It ends with the test's process: nothing has to be waited for.
        std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = Listener::bind(&path, None).expect("listens");
                listening.send(()).expect("the test waits");
                axum::serve(listener, router(store, updates)).await
            })
        });
        wait.recv().expect("listens");
        Server { dir, socket }
    }

    /// Status, content type, body, and whether the body came to its end.
    fn raw(&self, method: &str, path: &str, body: &str) -> (u16, String, Vec<u8>, bool) {
        let mut stream = UnixStream::connect(&self.socket).expect("connects");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: vzfs\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).expect("sends");
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).expect("receives");
        let end = reply.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8(reply[..end].to_vec()).expect("text").to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).unwrap_or_default()
        };
        let (body, complete) = match header("transfer-encoding:").as_str() {
            "chunked" => unchunk(&reply[end..]),
            _ => (reply[end..].to_vec(), true),
        };
        (status, header("content-type:"), body, complete)
    }

    fn json(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, content_type, body, complete) = self.raw(method, path, &text);
        assert!(complete && content_type == "application/json", "{content_type}");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    fn refusal(&self, method: &str, path: &str, body: Value) -> ApiError {
        let (status, value) = self.json(method, path, body);
        let error: ApiError = serde_json::from_value(value).expect("an error");
        assert_eq!(status, error.code.http_status());
        error
    }

    fn events(&self, path: &str, body: Value) -> Vec<Event> {
        let (status, content_type, body, complete) = self.raw("POST", path, &body.to_string());
        assert!(complete && status == 200, "{status}");
        assert_eq!(content_type, crate::api::EVENTS_CONTENT_TYPE);
        let text = String::from_utf8(body).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
    }

    fn import(&self, template: &str) -> Vec<Event> {
        let source = self.dir.path().join("os");
        fs::create_dir_all(source.join("etc")).expect("mkdir");
        fs::write(source.join("etc/motd"), "hello\n").expect("write");
        self.events("/v1/templates/import", json!({"template": template, "source": source}))
    }
}

fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return (body, false) };
        let size =
            std::str::from_utf8(&bytes[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.expect("a chunk size");
        if size == 0 {
            return (body, true);
        }
        let start = end + 2;
        if bytes.len() < start + size + 2 {
            return (body, false);
        }
        body.extend_from_slice(&bytes[start..start + size]);
        bytes = &bytes[start + size + 2..];
    }
}

#[test]
fn a_template_and_its_ves_over_the_socket() {
    let server = Server::start();
    let events = server.import("debian@12");
    assert!(matches!(events[0], Event::Progress { .. }));
    let Some(Event::Result { value }) = events.last() else { panic!("{events:?}") };
    assert_eq!(value["stats"]["files"], 1);
    assert!(
        matches!(server.import("debian@12").last(), Some(Event::Error { error }) if error.code == ErrorCode::Exists)
    );

    let (status, made) =
        server.json("POST", "/v1/ves", json!({"name": "web", "templates": ["debian"], "count": 2}));
    assert_eq!(status, 200, "{made}");
    let made: Vec<Ve> = serde_json::from_value(made).expect("VEs");
    assert_eq!(made[1].name.as_str(), "web-2");
    let (_, listed) = server.json("GET", "/v1/ves", Value::Null);
    assert_eq!(serde_json::from_value::<Vec<Ve>>(listed).expect("VEs"), made);
    let (_, template) = server.json("GET", "/v1/templates/debian@12", Value::Null);
    assert_eq!(template["used_by"], json!(["web-1", "web-2"]));
    let (status, renamed) = server.json("PATCH", "/v1/ves/web-2", json!({"name": "db"}));
    assert_eq!((status, &renamed["name"]), (200, &json!("db")));
    let (_, stats) = server.json("GET", "/v1/ves/db/stats", Value::Null);
    assert_eq!(stats, json!({"ve": "db", "requests": {}, "failures": {}, "waited_us": 0, "mounted": false}));
    let (_, changes) = server.json("GET", "/v1/ves/db/diff", Value::Null);
    assert_eq!(changes, json!([]));
    let (status, removed) = server.json("DELETE", "/v1/ves/db?force=true", Value::Null);
    assert_eq!((status, &removed["removed"]), (200, &json!("db")));
    let (_, info) = server.json("GET", "/v1/store", Value::Null);
    assert_eq!((&info["templates"], &info["ves"], &info["blobs"]), (&json!(1), &json!(1), &json!(1)));
    let events = server.events("/v1/templates/debian/verify", Value::Null);
    assert!(matches!(events.last(), Some(Event::Result { value }) if value["damaged"] == json!([])));
    let events = server.events("/v1/ves/web-1/commit", json!({"template": "app@1"}));
    assert!(matches!(events.last(), Some(Event::Result { value }) if value["kind"] == "app"), "{events:?}");
    let (status, doctor) = server.json("GET", "/v1/store/doctor", Value::Null);
    assert_eq!(status, 200);
    assert!(doctor["checks"].as_array().is_some_and(|checks| checks.len() >= 8));
}

#[test]
fn exports_are_tars_and_a_cut_off_one_shows() {
    let server = Server::start();
    server.import("debian@12");
    server.json("POST", "/v1/ves", json!({"name": "web", "templates": ["debian"]}));
    for path in ["/v1/templates/debian/export", "/v1/ves/web/export"] {
        let (status, content_type, tar, complete) = server.raw("GET", path, "");
        assert!(status == 200 && complete);
        assert_eq!(content_type, crate::api::TAR_CONTENT_TYPE);
        let mut names = Vec::new();
        for entry in tar::Archive::new(&tar[..]).entries().expect("a tar") {
            let entry = entry.expect("an entry");
            names.push(entry.path().expect("a path").to_string_lossy().trim_matches('/').to_owned());
        }
        assert!(names.iter().any(|name| name.ends_with("etc/motd")), "{names:?}");
    }
    // Without its blob the template cannot be exported: an error before the first chunk is a refusal.
    let blobs = server.dir.path().join("store/blobs");
    let blob = crate::types::Digest::of(b"hello\n").to_hex();
    fs::remove_file(blobs.join(&blob[..2]).join(&blob)).expect("removes");
    let (status, _, body, complete) = server.raw("GET", "/v1/templates/debian/export", "");
    assert!(status != 200 || !complete, "{status} {}", String::from_utf8_lossy(&body));
}

#[test]
fn refusals_have_a_code_and_a_status() {
    let server = Server::start();
    server.import("debian@12");
    let cases = [
        ("GET", "/v1/ves/web", Value::Null, ErrorCode::NotFound),
        ("GET", "/v1/templates/x", Value::Null, ErrorCode::NotFound),
        ("GET", "/v1/templates/bad..%2Fname", Value::Null, ErrorCode::Invalid),
        ("GET", "/v2/ves", Value::Null, ErrorCode::NotFound),
        ("PUT", "/v1/ves", Value::Null, ErrorCode::Invalid),
        (
            "POST",
            "/v1/ves",
            json!({"name": "a", "templates": ["debian"], "new_field": 1}),
            ErrorCode::Invalid,
        ),
        ("POST", "/v1/ves", json!({"name": "a b", "templates": ["debian"]}), ErrorCode::Invalid),
        ("POST", "/v1/ves", json!({"name": "a", "templates": []}), ErrorCode::Unfit),
        ("POST", "/v1/ves", json!({"name": "a", "templates": ["debian"], "count": 0}), ErrorCode::Invalid),
        ("DELETE", "/v1/ves/a?force=perhaps", Value::Null, ErrorCode::Invalid),
        ("PATCH", "/v1/updates", Value::Null, ErrorCode::Invalid),
    ];
    for (method, path, body, code) in cases {
        assert_eq!(server.refusal(method, path, body).code, code, "{method} {path}");
    }
    server.json("POST", "/v1/ves", json!({"name": "a", "templates": ["debian"]}));
    let error = server.refusal("DELETE", "/v1/templates/debian", Value::Null);
    assert!(
        error.code == ErrorCode::InUse && error.message.contains('a') && error.hint.is_some(),
        "{error:?}"
    );
    let error = server.refusal("POST", "/v1/ves/a/mount", Value::Null);
    assert!(error.message.contains("cannot mount VE a"), "{error}");
    let error = server.refusal("POST", "/v1/ves/a/mount", json!({"mountpoint": "relative"}));
    assert_eq!(error.code, ErrorCode::Invalid);
    let (status, content_type, ..) = server.raw("POST", "/v1/ves", "{not json");
    assert_eq!((status, content_type.as_str()), (400, "application/json"));
}

#[test]
fn the_socket_is_private_and_taken_once() {
    let server = Server::start();
    let mode = fs::metadata(&server.socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = bind(&server.socket);
    assert!(matches!(second, Err(DaemonError::SocketTaken(_))));

    // One that nobody listens on is replaced, another kind of file is not.
    let stale = server.dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("binds"));
    bind(&stale).expect("replaced");
    let file = server.dir.path().join("file");
    fs::write(&file, "precious").expect("write");
    let refused = bind(&file);
    assert!(matches!(refused, Err(DaemonError::NotASocket(_))));
    assert_eq!(fs::read(&file).expect("there"), b"precious");
}

#[test]
fn updates_are_planned_and_what_cannot_be_is_refused() {
    let server = Server::start();
    server.import("debian@12");
    server.json("POST", "/v1/ves", json!({"name": "web", "templates": ["debian"], "labels": {"tier": "1"}}));
    let plan = |body: Value| server.events("/v1/updates", body).pop().expect("an event");
    let Event::Result { value } = plan(json!({"all": true, "mode": "plan"})) else { panic!("no plan") };
    assert_eq!(value["ves"][0]["state"], "current");
    server.import("debian@12.1");
    let Event::Result { value } = plan(json!({"selector": {"tier": "1"}, "mode": "plan"})) else {
        panic!("no plan")
    };
    let ve = &value["ves"][0];
    assert_eq!((&ve["state"], &ve["to"][0]["spec"]), (&json!("pending"), &json!("debian@12.1")));
    for (body, code) in [
        (json!({}), ErrorCode::Invalid),
        (json!({"all": true, "ves": ["web"]}), ErrorCode::Invalid),
        (json!({"all": true, "batch": 0}), ErrorCode::Invalid),
        (json!({"ves": ["db"]}), ErrorCode::NotFound),
        (json!({"selector": {"tier": "2"}}), ErrorCode::Invalid),
        (json!({"all": true, "templates": ["nginx"]}), ErrorCode::Invalid),
        (json!({"all": true, "templates": ["debian@9"]}), ErrorCode::NotFound),
        (json!({"all": true, "check": "true"}), ErrorCode::Invalid),
        (json!({"all": true, "plan": crate::types::Digest::of(b"another")}), ErrorCode::Invalid),
    ] {
        let last = plan(body.clone());
        assert!(matches!(&last, Event::Error { error } if error.code == code), "{body}: {last:?}");
    }
    assert_eq!(server.json("GET", "/v1/updates", Value::Null), (200, json!([])));
    for (method, path) in [
        ("GET", "/v1/updates/1"),
        ("DELETE", "/v1/updates/1"),
        ("GET", "/v1/updates/1/ves/web"),
        ("POST", "/v1/updates/1/pause"),
        ("POST", "/v1/updates/1/resume"),
        ("POST", "/v1/updates/1/stop"),
        ("POST", "/v1/updates/1/rollback"),
    ] {
        assert_eq!(server.refusal(method, path, Value::Null).code, ErrorCode::NotFound, "{method} {path}");
    }
    assert_eq!(server.refusal("GET", "/v1/updates/x", Value::Null).code, ErrorCode::Invalid);
    assert_eq!(server.json("GET", "/v1/shadowed", Value::Null), (200, json!([])));
    assert_eq!(
        server.json("GET", "/v1/ves/web/shadowed", Value::Null),
        (200, json!({"ve": "web", "files": []}))
    );
}
