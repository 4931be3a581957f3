//! Programs and maps that outlive the agent: pinned in the BPF file system, so that nothing goes unseen while no agent runs.
//!
//! `<bpffs>/sidescope/<layout>/` holds a pin for each map and each link of one layout. A folder has another name until it is
//! whole, so one that bears the name of this build's layout is whole, unless somebody removed something from it. It is trusted because
//! nobody else can write there, see `folder`; whoever can, can lead the agent to maps and programs of their own.

mod error;
mod folder;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sidescope_common::names;

use super::link::Link;
use super::other::pinned;
pub use super::other::{Drained, Other};
use super::times::{self, TIMES, Times};
use super::told::{self, TOLD};
use super::{HOOKS, OBJECT, ProbeError, Probes, Programs, Settings, attached, layout};
pub use error::PinError;
use error::failed;
pub use folder::FOLDER;
use folder::{Held, make_dir, root_in};
pub(super) use folder::{Kind, entries_of, kind_of};

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

    pub(super) fn is_set(self, dir: &Path) -> Result<bool, PinError> {
        Ok(kind_of(&self.path(dir))? == Some(Kind::Folder))
    }

    pub(super) fn set(self, dir: &Path) -> Result<(), PinError> {
        make_dir(&self.path(dir))
    }
}

/// The folder of all layouts, held by this process alone.
pub struct Pins {
    root: Held,
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
    /// The ids of programs of Sidescope on the cgroup that no pin here holds, as far as the kernel lets this process see.
    pub foreign: io::Result<Vec<u32>>,
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
    dir: Held,
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
    /// When there is no BPF file system that this process may write, or when the folder is not ours alone.
    pub fn hold(bpffs: &Path) -> Result<Option<Self>, PinError> {
        let root = root_in(bpffs)?;
        make_dir(&root)?;
        let held = Held::open(root)?.map(Held::lock).transpose()?.flatten();
        Ok(held.map(|root| Self { root }))
    }

    /// Adopts what is pinned, or loads, attaches and pins what is not. Whatever was attached before stays so.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn take_over(&self, cgroup: &File, settings: &Settings) -> Result<Taken, PinError> {
        let name = layout::name(settings, OBJECT);
        let dir = self.root().join(&name);
        let cgroup_id = cgroup.metadata().map_err(failed("look at the cgroup of", &dir))?.ino();
        let mut refused = None;
        let mut found = None;
        if kind_of(&dir)?.is_some() {
            match adopt(&dir, cgroup_id, settings) {
                Ok(probes) => found = Some(probes),
                Err(reason) => {
                    self.set_aside(&name)?;
                    refused = Some(reason);
                }
            }
        }
        let (mut probes, adopted) = match found {
            Some(probes) => {
                let (listed, reported) = (Mark::Listed.is_set(&dir)?, Mark::Reported.is_set(&dir)?);
                (probes, Some(Adopted { listed, reported }))
            }
            None => (self.make(&name, cgroup, settings)?, None),
        };
        let others: Vec<Other> = folders_of(self.root())?
            .filter(|other| *other != name)
            .map(|name| Other::found(self.root().join(&name), name))
            .collect::<Result<_, _>>()?;
        // What cannot be read of others was not watched by them either.
        let readable = others.iter().filter(|other| layout::is_readable(&other.name));
        for earlier in readable.filter_map(|other| times_of(&other.dir, cgroup_id)) {
            probes.go_on_after(earlier)?;
        }
        let own = [&dir].into_iter().chain(others.iter().map(|other| &other.dir));
        let foreign = attached::foreign(cgroup, &own.filter_map(|dir| program_of(dir)).collect());
        let dir = Held::open(dir.clone())?.ok_or(PinError::Gone { path: dir })?;
        Ok(Taken { probes, layout: Layout { dir, name }, adopted, others, foreign, refused })
    }

    /// Loads, attaches and pins under a name of its own, and gives it the right one when it is whole.
    fn make(&self, name: &str, cgroup: &File, settings: &Settings) -> Result<Probes, PinError> {
        let unfinished = layout::unfinished(name);
        let dir = self.root().join(&unfinished);
        if kind_of(&dir)?.is_some() {
            self.set_aside(&unfinished)?;
        }
        make_dir(&dir)?;
        let made = load_pinned(&dir, cgroup, settings).map_err(PinError::from).and_then(|probes| {
            fs::rename(&dir, self.root().join(name)).map_err(failed("rename", &dir))?;
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
        let mut number = 1;
        while kind_of(&self.root().join(layout::left(name, number)))?.is_some() {
            number += 1;
        }
        let from = self.root().join(name);
        fs::rename(&from, self.root().join(layout::left(name, number))).map_err(failed("rename", &from))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root.path
    }

    /// Whether what is pinned in the folder of this name is still what this process took, or else somebody has put others in its place.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn holds(&self, layout: &Layout) -> Result<bool, PinError> {
        Ok(self.root.is_in_place()? && layout.dir.is_in_place()?)
    }

    /// Whether the pins that hold the programs of a layout to their cgroup are still there.
    ///
    /// # Errors
    /// [`PinError::Gone`] where they are not.
    pub fn check(&self, layout: &Layout) -> Result<(), PinError> {
        let mut whole = self.holds(layout)?;
        for name in HOOKS {
            whole = whole && kind_of(&layout.dir.path.join(name))? == Some(Kind::Pin);
        }
        if whole { Ok(()) } else { Err(PinError::Gone { path: layout.dir.path.clone() }) }
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
    /// Leaves a mark for the next agent.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn mark(&self, mark: Mark) -> Result<(), PinError> {
        mark.set(&self.dir.path)
    }

    /// Takes a mark away that holds no longer.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn unmark(&self, mark: Mark) -> Result<(), PinError> {
        let path = mark.path(&self.dir.path);
        match fs::remove_dir(&path) {
            Err(err) if err.kind() != ErrorKind::NotFound => Err(failed("remove", &path)(err)),
            _ => Ok(()),
        }
    }
}

/// Takes all programs off and removes all that is pinned, unless an agent runs. Where nothing is, nothing is done.
///
/// # Errors
/// When an agent runs, when the folder is not ours alone, or when something cannot be removed.
pub fn purge(bpffs: &Path) -> Result<Vec<Removed>, PinError> {
    let root = root_in(bpffs)?;
    let Some(held) = Held::open(root.clone())? else { return Ok(Vec::new()) };
    let held = held.lock()?.ok_or_else(|| PinError::Held { path: root.clone() })?;
    let removed = entries_of(&root)?
        .into_iter()
        .map(|(name, _)| remove_folder(&root.join(name)))
        .collect::<Result<_, _>>()?;
    fs::remove_dir(&root).map_err(failed("remove", &root))?;
    drop(held);
    Ok(removed)
}

/// The names of layouts, whole or not.
fn folders_of(root: &Path) -> Result<impl Iterator<Item = String>, PinError> {
    let folders = entries_of(root)?.into_iter().filter(|(_, kind)| *kind == Kind::Folder);
    // Other names than these no agent gives.
    Ok(folders.filter_map(|(name, _)| name.into_string().ok()))
}

/// The program that sees the IPv4 connects for this layout.
fn program_of(dir: &Path) -> Option<u32> {
    open_link(&dir.join(names::CONNECT4)).ok().flatten()?.program
}

/// The link that is pinned here; `None` if it is something else.
fn open_link(path: &Path) -> Result<Option<Link>, PinError> {
    match kind_of(path)? {
        // The kernel would follow a symbolic link.
        Some(Kind::Pin) => Link::open(path).map_err(failed("open", path)),
        _ => Ok(None),
    }
}

/// Loads and attaches programs that pins in this folder hold: maps first, so that an edge has its place from the first one on.
fn load_pinned(dir: &Path, cgroup: &File, settings: &Settings) -> Result<Probes, ProbeError> {
    let mut programs = Programs::load(settings)?;
    programs.pin_maps(&MAPS, dir)?;
    told::make(dir)?;
    let mut probes = Probes::open(settings, |name| Ok(programs.take(name)))?;
    programs.connect_parts()?;
    programs.attach_pinned(cgroup, dir)?;
    times::make(dir)?;
    probes.go_on(dir)?;
    Ok(probes)
}

/// Opens what another agent has pinned here, if it is whole and attached to this cgroup; else says what is wrong with it.
fn adopt(dir: &Path, cgroup: u64, settings: &Settings) -> Result<Probes, String> {
    let with_causes = |err: &dyn std::error::Error| super::other::with_causes(err);
    let pins = match kind_of(dir) {
        Ok(Some(Kind::Folder)) => entries_of(dir).map_err(|err| with_causes(&err))?,
        Ok(_) => return Err("it is no folder".to_owned()),
        Err(err) => return Err(with_causes(&err)),
    };
    let pins: BTreeSet<_> =
        pins.into_iter().filter(|(_, kind)| *kind == Kind::Pin).map(|(name, _)| name).collect();
    for name in MAPS.into_iter().chain([TOLD, TIMES]) {
        if !pins.contains(std::ffi::OsStr::new(name)) {
            return Err(format!("the map {name} is missing"));
        }
    }
    are_attached(dir, cgroup)?;
    let opened = Probes::open(settings, |name| pinned(dir, name)).and_then(|mut probes| {
        probes.go_on(dir)?;
        Ok(probes)
    });
    opened.map_err(|err| with_causes(&err))
}

/// Whether all programs of a folder are on the cgroup; else says which are not.
fn are_attached(dir: &Path, cgroup: u64) -> Result<(), String> {
    for name in HOOKS {
        match open_link(&dir.join(name)) {
            Ok(Some(link)) if link.cgroup == Some(cgroup) => {}
            Ok(Some(_)) => return Err(format!("{name} is attached to another cgroup, or to none")),
            Ok(None) => return Err(format!("{name} is no link")),
            Err(err) => return Err(super::other::with_causes(&err)),
        }
    }
    Ok(())
}

/// From when on the programs of a folder have watched the pods, if all of them still do.
fn times_of(dir: &Path, cgroup: u64) -> Option<Times> {
    are_attached(dir, cgroup).ok()?;
    times::open(dir).and_then(|times| times::read(&times)).ok()
}

/// Takes all programs off that are pinned in a folder, at once, and removes these pins; returns how many.
pub(super) fn remove_links(dir: &Path) -> Result<usize, PinError> {
    let mut links = 0;
    for (name, _) in entries_of(dir)? {
        let path = dir.join(name);
        if let Some(link) = open_link(&path)? {
            link.detach().map_err(failed("detach", &path))?;
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            links += 1;
        }
    }
    Ok(links)
}

/// Removes a layout, its links first and its edges next; or what else is in its place.
fn remove_folder(dir: &Path) -> Result<Removed, PinError> {
    let remove = failed("remove", dir);
    if kind_of(dir)? != Some(Kind::Folder) {
        fs::remove_file(dir).map_err(remove)?;
        return Ok(Removed { dir: dir.to_owned(), links: 0, maps: 1 });
    }
    let links = remove_links(dir)?;
    let mut entries = entries_of(dir)?;
    entries.sort_by_key(|(name, _)| MAPS.iter().position(|map| map == name).unwrap_or(MAPS.len()));
    let mut maps = 0;
    for (name, kind) in entries {
        let path = dir.join(name);
        if kind == Kind::Folder {
            // Follows no links either.
            fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        } else {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            maps += 1;
        }
    }
    fs::remove_dir(dir).map_err(remove)?;
    Ok(Removed { dir: dir.to_owned(), links, maps })
}
