//! What an operator sees of a running daemon.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use vzfs_tests::host::host_sh;
use vzfs_tests::{Host, Setup};

/// `GET` over TCP: the status line, and all that came with it.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: vzfs\r\nconnection: close\r\n\r\n").expect("sends");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("receives");
    (reply.lines().next().unwrap_or_default().to_owned(), reply)
}

/// A number of the text form, by the name with its labels.
fn number(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn numbers_are_served_and_count_what_happens() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a port is free").to_string();
    let daemon_args = vec!["--metrics".to_owned(), address.clone()];
    let host = Host::with_sample_in(Setup { daemon_args, size_mib: 1024, ..Setup::default() }, &["a", "b"]);
    let metrics = || {
        let (status, text) = get(&address, "/metrics");
        assert!(status.contains(" 200 "), "{status}");
        text
    };
    let text = metrics();
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    for (name, value) in
        [("vzfs_ves_mounted", 2.0), ("vzfs_templates", 1.0), ("vzfs_daemon_restarts_total", 0.0)]
    {
        assert_eq!(number(&text, name), Some(value), "{name}");
    }
    for name in [
        "vzfs_store_free_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
        "vzfs_daemon_start_seconds",
    ] {
        assert!(number(&text, name).is_some_and(|value| value > 0.0), "{name}");
    }

    let made = "vzfs_ve_requests_total{kind=\"mkdir\",ve=\"a\"}";
    let before = number(&text, made).unwrap_or(0.0);
    for name in ["one", "two", "three"] {
        fs::create_dir(host.root("a").join(name)).expect("a folder can be made");
    }
    assert_eq!(number(&metrics(), made), Some(before + 3.0));
    assert_eq!(number(&metrics(), "vzfs_ve_requests_total{kind=\"mkdir\",ve=\"b\"}"), None);

    // Content that is lost: it is the host's fault, and counted.
    let failed = "vzfs_ve_failures_total{errno=\"EIO\",ve=\"b\"}";
    assert_eq!(number(&metrics(), failed), None);
    host_sh("find \"$1\" -type f -size +100k -delete", [host.store().join("blobs")]);
    let read = fs::read(host.root("b").join("var/lib/app/data")).map_err(|error| error.raw_os_error());
    assert_eq!(read.err(), Some(Some(5)), "EIO");
    assert!(number(&metrics(), failed).is_some_and(|value| value >= 1.0), "{}", metrics());

    // Nothing else is served there.
    for path in ["/v1/ves", "/v1/metrics", "/"] {
        let (status, _) = get(&address, path);
        assert!(status.contains(" 404 "), "{path}: {status}");
    }

    // The next daemon serves them, too.
    let killed = host.kill_daemon();
    host.wait_for_another(killed);
    assert_eq!(number(&metrics(), "vzfs_daemon_restarts_total"), Some(1.0));
    let text = host.vzfs(["daemon", "metrics"]).ok().text();
    assert_eq!(number(&text, "vzfs_ves_mounted"), Some(2.0));
}

#[test]
fn an_address_that_is_taken_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("bound").to_string();
    let host = Host::without_daemon(Setup { size_mib: 1024, ..Setup::default() });
    let mut daemon = host.daemon_command();
    let output = daemon.args(["--metrics", &address]).output().expect("it can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(&address), "{error}");
}

#[test]
fn top_shows_who_works() {
    let host = Host::with_sample_in(Setup { size_mib: 1024, ..Setup::default() }, &["idle", "busy"]);
    let top = std::thread::scope(|scope| {
        let top = scope.spawn(|| host.json(["top", "--interval", "1s"]));
        let folder = host.root("busy").join("folder");
        while !top.is_finished() {
            fs::create_dir(&folder).and_then(|()| fs::remove_dir(&folder)).expect("the VE is writable");
        }
        top.join().expect("it does not panic")
    });
    assert_eq!(top["ves_mounted"], 2);
    assert_eq!(top["load"][0]["ve"], "busy");
    assert!(top["load"][0]["by_kind"]["rmdir"].as_f64().is_some_and(|rate| rate > 1.0), "{top}");
    assert_eq!(top["load"][1]["ve"], "idle");
    assert!(top["daemon"]["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{top}");

    let table = host.vzfs(["top", "--interval", "1s", "--rows", "1"]).ok().text();
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("vzfsd ") && lines[4].starts_with("VE "), "{table}");
    assert_eq!(lines.len(), 6, "one VE: {table}");
}
