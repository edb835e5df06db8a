use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure it is: what a program decides by. People read [`ApiError::message`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The named thing is not there.
    NotFound,
    /// A thing of that name is there already.
    Exists,
    /// Something else still needs it.
    InUse,
    /// The request or its input is not acceptable, now or ever: a bad name, a hostile archive.
    Invalid,
    /// The templates cannot be stacked as asked.
    Unfit,
    /// Who asks may not do this.
    Forbidden,
    /// Stored data is not what it was.
    Damaged,
    /// The store's disk is full.
    NoSpace,
    /// The daemon cannot do it at this moment: starting, stopping, or another long action runs.
    Busy,
    /// This kernel, host filesystem or version cannot do it.
    Unsupported,
    /// Anything else: a failing disk, a fault of the daemon.
    Internal,
}

impl ErrorCode {
    /// Every code there is.
    pub const ALL: [ErrorCode; 11] = [
        ErrorCode::NotFound,
        ErrorCode::Exists,
        ErrorCode::InUse,
        ErrorCode::Invalid,
        ErrorCode::Unfit,
        ErrorCode::Forbidden,
        ErrorCode::Damaged,
        ErrorCode::NoSpace,
        ErrorCode::Busy,
        ErrorCode::Unsupported,
        ErrorCode::Internal,
    ];

    /// The HTTP status that a refusal with this code has.
    pub const fn http_status(self) -> u16 {
        match self {
            ErrorCode::NotFound => 404,
            ErrorCode::Exists | ErrorCode::InUse | ErrorCode::Unfit => 409,
            ErrorCode::Invalid => 400,
            ErrorCode::Forbidden => 403,
            ErrorCode::Damaged | ErrorCode::Internal => 500,
            ErrorCode::NoSpace => 507,
            ErrorCode::Busy => 503,
            ErrorCode::Unsupported => 501,
        }
    }

    /// The code as it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::NotFound => "not_found",
            ErrorCode::Exists => "exists",
            ErrorCode::InUse => "in_use",
            ErrorCode::Invalid => "invalid",
            ErrorCode::Unfit => "unfit",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::Damaged => "damaged",
            ErrorCode::NoSpace => "no_space",
            ErrorCode::Busy => "busy",
            ErrorCode::Unsupported => "unsupported",
            ErrorCode::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// What failed, on which thing, and why; one sentence without a full stop.
    pub message: String,
    /// What the reader can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), hint: None }
    }

    /// The same error with something to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> ApiError {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_documented() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).expect("serializes"), code.as_str());
            assert!((400..600).contains(&code.http_status()));
        }
    }

    #[test]
    fn hint_is_left_out_when_there_is_none() {
        let error = ApiError::new(ErrorCode::NotFound, "no VE \"web\"");
        let text = serde_json::to_string(&error).expect("serializes");
        assert_eq!(text, r#"{"code":"not_found","message":"no VE \"web\""}"#);
        assert_eq!(serde_json::from_str::<ApiError>(&text).expect("parses"), error);
    }
}
