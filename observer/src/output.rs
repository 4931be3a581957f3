//! Writes the results so that at every moment, also after an error or a crash, the output directory holds the whole of either
//! the earlier results or the new ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

const GRAPH: &str = "graph.json";
const SIDECARS: &str = "sidecars";
/// What tells a Sidecar of ours from one that somebody put there.
const OURS: &str = "app.kubernetes.io/managed-by";

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A file or directory cannot be written.
    #[error("cannot write {path}; the earlier results are unchanged")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory that would be replaced holds a file that Sidescope did not write.
    #[error(
        "{path} was not written by Sidescope, and the directory that holds it would be replaced: move it away or choose another \
         --out"
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
}

/// The results: the graph, and the Sidecars by their path below `sidecars/`.
#[derive(Clone, Debug)]
pub struct Results {
    /// Text of `graph.json`.
    pub graph: String,
    /// Texts of the Sidecars.
    pub sidecars: BTreeMap<PathBuf, String>,
}

/// Checks that results can be written to `out` later on.
///
/// # Errors
/// See [`OutputError`].
pub fn check(out: &Path) -> Result<(), OutputError> {
    fs::create_dir_all(out).map_err(|source| OutputError::Write { path: out.to_owned(), source })?;
    only_ours(&out.join(SIDECARS))?;
    staging(out).map(drop)
}

/// Replaces `graph.json` and `sidecars/` in `out`.
///
/// # Errors
/// See [`OutputError`]; the earlier results are whole then.
pub fn write(out: &Path, results: &Results) -> Result<(), OutputError> {
    check(out)?;
    let staging = staging(out)?;
    let staged_sidecars = staging.path().join(SIDECARS);
    fs::create_dir(&staged_sidecars)
        .map_err(|source| OutputError::Write { path: staged_sidecars.clone(), source })?;
    for (path, text) in &results.sidecars {
        write_file(&staged_sidecars.join(path), text)?;
    }
    let staged_graph = staging.path().join(GRAPH);
    write_file(&staged_graph, &results.graph)?;

    let sidecars = out.join(SIDECARS);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OutputError::Write { path, source }
    };
    if !sidecars.exists() {
        fs::create_dir(&sidecars).map_err(failed(&sidecars))?;
    }
    exchange(&staged_sidecars, &sidecars).map_err(failed(&sidecars))?;
    if let Err(source) = fs::rename(&staged_graph, out.join(GRAPH)) {
        // Both or none.
        exchange(&staged_sidecars, &sidecars).map_err(failed(&sidecars))?;
        return Err(OutputError::Write { path: out.join(GRAPH), source });
    }
    Ok(())
}

/// A directory on the same file system, removed when it is dropped.
fn staging(out: &Path) -> Result<tempfile::TempDir, OutputError> {
    tempfile::Builder::new()
        .prefix(".sidescope-")
        .tempdir_in(out)
        .map_err(|source| OutputError::Write { path: out.to_owned(), source })
}

fn write_file(path: &Path, text: &str) -> Result<(), OutputError> {
    let write = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| OutputError::Write { path: path.to_owned(), source })
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)?)
}

fn only_ours(dir: &Path) -> Result<(), OutputError> {
    let failed = |path: &Path, source| OutputError::Write { path: path.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|err| failed(dir, err))?,
    };
    for entry in entries {
        let path = entry.map_err(|err| failed(dir, err))?.path();
        if path.is_dir() {
            only_ours(&path)?;
        } else {
            let text = fs::read(&path).map_err(|err| failed(&path, err))?;
            if !text.windows(OURS.len()).any(|window| window == OURS.as_bytes()) {
                return Err(OutputError::NotOurs { path });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(graph: &str, files: &[(&str, &str)]) -> Results {
        Results {
            graph: graph.to_owned(),
            sidecars: files
                .iter()
                .map(|(path, text)| (PathBuf::from(path), format!("# {OURS}: sidescope\n{text}")))
                .collect(),
        }
    }

    fn tree(dir: &Path) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(next) = dirs.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let name = path.strip_prefix(dir).unwrap().display().to_string();
                    files.insert(name, fs::read_to_string(path).unwrap());
                }
            }
        }
        files
    }

    #[test]
    fn new_results_replace_all_of_the_earlier_ones_and_nothing_else() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("note.txt"), "mine").unwrap();
        write(out.path(), &results("1", &[("a/x.yaml", "old"), ("b/y.yaml", "old")])).unwrap();
        write(out.path(), &results("2", &[("a/x.yaml", "new")])).unwrap();
        let files = tree(out.path());
        assert_eq!(files.keys().collect::<Vec<_>>(), ["graph.json", "note.txt", "sidecars/a/x.yaml"]);
        assert_eq!(files["graph.json"], "2");
        assert!(files["sidecars/a/x.yaml"].ends_with("new"));
    }

    #[test]
    fn an_error_leaves_the_earlier_results_whole() {
        let out = tempfile::tempdir().unwrap();
        write(out.path(), &results("1", &[("a/x.yaml", "old")])).unwrap();
        let before = tree(out.path());
        // A file where a directory is needed.
        let err = write(out.path(), &results("2", &[("a", "file"), ("a/x.yaml", "new")]));
        assert!(matches!(err, Err(OutputError::Write { .. })), "{err:?}");
        assert_eq!(tree(out.path()), before);
        // The last step fails: the graph cannot be replaced by a file.
        fs::remove_file(out.path().join(GRAPH)).unwrap();
        fs::create_dir(out.path().join(GRAPH)).unwrap();
        let before = tree(out.path());
        assert!(write(out.path(), &results("2", &[("a/x.yaml", "new")])).is_err());
        assert_eq!(tree(out.path()), before);
    }

    #[test]
    fn files_of_somebody_else_are_not_replaced() {
        let out = tempfile::tempdir().unwrap();
        fs::create_dir_all(out.path().join("sidecars/default")).unwrap();
        let theirs = out.path().join("sidecars/default/handmade.yaml");
        fs::write(&theirs, "kind: Sidecar\n").unwrap();
        let err = write(out.path(), &results("1", &[]));
        assert!(matches!(err, Err(OutputError::NotOurs { path }) if path == theirs));
        assert!(theirs.exists());
    }
}
