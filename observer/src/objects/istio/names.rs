//! Names as Istio's objects have them: looser than those of the registry, and checked all the same.

use serde::Deserialize;

use crate::model::names::{Host, Namespace};

/// To which namespaces an object is visible.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum ExportTo {
    /// `*`: to all.
    All,
    /// `.`: to its own.
    Own,
    /// `~`: to none.
    None,
    /// To this one.
    Namespace(Namespace),
}

impl TryFrom<String> for ExportTo {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "*" => Ok(Self::All),
            "." => Ok(Self::Own),
            "~" => Ok(Self::None),
            _ => Namespace::new(text.as_str())
                .map(Self::Namespace)
                .map_err(|err| format!("{text:?} {err}; expected *, ., ~ or a namespace")),
        }
    }
}

/// What a route is bound to: the word `mesh`, or a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(from = "String")]
pub enum GatewayRef {
    /// All sidecars.
    Mesh,
    /// Some gateway; which does not matter here.
    Other,
}

impl From<String> for GatewayRef {
    fn from(text: String) -> Self {
        if text == "mesh" { Self::Mesh } else { Self::Other }
    }
}

/// Name of a provider: printable ASCII, at most 253 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ProviderName(pub String);

impl TryFrom<String> for ProviderName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() <= 253 && text.chars().all(|c| c.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is no name of a provider"))
        }
    }
}

/// A service as the mesh's configuration names one: `host`, or `namespace/host` where several namespaces have the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ServiceHost {
    /// The namespace that is named.
    pub namespace: Option<Namespace>,
    /// The host, which may be short.
    pub host: Host,
}

impl TryFrom<String> for ServiceHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (namespace, host) = match text.split_once('/') {
            Some((namespace, host)) => {
                let namespace = Namespace::new(namespace).map_err(|err| format!("{namespace:?} {err}"))?;
                (Some(namespace), host)
            }
            None => (None, text.as_str()),
        };
        Host::new(host).map(|host| Self { namespace, host }).map_err(|err| format!("{host:?} {err}"))
    }
}
