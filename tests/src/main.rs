//! `testbed`: the demo, and the programs that the pods of a bed run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use sidescope_tests::bench::{self, load as bench_load};
use sidescope_tests::bookinfo::{self, Load, Name, app::Role};
use sidescope_tests::cluster::{Cluster, Parts};
use sidescope_tests::demo::{self, Calls};
use sidescope_tests::dial::{self, How};
use sidescope_tests::{Bed, Cmd, bed, cluster, dns, existing, scale, tcp};

#[derive(Parser)]
#[command(about = "Sidescope's test bed: real processes in network namespaces")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make Istio's Bookinfo out of real processes and let `sidescope observe` watch it
    Demo {
        /// The program `sidescope`
        #[arg(long)]
        sidescope: PathBuf,
        /// Where the results go
        #[arg(long, default_value = "target/demo")]
        out: PathBuf,
        /// How many calls of productpage, or a multiple of 50 such as `10x`
        #[arg(long, default_value = "1x")]
        load: Calls,
        /// Spread the calls over this many seconds instead of making them as fast as answers come
        #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
        spread: Option<Duration>,
        /// Afterwards keep Bookinfo and some load running until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
    /// Measure what the kernel programs cost and how complete their results are
    Bench {
        /// The program `sidescope`
        #[arg(long)]
        sidescope: PathBuf,
        /// Where the results go
        #[arg(long, default_value = "target/bench/kernel.json")]
        out: PathBuf,
        /// Rounds of each ratio
        #[arg(long, default_value_t = 40)]
        rounds: usize,
        /// Milliseconds of a block, of which a round has three
        #[arg(long, default_value_t = 100)]
        block: u64,
    },
    /// Measure how long it takes to plan a large mesh
    BenchPlan {
        /// Where the results go
        #[arg(long, default_value = "target/bench/plan.json")]
        out: PathBuf,
    },
    /// Measure the aggregator in a large cluster with all its agents
    Scale {
        /// The program `sidescope`
        #[arg(long)]
        sidescope: PathBuf,
        /// Where the results go
        #[arg(long, default_value = "target/bench/scale.json")]
        out: PathBuf,
        /// Which part of the full size: of a smaller one the figures say little
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
    },
    /// The server of the bench (run by it, in a pod)
    #[command(hide = true)]
    BenchServe { cpu: usize },
    /// The load generator of the bench (run by it, in a pod)
    #[command(hide = true)]
    BenchLoad { orders: PathBuf, cpu: usize },
    /// A Kubernetes control plane with istiod, in the background
    Cluster {
        #[command(subcommand)]
        what: ClusterCommand,
    },
    /// Show the beds of this machine
    List,
    /// End a bed that was kept
    End {
        /// Its id, as `testbed list` shows it
        id: String,
    },
    /// One of Bookinfo's applications (run by the bed, in a pod)
    #[command(hide = true)]
    App {
        role: Role,
        #[arg(long)]
        resolve: Vec<Name>,
    },
    /// The load generator (run by the bed, outside the mesh)
    #[command(hide = true)]
    Load {
        url: String,
        #[arg(long)]
        resolve: Vec<Name>,
        #[arg(long)]
        count: Option<u32>,
        #[arg(long)]
        rate: Option<f64>,
    },
    /// Ask for one page and print it
    #[command(hide = true)]
    Get {
        url: String,
        #[arg(long)]
        resolve: Vec<Name>,
    },
    /// Send each connection a text and close it
    #[command(hide = true)]
    Greet { port: u16, text: String },
    /// Connect, and print what is read
    #[command(hide = true)]
    Connect { address: SocketAddr },
    /// Find connections that are older than the scanner: prints how many were made and found, and the time it took
    Existing {
        /// The program `sidescope`
        #[arg(long)]
        sidescope: PathBuf,
        /// How many network namespaces
        #[arg(long, default_value_t = 200)]
        namespaces: usize,
        /// How many connections in all
        #[arg(long, default_value_t = 10_000)]
        sockets: usize,
    },
    /// Open connections, say so, and keep them and all that it accepts until the process is killed
    #[command(hide = true)]
    Keep {
        /// A port to listen on
        #[arg(long)]
        listen: Option<u16>,
        /// How many connections to each address
        #[arg(long, default_value_t = 1)]
        each: usize,
        addresses: Vec<SocketAddr>,
    },
    /// Look into the network namespaces with the rights at hand, and print what came of it
    #[command(hide = true)]
    Look { cgroup: PathBuf },
    /// Take what connections bring, and send as many zeros back: who sends knows what has arrived
    #[command(hide = true)]
    Sink { port: u16 },
    /// Send standard input, or a file, to a sink, each piece once the one before has arrived
    #[command(hide = true)]
    Send {
        address: SocketAddr,
        /// Where the input is cut into pieces
        #[arg(long, value_delimiter = ',')]
        cuts: Vec<usize>,
        /// Read this file instead
        #[arg(long)]
        input: Option<PathBuf>,
        /// Wait after the first piece until something is written to this FIFO
        #[arg(long)]
        pause: Option<PathBuf>,
        /// Have the kernel add a hop-by-hop header to each packet (IPv6)
        #[arg(long)]
        hop_by_hop: bool,
    },
    /// Connect to a sink over and over as fast as it goes, each time with a request: for one host for so many milliseconds, then for
    /// another one so many times. Prints how many connections there were
    #[command(hide = true)]
    Knock { address: SocketAddr, first: String, milliseconds: u64, second: String, times: u64 },
    /// Name a host, connect for so many milliseconds, then open connections at once, and when something is written to the FIFO send a request
    /// for another host on each
    #[command(hide = true)]
    Pool { address: SocketAddr, first: String, milliseconds: u64, count: usize, pause: PathBuf },
    /// Send messages to sinks, as standard input has them in JSON
    #[command(hide = true)]
    SendAll,
    /// Answer DNS questions on port 53 or another: NAME=ADDRESS, or ALIAS=NAME
    #[command(hide = true)]
    Answer { port: u16, records: Vec<String> },
    /// Pass DNS questions on to a server, as the DNS proxy in a pod does
    #[command(hide = true)]
    Forward { port: u16, server: SocketAddr },
    /// Ask a DNS server for a name, connect to the address and say something
    #[command(hide = true)]
    Ask {
        how: dns::How,
        server: SocketAddr,
        name: String,
        port: u16,
        /// Ask for an IPv6 address
        #[arg(long)]
        v6: bool,
    },
    /// Open a connection in one of many ways, and print what came of it
    #[command(hide = true)]
    Dial { how: How, address: SocketAddr },
    /// A bed with one pod until a signal comes (for the test of what is left when its owner is killed)
    #[command(hide = true)]
    Hold,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Start it, unless it runs, and print how to reach it
    Up,
    /// End it and remove its data
    Down,
    /// Show what runs
    Status,
    /// Own it (run by `up`)
    #[command(hide = true)]
    Hold,
    /// One without controllers until a signal comes (for the test of what is left when its owner is killed)
    #[command(hide = true)]
    HoldApi,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { sidescope, out, load, spread, keep } => {
            let testbed = std::env::current_exe().context("cannot find this program")?;
            demo::run(&demo::Options { sidescope, testbed, out, calls: load, spread, keep })
        }
        Command::Bench { sidescope, out, rounds, block } => {
            let testbed = std::env::current_exe().context("cannot find this program")?;
            let block = Duration::from_millis(block);
            bench::run(&bench::Options { sidescope, testbed, out, rounds, block })
        }
        Command::BenchPlan { out } => bench::plan::run(&out),
        Command::Scale { sidescope, out, scale } => scale::run(&scale::Options { sidescope, out, scale }),
        Command::BenchServe { cpu } => bench_load::serve(cpu),
        Command::BenchLoad { orders, cpu } => bench_load::run(&orders, cpu),
        Command::Cluster { what } => match what {
            ClusterCommand::Up => cluster::up(),
            ClusterCommand::Down => cluster::down(),
            ClusterCommand::Status => cluster::status(),
            ClusterCommand::Hold => cluster::hold(),
            ClusterCommand::HoldApi => {
                let cluster = Cluster::start(Parts::Api)?;
                println!("{}", cluster.dir().display());
                for (_, proc) in cluster.processes() {
                    println!("{}", proc.pid());
                }
                println!();
                loop {
                    std::thread::park();
                }
            }
        },
        Command::List => {
            for (id, owner) in bed::list()? {
                match owner.filter(|owner| owner.is_alive()) {
                    Some(owner) => println!("{id}  of process {}", owner.pid),
                    None => println!("{id}  left over, the next bed sweeps it"),
                }
            }
            Ok(())
        }
        Command::End { id } => bed::end(&id),
        Command::App { role, resolve } => bookinfo::app::run(role, resolve),
        Command::Load { url, resolve, count, rate } => {
            bookinfo::load::run(&url, resolve, Load { count, rate })
        }
        Command::Get { url, resolve } => bookinfo::load::get(&url, resolve),
        Command::Greet { port, text } => tcp::greet(port, &text),
        Command::Connect { address } => tcp::connect(address),
        Command::Existing { sidescope, namespaces, sockets } => {
            let testbed = std::env::current_exe().context("cannot find this program")?;
            let figures = existing::run(&existing::Programs { sidescope, testbed }, namespaces, sockets)?;
            println!("{}", serde_json::to_string(&figures)?);
            Ok(())
        }
        Command::Keep { listen, each, addresses } => existing::keep(listen, each, &addresses),
        Command::Look { cgroup } => existing::look(&cgroup),
        Command::Sink { port } => tcp::sink(port),
        Command::Send { address, cuts, input, pause, hop_by_hop } => {
            let options = tcp::Options { cuts: &cuts, pause: pause.as_deref(), hop_by_hop };
            tcp::send(address, input.as_deref(), &options)
        }
        Command::Knock { address, first, milliseconds, second, times } => {
            tcp::knock(address, (&first, Duration::from_millis(milliseconds)), (&second, times))
        }
        Command::Pool { address, first, milliseconds, count, pause } => {
            tcp::pool(address, (&first, Duration::from_millis(milliseconds)), count, &pause)
        }
        Command::SendAll => tcp::send_all(),
        Command::Answer { port, records } => dns::answer(port, &records),
        Command::Forward { port, server } => dns::forward(port, server),
        Command::Ask { how, server, name, port, v6 } => dns::ask(how, server, &name, port, v6),
        Command::Dial { how, address } => dial::run(how, address),
        Command::Hold => {
            let bed = Bed::new()?;
            let sleeper = bed.add_pod("a")?.spawn(&Cmd::new("sleep").arg("1000"))?;
            bed.stay(|| println!("{} {}", bed.id(), sleeper.pid()))
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse::<f64>().ok();
    let time =
        number.and_then(|number| Duration::try_from_secs_f64(number).ok()).filter(|time| !time.is_zero());
    time.ok_or_else(|| "expected a number of seconds".to_owned())
}
