//! What builds take from the host's apt and read from a tree's dpkg.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vzfs::api::Package;

use crate::error::{Failure, Result};
use crate::exec::host_path;

/// Options of the host's apt that say how archives are reached; nothing that says what is installed.
const TRANSPORT_OPTIONS: [&str; 5] =
    ["Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv"];

/// The host's settings for reaching archives (proxies above all), as `(name, value)`; none when it has no apt.
pub(super) fn transport_options() -> Vec<(String, String)> {
    let mut command = Command::new("apt-config");
    command.arg("dump").env_clear().env("PATH", host_path()).env("LANG", "C.UTF-8").stdin(Stdio::null());
    let Ok(output) = command.output() else { return Vec::new() };
    options(&String::from_utf8_lossy(&output.stdout))
}

/// Lines are `Name::Of::Option "value";`.
fn options(dump: &str) -> Vec<(String, String)> {
    let parsed = dump.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        let value = value.strip_prefix('"')?.strip_suffix("\";")?;
        let wanted = TRANSPORT_OPTIONS.iter().any(|prefix| name.starts_with(prefix));
        (wanted && !value.is_empty() && !value.contains('"')).then(|| (name.to_owned(), value.to_owned()))
    });
    parsed.collect()
}

/// The installed packages of a dpkg status file, by name.
pub(super) fn installed(status: &str) -> Vec<Package> {
    let native = native_architecture(status);
    let mut packages: Vec<Package> = status
        .split("\n\n")
        .filter_map(|stanza| {
            let value = |name: &str| field(stanza, name);
            if value("Status")? != "install ok installed" && value("Status")? != "hold ok installed" {
                return None;
            }
            let name = value("Package")?;
            let foreign = value("Architecture").filter(|arch| *arch != "all" && Some(*arch) != native);
            let name = foreign.map_or(name.to_owned(), |arch| format!("{name}:{arch}"));
            Some(Package { name, version: value("Version")?.to_owned() })
        })
        .collect();
    packages.sort();
    packages
}

/// The architecture that dpkg itself has.
fn native_architecture(status: &str) -> Option<&str> {
    let dpkg = status.split("\n\n").find(|stanza| field(stanza, "Package") == Some("dpkg"))?;
    field(dpkg, "Architecture")
}

/// The value of a field of a deb822 stanza, first line only.
fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Writes the host's package sources for `suite` into `dir`, as files that mmdebstrap reads; none when the host has
/// none for it, and mmdebstrap then uses the distribution's own.
pub(super) fn host_sources(suite: &str, components: &[String], dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut one_line, mut stanzas) = (String::new(), String::new());
    for file in host_files(Path::new("/etc/apt")) {
        // A file that cannot be read is none of apt's either.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        if file.extension().is_some_and(|extension| extension == "sources") {
            stanzas.push_str(&matching_stanzas(&text, suite, components));
        } else {
            one_line.push_str(&matching_lines(&text, suite, components));
        }
    }
    let mut written = Vec::new();
    for (name, text) in [("archives.sources", stanzas), ("archives.list", one_line)] {
        if !text.is_empty() {
            let path = dir.join(name);
            std::fs::write(&path, text)
                .map_err(|e| Failure::io(format!("cannot write {}", path.display()), &e))?;
            written.push(path);
        }
    }
    Ok(written)
}

fn host_files(apt: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten();
    let parts = entries.map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        parts.filter(|path| path.extension().is_some_and(|e| e == "list" || e == "sources")).collect();
    files.sort();
    files.insert(0, apt.join("sources.list"));
    files
}

/// `bookworm` itself and its `bookworm-security`, `bookworm-updates`; nothing else would give a stable system.
fn serves(suite: &str, word: &str) -> bool {
    let word = word.trim_end_matches('/');
    let part = word.strip_prefix(suite);
    matches!(part, Some("" | "-security" | "-updates" | "/updates"))
}

fn matching_stanzas(text: &str, suite: &str, components: &[String]) -> String {
    let mut kept = String::new();
    let uncommented: String =
        text.lines().filter(|line| !line.starts_with('#')).map(|l| format!("{l}\n")).collect();
    for stanza in uncommented.split("\n\n") {
        let Some(suites) = field(stanza, "Suites") else { continue };
        let suites: Vec<&str> = suites.split_whitespace().filter(|word| serves(suite, word)).collect();
        let enabled = !field(stanza, "Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        let binary =
            field(stanza, "Types").is_some_and(|types| types.split_whitespace().any(|kind| kind == "deb"));
        if suites.is_empty() || !enabled || !binary {
            continue;
        }
        for line in stanza.lines().filter(|line| !line.trim().is_empty()) {
            match line.split_once(':').map(|(key, _)| key.to_ascii_lowercase()).as_deref() {
                Some("suites") => kept.push_str(&format!("Suites: {}\n", suites.join(" "))),
                Some("components") => kept.push_str(&format!("Components: {}\n", components.join(" "))),
                Some("types") => kept.push_str("Types: deb\n"),
                _ => kept.push_str(&format!("{line}\n")),
            }
        }
        kept.push('\n');
    }
    kept
}

/// Lines are `deb [options] URI SUITE COMPONENT...`.
fn matching_lines(text: &str, suite: &str, components: &[String]) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => (format!("[{options}] "), rest),
            None => (String::new(), rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(word)) = (words.next(), words.next()) else { continue };
        if serves(suite, word) {
            kept.push_str(&format!("deb {options}{uri} {word} {}\n", components.join(" ")));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_files() {
        let status = "Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
                      Package: libc6\nStatus: install ok installed\nArchitecture: i386\nVersion: 2.36-9\n\n\
                      Package: adduser\nStatus: install ok installed\nArchitecture: all\nVersion: 3.1\n Version: x\n";
        let packages: Vec<String> =
            installed(status).iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        assert_eq!(packages, ["adduser 3.1", "dpkg 1.21", "libc6:i386 2.36-9"]);
        assert_eq!(installed(""), []);
    }

    #[test]
    fn options_that_reach_archives() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://127.0.0.1:3142\";\n\
                    Acquire::cdrom::mount \"/media\";\nAcquire::Check-Date \"false\";\nAcquire::http \"\";\n";
        let names: Vec<String> = options(dump).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["Acquire::http::Proxy", "Acquire::Check-Date"]);
    }

    #[test]
    fn sources_of_the_suite_only() {
        let components = ["main".to_owned()];
        let text = "# comment\nTypes: deb deb-src\nURIs: http://a.example/debian\nSuites: trixie bookworm bookworm-updates\n\
                    # comment\nComponents: main contrib\nSigned-By: /k\n\nTypes: deb\nURIs: http://b.example\n\
                    Suites: trixie\nComponents: main\n\nTypes: deb\nEnabled: no\nURIs: http://c.example\nSuites: bookworm\n";
        assert_eq!(
            matching_stanzas(text, "bookworm", &components),
            "Types: deb\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k\n\n"
        );
        let text = "deb [signed-by=/k] http://a.example/debian bookworm main\ndeb-src http://a.example bookworm main\n\
                    # deb http://x.example bookworm main\ndeb http://b.example bookworm-backports main\n";
        assert_eq!(
            matching_lines(text, "bookworm", &components),
            "deb [signed-by=/k] http://a.example/debian bookworm main\n"
        );
    }
}
