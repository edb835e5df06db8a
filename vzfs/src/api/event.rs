use serde::{Deserialize, Serialize};

use super::ApiError;

/// One line of an event stream. The last line is `result` or `error`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How far a step has come.
    Progress {
        /// How much is done.
        done: u64,
        /// How much there is, when that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
        /// What is counted: `files`, `bytes`, `blobs`.
        unit: String,
        /// The step that is running: `reading`, `storing`.
        what: String,
    },
    /// Something worth telling that is not a failure.
    Log {
        /// The text, one line.
        message: String,
    },
    /// The end, with what was asked for.
    Result {
        /// The value that the path's documentation promises.
        value: serde_json::Value,
    },
    /// The end, without it.
    Error {
        /// Why.
        error: ApiError,
    },
}

impl Event {
    /// The `result` event for a reply.
    pub fn result<T: Serialize>(value: &T) -> Result<Event, serde_json::Error> {
        Ok(Event::Result { value: serde_json::to_value(value)? })
    }

    /// The event as its line, newline included.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ErrorCode;

    #[test]
    fn lines() {
        let progress = Event::Progress { done: 3, total: None, unit: "files".into(), what: "reading".into() };
        let line = progress.to_line().expect("serializes");
        assert_eq!(line, "{\"event\":\"progress\",\"done\":3,\"unit\":\"files\",\"what\":\"reading\"}\n");
        for event in [
            progress,
            Event::Log { message: "two\nlines".into() },
            Event::result(&7).expect("serializes"),
            Event::Error { error: ApiError::new(ErrorCode::Busy, "starting") },
        ] {
            let line = event.to_line().expect("serializes");
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(serde_json::from_str::<Event>(&line).expect("parses"), event);
        }
    }
}
