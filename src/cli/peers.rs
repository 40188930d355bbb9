//! What other proxies of a registry still have of a backend that is drained.
//!
//! A proxy counts its own connections, and knows which others there are. So each of them is asked, at the
//! address of its admin API as the registry has it, by the same token. That address may be one that means
//! another machine from here, such as 127.0.0.1: so it is asked who it is, too. Of who can't be asked
//! nothing is known, and nothing is said. One that has died is among the others until it is given up by
//! them: that is waited for.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::answers::{Backend, Identity, Peer};
use super::ask::Admin;
use super::drain::{Target, flow};

/// How long is waited for what may pass: for a proxy that may have died, until others give it up,
/// or for a registry that is away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks after others.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Since when somebody could not be asked.
    unknown_since: Option<Instant>,
}

/// What is left at other proxies, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left(pub(super) String);

/// What a proxy says.
#[derive(Debug)]
enum Said {
    /// Nothing is left there, and nothing comes.
    Cleared,
    /// It has so many connections, and so many requests under way.
    Has(usize, usize),
    /// Its drain has not begun.
    Undrained,
    /// It could not be asked, for this reason.
    Unknown(String),
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    elsewhere: Vec<Peer>,
}

impl Peers {
    /// Asks all of them; `None`: nothing is left.
    ///
    /// # Errors
    ///
    /// Nothing is left as far as that is known, but somebody could not be asked.
    pub(super) async fn look(
        &mut self,
        admin: &Admin,
        target: &Target,
    ) -> anyhow::Result<Option<Left>> {
        let Identity { registry, .. } = admin.get("/v1/status").await?;
        if registry == "own" {
            return Ok(None);
        }
        let Page { elsewhere } = admin.get("/v1/connections?limit=1").await?;
        let mut asked = JoinSet::new();
        for peer in elsewhere {
            let at = peer.admin.as_deref().map(|address| admin.of_peer(address));
            let target = target.clone();
            asked.spawn(async move {
                let said = match at {
                    None => Err(anyhow::anyhow!("it has no admin API")),
                    Some(Err(error)) => Err(error),
                    Some(Ok(at)) => ask(&peer.proxy, &at, &target).await,
                };
                (peer.proxy, said.unwrap_or_else(|error| Said::Unknown(format!("{error:#}"))))
            });
        }
        let mut said = asked.join_all().await;
        if registry == "away" {
            let unknown = "the registry is away".to_owned();
            said.push(("any other proxy".to_owned(), Said::Unknown(unknown)));
        }
        let unknown_for = if said.iter().any(|(_, said)| matches!(said, Said::Unknown(_))) {
            self.unknown_since.get_or_insert_with(Instant::now).elapsed()
        } else {
            self.unknown_since = None;
            Duration::ZERO
        };
        conclude(target, &said, unknown_for > PATIENCE)
    }
}

async fn ask(proxy: &str, at: &Admin, target: &Target) -> anyhow::Result<Said> {
    let Identity { proxy: answers, .. } = at.get("/v1/status").await?;
    ensure!(answers == proxy, "at {at} another proxy answers, {answers}");
    let Some(found) = target.look(at).await? else { return Ok(Said::Cleared) };
    let backend = Backend::of(&found)?;
    Ok(match &backend.drain {
        _ if backend.is_cleared() => Said::Cleared,
        None if backend.state != "lost" => Said::Undrained,
        _ => Said::Has(backend.connections, backend.in_flight),
    })
}

/// What is left, by what all of them say. `is_late`: who could not be asked was given his time.
fn conclude(
    target: &Target,
    said: &[(String, Said)],
    is_late: bool,
) -> anyhow::Result<Option<Left>> {
    let (mut connections, mut requests, mut unknown, mut undrained) =
        (0, 0, Vec::new(), Vec::new());
    let mut with_some = 0;
    for (proxy, said) in said {
        match said {
            Said::Cleared => {}
            Said::Has(more, under_way) => {
                with_some += 1;
                connections += more;
                requests += under_way;
            }
            Said::Undrained => undrained.push(format!("{proxy} has not heard of it")),
            Said::Unknown(why) => unknown.push(format!("{proxy}: {why}")),
        }
    }
    let mut left = Vec::new();
    if with_some > 0 {
        left.push(match (connections, requests) {
            (0, 0) => "others have some whose turn has not come".to_owned(),
            _ => format!("{} by others", flow(connections, requests)),
        });
    }
    left.extend(undrained);
    if left.is_empty() && unknown.is_empty() {
        return Ok(None);
    }
    if left.is_empty() && is_late {
        bail!(
            "{target}: nothing is there by those who could be asked, but connections of others are \
             not known: {}",
            unknown.join("; ")
        );
    }
    if !unknown.is_empty() {
        left.push(format!("not known of {}", unknown.join("; ")));
    }
    Ok(Some(Left(left.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concluded(said: Vec<Said>, is_late: bool) -> Result<Option<String>, String> {
        let names = ["edge1", "edge2", "edge3"].map(str::to_owned);
        let said: Vec<_> = names.into_iter().zip(said).collect();
        let target = "rooms/a".parse().unwrap();
        let left = conclude(&target, &said, is_late).map_err(|error| error.to_string());
        left.map(|left| left.map(|Left(left)| left))
    }

    #[test]
    fn it_is_over_when_all_say_so_and_only_then() {
        let unknown = || Said::Unknown("dead".to_owned());
        assert_eq!(concluded(vec![], false), Ok(None));
        assert_eq!(concluded(vec![Said::Cleared, Said::Cleared], false), Ok(None));
        let left = |said, is_late| concluded(said, is_late).unwrap().unwrap();
        let some = vec![Said::Has(3, 0), Said::Cleared, Said::Has(4, 1)];
        assert_eq!(left(some, true), "7 connections and 1 request by others");
        assert_eq!(left(vec![Said::Undrained], true), "edge1 has not heard of it");
        assert_eq!(left(vec![Said::Cleared, unknown()], false), "not known of edge2: dead");
        let some = left(vec![Said::Has(0, 0), unknown()], true);
        assert_eq!(some, "others have some whose turn has not come; not known of edge2: dead");
        let error = concluded(vec![Said::Cleared, unknown()], true).unwrap_err();
        assert!(
            error.starts_with("rooms/a: ") && error.ends_with("not known: edge2: dead"),
            "{error}"
        );
    }
}
