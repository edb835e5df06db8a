//! The OCI runtime configuration of one program.

use std::os::unix::ffi::OsStrExt;

use rustix::termios::Winsize;
use serde_json::{Value, json};
use vzfs::types::{FileKind, IdShift};

use super::{Bind, ExecSpec, Network};
use crate::error::{Exit, Failure, Result};
use crate::rootfs::User;

/// What container programs usually may do, and what package managers need besides (devices, owners, file
/// capabilities). Nothing that reaches past the namespaces: no mounting, no modules, no network set-up.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Files of `/proc` that tell about or act on the host.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration; `terminal` asks for a pseudo-terminal of this size.
pub(super) fn config(spec: &ExecSpec, user: &User, terminal: Option<Winsize>) -> Result<Value> {
    let mut namespaces = vec!["mount", "pid", "uts", "ipc"];
    if spec.network == Network::None {
        namespaces.push("network");
    }
    if spec.id_shift.is_some() {
        namespaces.push("user");
    }
    let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    let arguments = spec.command.iter().map(|word| text(word.as_bytes())).collect::<Result<Vec<_>>>()?;
    let mut mounts = standard_mounts(spec.id_shift);
    for bind in &spec.binds {
        mounts.push(bind_mount(bind)?);
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal.is_some(),
            "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups, "umask": 0o022 },
            "args": arguments,
            "env": environment(spec, user),
            "cwd": text(spec.workdir.as_os_str().as_bytes())?,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            // sudo, ping and package scripts need their setuid bits and file capabilities.
            "noNewPrivileges": false,
        },
        "root": { "path": text(spec.root.as_os_str().as_bytes())?, "readonly": false },
        "hostname": spec.hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            // Nothing mounted inside shows on the host.
            "rootfsPropagation": "rprivate",
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": no_block_devices(),
        },
    });
    if let Some(shift) = spec.id_shift {
        let mapping = json!([{ "containerID": 0, "hostID": shift.first(), "size": shift.count() }]);
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
    }
    // Later changes of the size are passed on by crun; the first size is not.
    if let Some(Winsize { ws_row, ws_col, .. }) = terminal {
        config["process"]["consoleSize"] = json!({ "height": ws_row, "width": ws_col });
    }
    Ok(config)
}

/// JSON holds text only: other bytes would reach the program changed.
fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| {
        Failure::new(Exit::Refused, format!("\"{}\" is not UTF-8, which crun needs", bytes.escape_ascii()))
    })
}

/// A clean environment: nothing of the caller's but the kind of terminal.
fn environment(spec: &ExecSpec, user: &User) -> Vec<String> {
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
    let usual = [
        ("PATH", super::host_path().to_owned()),
        ("HOME", user.home.clone()),
        ("TERM", term.unwrap_or_else(|| "xterm".to_owned())),
        ("LANG", "C.UTF-8".to_owned()),
    ];
    let replaced = |name: &str| spec.env.iter().any(|(key, _)| key == name);
    let usual =
        usual.into_iter().filter(|(name, _)| !replaced(name)).map(|(name, value)| format!("{name}={value}"));
    usual.chain(spec.env.iter().map(|(name, value)| format!("{name}={value}"))).collect()
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": source, "options": options })
}

/// Without a device cgroup, making a block device would be reaching the host's disks. Character devices may be made:
/// packages and root filesystems have them, and those that matter need capabilities that are not given.
fn no_block_devices() -> Value {
    const TYPE_BITS: u32 = 0o170_000;
    let rule = |name: &str, mode_argument: u32| {
        json!({
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": rustix::io::Errno::PERM.raw_os_error(),
            "args": [{
                "index": mode_argument,
                "op": "SCMP_CMP_MASKED_EQ",
                "value": TYPE_BITS,
                "valueTwo": FileKind::Block.mode_bits(),
            }],
        })
    };
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("mknod", 1), rule("mknodat", 2)] })
}

fn standard_mounts(shift: Option<IdShift>) -> Vec<Value> {
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    // Debian's group tty, where the VE has so many groups.
    if shift.is_none_or(|shift| shift.to_host(5).is_some()) {
        pts.push("gid=5");
    }
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ]
}

fn bind_mount(bind: &Bind) -> Result<Value> {
    let (source, target) =
        (text(bind.source.as_os_str().as_bytes())?, text(bind.target.as_os_str().as_bytes())?);
    let access = if bind.read_only { "ro" } else { "rw" };
    Ok(mount(target, "bind", source, &["rbind", "rprivate", access]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ExecSpec {
        ExecSpec {
            root: "/mnt/web".into(),
            hostname: "web".into(),
            user: "root".into(),
            workdir: "/srv".into(),
            env: vec![("LANG".into(), "de_DE".into()), ("A".into(), "b c".into())],
            binds: vec![Bind { source: "/src".into(), target: "/mnt".into(), read_only: true }],
            id_shift: None,
            network: Network::Host,
            command: vec!["ls".into(), "-l".into()],
        }
    }

    fn user() -> User {
        User { uid: 33, gid: 33, groups: vec![4], home: "/var/www".into() }
    }

    #[test]
    fn bundle_says_what_was_asked_for() {
        let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        let config = config(&spec(), &user(), Some(size)).expect("legal");
        assert_eq!(config["process"]["args"], json!(["ls", "-l"]));
        assert_eq!(config["process"]["consoleSize"]["width"], 77);
        assert_eq!(config["process"]["cwd"], "/srv");
        assert_eq!(config["process"]["user"]["additionalGids"], json!([4]));
        assert_eq!(config["root"]["path"], "/mnt/web");
        assert_eq!(config["hostname"], "web");
        let env = config["process"]["env"].as_array().expect("a list");
        let names: Vec<&str> = env.iter().filter_map(|v| v.as_str()?.split('=').next()).collect();
        assert_eq!(names, ["PATH", "HOME", "TERM", "LANG", "A"]);
        assert!(env.contains(&json!("LANG=de_DE")) && env.contains(&json!("HOME=/var/www")));
        let last = config["mounts"].as_array().and_then(|mounts| mounts.last()).expect("mounts");
        assert_eq!(last["options"], json!(["rbind", "rprivate", "ro"]));
    }

    #[test]
    fn network_is_shared_unless_refused() {
        let kinds =
            |spec: &ExecSpec| config(spec, &user(), None).expect("legal")["linux"]["namespaces"].to_string();
        assert!(!kinds(&spec()).contains("network"));
        assert!(kinds(&ExecSpec { network: Network::None, ..spec() }).contains("network"));
    }

    #[test]
    fn a_shift_asks_for_a_user_namespace() {
        let with = |text: &str| {
            let spec = ExecSpec { id_shift: text.parse().ok(), ..spec() };
            config(&spec, &user(), None).expect("legal")
        };
        let (none, some) = (with(""), with("100000:40"));
        assert!(
            !none["linux"]["namespaces"].to_string().contains("user")
                && none["linux"]["uidMappings"].is_null()
        );
        assert!(some["linux"]["namespaces"].to_string().contains("user"));
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 40 }]);
        assert_eq!((&some["linux"]["uidMappings"], &some["linux"]["gidMappings"]), (&mapping, &mapping));
        assert!(some["mounts"].to_string().contains("gid=5"));
        assert!(!with("100000:5")["mounts"].to_string().contains("gid=5"));
    }

    #[test]
    fn nothing_that_reaches_past_the_namespaces() {
        for capability in
            ["CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_SYS_RAWIO"]
        {
            assert!(!CAPABILITIES.contains(&capability));
        }
    }

    #[test]
    fn bytes_that_json_cannot_hold_are_refused() {
        let word = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
        assert!(config(&ExecSpec { command: vec![word], ..spec() }, &user(), None).is_err());
    }
}
