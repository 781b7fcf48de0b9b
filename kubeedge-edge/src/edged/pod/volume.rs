//! Where the files come from that a Pod's containers see.

use super::{FieldReference, ResourceFieldReference};
use crate::edged::quantity::Quantity;

members! {
    Volume {
        name: String,
        config_map: Option<ConfigMapSource>,
        secret: Option<SecretSource>,
        projected: Option<Projected>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardApi>,
        empty_dir: Option<EmptyDir>,
        host_path: Option<HostPath>,
        persistent_volume_claim: Option<ClaimSource>,
        ephemeral: Option<EphemeralSource>,
    }
    ConfigMapSource {
        name: String,
        items: Option<Vec<KeyToPath>>,
        default_mode: Option<u32>,
        optional: bool,
    }
    SecretSource {
        secret_name: String,
        items: Option<Vec<KeyToPath>>,
        default_mode: Option<u32>,
        optional: bool,
    }
    /// `secret` inside a projected volume says `name` where a Secret volume says `secretName`.
    ProjectedSecret {
        name: String,
        items: Option<Vec<KeyToPath>>,
        optional: bool,
    }
    Projected {
        sources: Vec<ProjectedSource>,
        default_mode: Option<u32>,
    }
    ProjectedSource {
        config_map: Option<ConfigMapSource>,
        secret: Option<ProjectedSecret>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardApi>,
        service_account_token: Option<TokenSource>,
    }
    /// A token of the Pod's service account.
    TokenSource {
        path: String,
        audience: String,
        expiration_seconds: Option<i64>,
    }
    DownwardApi {
        items: Vec<DownwardItem>,
        default_mode: Option<u32>,
    }
    DownwardItem {
        path: String,
        mode: Option<u32>,
        field_ref: Option<FieldReference>,
        resource_field_ref: Option<ResourceFieldReference>,
    }
    KeyToPath {
        key: String,
        path: String,
        mode: Option<u32>,
    }
    EmptyDir {
        medium: String,
        size_limit: Option<Quantity>,
    }
    ClaimSource {
        claim_name: String,
        read_only: bool,
    }
    /// A claim that is made with the Pod and named after both.
    EphemeralSource {}
    HostPath {
        path: String,
        #[serde(rename = "type")]
        kind: String,
    }
}
