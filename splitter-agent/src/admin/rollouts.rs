//! Routes below `/v1/rollouts`: all, one, its history, and words to it.

use super::{
    Api,
    api::{body, finish, operator},
    http::{Answer, failure},
};
use hyper::{Method, Request, StatusCode, body::Incoming};
use splitter_api::{RolloutRequest, percent_decode};
use splitter_rollout::{Word, WordKind};

/// `parts`: what follows `/v1/rollouts`.
pub async fn route(request: Request<Incoming>, parts: &[&str], writer: &Result<u32, String>, api: &impl Api) -> Answer {
    let method = request.method().clone();
    let expected = |method: &str| failure(StatusCode::METHOD_NOT_ALLOWED, format!("{} answers {method} only", request.uri().path()));
    let Some(name) = parts.first().map_or(Some(String::new()), |name| percent_decode(name)) else {
        return failure(StatusCode::BAD_REQUEST, "the service's name in the path is not percent-encoded UTF-8");
    };
    match parts {
        [] if method == Method::GET => finish(api.rollouts().await),
        [_] if method == Method::GET => finish(api.rollout(&name).await),
        [_, "history"] if method == Method::GET => finish(api.rollout_history(&name).await),
        [] | [_] | [_, "history"] => expected("GET"),
        [_, action] => {
            let kind = match *action {
                "start" => WordKind::Start,
                "pause" => WordKind::Pause,
                "resume" => WordKind::Resume,
                "promote" => WordKind::Promote,
                "abort" => WordKind::Abort,
                "undo" => WordKind::Undo,
                _ => {
                    return failure(
                        StatusCode::NOT_FOUND,
                        format!("a rollout knows history, start, pause, resume, promote, abort and undo, not {action}"),
                    );
                }
            };
            if method != Method::POST {
                return expected("POST");
            }
            let by = match writer {
                Ok(uid) => operator(*uid),
                Err(reason) => return failure(StatusCode::FORBIDDEN, reason.clone()),
            };
            match body::<RolloutRequest>(request).await {
                Ok(RolloutRequest { reason, override_freeze, dry_run }) => {
                    let word = Word { override_freeze, dry_run, ..Word::new(kind, by, reason) };
                    finish(api.rollout_word(&name, word).await)
                }
                Err(refused) => refused,
            }
        }
        _ => failure(StatusCode::NOT_FOUND, "nothing there; rollouts are at /v1/rollouts/NAME"),
    }
}
