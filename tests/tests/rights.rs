//! Who may ask the daemon for what.

use std::os::unix::process::CommandExt;
use std::process::Command;

use vzfs_tests::host::{binary, finish};
use vzfs_tests::{Host, Outcome, Setup};

/// Of no user or group that a system gives rights to.
const NOBODY: u32 = 65534;
const READERS: u32 = 65533;

/// Runs `vzfs` as another user and group, alone.
fn as_user(host: &Host, group: u32, args: &[&str]) -> Outcome {
    // Where that user can come to it.
    let program = host.scratch().join("vzfs");
    if !program.exists() {
        // By a process of its own: a child that another test starts meanwhile would hold a copy of our descriptor, and the program be busy.
        finish(Command::new("cp").arg(binary("vzfs")).arg(&program)).ok();
    }
    let mut command = Command::new(program);
    command.arg("--socket").arg(host.socket()).args(args).current_dir("/");
    finish(command.uid(NOBODY).gid(group))
}

#[test]
fn members_of_the_read_group_may_look_and_nobody_else() {
    let daemon_args = vec!["--read-group".to_owned(), READERS.to_string()];
    let host = Host::with_sample_in(Setup { daemon_args, size_mib: 1024, ..Setup::default() }, &["a"]);
    let looks: [&[&str]; 9] = [
        &["ve", "list"],
        &["ve", "show", "a"],
        &["ve", "diff", "a"],
        &["store", "info"],
        &["store", "df"],
        &["template", "list"],
        &["template", "history", "sample"],
        &["update", "history"],
        &["daemon", "status"],
    ];
    let changes: [&[&str]; 9] = [
        &["ve", "create", "b", "-t", "sample"],
        &["ve", "umount", "a"],
        &["ve", "rename", "a", "c"],
        &["ve", "export", "a", "-"],
        &["template", "export", "sample", "-"],
        &["template", "tag", "sample@1", "stable"],
        &["template", "rm", "sample"],
        &["store", "gc"],
        &["daemon", "restart"],
    ];
    for look in looks {
        let done = as_user(&host, READERS, look);
        assert_eq!(done.code, 0, "{look:?}: {}", done.error());
    }
    assert_eq!(as_user(&host, READERS, looks[0]).text(), host.vzfs(looks[0]).text());
    for change in changes {
        let refused = as_user(&host, READERS, change);
        assert_eq!(refused.code, 10, "{change:?}: {}", refused.error());
        assert!(refused.error().contains("root"), "{change:?}: {}", refused.error());
    }
    for command in [looks[0], changes[0]] {
        let refused = as_user(&host, NOBODY, command);
        assert_eq!(refused.code, 6, "{command:?}: {}", refused.error());
    }
    assert_eq!(host.json(["ve", "list"]).as_array().map(Vec::len), Some(1));
    // Root is not meant by this.
    host.vzfs(["template", "tag", "sample@1", "stable"]).ok();
}

#[test]
fn without_a_read_group_only_root_may() {
    let host = Host::with_sample(&[]);
    let refused = as_user(&host, READERS, &["ve", "list"]);
    assert_eq!(refused.code, 6, "{}", refused.error());
    assert!(refused.error().contains("--read-group"), "{}", refused.error());
}
