//! Objects whose definitions aren't Kubernetes' own, which its types don't have: only the fields that are used here, so
//! that a misspelt one is found.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object of one of them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Foreign<T> {
    api_version: String,
    kind: String,
    metadata: Value,
    pub(super) spec: T,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PodMonitoring {
    selector: LabelSelector,
    pub(super) endpoints: Vec<ScrapeEndpoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScrapeEndpoint {
    pub(super) port: String,
    pub(super) path: String,
    interval: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    gateway_class_name: String,
    listeners: Vec<GatewayListener>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GatewayListener {
    name: String,
    protocol: String,
    port: u16,
    tls: GatewayTls,
    allowed_routes: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GatewayTls {
    mode: String,
    certificate_refs: Vec<Reference>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GrpcRoute {
    parent_refs: Vec<Reference>,
    pub(super) rules: Vec<GrpcRouteRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GrpcRouteRule {
    matches: Vec<GrpcRouteMatch>,
    pub(super) backend_refs: Vec<Reference>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrpcRouteMatch {
    method: GrpcMethod,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrpcMethod {
    service: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reference {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DestinationRule {
    pub(super) host: String,
    traffic_policy: TrafficPolicy,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TrafficPolicy {
    connection_pool: ConnectionPool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectionPool {
    http: HttpSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpSettings {
    use_client_protocol: bool,
}

impl DestinationRule {
    /// Whether a gateway speaks HTTP/2 to the host when its client does.
    pub(super) fn uses_client_protocol(&self) -> bool {
        self.traffic_policy.connection_pool.http.use_client_protocol
    }
}
