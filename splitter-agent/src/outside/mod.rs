//! What the agent asks of others, and tells them: webhooks, commands, Prometheus, cgroups, probes of backends.
//!
//! Owns this I/O with its time limits. Decides nothing: an answer is handed back as *passed*, *failed* or *no answer*. Needs a tokio runtime
//! with I/O and time.

mod command;
mod http;
pub mod stamps;
mod value;

use splitter_api::RolloutEvent;
use splitter_policy::model::{Check, External, Hook, Number};
use std::{net::SocketAddr, time::Duration};
use thiserror::Error;

/// Why nobody answered. Not the canary's fault.
#[derive(Debug, Error)]
pub enum OutsideError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect to {0}: {1}")]
    Connect(String, std::io::Error),
    #[error("{0}")]
    Http(String),
    #[error("`{0}` cannot be run: {1}")]
    Command(String, std::io::Error),
    #[error("`{0}` ended with {1}")]
    Exit(String, String),
    #[error("{0}")]
    Value(String),
}

/// What a check is about.
#[derive(Clone, Debug)]
pub struct Subject {
    pub service: String,
    pub canary: String,
    /// The canary's backends that are ready.
    pub backends: Vec<SocketAddr>,
}

/// An answer: `passed` is `None` when there was none.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub passed: Option<bool>,
    pub value: Option<f64>,
    pub text: String,
}

/// Asks a gate once; takes at most its timeout.
pub async fn ask(gate: &External, subject: &Subject) -> Answer {
    let result = match tokio::time::timeout(gate.timeout, check(&gate.check, subject)).await {
        Ok(result) => result,
        // A backend that does not answer a probe fails it; everybody else has only not answered.
        Err(_) if matches!(gate.check, Check::Http { .. }) => {
            Ok(Answer { passed: Some(false), value: None, text: format!("no answer within {:?}", gate.timeout) })
        }
        Err(_) => Err(OutsideError::Timeout(gate.timeout)),
    };
    result.unwrap_or_else(|error| Answer { passed: None, value: None, text: error.to_string() })
}

async fn check(check: &Check, subject: &Subject) -> Result<Answer, OutsideError> {
    let said = |passed: bool, text: String| Ok(Answer { passed: Some(passed), value: None, text });
    match check {
        Check::Webhook { url } => {
            let body = serde_json::json!({"service": subject.service, "canary": subject.canary, "backends": subject.backends}).to_string();
            let (status, text) = http::post(url, body).await?;
            said((200..300).contains(&status), format!("{status} {}", first_line(&text)))
        }
        Check::Command { run } => {
            let (code, output) = command::run(run, subject, None).await?;
            match code {
                Some(0) => said(true, first_line(&output)),
                Some(1) => said(false, first_line(&output)),
                code => Err(OutsideError::Exit(
                    run[0].clone(),
                    code.map_or("a signal".into(), |code| format!("code {code}; 0 passes, 1 fails")),
                )),
            }
        }
        Check::Value { from, min, max } => {
            let value = value_of(from, subject).await?;
            let at_least = min.is_none_or(|min| value >= min as f64 / 1e3);
            let at_most = max.is_none_or(|max| value <= max as f64 / 1e3);
            let limit = |name: &str, limit: Option<i64>| limit.map_or(String::new(), |limit| format!(", {name} {}", limit as f64 / 1e3));
            let text = format!("{value:.3}{}{}", limit("min", *min), limit("max", *max));
            Ok(Answer { passed: Some(at_least && at_most), value: Some(value), text })
        }
        Check::Http { .. } => probe(check, subject).await,
    }
}

async fn value_of(from: &Number, subject: &Subject) -> Result<f64, OutsideError> {
    match from {
        Number::Prometheus { url, query } => value::prometheus(url, query).await,
        Number::Command { run } => match command::run(run, subject, None).await? {
            (Some(0), output) => value::first_number(&output),
            (code, _) => Err(OutsideError::Exit(run[0].clone(), code.map_or("a signal".into(), |code| format!("code {code}")))),
        },
        Number::CgroupCpu { path } => value::cgroup_cpu(path).await,
        Number::CgroupMemory { path } => value::cgroup_memory(path),
    }
}

/// The request to every backend of the canary; the first that fails is told.
async fn probe(check: &Check, subject: &Subject) -> Result<Answer, OutsideError> {
    let Check::Http { method, path, headers, body, status, contains } = check else {
        return Err(OutsideError::Value("not a probe".into()));
    };
    if subject.backends.is_empty() {
        return Err(OutsideError::Value("the canary has no ready backend".into()));
    }
    for backend in &subject.backends {
        let request = http::Request { method, path, headers, body: body.clone(), host: &subject.service };
        let wrong = match http::send(&backend.to_string(), request).await {
            Ok((got, _)) if got != *status => Some(format!("{backend} answered {got} instead of {status}")),
            Ok((_, text)) => {
                contains.as_ref().filter(|part| !text.contains(*part)).map(|part| format!("{backend} answered without {part:?}"))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(text) = wrong {
            return Ok(Answer { passed: Some(false), value: None, text });
        }
    }
    Ok(Answer { passed: Some(true), value: None, text: format!("{} of {0} backends answered as they should", subject.backends.len()) })
}

/// Tells a hook; the error is for the log.
pub async fn tell(hook: &Hook, subject: &Subject, event: &RolloutEvent) -> Result<(), OutsideError> {
    let body = serde_json::to_string(event).map_err(|error| OutsideError::Value(error.to_string()))?;
    let (timeout, told) = match hook {
        Hook::Webhook { url, timeout } => {
            let post = async {
                let (status, text) = http::post(url, body).await?;
                if (200..300).contains(&status) {
                    Ok(())
                } else {
                    Err(OutsideError::Http(format!("{url} answered {status} {}", first_line(&text))))
                }
            };
            (*timeout, tokio::time::timeout(*timeout, post).await)
        }
        Hook::Command { run, timeout } => {
            let run = async {
                match command::run(run, subject, Some(body)).await? {
                    (Some(0), _) => Ok(()),
                    (code, output) => Err(OutsideError::Exit(run[0].clone(), format!("code {code:?}: {}", first_line(&output)))),
                }
            };
            (*timeout, tokio::time::timeout(*timeout, run).await)
        }
    };
    told.map_err(|_| OutsideError::Timeout(timeout))?
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests;
