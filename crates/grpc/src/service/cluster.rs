//! `lingqu.v1.Cluster`.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt, unfold};
use lingqu_cluster::{
    ChangeState, ChangeStatus, ClusterControl, ClusterStatus, ControlError, Move, RebalanceGoal, RebalancePlan,
    WorkerId, WorkerState, WorkerStatus,
};
use lingqu_proto::v1;
use lingqu_proto::v1::cluster_server::Cluster;
use lingqu_proto::v1::rebalance_event::Event;
use tonic::{Request, Response, Status};

use crate::config::ChangesFrom;
use crate::status::invalid;
use crate::transport::connections::Caller;

/// Between looks how far a change is.
const LOOK: Duration = Duration::from_millis(100);
/// Rows of the busiest worker over the mean that are good enough, unless said otherwise.
const IMBALANCE_WANTED: f64 = 1.05;
/// Moves that one reply lists.
const MOVES_MAX: usize = 10_000;

pub(crate) struct ClusterService {
    pub cluster: Option<ClusterControl>,
    pub changes_from: ChangesFrom,
}

type Events<T> = BoxStream<'static, Result<T, Status>>;

impl ClusterService {
    fn control(&self) -> Result<ClusterControl, Status> {
        let none =
            || Status::failed_precondition("this server holds its experts itself: it was started without --cluster");
        self.cluster.clone().ok_or_else(none)
    }

    /// For a call that changes something.
    fn control_of<T>(&self, request: &Request<T>) -> Result<ClusterControl, Status> {
        let control = self.control()?;
        let address = request.extensions().get::<Caller>().and_then(|caller| caller.address);
        if self.changes_from.allows(address.map(|address| address.ip())) {
            return Ok(control);
        }
        let problem = "changes of the cluster are taken from this machine only: see --cluster-changes-from";
        Err(Status::permission_denied(problem))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    type DrainStream = Events<v1::DrainEvent>;
    type RebalanceStream = Events<v1::RebalanceEvent>;

    async fn status(&self, _: Request<v1::ClusterStatusRequest>) -> Result<Response<v1::ClusterStatus>, Status> {
        Ok(Response::new(cluster_status(&self.control()?.status())))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let control = self.control_of(&request)?;
        let v1::DrainRequest { worker, undo } = request.into_inner();
        let of_change = control.clone();
        let id = WorkerId(worker);
        blocking(move || if undo { of_change.undrain(id) } else { of_change.drain(id) }).await?;
        let end = move |worker: &v1::ClusterWorker| undo || worker.state() == v1::WorkerState::Drained;
        let events = unfold(Some(None), move |last: Option<Option<v1::ClusterWorker>>| {
            let control = control.clone();
            async move {
                let last = last?;
                loop {
                    let status = cluster_status(&control.status());
                    let now = status.workers.into_iter().find(|worker| worker.id == id.0)?;
                    if last.as_ref() != Some(&now) {
                        let next = (!end(&now)).then(|| Some(now.clone()));
                        return Some((Ok(v1::DrainEvent { worker: Some(now) }), next));
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        Ok(Response::new(events.boxed()))
    }

    async fn rebalance(
        &self,
        request: Request<v1::RebalanceRequest>,
    ) -> Result<Response<Self::RebalanceStream>, Status> {
        let control = match request.get_ref().dry_run {
            true => self.control()?,
            false => self.control_of(&request)?,
        };
        let v1::RebalanceRequest { dry_run, imbalance_wanted, loads_max } = request.into_inner();
        let imbalance_wanted = imbalance_wanted.unwrap_or(IMBALANCE_WANTED);
        if !(imbalance_wanted.is_finite() && imbalance_wanted >= 1.0) {
            return Err(invalid("imbalance_wanted", format_args!("{imbalance_wanted} is not a number from 1 on")));
        }
        let goal = RebalanceGoal { imbalance_wanted, loads_max: loads_max.map_or(usize::MAX, |n| n as usize) };
        let of_change = control.clone();
        if dry_run {
            let plan = blocking(move || of_change.plan(goal)).await?;
            let event = v1::RebalanceEvent { event: Some(Event::Plan(cluster_plan(&plan))) };
            return Ok(Response::new(futures_util::stream::once(async { Ok(event) }).boxed()));
        }
        let begun = blocking(move || of_change.rebalance(goal)).await?;
        let plan = v1::ClusterPlan {
            moves: Vec::new(),
            moves_count: begun.moves as u32,
            loads: begun.loads as u32,
            imbalance_before: begun.imbalance_before,
            imbalance_after: begun.imbalance_after,
        };
        let plan = v1::RebalanceEvent { event: Some(Event::Plan(plan)) };
        let number = begun.number;
        let changes = unfold(Some(None), move |last: Option<Option<ChangeStatus>>| {
            let control = control.clone();
            async move {
                let last = last?;
                loop {
                    // Another one may have begun: then this one is over.
                    let now = control.change().filter(|change| change.number == number)?;
                    if last.as_ref() != Some(&now) {
                        let event = v1::RebalanceEvent { event: Some(Event::Change(cluster_change(&now))) };
                        return Some((Ok(event), (now.state == ChangeState::Running).then_some(Some(now))));
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        Ok(Response::new(futures_util::stream::once(async { Ok(plan) }).chain(changes).boxed()))
    }
}

/// Plans take their time, and locks of the cluster are those of its steps.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, Status> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.map_err(|error| Status::internal(format!("a change of the cluster: {error}")))?.map_err(refusal)
}

fn refusal(error: ControlError) -> Status {
    let text = error.to_string();
    match error {
        ControlError::Unknown(_) => Status::not_found(format!("worker: {text}")),
        ControlError::Ended | ControlError::Busy(_) | ControlError::Thread(_) => Status::unavailable(text),
        ControlError::Full | ControlError::Figures(_) | ControlError::Placement(_) => Status::failed_precondition(text),
    }
}

fn cluster_status(status: &ClusterStatus) -> v1::ClusterStatus {
    let all: u64 = status.workers.iter().map(|worker| worker.pairs).sum();
    let traffic = &status.traffic;
    v1::ClusterStatus {
        workers: status.workers.iter().map(|worker| cluster_worker(worker, all)).collect(),
        busiest_over_mean: status.busiest_over_mean(),
        experts_missing: status.missing as u32,
        traffic: Some(v1::ClusterTraffic {
            rows: traffic.rows,
            pairs: traffic.pairs,
            messages: traffic.messages,
            bytes_sent: traffic.bytes_sent,
            bytes_received: traffic.bytes_received,
            messages_min: traffic.messages_min,
            bytes_min: traffic.bytes_min,
            fenced: traffic.fenced,
            adopted: traffic.adopted,
            moved: traffic.moved,
            dropped: traffic.dropped,
        }),
        change: status.change.as_ref().map(cluster_change),
    }
}

fn cluster_worker(worker: &WorkerStatus, all: u64) -> v1::ClusterWorker {
    let state = match worker.state {
        WorkerState::Ready => v1::WorkerState::Ready,
        WorkerState::Draining => v1::WorkerState::Draining,
        WorkerState::Drained => v1::WorkerState::Drained,
        WorkerState::Away => v1::WorkerState::Away,
        WorkerState::Refused => v1::WorkerState::Refused,
        WorkerState::Left => v1::WorkerState::Left,
    };
    v1::ClusterWorker {
        id: worker.id.0,
        address: worker.address.clone(),
        state: state.into(),
        problem: worker.problem.clone().unwrap_or_default(),
        epoch: worker.epoch,
        experts: worker.experts as u32,
        bytes: worker.bytes,
        memory_bytes: worker.memory_bytes,
        rows: worker.pairs,
        share: worker.pairs as f64 / all.max(1) as f64,
    }
}

fn cluster_change(change: &ChangeStatus) -> v1::ClusterChange {
    let problem = match &change.state {
        ChangeState::Failed(problem) => problem.clone(),
        ChangeState::Running | ChangeState::Done => String::new(),
    };
    v1::ClusterChange {
        number: change.number,
        moves: change.moves as u32,
        moves_done: change.done as u32,
        imbalance_before: change.imbalance_before,
        imbalance_after: change.imbalance_after,
        done: change.state != ChangeState::Running,
        problem,
    }
}

fn cluster_plan(plan: &RebalancePlan) -> v1::ClusterPlan {
    let drops = |to_do: &Move| matches!(to_do, Move::Drop(_));
    let on_wire = |to_do: &Move| {
        let (Move::Load(spot) | Move::Drop(spot)) = to_do;
        let (layer, expert) = (spot.layer as u32, spot.expert as u32);
        v1::ClusterMove { layer, expert, worker: spot.worker.0, drop: drops(to_do) }
    };
    v1::ClusterPlan {
        moves: plan.moves.iter().take(MOVES_MAX).map(on_wire).collect(),
        moves_count: plan.moves.len() as u32,
        loads: plan.moves.iter().filter(|to_do| !drops(to_do)).count() as u32,
        imbalance_before: plan.imbalance_before,
        imbalance_after: plan.imbalance_after,
    }
}
