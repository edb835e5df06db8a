//! The templates that vzfs ships, built for real from their definitions.

use std::path::{Path, PathBuf};
use std::time::Instant;

use vzfs_tests::measure::{ms, report};
use vzfs_tests::{Host, Setup};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../templates").join(name)
}

fn build(host: &Host, definition: &Path, more: &[&str]) {
    let begin = Instant::now();
    host.vzfs(["template", "build", definition.to_str().expect("text")].iter().chain(more)).ok();
    let name = definition.file_name().unwrap_or_default().to_string_lossy();
    report(&format!("template build {name}"), ms(begin.elapsed()));
}

#[test]
fn the_shipped_templates_build_run_and_build_equally_again() {
    let host = Host::with(Setup::default());
    build(&host, &shipped("debian-12.toml"), &[]);
    let os = host.json(["template", "show", "debian"]);
    assert_eq!(os["kind"], "os");
    let packages = os["packages"].as_array().expect("packages");
    for wanted in ["apt", "bash", "ca-certificates", "dpkg"] {
        assert!(packages.iter().any(|package| package["name"] == wanted), "{wanted} is not listed");
    }
    build(&host, &shipped("debian-12.toml"), &["--version", "12.again"]);
    assert_eq!(
        host.digest("debian@12"),
        host.digest("debian@12.again"),
        "the same definition, the same digest"
    );

    for name in ["nginx", "python", "postgresql"] {
        build(&host, &shipped(&format!("{name}.toml")), &[]);
        let app = host.json(["template", "show", name]);
        assert_eq!(
            (&app["kind"], &app["os"]["name"], &app["os"]["version"]),
            (&"app".into(), &"debian".into(), &"12".into())
        );
    }
    build(&host, &shipped("nginx.toml"), &["--version", "again"]);
    assert_eq!(host.digest("nginx@1.22"), host.digest("nginx@again"), "the same definition, the same digest");
    assert_eq!(host.json(["ve", "list"]), serde_json::json!([]), "a build leaves its throw-away VE behind");

    // All three on one OS, and they work.
    let stack =
        ["ve", "create", "all", "-t", "debian@12", "-t", "nginx@1.22", "-t", "python", "-t", "postgresql"];
    host.vzfs(stack).ok();
    host.sh("all", "nginx -v; python3 -c 'import venv, ssl'; /usr/lib/postgresql/15/bin/postgres --version")
        .ok();
    assert_eq!(
        host.sh("all", "dpkg --verify; dpkg --audit").ok().text(),
        "",
        "the merged package database is whole"
    );
    host.sh("all", "dpkg -s nginx-light python3-venv postgresql-15 >/dev/null").ok();
    // On a socket only: the VE's network is the host's.
    let database = "pg_createcluster -p 54329 -o listen_addresses= 15 main --start && \
                    su postgres -c 'psql -p 54329 -Atc \"SELECT 6 * 7\"'; pg_ctlcluster 15 main stop";
    assert!(host.sh("all", database).ok().text().contains("42"));
}
