//! A network of namespaces: a node with a bridge, pods joined to it, hosts outside the mesh, ClusterIPs.
//!
//! Everything goes through the node's routing, pod to pod too (pods have /32 and /128 addresses), so that an answer passes the
//! node again and its address translation is undone, whether the machine has `br_netfilter` or not.
//!
//! What is made is made under the lock of `State`, and whoever ends the bed takes that lock and keeps it: nothing can come
//! into being behind the back of the clean-up, not even when a signal asks for it half-way through.

mod address;
mod cgroup;
mod host;
pub(crate) mod leftovers;
pub(crate) mod process;
mod services;
pub(crate) mod signals;
mod users;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};

pub use host::{Host, LONE_NETWORK};
pub use leftovers::{Owner, end, list};
pub use process::Proc;
pub use services::{Protocol, Service, ServicePort};

use crate::cmd::Cmd;
use host::HostData;
use process::Running;
use signals::Ends;

/// Address of the node, as `status.hostIP` has it.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// Second address of the node.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 2);

/// A network of its own, gone with everything in it when this value is dropped.
pub struct Bed {
    inner: Arc<Inner>,
}

/// What beds, hosts and the signal handler share.
pub(crate) struct Inner {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    state: Mutex<State>,
}

/// What has been made so far.
#[derive(Default)]
pub(crate) struct State {
    hosts: BTreeMap<String, Arc<HostData>>,
    services: BTreeMap<String, Service>,
    running: Vec<Arc<Running>>,
    /// Numbers handed out, never used twice: for addresses, for the names of log files.
    pods: u16,
    outsiders: u16,
    service_count: u16,
    spawned: u32,
    ended: bool,
}

/// Takes a lock also after a panic of another thread: the clean-up has to happen then too.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bed {
    /// Makes an empty bed, a node without pods. Sweeps what beds have left whose owner is gone.
    pub fn new() -> Result<Self> {
        let bed = Self::without_node()?;
        bed.make_node().context("cannot make the node of the test bed")?;
        Ok(bed)
    }

    /// A bed for hosts that are joined to nothing: see [`Self::add_lone`]. Otherwise like [`Self::new`].
    pub fn without_node() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the test bed makes network namespaces and cgroups and needs root: run it with sudo"
        );
        let mount = cgroup::mount()?;
        let inner = signals::register(|| {
            let (id, dir) = leftovers::claim(&mount)?;
            let cgroup = cgroup::of_bed(&mount, &id);
            Ok(Arc::new(Inner { id, dir, cgroup, state: Mutex::default() }))
        })?;
        // From here on the drop cleans up.
        Ok(Self { inner })
    }

    /// The random part of all names of this bed.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The cgroup that all processes in the bed's namespaces are in.
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// The cgroup below which each pod has one, as the kubelet has it.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.inner.cgroup.join("kubepods")
    }

    /// A new pod: a namespace with an IPv4 and an IPv6 address, and a default route for both.
    pub fn add_pod(&self, name: &str) -> Result<Host> {
        self.add_pod_of(name, None)
    }

    /// The same with users of its own (`hostUsers: false`): inside from 0 on, on the machine from `first_uid` on. Its first process
    /// sleeps and keeps the namespaces.
    pub fn add_pod_with_users(&self, name: &str, first_uid: u32) -> Result<Host> {
        self.add_pod_of(name, Some(first_uid))
    }

    fn add_pod_of(&self, name: &str, first_uid: Option<u32>) -> Result<Host> {
        let mut state = self.inner.open()?;
        state.pods += 1;
        let addresses = (address::pod_v4(state.pods), address::pod_v6(state.pods));
        self.add_host(&mut state, name, addresses, self.pods_cgroup().join(name), first_uid)
    }

    /// A new host outside the mesh, that no inventory knows.
    pub fn add_outsider(&self, name: &str) -> Result<Host> {
        let mut state = self.inner.open()?;
        state.outsiders += 1;
        let addresses = (address::outside_v4(state.outsiders), address::outside_v6(state.outsiders));
        self.add_host(&mut state, name, addresses, self.inner.cgroup.join(format!("outside-{name}")), None)
    }

    /// A pod that is joined to nothing: it has its loopback only, on which every address of [`LONE_NETWORK`] is its own.
    pub fn add_lone(&self, name: &str) -> Result<Host> {
        let mut state = self.inner.open()?;
        state.pods += 1;
        let cgroup = self.pods_cgroup().join(name);
        make_cgroup(&cgroup)?;
        let netns = format!("{}{name}", leftovers::prefix(&self.inner.id));
        let (v4, v6) = (address::pod_v4(state.pods), address::pod_v6(state.pods));
        let data = Arc::new(HostData { name: name.to_owned(), netns, v4, v6, cgroup, users: None });
        host::make_lone(&data).with_context(|| format!("cannot make the host `{name}`"))?;
        state.hosts.insert(name.to_owned(), Arc::clone(&data));
        Ok(Host::new(&self.inner, &data))
    }

    /// The pod or outsider of this name.
    pub fn host(&self, name: &str) -> Result<Host> {
        let state = self.inner.open()?;
        let data = state.hosts.get(name).ok_or_else(|| anyhow!("the bed has no host `{name}`"))?;
        Ok(Host::new(&self.inner, data))
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> Result<Host> {
        self.host(name)
    }

    /// The node: its processes are host processes, its address translation makes the ClusterIPs.
    pub fn node(&self) -> Result<Host> {
        self.host("node")
    }

    /// Starts a process on the machine itself, that ends with the bed nevertheless: for `sidescope`, which watches from outside.
    pub fn spawn_on_machine(&self, cmd: &Cmd) -> Result<Proc> {
        self.inner.spawn(None, cmd)
    }

    /// A BPF file system, which goes with the bed and with all that is pinned in it. Every call gives the same one.
    pub fn bpffs(&self) -> Result<PathBuf> {
        let _open = self.inner.open()?;
        leftovers::make_bpffs(&self.inner.dir)
    }

    /// Gives a service its ClusterIPs. Without endpoints it refuses connections, as kube-proxy does it.
    pub fn add_service(&self, name: &str, ports: &[ServicePort], endpoints: &[&Host]) -> Result<Service> {
        let mut state = self.inner.open()?;
        ensure!(!state.services.contains_key(name), "the bed has a service `{name}` already");
        state.service_count += 1;
        let service = Service {
            name: name.to_owned(),
            v4: address::service_v4(state.service_count),
            v6: address::service_v6(state.service_count),
            ports: ports.to_vec(),
            endpoints: endpoints.iter().map(|host| (host.v4(), host.v6())).collect(),
        };
        state.services.insert(name.to_owned(), service.clone());
        self.program(&state)?;
        Ok(service)
    }

    /// Gives a service other endpoints.
    pub fn set_endpoints(&self, service: &str, endpoints: &[&Host]) -> Result<()> {
        let mut state = self.inner.open()?;
        let entry =
            state.services.get_mut(service).ok_or_else(|| anyhow!("the bed has no service `{service}`"))?;
        entry.endpoints = endpoints.iter().map(|host| (host.v4(), host.v6())).collect();
        self.program(&state)
    }

    /// The service of this name.
    pub fn service(&self, name: &str) -> Result<Service> {
        let state = self.inner.open()?;
        state.services.get(name).cloned().ok_or_else(|| anyhow!("the bed has no service `{name}`"))
    }

    /// Ends the bed and says what could not be cleaned up. Dropping it does the same, and prints that.
    pub fn end(self) -> Result<()> {
        self.inner.tear_down()
    }

    /// Stays until a signal comes, which counts as success (exit code 0) from `announce` on: whoever reads that may send one at once.
    pub fn stay(&self, announce: impl FnOnce()) -> ! {
        signals::expect_one();
        announce();
        loop {
            std::thread::park();
        }
    }

    fn make_node(&self) -> Result<()> {
        let mut state = self.inner.open()?;
        let cgroup = self.inner.cgroup.join("node");
        make_cgroup(&self.pods_cgroup())?;
        make_cgroup(&cgroup)?;
        let data = Arc::new(HostData {
            name: "node".to_owned(),
            netns: format!("{}node", leftovers::prefix(&self.inner.id)),
            v4: NODE_V4,
            v6: NODE_V6,
            cgroup,
            users: None,
        });
        host::make_node(&data)?;
        state.hosts.insert(data.name.clone(), data);
        Ok(())
    }

    fn add_host(
        &self,
        state: &mut State,
        name: &str,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        cgroup: PathBuf,
        first_uid: Option<u32>,
    ) -> Result<Host> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(!name.is_empty() && name.chars().all(fits), "`{name}` is no name for a host: a-z, 0-9 and -");
        ensure!(!state.hosts.contains_key(name), "the bed has a host `{name}` already");
        let node = state.hosts.get("node").cloned().ok_or_else(|| anyhow!("the bed has no node"))?;
        make_cgroup(&cgroup)?;
        let netns = format!("{}{name}", leftovers::prefix(&self.inner.id));
        let failed = || format!("cannot make the host `{name}`");
        let users = match first_uid {
            None => None,
            Some(uid) => {
                let first = self.inner.start(state, None, &users::first_process(&cgroup))?;
                Some(users::set_up(&first, &netns, uid).with_context(failed)?)
            }
        };
        let data = Arc::new(HostData { name: name.to_owned(), netns, v4, v6, cgroup, users });
        host::join(&node, &data, state.hosts.len()).with_context(failed)?;
        state.hosts.insert(name.to_owned(), Arc::clone(&data));
        Ok(Host::new(&self.inner, &data))
    }

    fn program(&self, state: &State) -> Result<()> {
        let node = state.hosts.get("node").ok_or_else(|| anyhow!("the bed has no node"))?;
        let services: Vec<&Service> = state.services.values().collect();
        host::program(node, &services)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = self.inner.tear_down() {
            eprintln!("the test bed {} left something behind: {error:#}", self.inner.id);
        }
    }
}

impl Ends for Inner {
    fn title(&self) -> String {
        format!("bed {}", self.id)
    }

    fn end_for_good(&self) -> Result<()> {
        let mut state = lock(&self.state);
        let result = self.tear_down_locked(&mut state);
        std::mem::forget(state);
        result
    }
}

impl Inner {
    /// The state, for as long as the bed has not been ended.
    fn open(&self) -> Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        if state.ended {
            bail!("the test bed {} has been ended", self.id);
        }
        Ok(state)
    }

    /// Starts a process that ends with the bed.
    fn spawn(&self, host: Option<&HostData>, cmd: &Cmd) -> Result<Proc> {
        self.start(&mut *self.open()?, host, cmd)
    }

    fn start(&self, state: &mut State, host: Option<&HostData>, cmd: &Cmd) -> Result<Proc> {
        state.spawned += 1;
        let place = host.map_or("machine", |host| &host.name);
        let log = self.dir.join(format!("{place}-{}.log", state.spawned));
        let running = Arc::new(process::start(host, cmd, log)?);
        state.running.push(Arc::clone(&running));
        Ok(Proc::new(running))
    }

    fn tear_down(&self) -> Result<()> {
        self.tear_down_locked(&mut lock(&self.state))
    }

    /// Ends and removes everything; a second time does nothing.
    fn tear_down_locked(&self, state: &mut State) -> Result<()> {
        if std::mem::replace(&mut state.ended, true) {
            return Ok(());
        }
        for running in state.running.drain(..) {
            running.kill();
        }
        leftovers::remove(&self.id, &self.cgroup)
    }
}

fn make_cgroup(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the cgroup {}", path.display()))
}
