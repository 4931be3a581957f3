//! Programs and maps that outlive the agent: pinned in the BPF file system, so that nothing goes unseen while no agent runs.
//!
//! `<bpffs>/sidescope/<layout>/` holds a pin for each map and each link of one layout. A folder has another name until it is
//! whole, so one that bears the name of this build's layout is whole, unless somebody removed something from it.

mod error;

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use sidescope_common::names;

use super::link::Link;
use super::other::pinned;
pub use super::other::{Drained, Other};
use super::{HOOKS, OBJECT, ProbeError, Probes, Programs, Settings, layout};
pub use error::PinError;
use error::failed;

/// The folder of all layouts, in the BPF file system.
pub const FOLDER: &str = "sidescope";
/// All maps that programs share. The edge set is the first to go: where it is missing, it was read.
const MAPS: [&str; 14] = [
    names::EDGES,
    names::EVENTS,
    names::COUNTERS,
    names::LOSSES,
    names::HOSTS,
    names::SOURCES,
    names::CGROUPS,
    names::OLDER,
    names::OLDER_PORTS,
    names::PROXY_UIDS,
    names::PARTS,
    names::SCRATCH,
    names::SEARCHES,
    names::RESOLVERS,
];

/// What an agent leaves for the next one beside the pins: empty folders, since the file system holds nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// All connections from before the programs have been listed.
    Listed,
    /// It has reported all that it had read.
    Reported,
}

impl Mark {
    fn path(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Listed => "listed",
            Self::Reported => "reported",
        })
    }

    pub(super) fn is_set(self, dir: &Path) -> bool {
        self.path(dir).exists()
    }
}

/// The folder of all layouts, held by this process alone.
pub struct Pins {
    root: PathBuf,
    _lock: File,
}

/// What the agent goes on with.
pub struct Taken {
    /// The maps of the programs that are attached now.
    pub probes: Probes,
    /// Where they are pinned.
    pub layout: Layout,
    /// Set where another agent had attached them.
    pub adopted: Option<Adopted>,
    /// Other layouts, which are still attached: see [`Other::drain`].
    pub others: Vec<Other>,
    /// Why what bears the name of the own layout was not adopted.
    pub refused: Option<String>,
}

/// What the agent before this one has left undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// See [`Mark::Listed`].
    pub listed: bool,
    /// See [`Mark::Reported`].
    pub reported: bool,
}

/// The folder of the own layout.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    /// Its name.
    pub name: String,
}

/// What was removed of one layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its folder.
    pub dir: PathBuf,
    /// Programs that were taken off.
    pub links: usize,
    /// Other pins.
    pub maps: usize,
}

impl Pins {
    /// Takes the folder below `bpffs`; makes it where there is none. `None`: another process holds it now.
    ///
    /// # Errors
    /// When there is no BPF file system that this process may write.
    pub fn hold(bpffs: &Path) -> Result<Option<Self>, PinError> {
        let root = folder_in(bpffs)?;
        make_dir(&root)?;
        lock(root)
    }

    /// Adopts what is pinned, or loads, attaches and pins what is not. Whatever was attached before stays so.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn take_over(&self, cgroup: &File, settings: &Settings) -> Result<Taken, PinError> {
        let name = layout::name(settings, OBJECT);
        let dir = self.root.join(&name);
        let cgroup_id = cgroup.metadata().map_err(failed("look at the cgroup of", &dir))?.ino();
        let mut refused = None;
        let mut found = None;
        if dir.exists() {
            match adopt(&dir, cgroup_id, settings) {
                Ok(probes) => found = Some(probes),
                Err(reason) => {
                    self.set_aside(&name)?;
                    refused = Some(reason);
                }
            }
        }
        let (probes, adopted) = match found {
            Some(probes) => {
                let adopted =
                    Adopted { listed: Mark::Listed.is_set(&dir), reported: Mark::Reported.is_set(&dir) };
                (probes, Some(adopted))
            }
            None => (self.make(&name, cgroup, settings)?, None),
        };
        let others = entries_of(&self.root)?.into_iter().filter(|other| *other != name);
        let others = others.map(|name| Other { dir: self.root.join(&name), name });
        let others = others.filter(|other| other.dir.is_dir()).collect();
        Ok(Taken { probes, layout: Layout { dir, name }, adopted, others, refused })
    }

    /// Loads, attaches and pins under a name of its own, and gives it the right one when it is whole.
    fn make(&self, name: &str, cgroup: &File, settings: &Settings) -> Result<Probes, PinError> {
        let unfinished = layout::unfinished(name);
        let dir = self.root.join(&unfinished);
        if dir.exists() {
            self.set_aside(&unfinished)?;
        }
        make_dir(&dir)?;
        let made = load_pinned(&dir, cgroup, settings).map_err(PinError::from).and_then(|probes| {
            fs::rename(&dir, self.root.join(name)).map_err(failed("rename", &dir))?;
            Ok(probes)
        });
        if made.is_err() {
            // Nothing stays attached that nobody reads. What cannot be removed now, the next agent removes.
            remove_folder(&dir).ok();
        }
        made
    }

    /// Gives a folder another name, so that there is room for a new one.
    fn set_aside(&self, name: &str) -> Result<(), PinError> {
        let mut free = (1..).map(|number| self.root.join(layout::left(name, number)));
        let to = free.find(|path| !path.exists()).expect("there are fewer folders than numbers");
        let from = self.root.join(name);
        fs::rename(&from, to).map_err(failed("rename", &from))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes a layout that is of no more use.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, other: &Other) -> Result<(), PinError> {
        remove_folder(&other.dir).map(drop)
    }
}

impl Layout {
    /// Whether the pins that hold the programs to their cgroup are still there.
    pub fn is_pinned(&self) -> bool {
        HOOKS.iter().all(|name| self.dir.join(name).exists())
    }

    /// Leaves a mark for the next agent.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn mark(&self, mark: Mark) -> Result<(), PinError> {
        make_dir(&mark.path(&self.dir))
    }

    /// Takes a mark away that holds no longer.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn unmark(&self, mark: Mark) -> Result<(), PinError> {
        let path = mark.path(&self.dir);
        match fs::remove_dir(&path) {
            Err(err) if err.kind() != ErrorKind::NotFound => Err(failed("remove", &path)(err)),
            _ => Ok(()),
        }
    }
}

/// Takes all programs off and removes all that is pinned, unless an agent runs. Where nothing is, nothing is done.
///
/// # Errors
/// When an agent runs, or something cannot be removed.
pub fn purge(bpffs: &Path) -> Result<Vec<Removed>, PinError> {
    let root = folder_in(bpffs)?;
    if !root.exists() {
        return Ok(Vec::new());
    }
    let held = lock(root.clone())?.ok_or_else(|| PinError::Held { path: root.clone() })?;
    let removed = entries_of(&root)?
        .into_iter()
        .map(|name| remove_folder(&root.join(name)))
        .collect::<Result<_, _>>()?;
    fs::remove_dir(&root).map_err(failed("remove", &root))?;
    drop(held);
    Ok(removed)
}

/// Loads and attaches programs that pins in this folder hold: maps first, so that an edge has its place from the first one on.
fn load_pinned(dir: &Path, cgroup: &File, settings: &Settings) -> Result<Probes, ProbeError> {
    let mut programs = Programs::load(settings)?;
    programs.pin_maps(&MAPS, dir)?;
    let probes = Probes::open(settings, |name| Ok(programs.take(name)))?;
    programs.connect_parts()?;
    programs.attach_pinned(cgroup, dir)?;
    Ok(probes)
}

/// Opens what another agent has pinned here, if it is whole and attached to this cgroup; else says what is wrong with it.
fn adopt(dir: &Path, cgroup: u64, settings: &Settings) -> Result<Probes, String> {
    for name in MAPS {
        if !dir.join(name).exists() {
            return Err(format!("the map {name} is missing"));
        }
    }
    for name in HOOKS {
        match Link::open(&dir.join(name)) {
            Ok(Some(link)) if link.cgroup == Some(cgroup) => {}
            Ok(Some(_)) => return Err(format!("{name} is attached to another cgroup, or to none")),
            Ok(None) => return Err(format!("{name} is no link")),
            Err(err) => return Err(format!("{name} cannot be opened: {err}")),
        }
    }
    Probes::open(settings, |name| pinned(dir, name)).map_err(|err| super::other::with_causes(&err))
}

/// The folder of all layouts in a BPF file system.
fn folder_in(bpffs: &Path) -> Result<PathBuf, PinError> {
    match statfs(bpffs) {
        Ok(info) if info.filesystem_type() == BPF_FS_MAGIC => Ok(bpffs.join(FOLDER)),
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => Err(PinError::NoBpffs { path: bpffs.to_owned() }),
        Err(errno) => Err(failed("look at", bpffs)(errno.into())),
    }
}

/// Locks the folder. `None`: another process has it, or has just removed it.
fn lock(root: PathBuf) -> Result<Option<Pins>, PinError> {
    let lock = match File::open(&root) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("open", &root))?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(err)) => return Err(failed("lock", &root)(err)),
    }
    let held = lock.metadata().map_err(failed("look at", &root))?.ino();
    let is_there = fs::metadata(&root).is_ok_and(|meta| meta.ino() == held);
    Ok(is_there.then_some(Pins { root, _lock: lock }))
}

/// Makes a folder that only its owner may look into. One that is there is as good.
fn make_dir(path: &Path) -> Result<(), PinError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(err) if err.kind() != ErrorKind::AlreadyExists => Err(failed("make", path)(err)),
        _ => Ok(()),
    }
}

/// Names in a folder, in the order of the alphabet.
pub(super) fn entries_of(dir: &Path) -> Result<Vec<String>, PinError> {
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(failed("list", dir))?;
    names.sort_unstable();
    Ok(names)
}

/// Takes all programs off that are pinned in a folder, at once, and removes these pins; returns how many.
pub(super) fn remove_links(dir: &Path) -> Result<usize, PinError> {
    let mut links = 0;
    for name in entries_of(dir)? {
        let path = dir.join(name);
        if path.is_dir() {
            continue;
        }
        if let Some(link) = Link::open(&path).map_err(failed("open", &path))? {
            link.detach().map_err(failed("detach", &path))?;
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            links += 1;
        }
    }
    Ok(links)
}

/// Removes a layout, its links first and its edges next.
fn remove_folder(dir: &Path) -> Result<Removed, PinError> {
    let remove = failed("remove", dir);
    if !dir.is_dir() {
        fs::remove_file(dir).map_err(remove)?;
        return Ok(Removed { dir: dir.to_owned(), links: 0, maps: 1 });
    }
    let links = remove_links(dir)?;
    let mut names = entries_of(dir)?;
    names.sort_by_key(|name| MAPS.iter().position(|map| map == name).unwrap_or(MAPS.len()));
    let mut maps = 0;
    for name in names {
        let path = dir.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        } else {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            maps += 1;
        }
    }
    fs::remove_dir(dir).map_err(remove)?;
    Ok(Removed { dir: dir.to_owned(), links, maps })
}
