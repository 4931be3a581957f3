//! Writes the results so that after an error the output directory holds the whole of the earlier ones, and that `sidecars/` and
//! `graph.json` each are whole at every moment, also after a crash.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::model::graph::Graph;
use crate::model::sidecar::{MANAGED_BY, Sidecar};

const GRAPH: &str = "graph.json";
const SIDECARS: &str = "sidecars";
/// Beginning of the names of directories in which results are prepared.
const STAGING: &str = ".sidescope-";

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A file or directory cannot be written.
    #[error(
        "cannot write {path}; the earlier results are unchanged. Choose an --out that root can write to, on a file system such as ext4, \
         xfs, btrfs or tmpfs, with room left"
    )]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The place for the results is none.
    #[error("{path} is a file: --out takes a directory")]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// The directory that would be replaced holds a file that Sidescope did not write.
    #[error(
        "{path} was not written by Sidescope and would be replaced: move it away or choose another --out"
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

/// Checks that results can be written to `out` later on, as far as that can be told. Removes what an earlier process that was killed
/// left half-written.
///
/// # Errors
/// See [`OutputError`].
pub fn check(out: &Path) -> Result<(), OutputError> {
    if out.is_file() {
        return Err(OutputError::NotADirectory { path: out.to_owned() });
    }
    fs::create_dir_all(out).map_err(failed(out))?;
    only_ours(out)?;
    for entry in fs::read_dir(out).map_err(failed(out))? {
        let path = entry.map_err(failed(out))?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(STAGING.as_bytes())) {
            fs::remove_dir_all(&path).map_err(failed(&path))?;
        }
    }
    // Not every file system can exchange two directories.
    let staging = staging(out)?;
    let (a, b) = (staging.path().join("a"), staging.path().join("b"));
    for dir in [&a, &b] {
        fs::create_dir(dir).map_err(failed(dir))?;
    }
    exchange(&a, &b).map_err(failed(out))
}

/// Replaces `graph.json` and `sidecars/` in `out`.
///
/// # Errors
/// See [`OutputError`]; the earlier results are whole then.
pub fn write(out: &Path, results: &Results) -> Result<(), OutputError> {
    only_ours(out)?;
    let staging = staging(out)?;
    let staged_sidecars = staging.path().join(SIDECARS);
    fs::create_dir(&staged_sidecars).map_err(failed(&staged_sidecars))?;
    for (path, text) in &results.sidecars {
        write_file(&staged_sidecars.join(path), text)?;
    }
    let staged_graph = staging.path().join(GRAPH);
    write_file(&staged_graph, &results.graph)?;

    publish(out, &staged_sidecars, &staged_graph)
}

/// Puts what was prepared in the place of the earlier results: both or none.
fn publish(out: &Path, staged_sidecars: &Path, staged_graph: &Path) -> Result<(), OutputError> {
    let sidecars = out.join(SIDECARS);
    if !sidecars.exists() {
        fs::create_dir(&sidecars).map_err(failed(&sidecars))?;
    }
    exchange(staged_sidecars, &sidecars).map_err(failed(&sidecars))?;
    let graph = out.join(GRAPH);
    if let Err(err) = fs::rename(staged_graph, &graph) {
        exchange(staged_sidecars, &sidecars).map_err(failed(&sidecars))?;
        return Err(failed(&graph)(err));
    }
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OutputError + use<> {
    let path = path.to_owned();
    move |source| OutputError::Write { path, source }
}

/// A directory on the same file system, removed when it is dropped.
fn staging(out: &Path) -> Result<tempfile::TempDir, OutputError> {
    tempfile::Builder::new()
        .prefix(STAGING)
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

/// Whether all that would be replaced was written by us.
fn only_ours(out: &Path) -> Result<(), OutputError> {
    let graph = out.join(GRAPH);
    match fs::read_to_string(&graph) {
        Ok(text) if serde_json::from_str::<Graph>(&text).is_ok() => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Ok(_) => return Err(OutputError::NotOurs { path: graph }),
        Err(err) => return Err(failed(&graph)(err)),
    }
    only_our_sidecars(&out.join(SIDECARS))
}

fn only_our_sidecars(dir: &Path) -> Result<(), OutputError> {
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed(dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(failed(dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(failed(&path))?;
        if kind.is_dir() {
            only_our_sidecars(&path)?;
        } else if !kind.is_file() || !is_our_sidecar(&fs::read_to_string(&path).map_err(failed(&path))?) {
            return Err(OutputError::NotOurs { path });
        }
    }
    Ok(())
}

fn is_our_sidecar(text: &str) -> bool {
    let (label, us) = MANAGED_BY;
    serde_saphyr::from_str::<Sidecar>(text)
        .is_ok_and(|sidecar| sidecar.metadata.labels.get(label).is_some_and(|value| value == us))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph that can be told from others by a number.
    fn graph(number: u64) -> String {
        let losses = BTreeMap::from([("test".to_owned(), number)]);
        serde_json::to_string(&Graph { losses, ..Graph::default() }).unwrap()
    }

    fn sidecar(manager: &str, host: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata:\n  name: a\n  namespace: a\n  labels:\n    {}: {manager}\n\
             spec:\n  workloadSelector:\n    labels:\n      app: a\n  egress:\n  - hosts:\n    - \"*/{host}\"\n",
            MANAGED_BY.0
        )
    }

    fn results(number: u64, files: &[(&str, &str)]) -> Results {
        let files = files.iter();
        Results {
            graph: graph(number),
            sidecars: files.map(|(path, host)| (PathBuf::from(path), sidecar(MANAGED_BY.1, host))).collect(),
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
        write(out.path(), &results(1, &[("a/x.yaml", "old"), ("b/y.yaml", "old")])).unwrap();
        write(out.path(), &results(2, &[("a/x.yaml", "new")])).unwrap();
        let files = tree(out.path());
        assert_eq!(files.keys().collect::<Vec<_>>(), ["graph.json", "note.txt", "sidecars/a/x.yaml"]);
        assert_eq!(files["graph.json"], graph(2));
        assert!(files["sidecars/a/x.yaml"].contains("*/new"));
    }

    #[test]
    fn an_error_leaves_the_earlier_results_whole() {
        let out = tempfile::tempdir().unwrap();
        write(out.path(), &results(1, &[("a/x.yaml", "old")])).unwrap();
        let before = tree(out.path());
        // A file where a directory is needed.
        let err = write(out.path(), &results(2, &[("a", "file"), ("a/x.yaml", "new")]));
        assert!(matches!(err, Err(OutputError::Write { .. })), "{err:?}");
        assert_eq!(tree(out.path()), before);
        // The last step fails: a directory is where the graph has to go.
        let staged = out.path().join("staged");
        fs::create_dir(&staged).unwrap();
        fs::remove_file(out.path().join(GRAPH)).unwrap();
        fs::create_dir(out.path().join(GRAPH)).unwrap();
        let before = tree(out.path());
        assert!(publish(out.path(), &staged, &staged.join(GRAPH)).is_err());
        assert_eq!(tree(out.path()), before);
    }

    #[test]
    fn what_somebody_else_wrote_is_not_replaced() {
        let helm = sidecar("Helm", "a");
        let commented = format!("# {}: {}\nkind: Sidecar\n", MANAGED_BY.0, MANAGED_BY.1);
        for (path, text) in [
            ("sidecars/default/handmade.yaml", "kind: Sidecar\n"),
            ("sidecars/helm.yaml", &helm),
            ("sidecars/commented.yaml", &commented),
            ("graph.json", "{\"nodes\": []}"),
            ("graph.json", "not JSON"),
        ] {
            let out = tempfile::tempdir().unwrap();
            let theirs = out.path().join(path);
            fs::create_dir_all(theirs.parent().unwrap()).unwrap();
            fs::write(&theirs, text).unwrap();
            let before = tree(out.path());
            for result in [check(out.path()), write(out.path(), &results(1, &[]))] {
                assert!(
                    matches!(&result, Err(OutputError::NotOurs { path }) if *path == theirs),
                    "{path}: {result:?}"
                );
            }
            assert_eq!(tree(out.path()), before);
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let out = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir(out.path().join(SIDECARS)).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), out.path().join("sidecars/link")).unwrap();
        assert!(matches!(check(out.path()), Err(OutputError::NotOurs { .. })));
    }

    #[test]
    fn what_a_killed_process_left_is_swept() {
        let out = tempfile::tempdir().unwrap();
        fs::create_dir_all(out.path().join(".sidescope-old/sidecars")).unwrap();
        check(out.path()).unwrap();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
}
