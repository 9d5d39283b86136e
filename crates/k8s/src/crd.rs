//! From the types' derived definitions to what is installed: all served versions, and schemas that a real API server
//! takes as structural.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{external_workload, mesh, policy, service_profile};

/// One served version of a kind.
struct Version {
    name: &'static str,
    /// What the API server tells whoever still uses it.
    deprecated: Option<&'static str>,
}

const fn served(name: &'static str) -> Version {
    Version {
        name,
        deprecated: None,
    }
}

const fn deprecated(name: &'static str, warning: &'static str) -> Version {
    Version {
        name,
        deprecated: Some(warning),
    }
}

/// The definitions of all our kinds, in the order in which they are installed.
///
/// All versions of a kind share one schema, and nothing converts between them: what is written in one version is kept
/// when it is read and written back in another.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let server_v1alpha1 =
        "policy.linkerd.io/v1alpha1 Server is deprecated; use policy.linkerd.io/v1beta3 Server";
    let server_v1beta1 =
        "policy.linkerd.io/v1beta1 Server is deprecated; use policy.linkerd.io/v1beta3 Server";
    let server_authorization_v1alpha1 = "policy.linkerd.io/v1alpha1 ServerAuthorization is deprecated; use policy.linkerd.io/v1beta1 ServerAuthorization";
    let mut rate_limit = define::<policy::HttpLocalRateLimitPolicy>(&[served("v1alpha1")]);
    // A rate limit may be written without a spec. It then limits nothing, and readers still see a spec.
    default_property(&mut rate_limit, "spec", json!({}));
    let mut mesh = define::<mesh::Mesh>(&[served("v1alpha1")]);
    // Without it kstatus takes an object that nobody has looked at for a healthy one.
    default_property(
        &mut mesh,
        "status",
        json!({"observedGeneration": mesh::NEVER_OBSERVED}),
    );

    vec![
        define::<policy::AuthorizationPolicy>(&[served("v1alpha1"), served("v1beta3")]),
        define::<policy::EgressNetwork>(&[served("v1alpha1")]),
        define::<external_workload::ExternalWorkload>(&[served("v1alpha1"), served("v1beta1")]),
        rate_limit,
        define::<policy::HttpRoute>(&[
            served("v1alpha1"),
            served("v1beta1"),
            served("v1beta2"),
            served("v1beta3"),
        ]),
        mesh,
        define::<policy::MeshTLSAuthentication>(&[served("v1alpha1"), served("v1beta3")]),
        define::<policy::NetworkAuthentication>(&[served("v1alpha1")]),
        define::<policy::ServerAuthorization>(&[
            deprecated("v1alpha1", server_authorization_v1alpha1),
            served("v1beta1"),
        ]),
        define::<policy::Server>(&[
            deprecated("v1alpha1", server_v1alpha1),
            deprecated("v1beta1", server_v1beta1),
            served("v1beta2"),
            served("v1beta3"),
        ]),
        define::<service_profile::ServiceProfile>(&[served("v1alpha1"), served("v1alpha2")]),
    ]
}

/// The definition of `K`, whose own version is the one that is stored, with all its served versions.
fn define<K>(versions: &[Version]) -> CustomResourceDefinition
where
    K: CustomResourceExt,
{
    let mut crd = K::crd();
    let own = crd
        .spec
        .versions
        .pop()
        .expect("a derived definition has one version");
    let schema = own
        .schema
        .as_ref()
        .and_then(|schema| schema.open_api_v3_schema.clone())
        .expect("a derived definition has a schema");
    let schema = structural(schema);
    crd.spec.versions = versions
        .iter()
        .map(|Version { name, deprecated }| {
            let mut version = CustomResourceDefinitionVersion {
                name: (*name).to_owned(),
                served: true,
                storage: *name == own.name,
                deprecated: deprecated.map(|_| true),
                deprecation_warning: deprecated.map(str::to_owned),
                ..own.clone()
            };
            if let Some(validation) = &mut version.schema {
                validation.open_api_v3_schema = Some(schema.clone());
            }
            version
        })
        .collect();
    crd.spec.conversion = Some(CustomResourceConversion {
        strategy: "None".to_owned(),
        webhook: None,
    });
    crd.spec.names.list_kind = Some(format!("{}List", crd.spec.names.kind));
    let labels = crd.metadata.labels.get_or_insert_default();
    // Flux replaces `${…}` in what it applies, and schemas may contain it.
    labels.insert(
        "kustomize.toolkit.fluxcd.io/substitute".to_owned(),
        "disabled".to_owned(),
    );
    crd
}

/// Gives a top-level property a default, in all versions, and no longer requires it.
fn default_property(crd: &mut CustomResourceDefinition, property: &str, default: Value) {
    for version in &mut crd.spec.versions {
        let schema = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut());
        let Some(schema) = schema else { continue };
        if let Some(required) = &mut schema.required {
            required.retain(|name| name != property);
        }
        // The API server drops an empty list, and would differ from what was applied for ever.
        schema.required = schema.required.take().filter(|required| !required.is_empty());
        if let Some(property) = schema
            .properties
            .as_mut()
            .and_then(|properties| properties.get_mut(property))
        {
            property.default = Some(
                k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON(default.clone()),
            );
        }
    }
}

/// Removes from a derived schema what structural schemas do not know, and `nullable`.
///
/// Our programs leave absent fields out. To take `null` for absent would let objects differ that mean the same, and
/// would make `has()` in validation rules true for it.
fn structural(schema: JSONSchemaProps) -> JSONSchemaProps {
    let mut value = serde_json::to_value(schema).expect("a schema serialises");
    clean(&mut value);
    serde_json::from_value(value).expect("a schema stays one")
}

fn clean(value: &mut Value) {
    let Value::Object(schema) = value else { return };
    schema.remove("nullable");
    schema.remove("title");
    if schema
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|format| format.starts_with("uint"))
    {
        schema.remove("format");
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(clean);
    }
    for list in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(parts)) = schema.get_mut(list) {
            parts.iter_mut().for_each(clean);
        }
    }
    for part in ["items", "additionalProperties", "not"] {
        if let Some(part) = schema.get_mut(part) {
            clean(part);
        }
    }
}
