//! More connections than an edge has a search for, some of which stay.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sidescope::older::Older;
use sidescope::probes::{Probes, Settings};
use sidescope::scan::By;
use sidescope::watch::Watch;
use sidescope_tests::{Cmd, patient};

use crate::fixture::{SOON, TESTBED};
use crate::sink::Sink;

const POOL: usize = 40;

/// Watches until the condition holds.
async fn until(
    watch: &mut Watch,
    what: &str,
    mut condition: impl FnMut(&Watch) -> Result<bool>,
) -> Result<()> {
    let watching = async {
        while !condition(watch)? {
            watch.step().await?;
        }
        Ok(())
    };
    match tokio::time::timeout(patient(SOON), watching).await {
        Ok(result) => result,
        Err(_) => bail!("waited in vain for {what}"),
    }
}

#[test]
fn each_connection_of_a_pool_tells_its_host_when_it_stays_open() -> Result<()> {
    let sink = Sink::new(1)?;
    let folder = tempfile::tempdir()?;
    let fifo = folder.path().join("go");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let cgroup = sink.mesh.bed.pods_cgroup();
    let address = format!("{}:2001", sink.service.v4);
    let pool = Cmd::new(TESTBED).args(["pool", &address, "known.test", "2500", &POOL.to_string()]).arg(&fifo);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        let settings = Settings::default();
        let probes = Probes::attach(&File::open(&cgroup)?, &settings)?;
        let mut watch = Watch::new(probes, &settings, cgroup.clone(), Older::default(), By::ThisProcess);
        until(&mut watch, "the first list", |watch| Ok(watch.older.is_complete())).await?;
        let pool = sink.client.spawn(&pool)?;
        until(&mut watch, "the pool", |_| Ok(pool.log()?.contains("open"))).await?;
        assert_eq!(watch.probes.older()?, [], "nothing is older than the programs");
        watch.take_all()?;
        // A slow machine makes no more connects than have a search.
        let is_beyond = watch.collector.edges().values().any(|edge| edge.unsearched);
        let watched = if is_beyond { POOL } else { 0 };

        watch.list_sockets_every(Duration::from_millis(100));
        until(&mut watch, "two lists", |watch| Ok(watch.probes.older()?.len() == watched)).await?;
        fs::write(&fifo, "go on")?;
        // Its end, which the kernel need not remember any longer.
        until(&mut watch, "the end", |watch| Ok(watch.probes.older()?.is_empty())).await?;
        pool.success(SOON)?;
        watch.take_all()?;
        // Before the lists showed them, they could have named others; as could those that were over soon.
        let expected = is_beyond.then(|| ("searchBudget".to_owned(), 1));
        assert_eq!(watch.losses()?, expected.into_iter().collect());
        // One edge; two where the kernel does not tell a namespace's cookie.
        let edges = watch.collector.edges().values();
        assert_eq!(edges.clone().any(|edge| edge.host_unknown), is_beyond);
        anyhow::Ok(edges.flat_map(|edge| &edge.hosts).map(ToString::to_string).collect::<BTreeSet<_>>())
    })?;
    let pooled = (0..POOL).map(|number| format!("pooled-{number}.test"));
    assert_eq!(found, pooled.chain(["known.test".to_owned()]).collect());
    sink.mesh.bed.end()
}
