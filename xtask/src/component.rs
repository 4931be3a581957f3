//! The real components of the test bed: which there are, at which version, and where they lie.
//!
//! Belongs to `xtask`, which builds them, and by path to the crate of the tests, which runs them. Standard library only.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::cache_dir::cache_dir;

/// What is pinned together in one folder of `tests/components`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    Etcd,
    Kubernetes,
    Istiod,
    Envoy,
}

/// Istio's custom resource definitions, which come with istiod.
pub(crate) const ISTIO_CRDS: &str = "crd-all.gen.yaml";

impl Component {
    /// The name of its folders, in the repository and in the cache.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Kubernetes => "kubernetes",
            Self::Istiod => "istiod",
            Self::Envoy => "envoy",
        }
    }

    /// The version that is built where the machine brings none.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Etcd => required(include_str!("../../tests/components/etcd/go.mod")),
            Self::Kubernetes => required(include_str!("../../tests/components/kubernetes/go.mod")),
            Self::Istiod => required(include_str!("../../tests/components/istiod/go.mod")),
            Self::Envoy => pinned(include_str!("../../tests/components/envoy/requirements.txt")),
        }
    }

    /// The names of its programs and other files.
    pub(crate) fn files(self) -> &'static [&'static str] {
        match self {
            Self::Etcd => &["etcd"],
            Self::Kubernetes => &["kube-apiserver", "kube-controller-manager", "kube-scheduler"],
            Self::Istiod => &["pilot-discovery", ISTIO_CRDS],
            Self::Envoy => &["envoy"],
        }
    }

    /// Its folder in the cache, which need not be there.
    pub(crate) fn dir(self) -> Option<PathBuf> {
        let name = format!("{}-{}", self.name(), self.version());
        Some(cache_dir()?.join("components").join(name))
    }

    /// One of its files: from the folder that KUBEBUILDER_ASSETS names, from PATH, or from the cache.
    pub(crate) fn find(self, file: &str) -> Option<PathBuf> {
        let assets = env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        first_with(file, assets.into_iter().chain(env::split_paths(&path)).chain(self.dir()))
    }
}

fn first_with(file: &str, dirs: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    dirs.map(|dir| dir.join(file)).find(|path: &PathBuf| Path::is_file(path))
}

/// The version of the first module that a go.mod requires, which is the one that the component is built from.
fn required(go_mod: &'static str) -> &'static str {
    let version = go_mod.lines().find_map(|line| line.strip_prefix("require ")?.split_whitespace().nth(1));
    version.expect("the files in tests/components begin with one module on a line of its own")
}

/// The version of the package that a list of Python packages begins with.
fn pinned(requirements: &'static str) -> &'static str {
    let version = requirements.split_whitespace().next().and_then(|first| first.split_once("=="));
    version.expect("the list in tests/components names one version").1
}
