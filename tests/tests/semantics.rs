//! Runs every example of doc/SEMANTICS.md: in VEs, over template files and over private files, on stores of both host filesystems and without
//! passthrough; and the same examples on those filesystems themselves, which shows that they are right.
//!
//! `VZFS_SEMANTICS=WORD` runs only the promises with WORD in their heading, for work on one of them; it then fails at the end, so that it is
//! not taken for a passed test.

// A report is for people, and a failure is told by panicking, as in the harness.
#![allow(clippy::panic, clippy::print_stdout)]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use vzfs_tests::host::run;
use vzfs_tests::semantics::{Example, Trait, examples};
use vzfs_tests::{Host, HostFs, Outcome, Setup, sample};

fn document() -> Vec<Example> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../doc/SEMANTICS.md");
    let text = fs::read_to_string(path).expect("doc/SEMANTICS.md is there");
    examples(&text).unwrap_or_else(|wrong| panic!("doc/SEMANTICS.md:\n{wrong}"))
}

/// The examples of a run with their failures.
#[derive(Default)]
struct Report {
    ran: usize,
    left_out: usize,
    filtered: usize,
    failures: String,
}

impl Report {
    /// Runs the examples that are for a setting, each in a folder that `prepare` makes for it.
    fn run(&mut self, setting: &str, traits: &[Trait], examples: &[Example], host: &Host, place: &dyn Place) {
        let wanted = std::env::var("VZFS_SEMANTICS").ok();
        for (number, example) in examples.iter().enumerate() {
            if wanted.as_ref().is_some_and(|wanted| !example.heading.contains(wanted)) {
                self.filtered += 1;
                continue;
            }
            if !example.runs_on(traits) {
                self.left_out += 1;
                println!("left out, {setting}: {}", example.heading);
                continue;
            }
            let outcome = place.with(host, number, &|folder, remount| example.run(folder, remount));
            self.ran += 1;
            println!("{}, {setting}: {}", if outcome.code == 0 { "ok" } else { "FAILED" }, example.heading);
            if outcome.code != 0 {
                let _infallible = write!(
                    self.failures,
                    "\n{setting}: {} (doc/SEMANTICS.md:{}): code {}\n{}{}\n",
                    example.heading,
                    example.line,
                    outcome.code,
                    outcome.text(),
                    outcome.error()
                );
            }
        }
    }

    #[track_caller]
    fn finish(self, expected: usize) {
        assert!(self.failures.is_empty(), "{}", self.failures);
        assert_eq!(self.filtered, 0, "only a part was asked for; that part passed");
        assert_eq!(self.ran + self.left_out, expected, "not every example was looked at");
    }
}

/// Runs something in a folder, given also what mounts the folder's filesystem again.
type InFolder<'a> = &'a dyn Fn(&Path, &dyn Fn()) -> Outcome;

/// Where an example runs.
trait Place {
    /// Makes a fresh folder with the sample, runs `example` in it and takes the folder away.
    fn with(&self, host: &Host, number: usize, example: InFolder<'_>) -> Outcome;
}

/// A VE of its own on the template.
struct InTemplate;
/// A copy of the sample in a VE of its own.
struct InPrivate;
/// A copy of the sample beside the store.
struct OnHost;

impl Place for InTemplate {
    fn with(&self, host: &Host, number: usize, example: InFolder<'_>) -> Outcome {
        let ve = format!("example{number}");
        host.mounted("sample", &[&ve]);
        let remount = || {
            host.vzfs(["ve", "umount", &ve]).ok();
            host.vzfs(["ve", "mount", &ve]).ok();
        };
        let outcome = example(&host.root(&ve), &remount);
        host.vzfs(["ve", "rm", "--force", &ve]).ok();
        outcome
    }
}

impl Place for InPrivate {
    fn with(&self, host: &Host, number: usize, example: InFolder<'_>) -> Outcome {
        let with_copy = |root: &Path, remount: &dyn Fn()| {
            let private = root.join("private");
            copy(&host.scratch().join("source"), &private);
            example(&private, remount)
        };
        InTemplate.with(host, number, &with_copy)
    }
}

impl Place for OnHost {
    fn with(&self, host: &Host, _number: usize, example: InFolder<'_>) -> Outcome {
        let folder = host.disk().join("plain");
        copy(&host.scratch().join("source"), &folder);
        let outcome = example(&folder, &|| {});
        run(Command::new("rm").arg("-rf").arg(&folder));
        outcome
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").args([from, to]));
}

fn host(setup: Setup) -> Host {
    let host = Host::with(Setup { size_mib: 4096, ..setup });
    let source = host.scratch().join("source");
    sample::make(&source);
    host.vzfs(["template", "import", "sample@1", source.to_str().expect("text")]).ok();
    host
}

fn on_store(setup: Setup, of_the_store: &[Trait]) {
    let examples = document();
    let host = host(setup);
    // What programs have open must not count for the daemon; one example opens ten times as many files.
    let pid = host.daemon_pid().to_string();
    run(Command::new("prlimit").args(["--pid", &pid, "--nofile=4096:4096"]));
    let mut report = Report::default();
    let with = |more: &[Trait]| [of_the_store, more].concat();
    report.run("template files", &with(&[Trait::TemplateFiles]), &examples, &host, &InTemplate);
    report.run("private files", &with(&[Trait::PrivateFiles]), &examples, &host, &InPrivate);
    report.finish(2 * examples.len());
}

#[test]
fn in_ves_on_xfs() {
    on_store(Setup { fs: HostFs::Xfs, ..Setup::default() }, &[Trait::Xfs]);
}

#[test]
fn in_ves_on_ext4() {
    on_store(Setup { fs: HostFs::Ext4, ..Setup::default() }, &[Trait::Ext4]);
}

#[test]
fn in_ves_without_passthrough() {
    let daemon_args = vec!["--passthrough".into(), "off".into()];
    on_store(Setup { fs: HostFs::Xfs, daemon_args, ..Setup::default() }, &[Trait::Xfs, Trait::NoPassthrough]);
}

#[test]
fn on_plain_xfs_and_ext4() {
    let examples = document();
    let mut report = Report::default();
    for (fs, name, traits) in [
        (HostFs::Xfs, "plain XFS", [Trait::Plain, Trait::Xfs, Trait::PlainXfs]),
        (HostFs::Ext4, "plain ext4", [Trait::Plain, Trait::Ext4, Trait::PlainExt4]),
    ] {
        let host = Host::without_daemon(Setup { fs, size_mib: 4096, ..Setup::default() });
        sample::make(&host.scratch().join("source"));
        report.run(name, &traits, &examples, &host, &OnHost);
    }
    report.finish(2 * examples.len());
}

#[test]
fn every_example_runs_in_some_ve() {
    for example in document() {
        let somewhere = [Trait::Xfs, Trait::Ext4].iter().any(|fs| {
            [Trait::TemplateFiles, Trait::PrivateFiles].iter().any(|files| example.runs_on(&[*fs, *files]))
        });
        assert!(somewhere, "no VE runs the example of \"{}\"", example.heading);
    }
}

#[test]
fn a_failing_example_is_seen() {
    let run = |language: &str, code: &str| {
        let document = format!("## Section\n### Promise\nText.\n```{language}\n{code}\n```\n");
        let found = examples(&document).expect("well-formed");
        found.iter().map(|example| example.run(Path::new("/"), &|| {}).code).collect::<Vec<_>>()
    };
    assert_eq!(run("sh", "test -d tmp"), [0]);
    assert_eq!(run("sh", "test -d tmp\nfalse\ntest -d tmp"), [1]);
    assert_eq!(run("sh", "test $not_set = 1"), [2]);
    assert_eq!(run("python", "assert True"), [0]);
    assert_eq!(run("python", "assert False"), [1]);
}

#[test]
fn a_document_that_promises_without_an_example_is_refused() {
    let example = "```sh\ntest -d tmp\n```\n";
    let good = format!("# Title\nText\n## One\n### First\n{example}\n## Two\n### Second\n{example}");
    assert_eq!(examples(&good).expect("well-formed").len(), 2);
    let refused = |document: String, why: &str| match examples(&document) {
        Ok(_) => panic!("accepted:\n{document}"),
        Err(wrong) => assert!(wrong.contains(why), "{wrong}"),
    };
    refused(format!("{good}## Three\nText\n"), "section \"Three\" has no example");
    refused(format!("{good}### Third\nText\n## Three\n### Fourth\n{example}"), "promise \"Third\"");
    refused(format!("{good}{example}"), "\"Second\" has two examples");
    refused(format!("## One\n{example}"), "below no promise");
    refused("## One\n### First\n```sh\necho\n```\n".into(), "checks nothing");
    refused("## One\n### First\n```ruby\ntest\n```\n".into(), "nothing runs");
    refused("## One\n### First\n```sh\n! test -d tmp\n```\n".into(), "use `refused`");
    refused("## One\n### First\n```sh\ntest -d tmp\n".into(), "not closed");
    for exception in ["XFS", "XFS:", "XFS: ", "Btrfs: it is no good."] {
        refused(format!("## One\n### First\n```sh\n# Not on {exception}\ntest -d tmp\n```\n"), "a reason");
    }
    let with_reason = "## One\n### First\n```sh\n# Not on XFS: a reason.\ntest -d tmp\n```\n";
    let found = examples(with_reason).expect("well-formed");
    assert!(!found[0].runs_on(&[Trait::Xfs, Trait::Plain]) && found[0].runs_on(&[Trait::Ext4]));
}
