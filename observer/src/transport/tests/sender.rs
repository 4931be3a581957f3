//! The agent's side, as it looks for its aggregator, loses it and finds it again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Batches with these sequences.
#[derive(Default)]
struct Sequences {
    waiting: VecDeque<u64>,
    sent: VecDeque<u64>,
    acknowledged: Vec<u64>,
    measured: usize,
    restarts: usize,
}

impl Outbox for Sequences {
    fn next(&mut self) -> Option<Batch> {
        if self.sent.len() == limits::UNACKNOWLEDGED {
            return None;
        }
        let sequence = self.waiting.pop_front()?;
        self.sent.push_back(sequence);
        Some(batch(sequence))
    }

    fn restart(&mut self) {
        self.restarts += 1;
        while let Some(sequence) = self.sent.pop_back() {
            self.waiting.push_front(sequence);
        }
    }

    fn acknowledge(&mut self, ack: &Ack) {
        while self.sent.front().is_some_and(|sequence| *sequence <= ack.sequence) {
            self.acknowledged.extend(self.sent.pop_front());
        }
    }

    fn measure(&mut self, _: &Exchange) {
        self.measured += 1;
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }
}

struct Agent {
    shared: Arc<Shared<Sequences>>,
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(config: Config) -> Self {
        let shared = Shared::new(Sequences::default());
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task =
            tokio::spawn(client::run(config, Arc::clone(&shared), async move { stopped.notified().await }));
        Self { shared, stop, task }
    }

    fn tell(&self, sequences: std::ops::RangeInclusive<u64>) {
        self.shared.with(|outbox| outbox.waiting.extend(sequences));
    }

    async fn until(&self, what: &str, holds: impl Fn(&Sequences) -> bool) {
        let held = async {
            while !self.shared.with(|outbox| holds(outbox)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, held).await.unwrap_or_else(|_| panic!("{what}"));
    }

    async fn stop(self) -> Duration {
        let since = tokio::time::Instant::now();
        self.stop.notify_one();
        timeout(SOON, self.task).await.expect("the agent ends").unwrap();
        since.elapsed()
    }
}

async fn acknowledge(server: &mut Server, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        let delivery = server.delivery().await;
        assert_eq!(delivery.batch.sequence, sequence);
        delivery.receipt.acknowledge(vec![]);
    }
}

#[tokio::test]
async fn all_batches_arrive_in_order_after_the_clocks_were_compared() {
    let bed = Bed::new();
    let mut server = bed.server().await;
    let agent = Agent::start(bed.agent("n1", server.address));
    agent.tell(1..=50);
    acknowledge(&mut server, 1..=50).await;
    agent.until("all are acknowledged", Sequences::is_empty).await;
    assert!(agent.shared.with(|outbox| outbox.measured) >= 1);
    assert!(agent.stop().await < Duration::from_secs(1), "there is nothing to wait for");
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_to_the_next_server() {
    let bed = Bed::new();
    // On a runtime of its own, so that all of it can end at once like a process that is killed.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let mut first = {
        let _in_it = doomed.enter();
        bed.server_on(TcpListener::from_std(listener).unwrap(), 64)
    };
    let address = first.address;
    let agent = Agent::start(bed.agent("n1", address));
    agent.tell(1..=6);
    acknowledge(&mut first, 1..=2).await;
    agent.until("two are acknowledged", |outbox| outbox.acknowledged == [1, 2]).await;
    let held = first.delivery().await;
    assert_eq!(held.batch.sequence, 3);
    doomed.shutdown_background();
    drop((first, held));
    agent.tell(7..=7);
    let mut second = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break bed.server_on(listener, 64),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    acknowledge(&mut second, 3..=7).await;
    agent.until("all are acknowledged", Sequences::is_empty).await;
    assert_eq!(agent.shared.with(|outbox| outbox.acknowledged.clone()), (1..=7).collect::<Vec<_>>());
    assert!(agent.stop().await < Duration::from_secs(1));
}

#[tokio::test]
async fn a_new_leader_is_followed() {
    let bed = Bed::new();
    let (mut one, mut other) = (bed.server().await, bed.server().await);
    other.leader.send_replace(Leader::Other(one.address));
    let agent = Agent::start(bed.agent("n1", one.address));
    agent.tell(1..=2);
    acknowledge(&mut one, 1..=1).await;
    let _held = one.delivery().await;
    agent.until("the first is acknowledged", |outbox| outbox.acknowledged == [1]).await;
    other.leader.send_replace(Leader::Me);
    one.leader.send_replace(Leader::Other(other.address));
    acknowledge(&mut other, 2..=2).await;
    agent.until("all are acknowledged", Sequences::is_empty).await;
    agent.stop().await;
}

#[tokio::test]
async fn it_ends_in_time_without_an_aggregator_and_waits_for_one_that_is_slow() {
    let bed = Bed::new();
    let server = bed.server().await;
    let config = bed.agent("n1", server.address);
    server.stop().await;
    let agent = Agent::start(config);
    agent.tell(1..=1);
    pause();
    let took = agent.stop().await;
    resume();
    assert!(Duration::from_secs(3) < took && took < Duration::from_secs(5), "{took:?}");

    let mut server = bed.server().await;
    let agent = Agent::start(bed.agent("n1", server.address));
    agent.tell(1..=1);
    let delivery = server.delivery().await;
    agent.stop.notify_one();
    delivery.receipt.acknowledge(vec![]);
    timeout(SOON, agent.task).await.unwrap().unwrap();
    assert!(agent.shared.with(|outbox| outbox.is_empty()));
}

/// A network that swallows everything: connections stay, and nothing comes through. Passing bytes on by hand.
struct Cut {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    cut: watch::Sender<bool>,
}

impl Cut {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    let mut there = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                        () = async { drop(is_cut.wait_for(|cut| *cut).await) } => {
                            // Both ends stay open for as long as the network is cut.
                            drop(is_cut.wait_for(|cut| !cut).await);
                        }
                    }
                });
            }
        });
        Self { address, connections, cut }
    }
}

#[tokio::test]
async fn a_cut_network_is_noticed_and_what_was_on_its_way_sent_again() {
    let bed = Bed::new();
    let mut server = bed.server().await;
    let network = Cut::before(server.address).await;
    let agent = Agent::start(bed.agent("n1", network.address));
    agent.tell(1..=1);
    acknowledge(&mut server, 1..=1).await;
    agent.until("the first is acknowledged", Sequences::is_empty).await;
    network.cut.send_replace(true);
    agent.tell(2..=2);
    // No word comes of it but pings that are not answered.
    let since = tokio::time::Instant::now();
    while since.elapsed() < Duration::from_secs(21) {
        hurry().await;
    }
    assert!(network.connections.load(Ordering::SeqCst) > 1, "it has given the first one up");
    network.cut.send_replace(false);
    agent.until("a new stream is made", |outbox| outbox.restarts == 2).await;
    acknowledge(&mut server, 2..=2).await;
    agent.until("the second is acknowledged", Sequences::is_empty).await;
    agent.stop().await;
}
