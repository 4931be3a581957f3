//! SIGINT, SIGTERM and SIGHUP end all beds of this process and then the process: a drop alone would not run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use super::{Inner, lock};

static BEDS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
static EXPECTED: AtomicBool = AtomicBool::new(false);

/// Makes a bed known to the signal handler in the same breath as it comes into being.
pub(crate) fn register(make: impl FnOnce() -> Result<Arc<Inner>>) -> Result<Arc<Inner>> {
    listen()?;
    let mut beds = lock(&BEDS);
    let inner = make()?;
    beds.retain(|bed| bed.strong_count() > 0);
    beds.push(Arc::downgrade(&inner));
    Ok(inner)
}

/// From now on a signal is the wanted end of this process.
pub(crate) fn expect_one() {
    EXPECTED.store(true, Ordering::SeqCst);
}

/// Starts the thread that waits for signals, once; returns when it does.
fn listen() -> Result<()> {
    static LISTENER: OnceLock<Result<(), String>> = OnceLock::new();
    let started = LISTENER.get_or_init(|| {
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || wait_for_one(&ready));
        is_ready.recv().unwrap_or_else(|_| Err("the thread that waits for signals has ended".to_owned()))
    });
    started.clone().map_err(|error| anyhow!(error)).context("cannot listen for signals")
}

fn wait_for_one(ready: &mpsc::Sender<Result<(), String>>) {
    let said = ready.clone();
    let listening = async move {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        said.send(Ok(())).ok();
        Ok::<i32, std::io::Error>(tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hang_up.recv() => 1,
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    match runtime.and_then(|runtime| runtime.block_on(listening)) {
        Ok(number) => end_all(number),
        Err(error) => {
            ready.send(Err(error.to_string())).ok();
        }
    }
}

/// Keeps every lock it takes until the process is gone: who is half-way through making something stays where it is.
fn end_all(signal: i32) -> ! {
    let beds = lock(&BEDS);
    let mut code = if EXPECTED.load(Ordering::SeqCst) { 0 } else { 128 + signal };
    let alive: Vec<Arc<Inner>> = beds.iter().filter_map(Weak::upgrade).collect();
    let mut states = Vec::new();
    for inner in &alive {
        let mut state = lock(&inner.state);
        if let Err(error) = inner.tear_down_locked(&mut state) {
            eprintln!("the test bed {} left something behind: {error:#}", inner.id);
            code = 1;
        } else {
            eprintln!("bed {} is removed", inner.id);
        }
        states.push(state);
    }
    std::process::exit(code)
}
