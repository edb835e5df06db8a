//! Requests and replies of the control interface: HTTP/1.1 with JSON bodies over one Unix socket.
//!
//! Both sides use these types, the daemon and the command line, and neither sends anything else. The module is
//! pure: it opens nothing and knows no HTTP library.
//!
//! | method and path | body | reply |
//! |---|---|---|
//! | `GET /v1/store` | - | [`StoreInfo`] |
//! | `GET /v1/store/doctor` | - | [`Doctor`] |
//! | `GET /v1/store/df` | - | [`StoreDf`] |
//! | `POST /v1/store/gc` | [`GcRequest`] | events, ending in [`GcReport`] |
//! | `POST /v1/store/verify` | [`VerifyStore`] | events, ending in [`StoreVerifyReport`] |
//! | `GET /v1/store/verify` | - | [`VerifyStatus`] |
//! | `POST /v1/store/dedup` | [`DedupRequest`] | events, ending in [`DedupReport`] |
//! | `GET /v1/store/dedup` | - | [`DedupStatus`] |
//! | `GET /v1/daemon` | - | [`DaemonStatus`] |
//! | `POST /v1/daemon/restart` | - | [`DaemonStatus`] of the daemon that is about to be replaced |
//! | `GET /v1/metrics` | - | list of [`Metric`] |
//! | `GET /metrics` | - | the same as text for Prometheus ([`exposition`]) |
//! | `GET /v1/templates` | - | list of [`Template`] |
//! | `GET /v1/templates/{ref}` | - | [`Template`] |
//! | `GET /v1/templates/{ref}/versions` | - | list of [`Template`]: all versions of that name |
//! | `GET /v1/templates/{a}/diff/{b}` | - | [`TemplateDiff`] |
//! | `POST /v1/templates/{ref}/tags` | [`TagTemplate`] | [`Tagged`] |
//! | `DELETE /v1/templates/{ref}/tags/{tag}` | - | [`Tagged`] |
//! | `POST /v1/templates/{ref}/reapply` | [`ReapplyTemplate`] | events, ending in [`Template`] |
//! | `GET /v1/templates/{ref}/recipe` | - | what the template was built of, a tar, chunked |
//! | `POST /v1/templates/import` | [`ImportRequest`] | events, ending in [`Template`] |
//! | `POST /v1/templates/{ref}/verify` | - | events, ending in [`VerifyReport`] |
//! | `GET /v1/templates/{ref}/export` | - | a tar, chunked |
//! | `DELETE /v1/templates/{ref}?force=` | - | [`Removed`] |
//! | `GET /v1/ves` | - | list of [`Ve`] |
//! | `GET /v1/ves/{name}` | - | [`Ve`] |
//! | `POST /v1/ves` | [`CreateVe`] | list of [`Ve`] |
//! | `PATCH /v1/ves/{name}` | [`RenameVe`] | [`Ve`] |
//! | `POST /v1/ves/{name}/id-shift` | [`ShiftIds`] | [`Ve`] |
//! | `DELETE /v1/ves/{name}?force=` | - | [`Removed`] |
//! | `POST /v1/ves/{name}/mount` | [`MountVe`] | [`Ve`] |
//! | `POST /v1/ves/{name}/umount` | [`UmountVe`] | [`Ve`] |
//! | `GET /v1/ves/{name}/stats` | - | [`VeStats`] |
//! | `GET /v1/ves/{name}/diff` | - | list of [`VolumeChange`] |
//! | `GET /v1/ves/{name}/export` | - | a tar, chunked |
//! | `POST /v1/ves/{name}/commit` | [`CommitVe`] | events, ending in [`Template`] |
//! | `GET /v1/ves/{name}/shadowed` | - | [`VeShadows`] |
//! | `GET /v1/shadowed` | - | list of [`VeShadows`] of the VEs that shadow something |
//! | `POST /v1/updates` | [`UpdateRequest`] | events, ending in the [`Rollout`] that was begun, or in an [`UpdatePlan`] |
//! | `GET /v1/updates` | - | list of [`Rollout`], newest first, without their VEs |
//! | `GET /v1/updates/{id}` | - | [`Rollout`] |
//! | `GET /v1/updates/{id}/ves/{name}` | - | [`RolloutVeDetail`] |
//! | `GET /v1/updates/{id}/follow` | - | events, a `log` for each VE that has its result, ending in [`Rollout`] when it runs no more |
//! | `POST /v1/updates/{id}/pause`, `resume`, `stop` | - | [`Rollout`] |
//! | `POST /v1/updates/{id}/rollback` | [`RollbackRequest`] | the [`Rollout`] that takes it back |
//! | `DELETE /v1/updates/{id}` | - | [`Removed`] |
//!
//! - `{ref}` is a [`TemplateRef`](crate::types::TemplateRef): `NAME`, `NAME@VERSION` or `NAME@TAG`, percent-encoded where a URL
//!   needs it (of the legal characters, none does).
//! - A refusal has the HTTP status of its code ([`ErrorCode::http_status`]) and an [`ApiError`] as its body.
//! - "Events" are [`Event`]s, one JSON document a line (`application/x-ndjson`), status 200: what fails after the
//!   first line ends the stream with [`Event::Error`]. A stream without a last line of `result` or `error` was
//!   cut off, and counts as a failure.
//! - A tar that ends before its last chunk was cut off, and counts as a failure.
//! - Requests with a field that is not known are refused, so that a newer client never believes an older daemon
//!   heard it; unknown fields in replies are ignored, so that a newer daemon can tell more.
//! - The order of lists is by name (then version, oldest first), of changes by path bytes.

mod change;
mod dedup;
mod error;
mod event;
mod metrics;
mod rollout;
mod store;
mod template;
mod text;
mod update;
mod update_request;
mod ve;
mod version;

pub use change::{Aspect, Change, ChangeKind, Side, VolumeChange};
pub use dedup::{
    DEFAULT_DEDUP_MIN_BYTES, DEFAULT_DEDUP_QUIET_SECS, DedupProgress, DedupReport, DedupRequest,
    DedupSkipped, DedupStatus,
};
pub use error::{ApiError, ErrorCode};
pub use event::Event;
pub use metrics::{EXPOSITION_CONTENT_TYPE, Metric, MetricKind, Sample, exposition};
pub use rollout::{
    CheckResult, ReportSummary, Rollout, RolloutCounts, RolloutHead, RolloutOptions, RolloutState, RolloutVe,
    RolloutVeDetail, RolloutVeState, RolloutWait, ShadowedFile, UpdatePlan, VeShadows,
};
pub use store::{
    CheckStatus, DaemonStatus, DamageUser, DamagedThing, Doctor, DoctorCheck, GcReport, GcRequest,
    PrivateDamage, SandboxStatus, StoreDamage, StoreDf, StoreInfo, StoreVerifyReport, TemplateDf, VeDf,
    VerifyProgress, VerifyStatus, VerifyStore,
};
pub use template::{
    DamagedBlob, ImportRequest, MergeRule, OsIdentity, Package, Removed, Template, TemplateKind,
    TemplateStats, VerifyReport,
};
pub use text::{duration_secs, path_bytes, path_text, rfc3339};
pub use update::{
    Generate, MergedFile, OnConflict, RebaseReport, Shadowed, ShadowedBy, StackItem, StaleProcess,
};
pub use update_request::{
    DEFAULT_BATCH, DEFAULT_CHECK_TIMEOUT_SECS, Portion, RollbackRequest, Selector, UpdateMode, UpdateRequest,
};
pub use ve::{CommitVe, CreateVe, MountVe, RemoveQuery, RenameVe, ShiftIds, UmountVe, Ve, VeStats};
pub use version::{
    DiffTotals, How, Origin, PackageChange, ReapplyTemplate, TagTemplate, Tagged, TemplateDiff,
};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/vzfs.sock";
/// The environment variable that names the socket, for the daemon and the command line.
pub const SOCKET_VARIABLE: &str = "VZFS_SOCKET";
/// The environment variable that names the store folder, for the daemon.
pub const STORE_VARIABLE: &str = "VZFS_STORE";
/// Content type of an event stream.
pub const EVENTS_CONTENT_TYPE: &str = "application/x-ndjson";
/// Content type of an exported archive.
pub const TAR_CONTENT_TYPE: &str = "application/x-tar";
