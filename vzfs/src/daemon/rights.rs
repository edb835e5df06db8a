//! What who is connected may ask for.
//!
//! Root, and the user whom the daemon runs as, may do everything. Members of the group that `--read-group` names may see what there is and how it fares;
//! they change nothing, and read no content of templates and VEs, which has its own permissions inside of them.

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use rustix::fs::Gid;

use super::DaemonError;
use super::error::Refusal;
use super::server::Listener;
use crate::api::{ApiError, ErrorCode};

/// What may be asked for by who may only look. What is not in it is for administrators, also what is added later.
const LOOKS: [&str; 22] = [
    "/metrics",
    "/v1/daemon",
    "/v1/metrics",
    "/v1/store",
    "/v1/store/dedup",
    "/v1/store/df",
    "/v1/store/doctor",
    "/v1/store/verify",
    "/v1/templates",
    "/v1/templates/{ref}",
    "/v1/templates/{ref}/diff/{other}",
    "/v1/templates/{ref}/versions",
    "/v1/shadowed",
    "/v1/updates",
    "/v1/updates/{id}",
    "/v1/updates/{id}/follow",
    "/v1/updates/{id}/ves/{name}",
    "/v1/ves",
    "/v1/ves/{name}",
    "/v1/ves/{name}/diff",
    "/v1/ves/{name}/shadowed",
    "/v1/ves/{name}/stats",
];

/// Who is connected, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub(super) uid: u32,
    pub(super) is_admin: bool,
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Peer {
        *stream.remote_addr()
    }
}

/// Lets a request pass, or refuses it.
pub(super) async fn check(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    if peer.is_admin || may_look(request.method(), path) {
        return next.run(request).await;
    }
    tracing::warn!(uid = peer.uid, method = %request.method(), path = request.uri().path(), "refused a request");
    let message = format!("user {} may look at the store, and not do this", peer.uid);
    Refusal(ApiError::new(ErrorCode::Forbidden, message).with_hint("do it as root")).into_response()
}

fn may_look(method: &Method, path: Option<&str>) -> bool {
    *method == Method::GET && path.is_some_and(|path| LOOKS.contains(&path))
}

/// The number of a group of this host, given by its name or number.
///
/// # Errors
/// There is none of that name.
pub(super) fn group(name: &str) -> Result<Gid, DaemonError> {
    let number = match name.parse() {
        Ok(number) => Some(number),
        Err(_) => {
            let groups = std::fs::read_to_string("/etc/group").map_err(DaemonError::io("read /etc/group"))?;
            number_of(&groups, name)
        }
    };
    number.map(Gid::from_raw).ok_or_else(|| DaemonError::NoGroup(name.to_owned()))
}

/// By lines of group(5).
fn number_of(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        // After the password.
        fields.nth(1).filter(|_| is_it)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_changes_nothing_and_reads_no_content() {
        assert!(may_look(&Method::GET, Some("/v1/ves/{name}")));
        for path in
            ["/v1/ves/{name}/export", "/v1/templates/{ref}/export", "/v1/templates/{ref}/recipe", "/v1/new"]
        {
            assert!(!may_look(&Method::GET, Some(path)), "{path}");
        }
        for method in [Method::POST, Method::DELETE, Method::PATCH, Method::PUT] {
            assert!(LOOKS.iter().all(|path| !may_look(&method, Some(path))), "{method}");
        }
        assert!(!may_look(&Method::GET, None));
    }

    #[test]
    fn groups_are_found_by_name() {
        let groups = "root:x:0:\nadm:x:4:syslog\n:x:5:\nbroken\nwheel:*:ten:\n";
        assert_eq!(number_of(groups, "adm"), Some(4));
        for none in ["ad", "admin", "broken", "wheel", "syslog"] {
            assert_eq!(number_of(groups, none), None, "{none}");
        }
        assert!(matches!(group("no such group"), Err(DaemonError::NoGroup(_))));
        assert_eq!(group("17").expect("a number").as_raw(), 17);
    }
}
