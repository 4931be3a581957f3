//! Connections that are older than who looks for them: programs that hold some, and how long a scan takes to find them all.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sidescope::namespaces;
use sidescope::scan::{Found, Running, What};
use sidescope::scanner::Client;
use sidescope::sockets::Socket;

use crate::bed::Bed;
use crate::cmd::Cmd;

/// The port that the pods of [`run`] listen on.
const PORT: u16 = 8080;
/// Longer than opening all connections takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is measured; the median counts.
const ROUNDS: usize = 5;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `sidescope`.
    pub sidescope: PathBuf,
    /// `testbed`.
    pub testbed: PathBuf,
}

/// What a measurement came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Connections that were opened.
    pub made: usize,
    /// Connections that were found: each counts once.
    pub found: usize,
    /// Milliseconds from the request to the end of the answer; the median of five.
    pub ms: f64,
}

/// Opens connections in namespaces of their own, half of them over IPv6, and lets the scanner look for them.
///
/// # Errors
/// When something could not be made, or when the scanner finds what is not there.
pub fn run(programs: &Programs, namespaces: usize, sockets: usize) -> Result<Figures> {
    ensure!(
        namespaces > 0 && sockets.is_multiple_of(2 * namespaces),
        "as many connections in each, of both kinds"
    );
    let each = sockets / namespaces / 2;
    let bed = Bed::new()?;
    let (mut processes, mut made, mut expected) = (Vec::new(), 0, HashSet::new());
    for number in 0..namespaces {
        let pod = bed.add_pod(&format!("p{number}"))?;
        let addresses = [IpAddr::from(pod.v4()), pod.v6().into()].map(|ip| SocketAddr::new(ip, PORT));
        let cmd = Cmd::new(&programs.testbed).args(["keep", "--listen", &PORT.to_string()]);
        let cmd = cmd.args(["--each", &each.to_string()]).args(addresses.map(|address| address.to_string()));
        processes.push(pod.spawn(&cmd)?);
        expected.extend(addresses);
    }
    for process in &processes {
        process.wait_for_log(&format!("{} open\n", 2 * each), PATIENCE)?;
        made += 2 * each;
    }

    let socket = std::env::temp_dir().join(format!("sidescope-existing-{}.sock", bed.id()));
    let scanner = bed.spawn_on_machine(&scanner(&programs.sidescope, &socket, &bed.pods_cgroup()))?;
    scanner.wait_for_log("scanner ready", PATIENCE)?;
    let client = Client::new(&socket);
    let (mut times, mut found) = (Vec::new(), usize::MAX);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let seen = collect(|| Ok(client.start(What::Sockets)))?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        let strange = seen.iter().find(|seen| !expected.contains(&SocketAddr::new(seen.address, seen.port)));
        ensure!(strange.is_none(), "found what nobody opened: {strange:?}");
        found = found.min(seen.iter().map(|seen| seen.cookie).collect::<HashSet<_>>().len());
    }
    times.sort_by(f64::total_cmp);
    scanner.signal(nix::sys::signal::Signal::SIGTERM)?;
    scanner.success(PATIENCE)?;
    bed.end()?;
    Ok(Figures { made, found, ms: times[ROUNDS / 2] })
}

/// The command that runs a scanner.
pub fn scanner(sidescope: &Path, socket: &Path, cgroup: &Path) -> Cmd {
    Cmd::new(sidescope).args(["scanner", "--socket"]).arg(socket).arg("--cgroup").arg(cgroup)
}

/// All sockets of a scan, which must be without a failure.
///
/// # Errors
/// When the scan fails or could not look everywhere.
pub fn collect(start: impl FnOnce() -> Result<Running>) -> Result<Vec<Socket>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut running = start()?;
        let mut sockets = Vec::new();
        loop {
            match running.next().await.context("no end")?? {
                Found::Part(part) => sockets.extend(part.sockets),
                Found::End(end) => {
                    ensure!(end.failed == 0 && end.sockets_beyond == 0, "not everything was seen: {end:?}");
                    ensure!(end.sockets == sockets.len() as u64, "{} found, {end:?}", sockets.len());
                    return Ok(sockets);
                }
            }
        }
    })
}

/// Opens connections, says so, and keeps them and all that it accepts until the process is killed.
///
/// # Errors
/// When it cannot listen or connect.
pub fn keep(listen: Option<u16>, each: usize, addresses: &[SocketAddr]) -> Result<()> {
    if let Some(port) = listen {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .with_context(|| format!("cannot listen on port {port}"))?;
        thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    }
    let mut open = Vec::new();
    for address in addresses {
        for _ in 0..each {
            open.push(TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?);
        }
    }
    println!("{} open", open.len());
    loop {
        thread::park();
    }
}

/// Looks into the namespaces here and prints `sockets failed`.
///
/// # Errors
/// When it cannot be told where to look.
pub fn look(cgroup: &Path) -> Result<()> {
    let summary = namespaces::look(cgroup, What::Sockets, |_| ControlFlow::Continue(()))?;
    println!("{} {}", summary.sockets, summary.failed);
    Ok(())
}
