//! `doc/SEMANTICS.md` as a test: the promises in it, each with an example that is run.
//!
//! Its form: `## Section`, below it `### Promise`, below that a sentence or two and one or more fenced examples in `sh` or `python`. The
//! fences named `sh prelude` and `python prelude` are put before each example of their language. An example that begins with lines such as
//! `# Not on XFS: its symbolic links end at 1,023 bytes.` is left out where they say so; each must have a reason.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Outcome;
use crate::host::finish;

/// What one example may take, by the clock. Far more than any needs: it is there so that a hanging mount fails the test.
const PATIENCE_SECONDS: &str = "1800";
/// The line in an example at which the VE is mounted again.
const REMOUNT: &str = "# (remount)";
/// Passed on to the examples: see the document.
const SIZES: [&str; 2] = ["VZFS_SEMANTICS_ENTRIES", "VZFS_SEMANTICS_OPEN"];
/// Words that check something; an example without any could not fail.
const CHECKS: [&str; 6] = ["assert", "refused", "same ", "test ", "cmp ", "grep -q"];

/// The languages of examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `/bin/sh -eu`.
    Shell,
    /// Python 3.
    Python,
}

/// What the setting of a run is, in the words with which examples name it ("# Not on ...").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trait {
    /// The store, or the plain folder, is on XFS.
    Xfs,
    /// It is on ext4.
    Ext4,
    /// No VE: a folder on the host.
    Plain,
    /// No VE: a folder on XFS.
    PlainXfs,
    /// No VE: a folder on ext4.
    PlainExt4,
    /// The files are those of the template.
    TemplateFiles,
    /// The files are private to the VE.
    PrivateFiles,
    /// The daemon serves reads and writes.
    NoPassthrough,
}

impl Trait {
    const NAMES: [(&'static str, Trait); 8] = [
        ("XFS", Trait::Xfs),
        ("ext4", Trait::Ext4),
        ("plain filesystems", Trait::Plain),
        ("plain XFS", Trait::PlainXfs),
        ("plain ext4", Trait::PlainExt4),
        ("template files", Trait::TemplateFiles),
        ("private files", Trait::PrivateFiles),
        ("VEs without passthrough", Trait::NoPassthrough),
    ];
}

/// One example of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The promise it is for.
    pub heading: String,
    /// Where in the document it begins.
    pub line: usize,
    /// What runs it.
    pub language: Language,
    /// The programs, each with the prelude of its language: more than one where the VE is mounted again in between.
    pub parts: Vec<String>,
    /// Where it is left out.
    pub not_on: Vec<Trait>,
}

/// The examples of a document.
///
/// # Errors
/// Everything that is wrong with its form, one a line: a section or a promise without an example, an unknown language, an example that checks
/// nothing, an exception without a reason, a fence that is not closed.
pub fn examples(document: &str) -> Result<Vec<Example>, String> {
    let mut reader = Reader::default();
    for (index, line) in document.lines().enumerate() {
        reader.line(index + 1, line);
    }
    reader.finish()
}

#[derive(Default)]
struct Reader {
    section: Option<(usize, String, usize)>,
    promise: Option<(usize, String, usize)>,
    fence: Option<(usize, String, Vec<String>)>,
    preludes: Vec<(Language, String)>,
    found: Vec<Example>,
    wrong: Vec<String>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) {
        if let Some((begin, info, mut code)) = self.fence.take() {
            if line == "```" {
                self.fenced(begin, &info, &code);
            } else {
                code.push(line.to_owned());
                self.fence = Some((begin, info, code));
            }
        } else if let Some(info) = line.strip_prefix("```") {
            self.fence = Some((number, info.trim().to_owned(), Vec::new()));
        } else if let Some(heading) = line.strip_prefix("### ") {
            self.end_promise();
            self.promise = Some((number, heading.to_owned(), 0));
        } else if let Some(heading) = line.strip_prefix("## ") {
            self.end_section();
            self.section = Some((number, heading.to_owned(), 0));
        }
    }

    fn fenced(&mut self, line: usize, info: &str, code: &[String]) {
        let (name, prelude) = info.strip_suffix(" prelude").map_or((info, false), |name| (name, true));
        let language = match name {
            "sh" => Language::Shell,
            "python" => Language::Python,
            other => return self.wrong.push(format!("line {line}: nothing runs the language {other:?}")),
        };
        let text = code.join("\n") + "\n";
        if prelude {
            return self.preludes.push((language, text));
        }
        let Some((_, heading, examples)) = self.promise.as_mut() else {
            return self.wrong.push(format!("line {line}: an example below no promise (###)"));
        };
        *examples += 1;
        if let Some((_, _, examples)) = self.section.as_mut() {
            *examples += 1;
        }
        let heading = heading.clone();
        let mut not_on = Vec::new();
        for exception in code.iter().map_while(|line| line.strip_prefix("# Not on ")) {
            let known = exception.split_once(": ").filter(|(_, reason)| !reason.trim().is_empty());
            let known = known.and_then(|(name, _)| Trait::NAMES.iter().find(|(known, _)| *known == name));
            match known {
                Some((_, excepted)) => not_on.push(*excepted),
                None => self.wrong.push(format!(
                    "line {line}: \"# Not on {exception}\" must be one of the known settings, a colon and a reason"
                )),
            }
        }
        if !CHECKS.iter().any(|check| text.contains(check)) {
            self.wrong.push(format!("line {line}: the example of \"{heading}\" checks nothing"));
        }
        // `set -e` passes over a command behind `!`.
        if language == Language::Shell && code.iter().any(|line| line.trim_start().starts_with("! ")) {
            self.wrong.push(format!("line {line}: the shell does not stop at a failed `!`: use `refused`"));
        }
        let prelude: String =
            self.preludes.iter().filter(|(of, _)| *of == language).map(|(_, text)| text.as_str()).collect();
        let parts = code
            .split(|line| line == REMOUNT)
            .map(|part| prelude.clone() + &part.join("\n") + "\n")
            .collect();
        self.found.push(Example { heading, line, language, parts, not_on });
    }

    fn end_promise(&mut self) {
        if let Some((line, heading, 0)) = self.promise.take() {
            self.wrong.push(format!("line {line}: the promise \"{heading}\" has no example"));
        }
    }

    fn end_section(&mut self) {
        self.end_promise();
        if let Some((line, heading, 0)) = self.section.take() {
            self.wrong.push(format!("line {line}: the section \"{heading}\" has no example"));
        }
    }

    fn finish(mut self) -> Result<Vec<Example>, String> {
        self.end_section();
        if let Some((line, ..)) = self.fence {
            self.wrong.push(format!("line {line}: this fence is not closed"));
        }
        let mut headings: Vec<&str> = self.found.iter().map(|example| example.heading.as_str()).collect();
        headings.sort_unstable();
        for pair in headings.windows(2).filter(|pair| pair[0] == pair[1]) {
            self.wrong.push(format!("the promise \"{}\" has two examples: give each a heading", pair[0]));
        }
        if self.wrong.is_empty() { Ok(self.found) } else { Err(self.wrong.join("\n")) }
    }
}

impl Example {
    /// Whether it is to run in a setting with these traits.
    pub fn runs_on(&self, traits: &[Trait]) -> bool {
        !self.not_on.iter().any(|excepted| traits.contains(excepted))
    }

    /// Runs it in a folder; `remount` mounts the filesystem of that folder again. The outcome is that of the last part that ran.
    pub fn run(&self, folder: &Path, remount: &dyn Fn()) -> Outcome {
        let mut outcome = self.run_part(folder, &self.parts[0]);
        for part in &self.parts[1..] {
            if outcome.code != 0 {
                break;
            }
            remount();
            outcome = self.run_part(folder, part);
        }
        outcome
    }

    fn run_part(&self, folder: &Path, code: &str) -> Outcome {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", PATIENCE_SECONDS]);
        match self.language {
            Language::Shell => command.args(["/bin/sh", "-euc", code]),
            Language::Python => command.args(["python3", "-Ic", code]),
        };
        command.env_clear().env("LC_ALL", "C.UTF-8").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(SIZES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        finish(command.current_dir(folder).stdin(Stdio::null()))
    }
}
