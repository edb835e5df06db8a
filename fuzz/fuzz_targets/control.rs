//! Arbitrary requests to the control interface, without a socket: every one gets a reply, and none brings the store into a state that
//! refuses the next one.
#![no_main]

use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request};
use libfuzzer_sys::fuzz_target;
use tower::ServiceExt;
use vzfs::api::{ApiError, ErrorCode};
use vzfs::daemon::router;
use vzfs::store::Store;
use vzfs::update::{CommandRunner, Updates};
use vzfs_fuzz::NoMounts;

#[derive(Arbitrary, Debug)]
struct Call {
    method: u8,
    path: FuzzPath,
    query: Option<Vec<u8>>,
    body: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum FuzzPath {
    /// One of the routes, with arbitrary names in it.
    Route {
        route: u8,
        name: Vec<u8>,
        other: Vec<u8>,
    },
    Any(Vec<u8>),
}

struct Daemon {
    runtime: tokio::runtime::Runtime,
    router: Router,
}

static DAEMON: LazyLock<Daemon> = LazyLock::new(|| {
    let dir = vzfs_fuzz::scratch();
    // A template and a VE of it, so that requests find something.
    let store = Store::create_or_open(&dir.join("store"), Box::new(NoMounts)).expect("a store");
    std::fs::create_dir_all(dir.join("tree/etc")).expect("a folder");
    std::fs::write(dir.join("tree/etc/file"), "content").expect("written");
    let text = format!(r#"{{"template":"t@1","source":"{}/tree"}}"#, dir.display());
    store.import(&serde_json::from_str(&text).expect("a request"), &()).expect("imported");
    let request = serde_json::from_str(r#"{"name":"v","templates":["t"]}"#).expect("a request");
    store.create(&request).expect("made");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let store = Arc::new(store);
    let commands = CommandRunner { program: "/absent/vzfs".into(), socket: dir.join("socket") };
    let updates = Updates::of_store(&store, commands).expect("no updates yet");
    Daemon { runtime, router: router(store, updates) }
});

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::DELETE, Method::PATCH, Method::PUT];

fuzz_target!(|calls: Vec<Call>| {
    for call in calls.iter().take(8) {
        send(call);
    }
});

fn send(call: &Call) {
    // Neither may a request read the tester's host, nor make thousands of VEs, nor wait for days.
    let body = String::from_utf8_lossy(&call.body);
    let request: Option<serde_json::Value> = serde_json::from_str(&body).ok();
    let number = |name| request.as_ref().and_then(|value| value.get(name)?.as_f64());
    let source = request.as_ref().and_then(|value| value.get("source")?.as_str());
    if source.is_some_and(|source| source.starts_with('/'))
        || number("count").is_some_and(|count| count > 20.0)
        || number("pause_secs").is_some()
    {
        return;
    }
    let mut uri = path(&call.path);
    if let Some(query) = &call.query {
        uri = format!("{uri}?{}", percent(query));
    }
    let method = METHODS[call.method as usize % METHODS.len()].clone();
    let Ok(request) = Request::builder().method(method).uri(uri).body(Body::from(call.body.clone())) else {
        return;
    };
    let daemon = &*DAEMON;
    daemon.runtime.block_on(async {
        let reply = daemon.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = reply.status();
        let Ok(bytes) = to_bytes(reply.into_body(), 64 << 20).await else { return };
        assert_ne!(status.as_u16(), 500, "{}", String::from_utf8_lossy(&bytes));
        if !status.is_success() {
            let error: ApiError = serde_json::from_slice(&bytes).expect("a refusal says why");
            assert!(!error.message.is_empty() && error.code != ErrorCode::Internal);
        }
    });
}

fn path(path: &FuzzPath) -> String {
    let (route, name, other) = match path {
        FuzzPath::Any(bytes) => return format!("/{}", percent(bytes)),
        FuzzPath::Route { route, name, other } => (route, percent(name), percent(other)),
    };
    let routes = [
        "/v1/store".to_owned(),
        format!("/v1/store/{name}"),
        "/v1/templates".to_owned(),
        "/v1/templates/import".to_owned(),
        format!("/v1/templates/{name}"),
        format!("/v1/templates/{name}/diff/{other}"),
        format!("/v1/templates/{name}/verify"),
        format!("/v1/templates/{name}/export"),
        "/v1/ves".to_owned(),
        format!("/v1/ves/{name}"),
        format!("/v1/ves/{name}/umount"),
        format!("/v1/ves/{name}/diff"),
        format!("/v1/ves/{name}/export"),
        format!("/v1/ves/{name}/commit"),
        format!("/v1/ves/{name}/shadowed"),
        "/v1/shadowed".to_owned(),
        "/v1/updates".to_owned(),
        format!("/v1/updates/{name}"),
        format!("/v1/updates/{name}/{other}"),
        format!("/v1/updates/1/ves/{name}"),
    ];
    routes[*route as usize % routes.len()].clone()
}

/// Letters and digits as they are, everything else as `%NN`.
fn percent(bytes: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~@".contains(byte);
    bytes
        .iter()
        .map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
