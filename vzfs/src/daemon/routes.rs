//! The paths of the control interface ([`crate::api`] has the table) and the store calls behind them.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::doctor;
use super::error::{Refusal, Told};
use super::{streams, updates};
use crate::api::{
    ApiError, CommitVe, CreateVe, DedupRequest, ErrorCode, GcRequest, ImportRequest, MountVe,
    ReapplyTemplate, RemoveQuery, RenameVe, ShiftIds, TagTemplate, UmountVe, VerifyStore,
};
use crate::store::{Pace, Store, StoreError};
use crate::types::{Tag, TemplateRef, TypeError, VeName};
use crate::update::Updates;

/// The largest request: package lists and labels, with room.
const MAX_BODY_BYTES: usize = 16 << 20;

pub(super) type Reply = Result<Response, Refusal>;
pub(super) type Body = Result<Bytes, BytesRejection>;
pub(super) type Name = Result<Path<String>, PathRejection>;
type Names = Result<Path<(String, String)>, PathRejection>;
type Force = Result<Query<RemoveQuery>, QueryRejection>;
type Shared = State<Arc<Store>>;

/// The control interface of a store and its rollouts, without a socket.
pub fn router(store: Arc<Store>, rollouts: Arc<Updates>) -> Router {
    let router = Router::new()
        .route("/v1/store", get(info))
        .route("/v1/store/doctor", get(look))
        .route("/v1/store/df", get(df))
        .route("/v1/store/gc", post(collect))
        .route("/v1/store/verify", get(verify_status).post(verify_store))
        .route("/v1/store/dedup", get(dedup_status).post(dedup))
        .route("/v1/templates", get(templates))
        .route("/v1/templates/import", post(import))
        .route("/v1/templates/{ref}", get(template).delete(remove_template))
        .route("/v1/templates/{ref}/diff/{other}", get(diff_templates))
        .route("/v1/templates/{ref}/versions", get(versions))
        .route("/v1/templates/{ref}/tags", post(tag))
        .route("/v1/templates/{ref}/tags/{tag}", delete(untag))
        .route("/v1/templates/{ref}/reapply", post(reapply))
        .route("/v1/templates/{ref}/recipe", get(export_recipe))
        .route("/v1/templates/{ref}/verify", post(verify))
        .route("/v1/templates/{ref}/export", get(export_template))
        .route("/v1/ves", get(ves).post(create))
        .route("/v1/ves/{name}", get(ve).patch(rename).delete(remove))
        .route("/v1/ves/{name}/id-shift", post(shift_ids))
        .route("/v1/ves/{name}/mount", post(mount))
        .route("/v1/ves/{name}/umount", post(umount))
        .route("/v1/ves/{name}/stats", get(stats))
        .route("/v1/ves/{name}/diff", get(diff_ve))
        .route("/v1/ves/{name}/export", get(export_ve))
        .route("/v1/ves/{name}/commit", post(commit))
        .with_state(store);
    // These hold for the routes that are there by then: all.
    let router = updates::router(rollouts).merge(router);
    router
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

async fn info(State(store): Shared) -> Reply {
    blocking(move || store.info()).await
}

async fn look(State(store): Shared) -> Reply {
    blocking(move || Ok::<_, StoreError>(doctor::look(&store))).await
}

async fn df(State(store): Shared) -> Reply {
    blocking(move || store.df()).await
}

async fn collect(State(store): Shared, body: Body) -> Reply {
    let request: GcRequest = json(body)?;
    Ok(streams::events(move |events| store.collect(request, events)))
}

async fn verify_store(State(store): Shared, body: Body) -> Reply {
    let request: VerifyStore = json(body)?;
    Ok(streams::events(move |events| store.verify_store(&request, Pace::Full, events)))
}

async fn verify_status(State(store): Shared) -> Reply {
    blocking(move || store.verify_status()).await
}

async fn dedup(State(store): Shared, body: Body) -> Reply {
    let request: DedupRequest = json(body)?;
    Ok(streams::events(move |events| store.dedup(&request, Pace::Full, events)))
}

async fn dedup_status(State(store): Shared) -> Reply {
    blocking(move || store.dedup_status()).await
}

async fn templates(State(store): Shared) -> Reply {
    blocking(move || Ok::<_, StoreError>(store.templates())).await
}

async fn template(State(store): Shared, name: Name) -> Reply {
    let reference: TemplateRef = parse(name)?;
    blocking(move || store.template(&reference)).await
}

async fn remove_template(State(store): Shared, name: Name, query: Force) -> Reply {
    let reference: TemplateRef = parse(name)?;
    let Query(query) = query.map_err(|error| invalid(error.body_text()))?;
    blocking(move || store.remove_template(&reference, query.force)).await
}

async fn versions(State(store): Shared, name: Name) -> Reply {
    let reference: TemplateRef = parse(name)?;
    blocking(move || store.versions(&reference)).await
}

async fn tag(State(store): Shared, name: Name, body: Body) -> Reply {
    let (reference, request): (TemplateRef, TagTemplate) = (parse(name)?, json(body)?);
    blocking(move || store.tag_template(&reference, &request.tag)).await
}

async fn untag(State(store): Shared, names: Names) -> Reply {
    let Path((reference, tag)) = names.map_err(|error| invalid(error.body_text()))?;
    let (reference, tag): (TemplateRef, Tag) =
        (reference.parse().map_err(bad_name)?, tag.parse().map_err(bad_name)?);
    blocking(move || store.untag_template(&reference, &tag)).await
}

async fn reapply(State(store): Shared, name: Name, body: Body) -> Reply {
    let (reference, request): (TemplateRef, ReapplyTemplate) = (parse(name)?, json(body)?);
    Ok(streams::events(move |events| store.reapply(&reference, &request, events)))
}

async fn export_recipe(State(store): Shared, name: Name) -> Reply {
    let reference: TemplateRef = parse(name)?;
    streams::tar(move |out| store.export_recipe(&reference, out)).await
}

async fn diff_templates(State(store): Shared, names: Names) -> Reply {
    let Path((a, b)) = names.map_err(|error| invalid(error.body_text()))?;
    let (a, b): (TemplateRef, TemplateRef) = (a.parse().map_err(bad_name)?, b.parse().map_err(bad_name)?);
    blocking(move || store.diff_templates(&a, &b)).await
}

async fn import(State(store): Shared, body: Body) -> Reply {
    let request: ImportRequest = json(body)?;
    Ok(streams::events(move |events| store.import(&request, events)))
}

async fn verify(State(store): Shared, name: Name) -> Reply {
    let reference: TemplateRef = parse(name)?;
    Ok(streams::events(move |events| store.verify(&reference, events)))
}

async fn export_template(State(store): Shared, name: Name) -> Reply {
    let reference: TemplateRef = parse(name)?;
    streams::tar(move |out| store.export_template(&reference, out)).await
}

async fn ves(State(store): Shared) -> Reply {
    blocking(move || store.ves()).await
}

async fn ve(State(store): Shared, name: Name) -> Reply {
    let name: VeName = parse(name)?;
    blocking(move || store.ve(&name)).await
}

async fn stats(State(store): Shared, name: Name) -> Reply {
    let name: VeName = parse(name)?;
    blocking(move || store.stats(&name)).await
}

async fn create(State(store): Shared, body: Body) -> Reply {
    let request: CreateVe = json(body)?;
    blocking(move || store.create(&request)).await
}

async fn rename(State(store): Shared, name: Name, body: Body) -> Reply {
    let (name, request): (VeName, RenameVe) = (parse(name)?, json(body)?);
    blocking(move || store.rename(&name, &request.name)).await
}

async fn shift_ids(State(store): Shared, name: Name, body: Body) -> Reply {
    let (name, request): (VeName, ShiftIds) = (parse(name)?, json(body)?);
    blocking(move || store.shift_ids(&name, request.id_shift)).await
}

async fn remove(State(store): Shared, name: Name, query: Force) -> Reply {
    let name: VeName = parse(name)?;
    let Query(query) = query.map_err(|error| invalid(error.body_text()))?;
    blocking(move || store.remove(&name, query.force)).await
}

async fn mount(State(store): Shared, name: Name, body: Body) -> Reply {
    let (name, request): (VeName, MountVe) = (parse(name)?, json(body)?);
    blocking(move || store.mount(&name, request.mountpoint.as_deref())).await
}

async fn umount(State(store): Shared, name: Name, body: Body) -> Reply {
    let (name, request): (VeName, UmountVe) = (parse(name)?, json(body)?);
    blocking(move || store.umount(&name, request.force)).await
}

async fn diff_ve(State(store): Shared, name: Name) -> Reply {
    let name: VeName = parse(name)?;
    blocking(move || store.diff_ve(&name)).await
}

async fn export_ve(State(store): Shared, name: Name) -> Reply {
    let name: VeName = parse(name)?;
    streams::tar(move |out| store.export_ve(&name, out)).await
}

async fn commit(State(store): Shared, name: Name, body: Body) -> Reply {
    let (name, request): (VeName, CommitVe) = (parse(name)?, json(body)?);
    Ok(streams::events(move |events| store.commit(&name, &request, events)))
}

async fn no_path(uri: Uri) -> Refusal {
    Refusal(ApiError::new(ErrorCode::NotFound, format!("there is no path {}", uri.path())))
}

async fn no_method(uri: Uri) -> Refusal {
    invalid(format!("the path {} has no such method", uri.path()))
}

/// Runs a store call where it may block, and turns what it returns into a reply.
pub(super) async fn blocking<T: Serialize + Send + 'static, E: Told>(
    call: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Reply {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => Ok(Json(value).into_response()),
        Ok(Err(error)) => Err(Refusal(error.told())),
        Err(error) => {
            tracing::error!(%error, "a request failed");
            Err(Refusal(ApiError::new(
                ErrorCode::Internal,
                "the request failed inside the daemon; see its log",
            )))
        }
    }
}

pub(super) fn parse<T: std::str::FromStr<Err = TypeError>>(name: Name) -> Result<T, Refusal> {
    let Path(name) = name.map_err(|error| invalid(error.body_text()))?;
    name.parse().map_err(bad_name)
}

/// The body as a request. No body at all means one without fields.
pub(super) fn json<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let body = body.map_err(|error| invalid(error.body_text()))?;
    let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(text).map_err(|error| invalid(format!("cannot understand the request: {error}")))
}

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal(ApiError::new(ErrorCode::Invalid, message))
}

pub(super) fn bad_name(error: TypeError) -> Refusal {
    invalid(error.to_string())
}
