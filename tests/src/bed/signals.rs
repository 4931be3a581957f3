//! SIGINT, SIGTERM and SIGHUP end all beds and clusters of this process and then the process: a drop alone would not run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use super::lock;

/// What a signal has to end.
pub(crate) trait Ends: Send + Sync {
    /// What it is called in messages.
    fn title(&self) -> String;

    /// Ends it and keeps its lock, so that nothing new can come into being in it until the process is gone.
    fn end_for_good(&self) -> Result<()>;
}

static ALL: Mutex<Vec<Weak<dyn Ends>>> = Mutex::new(Vec::new());
static EXPECTED: AtomicBool = AtomicBool::new(false);

/// Makes a bed or a cluster known to the signal handler in the same breath as it comes into being.
pub(crate) fn register<T: Ends + 'static>(make: impl FnOnce() -> Result<Arc<T>>) -> Result<Arc<T>> {
    listen()?;
    let mut all = lock(&ALL);
    let made = make()?;
    all.retain(|other| other.strong_count() > 0);
    let known: Weak<T> = Arc::downgrade(&made);
    all.push(known);
    Ok(made)
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
    let all = lock(&ALL);
    let mut code = if EXPECTED.load(Ordering::SeqCst) { 0 } else { 128 + signal };
    for one in all.iter().filter_map(Weak::upgrade) {
        if let Err(error) = one.end_for_good() {
            eprintln!("{} left something behind: {error:#}", one.title());
            code = 1;
        } else {
            eprintln!("{} is removed", one.title());
        }
    }
    std::process::exit(code)
}
