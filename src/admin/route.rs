//! The request that explains where another would go.
//!
//! What only other proxies know, as far as a request of that kind would ask them, is asked for here: the
//! explanation itself waits for nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;

use super::problem::Problem;
use crate::explain::{self, Door, Explanation, Question, Unknown};
use crate::fleet::Fleet;
use crate::http::{find_key_elsewhere, find_session_elsewhere};
use crate::pool::Backend;

/// Explains where a request would go. `url=` once, `header=name:value` for each header line,
/// `client=` the address that it would come from.
pub(super) async fn route(
    State(fleet): State<Arc<Fleet>>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Explanation>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(parameters) = parameters.map_err(|error| bad(error.body_text()))?;
    let (mut target, mut lines) = (None, Vec::new());
    let mut client = IpAddr::from(Ipv4Addr::LOCALHOST);
    for (name, value) in parameters {
        let wrong = |error: &dyn std::fmt::Display| bad(format!("{name} {value:?}: {error}"));
        match name.as_str() {
            "url" => target = Some(value.parse().map_err(|error| wrong(&error))?),
            "header" => lines.push(value.parse().map_err(|error| wrong(&error))?),
            "client" => client = value.parse().map_err(|error| wrong(&error))?,
            _ => return Err(bad(format!("no parameter is called {name:?}"))),
        }
    }
    let target = target.ok_or_else(|| bad("url is missing: the one to explain".to_owned()))?;
    Ok(Json(explained(&fleet, &Question::new(target, lines, client)).await))
}

/// Asks others for what is not known here, as a request would: its session, and then its key.
async fn explained(fleet: &Fleet, question: &Question) -> Explanation {
    let (mut session, mut key): (Option<Option<Arc<Backend>>>, _) = (None, None);
    loop {
        let unknown = OnceLock::new();
        let explanation = explain(fleet, question, &|asked| {
            let answer = match asked {
                Unknown::Session(..) => &session,
                Unknown::Key(..) => &key,
            };
            answer.clone().unwrap_or_else(|| {
                unknown.get_or_init(|| asked);
                None
            })
        });
        let registry = &*fleet.shared.registry;
        match unknown.into_inner() {
            None => return explanation,
            Some(Unknown::Session(pool, id)) => {
                let found = find_session_elsewhere(registry, &pool, &id).await;
                session = Some(found.map(|(backend, _)| Arc::clone(backend)));
            }
            Some(Unknown::Key(pool, name)) => {
                key = Some(find_key_elsewhere(registry, &pool, &name).await);
            }
        }
    }
}

fn explain(fleet: &Fleet, question: &Question, elsewhere: explain::Elsewhere<'_>) -> Explanation {
    let listeners = fleet.listeners.load();
    let doors = listeners.iter().map(|listener| Door {
        settings: &listener.settings,
        address: listener.address,
        label: &listener.label,
    });
    let doors: Vec<Door<'_>> = doors.collect();
    explain::explain_with(question, &doors, &fleet.shared.snapshot.load(), elsewhere)
}
