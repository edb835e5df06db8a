//! Progress on stderr: a bar when stderr is a terminal, nothing otherwise.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The progress of one command. Disappears when dropped.
pub(crate) struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    /// The step and unit that the bar is styled for, so that it is restyled only when they change.
    style: Mutex<(String, String, bool)>,
}

impl Progress {
    /// Shows nothing before the first step.
    pub(crate) fn new(quiet: bool) -> Progress {
        let visible = !quiet && std::io::stderr().is_terminal();
        let bar = visible.then(ProgressBar::no_length);
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Progress { quiet, bar, style: Mutex::default() }
    }

    /// `done` of `total` `unit`s of the step `what`.
    pub(crate) fn step(&self, what: &str, done: u64, total: Option<u64>, unit: &str) {
        let Some(bar) = &self.bar else { return };
        let Ok(mut style) = self.style.lock() else { return };
        if style.0 != what || style.1 != unit || style.2 != total.is_some() {
            // Fixed templates: a test below parses them all.
            if let Ok(parsed) = ProgressStyle::with_template(template(total.is_some(), unit == "bytes")) {
                bar.set_style(parsed);
            }
            bar.set_message(what.to_owned());
            bar.set_prefix(unit.to_owned());
            *style = (what.to_owned(), unit.to_owned(), total.is_some());
        }
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    }

    /// A line for people that stays on the screen.
    pub(crate) fn log(&self, line: &str) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

/// The look of a bar.
fn template(has_total: bool, counts_bytes: bool) -> &'static str {
    match (has_total, counts_bytes) {
        (true, true) => "{msg:>12} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
        (true, false) => "{msg:>12} {bar:30} {human_pos}/{human_len} {prefix} {eta}",
        (false, true) => "{msg:>12} {spinner} {bytes} {bytes_per_sec}",
        (false, false) => "{msg:>12} {spinner} {human_pos} {prefix}",
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_legal() {
        for (has_total, counts_bytes) in [(true, true), (true, false), (false, true), (false, false)] {
            assert!(ProgressStyle::with_template(template(has_total, counts_bytes)).is_ok());
        }
    }
}
