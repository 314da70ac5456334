//! What the node can be asked for: each call of the admin API, once. Large answers are made on a thread of their own, from a
//! [`Snapshot`](super::snapshot::Snapshot).

use super::{Control, ControlError, ENDED, actor::Actor, snapshot::Snapshot, trace::Reader};
use splitter_api::{
    ExplainRequest, Explanation, FlowQuery, FlowRow, RolloutEvent, RolloutStatus, ServiceNames, Status, StatusQuery, TraceRequest,
    WeightChange, WeightRequest,
};
use splitter_rollout::Word;
use std::future::Future;

/// What the listeners need of the node: [`Control`], or a stand-in in tests.
pub trait Api: Clone + Send + Sync + 'static {
    fn status(&self) -> impl Future<Output = Status> + Send;
    /// The status without what is read from the kernel: services, tables, reasons and rollouts are empty.
    fn brief(&self) -> impl Future<Output = Status> + Send;
    /// The status with some of the services.
    ///
    /// # Errors
    /// When a service is named that there is not.
    fn select(&self, query: StatusQuery) -> impl Future<Output = Result<Status, ControlError>> + Send;
    /// Names of services that begin so, and of their versions. Reads no table.
    fn names(&self, prefix: &str) -> impl Future<Output = Result<Vec<ServiceNames>, ControlError>> + Send;
    /// The live flows that are asked for.
    fn flows(&self, query: FlowQuery) -> impl Future<Output = Result<Vec<FlowRow>, ControlError>> + Send;
    fn explain(&self, request: ExplainRequest) -> impl Future<Output = Result<Explanation, ControlError>> + Send;
    /// Decisions live, until the reader is dropped.
    ///
    /// # Errors
    /// When what is asked for is not there, or too many look.
    fn trace(&self, request: TraceRequest) -> impl Future<Output = Result<Reader, ControlError>> + Send;
    /// One map write, then the bookkeeping. `by`: who, for the audit log.
    fn set_weights(
        &self,
        service: &str,
        request: WeightRequest,
        by: String,
    ) -> impl Future<Output = Result<WeightChange, ControlError>> + Send;
    /// Every rollout that the policy has, started or not.
    ///
    /// # Errors
    /// As long as no policy was read.
    fn rollouts(&self) -> impl Future<Output = Result<Vec<RolloutStatus>, ControlError>> + Send;
    fn rollout(&self, service: &str) -> impl Future<Output = Result<RolloutStatus, ControlError>> + Send;
    /// The audit log of one service, oldest first.
    fn rollout_history(&self, service: &str) -> impl Future<Output = Result<Vec<RolloutEvent>, ControlError>> + Send;
    /// Start, pause, resume, promote or abort.
    fn rollout_word(&self, service: &str, word: Word) -> impl Future<Output = Result<RolloutStatus, ControlError>> + Send;
}

impl Api for Control {
    async fn status(&self) -> Status {
        self.read(Actor::status, |snapshot| Ok(snapshot.status())).await.unwrap_or_default()
    }

    async fn brief(&self) -> Status {
        let brief = |actor: &mut Actor| {
            actor.look_at_attachments();
            actor.brief()
        };
        self.ask(brief).await.unwrap_or_default()
    }

    async fn select(&self, query: StatusQuery) -> Result<Status, ControlError> {
        self.read(Actor::status, move |snapshot| snapshot.select(&query)).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<ServiceNames>, ControlError> {
        Ok(self.ask(|actor| actor.snapshot()).await.unwrap_or_else(ended)?.names(prefix))
    }

    async fn flows(&self, query: FlowQuery) -> Result<Vec<FlowRow>, ControlError> {
        let snapshot = |actor: &mut Actor, reply: Reply<_>| drop(reply.send(actor.snapshot()));
        self.read(snapshot, move |snapshot| snapshot?.flows(&query)).await
    }

    async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        self.ask(move |actor| actor.explain(&request)).await.unwrap_or_else(ended)
    }

    async fn trace(&self, request: TraceRequest) -> Result<Reader, ControlError> {
        self.ask(|actor| actor.trace(request)).await.unwrap_or_else(ended)
    }

    async fn set_weights(&self, service: &str, request: WeightRequest, by: String) -> Result<WeightChange, ControlError> {
        let service = service.to_owned();
        self.ask(move |actor| actor.set_weights_by_hand(&service, &request, &by)).await.unwrap_or_else(ended)
    }

    async fn rollouts(&self) -> Result<Vec<RolloutStatus>, ControlError> {
        self.ask(Actor::list_rollouts).await.unwrap_or_else(ended)
    }

    async fn rollout(&self, service: &str) -> Result<RolloutStatus, ControlError> {
        let service = service.to_owned();
        self.ask(move |actor| actor.rollout(&service)).await.unwrap_or_else(ended)
    }

    async fn rollout_history(&self, service: &str) -> Result<Vec<RolloutEvent>, ControlError> {
        let service = service.to_owned();
        self.ask(move |actor| actor.rollout_history(&service)).await.unwrap_or_else(ended)
    }

    async fn rollout_word(&self, service: &str, word: Word) -> Result<RolloutStatus, ControlError> {
        let service = service.to_owned();
        self.ask(move |actor| actor.rollout_word(&service, word)).await.unwrap_or_else(ended)
    }
}

type Reply<T> = tokio::sync::oneshot::Sender<T>;

impl Control {
    /// Makes a large answer of what the actor gives, one at a time.
    async fn read<S: Send + 'static, T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Actor, Reply<S>) + Send + 'static,
        make: impl FnOnce(S) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let _turn = self.reading.lock().await;
        let Some(found) = self.ask_for_later(question).await else { return ended() };
        let made = tokio::task::spawn_blocking(move || make(found)).await;
        made.unwrap_or_else(|error| Err(ControlError::Kernel(error.to_string())))
    }
}

fn ended<T>() -> Result<T, ControlError> {
    Err(ControlError::Kernel(ENDED.into()))
}
