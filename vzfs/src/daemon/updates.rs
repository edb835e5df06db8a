//! The paths of rollouts ([`crate::api`] has the table) and the calls behind them.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use serde::Serialize;

use super::error::Refusal;
use super::routes::{Body, Name, Reply, bad_name, blocking, invalid, json, parse};
use super::streams;
use crate::api::{RollbackRequest, Rollout, UpdateMode, UpdatePlan, UpdateRequest};
use crate::types::VeName;
use crate::update::{UpdateError, Updates};

type Shared = State<Arc<Updates>>;
type Id = Result<Path<u64>, PathRejection>;

/// The part of the control interface that is about rollouts.
pub(super) fn router(updates: Arc<Updates>) -> Router {
    Router::new()
        .route("/v1/updates", get(list).post(begin))
        .route("/v1/updates/{id}", get(show).delete(forget))
        .route("/v1/updates/{id}/ves/{name}", get(show_ve))
        .route("/v1/updates/{id}/follow", get(follow))
        .route("/v1/updates/{id}/pause", post(pause))
        .route("/v1/updates/{id}/resume", post(resume))
        .route("/v1/updates/{id}/stop", post(stop))
        .route("/v1/updates/{id}/rollback", post(roll_back))
        .route("/v1/shadowed", get(shadowed))
        .route("/v1/ves/{name}/shadowed", get(shadowed_in))
        .with_state(updates)
}

/// What `POST /v1/updates` leads to.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Begun(Box<Rollout>),
    Planned(UpdatePlan),
}

async fn begin(State(updates): Shared, body: Body) -> Reply {
    let request: UpdateRequest = json(body)?;
    Ok(streams::events(move |events| match request.mode {
        UpdateMode::Start => updates.start(&request).map(|rollout| Outcome::Begun(Box::new(rollout))),
        UpdateMode::Plan | UpdateMode::DryRun => updates.plan(&request, events).map(Outcome::Planned),
    }))
}

async fn list(State(updates): Shared) -> Reply {
    blocking(move || Ok::<_, UpdateError>(updates.rollouts())).await
}

async fn show(State(updates): Shared, id: Id) -> Reply {
    let id = number(id)?;
    blocking(move || updates.rollout(id)).await
}

async fn show_ve(State(updates): Shared, path: Result<Path<(u64, String)>, PathRejection>) -> Reply {
    let Path((id, name)) = path.map_err(|error| invalid(error.body_text()))?;
    let name: VeName = name.parse().map_err(bad_name)?;
    blocking(move || updates.rollout_ve(id, &name)).await
}

async fn follow(State(updates): Shared, id: Id) -> Reply {
    let id = number(id)?;
    Ok(streams::events(move |events| updates.follow(id, events)))
}

async fn pause(State(updates): Shared, id: Id) -> Reply {
    let id = number(id)?;
    blocking(move || updates.pause(id)).await
}

async fn resume(State(updates): Shared, id: Id) -> Reply {
    let id = number(id)?;
    blocking(move || updates.resume(id)).await
}

async fn stop(State(updates): Shared, id: Id) -> Reply {
    let id = number(id)?;
    blocking(move || updates.stop(id)).await
}

async fn roll_back(State(updates): Shared, id: Id, body: Body) -> Reply {
    let (id, request): (u64, RollbackRequest) = (number(id)?, json(body)?);
    blocking(move || updates.roll_back(id, &request.ves)).await
}

async fn forget(State(updates): Shared, id: Id) -> Reply {
    let id = number(id)?;
    blocking(move || updates.forget(id)).await
}

async fn shadowed(State(updates): Shared) -> Reply {
    blocking(move || updates.shadowed()).await
}

async fn shadowed_in(State(updates): Shared, name: Name) -> Reply {
    let name: VeName = parse(name)?;
    blocking(move || updates.shadowed_in(&name)).await
}

fn number(id: Id) -> Result<u64, Refusal> {
    let Path(id) = id.map_err(|error| invalid(error.body_text()))?;
    Ok(id)
}
