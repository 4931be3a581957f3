//! Whatever comes in at its port, it goes on, counts it, and stays small.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use sidescope::wire::{MAX_EDGES, MAX_NAMES, MAX_SOURCES};
use sidescope_tests::aggregator::{Replica, SOON, Scene, batch, edge, now, source};
use sidescope_tests::cluster::Parts;
use sidescope_tests::wait_for;

/// Most memory, whatever comes, in this small cluster.
const MOST_MIB: u64 = 128;

#[test]
fn garbage_and_hostile_reports_are_refused_and_memory_stays_bounded() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let shop = scene.make_service("shop")?;
    let aggregator = scene.aggregator("one")?;
    scene.wait_for_leader(&aggregator)?;
    let agent = scene.agent("node-1", &aggregator)?;
    agent.tell_and_wait(batch(&web, vec![edge(&shop, now(), &[])?]))?;

    garbage(&aggregator)?;
    // What no agent of ours says ends its stream each time, so each is told by one of its own.
    let (long, large) = ("a".repeat(10_000), "b".repeat(1 << 20));
    let hostile = [
        ("a control character", batch(&web, vec![edge(&shop, now(), &["a\u{1b}[2J.test"])?])),
        ("a long name", batch(&web, vec![edge(&shop, now(), &[&long])?])),
        ("many sources", vec![source(&web, vec![]); MAX_SOURCES + 1]),
        ("many edges", batch(&web, vec![edge(&shop, now(), &[])?; MAX_EDGES + 1])),
        ("a large message", batch(&web, vec![edge(&shop, now(), &[large.as_str(); 5])?])),
    ];
    for (what, sources) in hostile {
        let stranger = scene.agent("node-1", &aggregator)?;
        stranger.tell(sources);
        let refused =
            || -> Result<u64> { Ok(aggregator.proc.log()?.matches("a stream ends").count().try_into()?) };
        let before = refused()?;
        wait_for(&format!("{what} to be refused"), SOON, || Ok((refused()? > before).then_some(())))?;
        assert_eq!(stranger.acknowledged(), 0, "{what}");
        stranger.end();
    }

    // A million distinct names, each of which is legal.
    let names = 1_000_000;
    let flood = scene.agent("node-1", &aggregator)?;
    let mut most = 0;
    let mut told = 0;
    while told < names {
        let mut edges = Vec::new();
        for _ in 0..8 {
            let hosts: Vec<String> =
                (0..MAX_NAMES / 8).map(|n| format!("n{}.flood.test", told + n)).collect();
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            edges.push(edge(&shop, now(), &hosts)?);
            told += MAX_NAMES / 8;
        }
        let sequence = flood.tell(batch(&web, edges));
        let room = sequence.saturating_sub(8);
        wait_for("room for more", SOON, || {
            most = most.max(aggregator.rss()?);
            Ok((flood.acknowledged() >= room).then_some(()))
        })?;
    }
    flood.end();
    println!("{most} MiB at most");
    ensure!(most < MOST_MIB, "{most} MiB");

    // It goes on, and what of all that is in the record is bounded.
    let agent = scene.agent("node-1", &aggregator)?;
    let stock = scene.make_service("stock")?;
    agent.tell_and_wait(batch(&web, vec![edge(&stock, now(), &[])?]))?;
    assert_eq!(scene.calls("web")?, ["shop", "stock"]);
    let record = scene.record("web")?.unwrap_or_default();
    ensure!(
        record.unknown_hosts.len() == 100 && record.more_unknown_hosts.is_some(),
        "{}",
        record.unknown_hosts.len()
    );
    agent.end();
    let (_, refused) = aggregator.counts()?;
    for reason in ["handshakeFailed", "messageMalformed", "messageTooLarge"] {
        ensure!(refused[reason].as_u64() >= Some(1), "{reason} in {refused}");
    }
    scene.cluster.end()
}

/// Bytes that are no TLS, from many connections at once.
fn garbage(aggregator: &Replica) -> Result<()> {
    let mut streams = Vec::new();
    for n in 0..200u8 {
        let mut stream = TcpStream::connect(aggregator.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let bytes: Vec<u8> = match n % 3 {
            0 => (0..=255).cycle().take(16_384).collect(),
            1 => b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        };
        // It may have been closed already.
        drop(stream.write_all(&bytes));
        streams.push(stream);
    }
    for mut stream in streams {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let is_late = ended.as_ref().is_err_and(|err| err.kind() == std::io::ErrorKind::WouldBlock);
        ensure!(!is_late, "a connection with garbage stays open");
    }
    Ok(())
}
