//! Folders in the BPF file system: whose they are, what is in them, and who holds them. Nothing here follows a symbolic link but the
//! path that the user gave.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, FileType, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::geteuid;

use super::PinError;
use super::error::failed;

/// The folder of all layouts, in the BPF file system.
pub const FOLDER: &str = "sidescope";

/// Bits of a mode that let others in, or let them write.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;
/// Only the owner of a file may rename or remove it.
const STICKY: u32 = 0o1000;

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::probes) enum Kind {
    Folder,
    /// A regular file: what a pin is.
    Pin,
    /// A symbolic link, or what else no agent makes.
    Foreign,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Self {
        match kind {
            kind if kind.is_dir() => Self::Folder,
            kind if kind.is_file() => Self::Pin,
            _ => Self::Foreign,
        }
    }
}

/// What stands at this path itself. `None`: nothing does, which is not said of what may not be looked at.
pub(in crate::probes) fn kind_of(path: &Path) -> Result<Option<Kind>, PinError> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found.file_type().into())),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        Err(err) => Err(failed("look at", path)(err)),
    }
}

/// What is in a folder, in the order of the alphabet.
pub(in crate::probes) fn entries_of(dir: &Path) -> Result<Vec<(OsString, Kind)>, PinError> {
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    let entries = entries.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name(), entry.file_type()?.into()))
    });
    let mut entries = entries.collect::<io::Result<Vec<(OsString, Kind)>>>().map_err(failed("list", dir))?;
    entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

/// Makes a folder that only its owner may look into. Something may be there already.
pub(super) fn make_dir(path: &Path) -> Result<(), PinError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(err) if err.kind() != ErrorKind::AlreadyExists => Err(failed("make", path)(err)),
        _ => Ok(()),
    }
}

/// A folder that is kept open: another one of the same name is another one.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) path: PathBuf,
    file: File,
}

impl Held {
    /// `None`: there is nothing.
    pub(super) fn open(path: PathBuf) -> Result<Option<Self>, PinError> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => Ok(Some(Self { path, file })),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
            Err(err) => match fs::symlink_metadata(&path) {
                Ok(found) if !found.is_dir() => Err(no_folder(path, found.file_type())),
                _ => Err(failed("open", &path)(err)),
            },
        }
    }

    /// Whether it is still what stands at its path.
    pub(super) fn is_in_place(&self) -> Result<bool, PinError> {
        let held = self.metadata()?;
        match fs::symlink_metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(false),
            Err(err) => Err(failed("look at", &self.path)(err)),
        }
    }

    fn metadata(&self) -> Result<Metadata, PinError> {
        self.file.metadata().map_err(failed("look at", &self.path))
    }

    /// What is in it, others could have put there, unless it is ours alone.
    fn check_owner(&self) -> Result<(), PinError> {
        let found = self.metadata()?;
        let (owner, user) = (found.uid(), geteuid().as_raw());
        let wrong = if owner != user {
            format!("belongs to user {owner}, and this is user {user}")
        } else if found.mode() & OTHERS != 0 {
            format!("is open to other users (mode {:04o})", found.mode() & 0o7777)
        } else {
            return Ok(());
        };
        Err(PinError::NotOurs { path: self.path.clone(), wrong })
    }

    /// `None`: another process has it, or has just removed it.
    pub(super) fn lock(self) -> Result<Option<Self>, PinError> {
        self.check_owner()?;
        match self.file.try_lock() {
            Ok(()) => Ok(self.is_in_place()?.then_some(self)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(err)) => Err(failed("lock", &self.path)(err)),
        }
    }
}

fn no_folder(path: PathBuf, found: FileType) -> PinError {
    let wrong = if found.is_symlink() { "is a symbolic link" } else { "is no folder" };
    PinError::NotOurs { path, wrong: wrong.to_owned() }
}

/// The path of the folder of all layouts in a BPF file system, in which nobody else may put another one in its place.
pub(super) fn root_in(bpffs: &Path) -> Result<PathBuf, PinError> {
    match statfs(bpffs) {
        Ok(info) if info.filesystem_type() == BPF_FS_MAGIC => {}
        Ok(_) => return Err(PinError::NoBpffs { path: bpffs.to_owned() }),
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return Err(PinError::NoDirectory { path: bpffs.to_owned() });
        }
        Err(errno) => return Err(failed("look at", bpffs)(errno.into())),
    }
    let found = fs::metadata(bpffs).map_err(failed("look at", bpffs))?;
    let owner = found.uid();
    let wrong = if owner != 0 && owner != geteuid().as_raw() {
        format!("it belongs to user {owner}")
    } else if found.mode() & OTHERS_WRITE != 0 && found.mode() & STICKY == 0 {
        format!("its mode is {:04o}, without the sticky bit", found.mode() & 0o7777)
    } else {
        return Ok(bpffs.join(FOLDER));
    };
    Err(PinError::Exposed { path: bpffs.to_owned(), wrong })
}

/// Where the file system is mounted that a path is in, or its nearest parent that exists.
pub(super) fn mount_point(path: &Path) -> PathBuf {
    let Some(existing) = path.ancestors().find_map(|path| fs::canonicalize(path).ok()) else {
        return path.to_owned();
    };
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let within = device(&existing);
    let last = existing.ancestors().take_while(|path| device(path) == within).last();
    last.map_or_else(|| existing.clone(), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_is_in_a_folder_is_told_without_following_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::write(at("b"), "").unwrap();
        symlink(at("a"), at("c")).unwrap();
        let expected = [("a", Kind::Folder), ("b", Kind::Pin), ("c", Kind::Foreign)];
        assert_eq!(
            entries_of(folder.path()).unwrap(),
            expected.map(|(name, kind)| (OsString::from(name), kind))
        );
        for (name, kind) in expected {
            assert_eq!(kind_of(&at(name)).unwrap(), Some(kind));
        }
        assert_eq!(kind_of(&at("d")).unwrap(), None);
        assert!(kind_of(&at("b").join("e")).is_err(), "it is not known to be absent");
    }

    #[test]
    fn only_a_folder_that_is_ours_alone_is_held_and_only_while_it_is_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        let hold = |name: &str| Held::open(folder.path().join(name)).and_then(|held| held.unwrap().lock());
        make_dir(&at("a")).unwrap();
        let held = hold("a").unwrap().unwrap();
        assert!(hold("a").unwrap().is_none(), "it is held");
        assert!(held.is_in_place().unwrap());
        fs::rename(at("a"), at("b")).unwrap();
        assert!(!held.is_in_place().unwrap());
        make_dir(&at("a")).unwrap();
        assert!(!held.is_in_place().unwrap(), "another one of this name");

        symlink(at("b"), at("c")).unwrap();
        fs::write(at("d"), "").unwrap();
        fs::set_permissions(at("b"), PermissionsExt::from_mode(0o750)).unwrap();
        for (name, wrong) in [("b", "(mode 0750)"), ("c", "symbolic link"), ("d", "no folder")] {
            let said = hold(name).unwrap_err().to_string();
            assert!(said.contains(wrong), "{said}");
        }
        assert!(Held::open(at("e")).unwrap().is_none());
    }

    #[test]
    fn a_mount_point_is_where_another_file_system_begins() {
        assert_eq!(mount_point(Path::new("/proc/self/no/such")), Path::new("/proc"));
        assert_eq!(mount_point(Path::new("/no/such")), Path::new("/"));
    }
}
