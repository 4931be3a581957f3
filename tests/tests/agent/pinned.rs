//! What the kernel holds for an agent: asked of the kernel, not of the agent.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{MapInfo, MapType};
use aya::programs::links::PinnedLink;
use aya::programs::{loaded_links, loaded_programs};
use nix::mount::{MsFlags, mount};
use sidescope_tests::{Bed, wait_for};

use crate::scene::SOON;

/// The BPF file system of a bed.
pub(crate) struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    pub(crate) fn of(bed: &Bed) -> Result<Self> {
        Ok(Self { path: bed.bpffs()? })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read_only(&self) -> Result<()> {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, self.path(), None::<&str>, flags, None::<&str>).context("cannot mount it again")
    }

    /// Where all layouts are.
    pub(crate) fn root(&self) -> PathBuf {
        self.path().join("sidescope")
    }

    /// A folder of this name as an agent makes it, among the layouts.
    pub(crate) fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root().join(name);
        DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
        Ok(folder)
    }

    /// The names of the layouts.
    pub(crate) fn layouts(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.root())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// The one layout that there is.
    pub(crate) fn layout(&self) -> Result<PathBuf> {
        let layouts = self.layouts()?;
        anyhow::ensure!(layouts.len() == 1, "not one layout: {layouts:?}");
        Ok(self.root().join(&layouts[0]))
    }

    fn pins(&self) -> Result<Vec<PathBuf>> {
        let mut pins = Vec::new();
        for layout in self.layouts()? {
            for entry in fs::read_dir(self.root().join(layout))? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    pins.push(entry.path());
                }
            }
        }
        Ok(pins)
    }

    /// The ids of all links on a cgroup, by whatever they are held: a pin here, or any process.
    pub(crate) fn links_on(&self, cgroup: &Path) -> Result<BTreeSet<u32>> {
        let held: Vec<PinnedLink> =
            self.pins()?.iter().map(PinnedLink::from_pin).collect::<Result<_, _>>()?;
        let wanted = format!("cgroup_id:\t{}", fs::metadata(cgroup)?.ino());
        let mut links = BTreeSet::new();
        for process in fs::read_dir("/proc")? {
            // Processes and their files may be gone by now.
            for file in fs::read_dir(process?.path().join("fdinfo")).into_iter().flatten().flatten() {
                let info = fs::read_to_string(file.path()).unwrap_or_default();
                if info.lines().any(|line| line == wanted) {
                    let id = info.lines().find_map(|line| line.strip_prefix("link_id:"));
                    links.insert(id.context("a link without an id")?.trim().parse()?);
                }
            }
        }
        drop(held);
        Ok(links)
    }

    /// All that the kernel has loaded for what is pinned here.
    pub(crate) fn objects(&self, cgroup: &Path) -> Result<Objects> {
        let links = self.links_on(cgroup)?;
        let pinned: Vec<MapInfo> =
            self.pins()?.iter().filter_map(|pin| MapInfo::from_pin(pin).ok()).collect();
        let mut maps: BTreeSet<u32> = pinned.iter().map(MapInfo::id).collect();
        let is_array = |map: &&MapInfo| matches!(map.map_type(), Ok(MapType::ProgramArray));
        let arrays = pinned.iter().filter(is_array).map(MapInfo::id).collect();
        let mut programs = BTreeSet::new();
        for program in loaded_programs().flatten() {
            let used = program.map_ids()?.unwrap_or_default();
            if used.iter().any(|map| maps.contains(map)) {
                programs.insert(program.id());
                maps.extend(used);
            }
        }
        Ok(Objects { links, programs, maps, arrays })
    }
}

/// Ids of what is loaded.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) links: BTreeSet<u32>,
    pub(crate) programs: BTreeSet<u32>,
    pub(crate) maps: BTreeSet<u32>,
    /// Those of the maps that are program arrays.
    arrays: BTreeSet<u32>,
}

impl Objects {
    /// Waits until the kernel has freed all of them, which it does in its own time.
    ///
    /// To look at a map is to hold it for a moment. A program array that is looked at while the kernel is about to empty it stays for
    /// ever (seen on 6.12): so maps come after the programs, which go when it has been emptied, and it comes last.
    pub(crate) fn gone(&self) -> Result<()> {
        wait_for("the end of links", SOON, || {
            Ok((!loaded_links().flatten().any(|link| self.links.contains(&link.id()))).then_some(()))
        })?;
        wait_for("the end of programs", SOON, || {
            let mut left =
                loaded_programs().flatten().filter(|program| self.programs.contains(&program.id()));
            Ok(left.next().is_none().then_some(()))
        })?;
        for map in self.maps.difference(&self.arrays).chain(&self.arrays) {
            wait_for(&format!("the end of map {map}"), SOON, || {
                Ok(MapInfo::from_id(*map).is_err().then_some(()))
            })?;
        }
        Ok(())
    }
}
