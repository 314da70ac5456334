//! The agent's HTTP listeners.
//!
//! Owns HTTP: the admin API on a unix socket, metrics and health on TCP. Decides nothing about services: every request becomes one
//! call of [`Api`].

mod api;
mod http;
mod metrics;
mod rollouts;
mod socket;
mod trace;

pub use api::{serve as serve_admin, serve_one as serve_admin_connection};
pub use metrics::serve as serve_metrics;
pub use socket::Listener;

use crate::control::{Control, ControlError, trace::Reader};
use splitter_api::{
    ExplainRequest, Explanation, FlowQuery, FlowRow, PolicyText, RolloutEvent, RolloutStatus, ServiceNames, Status, StatusQuery,
    TraceEvent, TraceRequest, WeightChange, WeightRequest,
};
use splitter_rollout::Word;
use std::future::Future;

/// What the listeners need of the node: [`Control`], or a stand-in in tests.
pub trait Api: Clone + Send + Sync + 'static {
    fn status(&self) -> impl Future<Output = Status> + Send;
    /// The part of it that costs nothing.
    fn brief(&self) -> impl Future<Output = Status> + Send;
    fn select(&self, query: StatusQuery) -> impl Future<Output = Result<Status, ControlError>> + Send;
    fn names(&self, prefix: &str) -> impl Future<Output = Result<Vec<ServiceNames>, ControlError>> + Send;
    fn policy(&self, services: Vec<String>) -> impl Future<Output = Result<PolicyText, ControlError>> + Send;
    fn flows(&self, query: FlowQuery) -> impl Future<Output = Result<Vec<FlowRow>, ControlError>> + Send;
    fn explain(&self, request: ExplainRequest) -> impl Future<Output = Result<Explanation, ControlError>> + Send;
    fn trace(&self, request: TraceRequest) -> impl Future<Output = Result<Reader, ControlError>> + Send;
    fn waiting_decisions(&self, request: TraceRequest) -> impl Future<Output = Result<Vec<TraceEvent>, ControlError>> + Send;
    fn set_weights(
        &self,
        service: &str,
        request: WeightRequest,
        by: String,
    ) -> impl Future<Output = Result<WeightChange, ControlError>> + Send;
    fn rollouts(&self) -> impl Future<Output = Result<Vec<RolloutStatus>, ControlError>> + Send;
    fn rollout(&self, service: &str) -> impl Future<Output = Result<RolloutStatus, ControlError>> + Send;
    fn rollout_history(&self, service: &str) -> impl Future<Output = Result<Vec<RolloutEvent>, ControlError>> + Send;
    fn rollout_word(&self, service: &str, word: Word) -> impl Future<Output = Result<RolloutStatus, ControlError>> + Send;
}

impl Api for Control {
    async fn status(&self) -> Status {
        Control::status(self).await
    }
    async fn brief(&self) -> Status {
        Control::brief(self).await
    }
    async fn select(&self, query: StatusQuery) -> Result<Status, ControlError> {
        Control::select(self, query).await
    }
    async fn names(&self, prefix: &str) -> Result<Vec<ServiceNames>, ControlError> {
        Control::names(self, prefix).await
    }
    async fn policy(&self, services: Vec<String>) -> Result<PolicyText, ControlError> {
        Control::policy(self, services).await
    }
    async fn flows(&self, query: FlowQuery) -> Result<Vec<FlowRow>, ControlError> {
        Control::flows(self, query).await
    }
    async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        Control::explain(self, request).await
    }
    async fn trace(&self, request: TraceRequest) -> Result<Reader, ControlError> {
        Control::trace(self, request).await
    }
    async fn waiting_decisions(&self, request: TraceRequest) -> Result<Vec<TraceEvent>, ControlError> {
        Control::waiting_decisions(self, request).await
    }
    async fn set_weights(&self, service: &str, request: WeightRequest, by: String) -> Result<WeightChange, ControlError> {
        Control::set_weights(self, service, request, by).await
    }
    async fn rollouts(&self) -> Result<Vec<RolloutStatus>, ControlError> {
        Control::rollouts(self).await
    }
    async fn rollout(&self, service: &str) -> Result<RolloutStatus, ControlError> {
        Control::rollout(self, service).await
    }
    async fn rollout_history(&self, service: &str) -> Result<Vec<RolloutEvent>, ControlError> {
        Control::rollout_history(self, service).await
    }
    async fn rollout_word(&self, service: &str, word: Word) -> Result<RolloutStatus, ControlError> {
        Control::rollout_word(self, service, word).await
    }
}

#[cfg(test)]
mod tests;
