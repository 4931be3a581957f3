//! Reads and writes the Lease that tells who leads; [`crate::election`] decides.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::election::{AGAIN, Election, Holder, Leader, Record, Step};

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(5);
/// How long letting go of the lease may take.
const RELEASE: Duration = Duration::from_secs(2);

/// Which Lease.
#[derive(Clone)]
pub struct Config {
    /// Way to the API server.
    pub client: Client,
    /// Where the Lease is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// This replica.
    pub me: Holder,
}

/// Takes part in the election until `shutdown`, then lets go of the lease. Who leads is always in `leader`; that it is no longer this
/// replica is told at once, also while a request is under way.
pub async fn run(config: Config, leader: watch::Sender<Leader>, shutdown: impl Future<Output = ()>) {
    let mut replica = Replica {
        api: Api::namespaced(config.client.clone(), &config.namespace),
        election: Election::new(&config.me),
        stored: None,
        leader,
        told: None,
        config,
    };
    tokio::pin!(shutdown);
    tokio::select! {
        () = &mut shutdown => {}
        () = replica.take_part() => {}
    }
    let release = replica.election.release(wall());
    replica.leader.send_replace(Leader::Unknown);
    if let Some(record) = release
        && !matches!(timeout(RELEASE, replica.put(&record)).await, Ok(Ok(_)))
    {
        info!("the lease could not be released; others take over when it ends");
    }
}

struct Replica {
    config: Config,
    api: Api<Lease>,
    election: Election,
    /// The Lease as it was read or written last.
    stored: Option<Lease>,
    leader: watch::Sender<Leader>,
    /// The error that was told last.
    told: Option<String>,
}

impl Replica {
    /// Never ends.
    async fn take_part(&mut self) {
        loop {
            self.publish();
            match self.election.step(now(), wall()) {
                Step::Wait(wait) => {
                    let looks =
                        self.leader_until(sleep(wait)).await.is_some() && *self.leader.borrow() != Leader::Me;
                    if looks {
                        self.look().await;
                    }
                }
                Step::Write(record) => self.write(record).await,
            }
        }
    }

    /// Waits for `done`, unless this replica stops leading before.
    async fn leader_until<T>(&self, done: impl Future<Output = T>) -> Option<T> {
        let left = match self.election.until().and_then(|until| until.checked_sub(now())) {
            Some(left) if *self.leader.borrow() == Leader::Me => left,
            _ => return Some(done.await),
        };
        timeout(left, done).await.ok()
    }

    fn publish(&mut self) {
        let leader = self.election.leader(now());
        let before = self.leader.send_replace(leader);
        if before != leader {
            info!(?leader, "the leader changed");
        }
    }

    async fn look(&mut self) {
        match timeout(REQUEST, self.api.get_opt(&self.config.name)).await {
            Ok(Ok(found)) => {
                self.election.saw(found.as_ref().map(record_of), now());
                self.stored = found;
                self.told = None;
            }
            Ok(Err(err)) => self.failed(&err.to_string()).await,
            Err(_) => self.failed("the API server did not answer in time").await,
        }
    }

    async fn write(&mut self, record: Record) {
        self.election.asks(now());
        match self.leader_until(timeout(REQUEST, self.put(&record))).await {
            Some(Ok(Ok(written))) => {
                self.election.wrote(record_of(&written));
                self.stored = Some(written);
                self.told = None;
            }
            Some(Ok(Err(kube::Error::Api(status)))) if status.code == 409 || status.code == 404 => {
                self.election.conflict();
                self.look().await;
            }
            Some(Ok(Err(err))) => self.failed(&err.to_string()).await,
            // What became of it is not known: it may have been written.
            Some(Err(_)) | None => {
                self.election.conflict();
                self.publish();
                self.failed("the API server did not answer in time").await;
                self.look().await;
            }
        }
    }

    /// Writes in place of what was read last, or fails where somebody else wrote since.
    async fn put(&self, record: &Record) -> kube::Result<Lease> {
        let Config { name, namespace, .. } = &self.config;
        let metadata = match &self.stored {
            Some(stored) => stored.metadata.clone(),
            None => ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
        };
        let mut spec = self.stored.as_ref().and_then(|stored| stored.spec.clone()).unwrap_or_default();
        fill(&mut spec, record);
        let lease = Lease { metadata, spec: Some(spec) };
        match self.stored {
            Some(_) => self.api.replace(name, &PostParams::default(), &lease).await,
            None => self.api.create(&PostParams::default(), &lease).await,
        }
    }

    async fn failed(&mut self, err: &str) {
        if self.told.as_deref() != Some(err) {
            let Config { namespace, name, .. } = &self.config;
            warn!(%namespace, %name, %err, "the Lease cannot be read or written; see whether the aggregator's role allows it");
            self.told = Some(err.to_owned());
        }
        self.leader_until(sleep(AGAIN)).await;
    }
}

fn record_of(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let micros = |time: Option<MicroTime>| time.map_or(0, |MicroTime(time)| time.as_microsecond());
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(seconds.unwrap_or(0)),
        renewed: micros(spec.renew_time),
        acquired: micros(spec.acquire_time),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

fn fill(spec: &mut LeaseSpec, record: &Record) {
    let time = |micros| Timestamp::from_microsecond(micros).ok().map(MicroTime);
    spec.holder_identity = Some(record.holder.clone());
    spec.lease_duration_seconds = i32::try_from(record.duration.as_secs()).ok();
    spec.renew_time = time(record.renewed);
    spec.acquire_time = time(record.acquired);
    spec.lease_transitions = Some(record.transitions);
}

/// A clock that also runs while the machine sleeps: others take the lease meanwhile.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock").into()
}

/// For others to read, in microseconds since the Unix epoch.
fn wall() -> i64 {
    Timestamp::now().as_microsecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_from_the_lease_as_it_was() {
        let record = Record {
            holder: "a@10.0.0.1:1".to_owned(),
            duration: Duration::from_secs(15),
            renewed: 1_900_000_000_123_456,
            acquired: 1_800_000_000_000_001,
            transitions: 7,
        };
        let mut spec = LeaseSpec::default();
        fill(&mut spec, &record);
        assert_eq!(record_of(&Lease { metadata: ObjectMeta::default(), spec: Some(spec) }), record);
        assert_eq!(record_of(&Lease::default()), Record::default());
    }
}
