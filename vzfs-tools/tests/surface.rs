//! The command line as documented: every form is understood, and what goes wrong has its exit code.
//!
//! Most commands run against a socket where nobody listens: exit code 6 says that the grammar was satisfied.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

const DEFINITION: &str = "name = \"debian\"\nversion = \"12\"\nkind = \"os\"\n[os]\nsuite = \"bookworm\"\n";

/// Runs `vzfs` in `dir` with words split at spaces.
fn vzfs(dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzfs"));
    command
        .current_dir(dir)
        .args(line.split(' '))
        .env("VZFS_SOCKET", dir.join("sock"))
        .env_remove("VZFS_STORE");
    command.output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("os.toml"), DEFINITION).expect("written");
    std::fs::create_dir(dir.path().join("src")).expect("made");
    dir
}

#[test]
fn every_documented_form_is_understood() {
    let dir = scratch();
    for line in [
        "template import debian@12 src",
        "template import nginx@1 src --os debian@12 --summary x --label a=b --exclude tmp/** --merge etc/*.list=lines",
        "template import debian@12 src --dry-run",
        "template build os.toml",
        "template build os.toml --dry-run",
        "template build os.toml --version 12.1 --cascade --cascade-version nginx=1.23",
        "template patch debian --to 12.1 --upgrade --package curl -p g++ --recommends --cascade",
        "template patch debian@stable --to 12.1 --file os.toml:/etc/x:0644 --script os.toml --run true --remove /etc/motd",
        "template patch debian@12 --to 12.1 --overlay src --exclude a/** --source-date-epoch 1700000000 --summary x --dry-run",
        "template cascade debian --cascade-version nginx=1.23 --dry-run",
        "template tag debian@12 stable",
        "template untag debian stable",
        "template history debian",
        "template recipe debian out.tar",
        "template list",
        "template show debian",
        "template diff debian@12 debian@13",
        "template verify debian@12",
        "template export debian@12 out.tar",
        "template export debian@12 -",
        "template rm debian@12",
        "template rm debian@12 --force --dry-run",
        "ve create web -t debian@12",
        "ve stats web",
        "ve create web -t debian -t nginx@1 --count 3",
        "ve create web --template debian --dry-run",
        "ve list",
        "ve list --selector tier=web,team=a",
        "ve list --shadowed",
        "ve show web",
        "update --all --yes",
        "update --all",
        "update web db -t debian@12.5 -t nginx --dry-run",
        "update --selector tier=web --canary 10% --batch 5 --pause 30s --check x --check-timeout 2m --yes",
        "update -l tier=web --on-conflict take --max-failures 3 --rollback-on-failure --yes --detach",
        "update -- status",
        "update status",
        "update history",
        "update show 3",
        "update show 3 web",
        "update follow 3",
        "update pause 3",
        "update resume 3",
        "update resume 3 --detach",
        "update stop 3",
        "update rollback 3",
        "update rollback 3 web db --detach",
        "update forget 3",
        "ve rm web",
        "ve rm web --force --dry-run",
        "ve rename web www",
        "ve mount web",
        "ve mount web mnt",
        "ve umount web",
        "ve umount web --force",
        "ve diff web",
        "ve export web out.tar",
        "ve export web -",
        "ve commit web nginx@1",
        "ve commit web nginx@1 --dry-run",
        "store info",
        "store doctor",
        "store df",
        "store gc --dry-run",
        "store dedup",
        "store dedup web db --dry-run --min-size 64K --quiet-for 30m",
        "store dedup --status",
        "--format json --quiet ve list",
        "ve list --format table",
        "--socket other.sock ve list",
    ] {
        let output = vzfs(dir.path(), line);
        assert_eq!(output.status.code(), Some(6), "{line}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{line}");
    }
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).expect("readable").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 2, "failed exports leave nothing: {names:?}");
}

#[test]
fn an_unreachable_daemon_is_named_with_the_remedy() {
    let dir = scratch();
    let output = vzfs(dir.path(), "--socket nowhere.sock ve list");
    let message = text(&output.stderr);
    assert!(message.starts_with("vzfs: cannot reach the daemon at nowhere.sock: "), "{message}");
    assert!(message.contains("\nhint: start it with: vzfsd --store DIR\n"), "{message}");
}

#[test]
fn exec_keeps_the_programs_codes_free() {
    let dir = scratch();
    for line in [
        "ve exec web -- true",
        "ve exec web --user www:www --workdir /srv --env A=1 --bind src:/mnt:ro --no-network -- ls -l --help",
    ] {
        let output = vzfs(dir.path(), line);
        assert_eq!(output.status.code(), Some(125), "{line}: {}", text(&output.stderr));
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let dir = scratch();
    for line in [
        "ve",
        "nonsense",
        "ve create web",
        "ve create we_b -t debian",
        "ve create web -t debian --count 0",
        "ve exec web",
        "ve exec web ls",
        "ve exec web --bind src:mnt -- ls",
        "ve commit web nginx",
        "template import debian src",
        "template show ../x",
        "template patch debian --upgrade",
        "template patch debian --to 12.1 --file os.toml",
        "template build os.toml --cascade-version nginx=1",
        "template tag debian 12.1",
        "template tag debian",
        "--format xml ve list",
        "update",
        "update --yes",
        "update web --all",
        "update --all --selector a=b",
        "update --selector a",
        "update --all --canary 0",
        "update --all --canary 101%",
        "update --all --batch 0",
        "update --all --pause 5x",
        "update --all --on-conflict maybe",
        "update show",
        "update show web",
        "update --all status",
    ] {
        let output = vzfs(dir.path(), line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", text(&output.stderr));
    }
}

#[test]
fn a_bad_definition_is_refused_with_its_place() {
    let dir = scratch();
    std::fs::write(dir.path().join("bad.toml"), DEFINITION.replace("suite", "siute")).expect("written");
    let output = vzfs(dir.path(), "template build bad.toml");
    assert_eq!(output.status.code(), Some(5));
    let message = text(&output.stderr);
    assert!(
        message.starts_with("vzfs: bad.toml:5:1: unknown field `siute`, expected one of `suite`"),
        "{message}"
    );
    assert_eq!(vzfs(dir.path(), "template build missing.toml").status.code(), Some(3));
    assert_eq!(vzfs(dir.path(), "template import debian@12 missing").status.code(), Some(3));
}

#[test]
fn completions_and_manual_pages() {
    let dir = scratch();
    for shell in ["bash", "zsh", "fish"] {
        let output = vzfs(dir.path(), &format!("completions {shell}"));
        assert!(output.status.success() && text(&output.stdout).contains("template"), "{shell}");
    }
    assert!(vzfs(dir.path(), "man man").status.success());
    for page in ["vzfs.1", "vzfs-ve-exec.1", "vzfs-template-build.1"] {
        assert!(dir.path().join("man").join(page).is_file(), "{page}");
    }
}

/// Answers one request with `reply`, byte for byte; returns the request.
fn answer(dir: &Path, reply: &'static [u8]) -> std::thread::JoinHandle<String> {
    let socket = dir.join("sock");
    // Left by the test's last answer.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).expect("binds");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        let whole = |request: &[u8]| {
            let text = String::from_utf8_lossy(request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            body.len() >= length.unwrap_or(0)
        };
        while !whole(&request) {
            let count = stream.read(&mut buffer).expect("reads");
            request.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(reply).expect("writes");
        String::from_utf8(request).expect("text")
    })
}

#[test]
fn events_are_followed_to_their_end() {
    let dir = scratch();
    let cases: [(&[u8], i32, &str); 3] = [
        (
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"event\":\"progress\",\"done\":1,\"unit\":\"files\",\"what\":\"x\"}\n\
              {\"event\":\"error\",\"error\":{\"code\":\"no_space\",\"message\":\"the disk is full\",\"hint\":\"free some\"}}\n",
            8,
            "vzfs: the disk is full\nhint: free some\n",
        ),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"event\":\"log\",\"message\":\"m\"}\n", 1, "was cut off"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nnonsense\n", 1, "not understood"),
    ];
    for (reply, code, part) in cases {
        let server = answer(dir.path(), reply);
        let output = vzfs(dir.path(), "template import debian@12 src");
        let request = server.join().expect("served");
        let source = dir.path().join("src");
        assert!(request.starts_with("POST /v1/templates/import HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("\"source\":\"{}\"", source.display())), "absolute: {request}");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn refusals_have_their_exit_codes() {
    let dir = scratch();
    let server = answer(
        dir.path(),
        b"HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"code\":\"not_found\",\"message\":\"there is no web\"}\n\n",
    );
    let output = vzfs(dir.path(), "ve show web");
    assert!(server.join().expect("served").starts_with("GET /v1/ves/web HTTP/1.1\r\n"));
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(3), "vzfs: there is no web\n"));
}

#[test]
fn nobody_is_updated_without_being_asked() {
    let dir = scratch();
    let server = answer(
        dir.path(),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"event\":\"result\",\"value\":{\"digest\":\"0000000000000000000000000000000000000000000000000000000000000000\",\
          \"dry_run\":false,\"batches\":1,\"ves\":[{\"ve\":\"web\",\"id\":1,\"batch\":0,\"from\":[],\"to\":[],\"state\":\"pending\"}]}}\n",
    );
    let output = vzfs(dir.path(), "update --all");
    let request = server.join().expect("served");
    assert!(
        request.starts_with("POST /v1/updates HTTP/1.1\r\n") && request.contains("\"mode\":\"plan\""),
        "{request}"
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("hint: add --yes, or --dry-run"), "{}", text(&output.stderr));
}

#[test]
fn an_archive_that_is_cut_off_leaves_no_file() {
    let dir = scratch();
    let server = answer(dir.path(), b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let output = vzfs(dir.path(), "ve export web out.tar");
    server.join().expect("served");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("was cut off"));
    assert!(!dir.path().join("out.tar").exists());
    let server =
        answer(dir.path(), b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let output = vzfs(dir.path(), "--format json ve export web out.tar");
    server.join().expect("served");
    assert!(output.status.success());
    assert_eq!(std::fs::read(dir.path().join("out.tar")).expect("there"), b"abc");
    assert!(text(&output.stdout).contains("\"bytes\": 3"));
}
