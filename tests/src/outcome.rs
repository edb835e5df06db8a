//! What a program that was run has answered.

use std::process::Output;

use serde_json::Value;

/// Exit code and output of a finished program.
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; 128 + the signal's number when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Takes over what the standard library tells.
    pub fn new(command: String, output: Output) -> Outcome {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        Outcome { command, code, stdout: output.stdout, stderr: output.stderr }
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the exit code is `code`; gives the outcome back for more questions.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Outcome {
        assert!(
            self.code == code,
            "`{}` ended with {}, expected {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.code,
            tail(&self.text()),
            tail(&self.error())
        );
        self
    }

    /// Fails the test unless the program succeeded.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        self.expect_code(0)
    }

    /// Fails the test unless the program refused with `code` and an error that names all of `words`.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) -> Outcome {
        let outcome = self.expect_code(code);
        let error = outcome.error();
        for word in words {
            assert!(
                error.to_lowercase().contains(&word.to_lowercase()),
                "`{}` was refused without naming {word:?}; it said:\n{error}",
                outcome.command
            );
        }
        assert!(!error.contains("panicked at"), "`{}` panicked:\n{error}", outcome.command);
        outcome
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("`{}` printed no JSON ({error}):\n{}", self.command, self.text()),
        }
    }
}

/// The end of a long output: what went wrong is nearly always there.
fn tail(text: &str) -> &str {
    const KEEP_BYTES: usize = 6000;
    let mut from = text.len().saturating_sub(KEEP_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
