//! Reads the inventory from a file or a directory.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::inventory::{Builder, Inventory, InventoryError};

/// Files of a directory that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// What makes an inventory.
const KUBECTL: &str = "kubectl get \
     namespaces,pods,services,endpointslices,deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs -A -o yaml";

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A file or directory cannot be read.
    #[error("cannot read the inventory {path}: {reason}; make one with: {KUBECTL}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The directory holds nothing to read.
    #[error(
        "the inventory {path} is a directory without a .yaml, .yml or .json file; put one there with: {KUBECTL} > {path}/mesh.yaml"
    )]
    NoFiles {
        /// The directory.
        path: PathBuf,
    },
    /// Without a pod nothing that is seen has a source.
    #[error(
        "the inventory {path} holds no Pod, and every connection is told by the address of a pod; make one with: {KUBECTL}"
    )]
    NoPods {
        /// The file or directory.
        path: PathBuf,
    },
    /// An object is wrong.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

/// Reads `path`, or all YAML and JSON files directly in it, in the order of their names.
///
/// # Errors
/// See [`InputError`]; the first one found.
pub fn read_inventory(path: &Path) -> Result<Inventory, InputError> {
    let mut builder = Builder::default();
    for file in files(path)? {
        let text = fs::read_to_string(&file)
            .map_err(|source| InputError::Read { path: file.clone(), reason: source })?;
        builder.add_text(&file.display().to_string(), &text)?;
    }
    let inventory = builder.build()?;
    if inventory.mesh.pods.is_empty() {
        return Err(InputError::NoPods { path: path.to_owned() });
    }
    Ok(inventory)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, InputError> {
    let read = |source| InputError::Read { path: path.to_owned(), reason: source };
    if !fs::metadata(path).map_err(read)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = fs::read_dir(path)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(read)?;
    files.retain(|file| {
        file.is_file() && file.extension().is_some_and(|ext| EXTENSIONS.iter().any(|known| ext == *known))
    });
    files.sort();
    if files.is_empty() {
        return Err(InputError::NoFiles { path: path.to_owned() });
    }
    Ok(files)
}
