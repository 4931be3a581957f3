//! Istio's and the Gateway API's objects that plans are made from, as they are now.

use std::collections::BTreeMap;

use super::{Kind, ObjectKey, Watched};
use crate::objects::Object;
use crate::objects::istio::{
    AuthorizationPolicySpec, CONFIG_MAP, ConfigMap, DestinationRuleSpec, GatewayRouteSpec, GatewaySpec,
    MESH_KEY, MeshConfig, PeerAuthenticationSpec, SidecarSpec, TelemetrySpec, VirtualServiceSpec,
};
use crate::services::WrongField;

/// The objects as they were read.
#[derive(Debug, Default)]
pub struct Configuration {
    /// VirtualServices.
    pub virtual_services: Kept<Object<VirtualServiceSpec>>,
    /// HTTPRoutes.
    pub http_routes: Kept<Object<GatewayRouteSpec>>,
    /// GRPCRoutes.
    pub grpc_routes: Kept<Object<GatewayRouteSpec>>,
    /// TCPRoutes.
    pub tcp_routes: Kept<Object<GatewayRouteSpec>>,
    /// TLSRoutes.
    pub tls_routes: Kept<Object<GatewayRouteSpec>>,
    /// DestinationRules.
    pub destination_rules: Kept<Object<DestinationRuleSpec>>,
    /// Sidecars, whoever made them.
    pub sidecars: Kept<Object<SidecarSpec>>,
    /// Istio's Gateways.
    pub gateways: Kept<Object<GatewaySpec>>,
    /// PeerAuthentications.
    pub peer_authentications: Kept<Object<PeerAuthenticationSpec>>,
    /// AuthorizationPolicies.
    pub authorization_policies: Kept<Object<AuthorizationPolicySpec>>,
    /// Telemetries.
    pub telemetries: Kept<Object<TelemetrySpec>>,
    /// The configuration of each revision of istiod, by the name of its ConfigMap: `istio`, or `istio-REVISION`. One that cannot be
    /// read is not here, see [`super::Registry::unreadable`].
    pub meshes: Kept<MeshConfig>,
}

/// The objects of one kind.
#[derive(Debug)]
pub struct Kept<T> {
    /// Each with the listing that named it.
    objects: BTreeMap<ObjectKey, (T, u32)>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new() }
    }
}

impl<T> Kept<T> {
    /// All, in the order of their namespaces and names.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &T)> {
        self.objects.iter().map(|(key, (object, _))| (key, object))
    }

    fn put(&mut self, key: ObjectKey, object: T, listing: u32) {
        self.objects.insert(key, (object, listing));
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
    }

    fn end_list(&mut self, listing: u32) {
        self.objects.retain(|_, (_, of)| *of == listing);
    }
}

/// Calls this for the objects of the kind.
macro_rules! of_kind {
    ($configuration:expr, $kind:expr, $kept:ident => $call:expr) => {
        match $kind {
            Kind::VirtualService => {
                let $kept = &mut $configuration.virtual_services;
                $call
            }
            Kind::HttpRoute => {
                let $kept = &mut $configuration.http_routes;
                $call
            }
            Kind::GrpcRoute => {
                let $kept = &mut $configuration.grpc_routes;
                $call
            }
            Kind::TcpRoute => {
                let $kept = &mut $configuration.tcp_routes;
                $call
            }
            Kind::TlsRoute => {
                let $kept = &mut $configuration.tls_routes;
                $call
            }
            Kind::DestinationRule => {
                let $kept = &mut $configuration.destination_rules;
                $call
            }
            Kind::Sidecar => {
                let $kept = &mut $configuration.sidecars;
                $call
            }
            Kind::Gateway => {
                let $kept = &mut $configuration.gateways;
                $call
            }
            Kind::PeerAuthentication => {
                let $kept = &mut $configuration.peer_authentications;
                $call
            }
            Kind::AuthorizationPolicy => {
                let $kept = &mut $configuration.authorization_policies;
                $call
            }
            Kind::Telemetry => {
                let $kept = &mut $configuration.telemetries;
                $call
            }
            Kind::MeshConfig => {
                let $kept = &mut $configuration.meshes;
                $call
            }
            _ => {}
        }
    };
}

impl Configuration {
    /// Takes over an object; one of a kind that is no part of this is passed over.
    pub(super) fn apply(&mut self, object: Watched, listing: u32) -> Result<(), WrongField> {
        let key = ObjectKey::of(object.metadata());
        match object {
            Watched::VirtualService(object) => self.virtual_services.put(key, object, listing),
            Watched::Route(Kind::HttpRoute, object) => self.http_routes.put(key, object, listing),
            Watched::Route(Kind::GrpcRoute, object) => self.grpc_routes.put(key, object, listing),
            Watched::Route(Kind::TcpRoute, object) => self.tcp_routes.put(key, object, listing),
            Watched::Route(_, object) => self.tls_routes.put(key, object, listing),
            Watched::DestinationRule(object) => self.destination_rules.put(key, object, listing),
            Watched::Sidecar(object) => self.sidecars.put(key, object, listing),
            Watched::Gateway(object) => self.gateways.put(key, object, listing),
            Watched::PeerAuthentication(object) => self.peer_authentications.put(key, object, listing),
            Watched::AuthorizationPolicy(object) => self.authorization_policies.put(key, object, listing),
            Watched::Telemetry(object) => self.telemetries.put(key, object, listing),
            Watched::MeshConfig(object) => self.apply_mesh(key, &object, listing)?,
            _ => {}
        }
        Ok(())
    }

    /// Other ConfigMaps of istiod's namespace are no configuration of a mesh.
    fn apply_mesh(&mut self, key: ObjectKey, object: &ConfigMap, listing: u32) -> Result<(), WrongField> {
        let rest = key.name.strip_prefix(CONFIG_MAP);
        let text = object.data.get(MESH_KEY);
        let Some(text) = text.filter(|_| rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
        else {
            self.meshes.remove(&key);
            return Ok(());
        };
        match MeshConfig::parse(text) {
            Ok(mesh) => {
                self.meshes.put(key, mesh, listing);
                Ok(())
            }
            Err(err) => {
                // What it said before may be the opposite.
                self.meshes.remove(&key);
                Err(WrongField { field: format!("data.{MESH_KEY}"), problem: err.to_string() })
            }
        }
    }

    pub(super) fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        of_kind!(self, kind, kept => kept.remove(key));
    }

    pub(super) fn end_list(&mut self, kind: Kind, listing: u32) {
        of_kind!(self, kind, kept => kept.end_list(listing));
    }
}
