//! What the cluster has, and what it would make of each desired object.
//!
//! In goes what Git asks for and what was applied before; out comes [`Observed`]. Only reads: the API server is asked
//! for the live object and for a dry run of the apply, so that defaults, admission and conflicts are its own word and
//! not a guess. This module decides nothing.

pub mod fleet;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use heddle_mesh::{annotation, label};
use serde_json::{Value, json};

use crate::{
    cluster::{CONCURRENCY_MAX, Cluster, ClusterError, How, Kind},
    object::{self, Object, ObjectId, Stage},
    render::Rendered,
    rollout::Fleet,
};

/// How often an apply is tried again when another writer was quicker, and the pause before, longer each time.
const RACE_RETRIES: u32 = 3;
const RACE_PAUSE: Duration = Duration::from_millis(50);

/// The state of the cluster as far as a plan needs it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Each desired object that was looked at.
    pub desired: BTreeMap<ObjectId, Seen>,
    /// Objects that were applied before and are not desired any more.
    pub former: BTreeMap<ObjectId, Former>,
    /// Workloads and their pods; `None` when no rollout is to be planned.
    pub fleet: Option<Fleet>,
    /// What is missing of the mesh's root of trust.
    pub identity: Vec<String>,
}

/// A desired object, as the cluster sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub live: Option<Value>,
    pub trial: Trial,
}

/// What the API server says of applying an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Trial {
    /// It would become this.
    Would(Value),
    /// Other managers own fields that we want otherwise.
    Conflict(Vec<Conflict>),
    /// People changed fields of ours by hand: drift. Taking them back, as of this resource version, would give this.
    Edited {
        would: Value,
        by: Vec<Conflict>,
        resource_version: String,
    },
    /// It is refused.
    Rejected(Rejection),
    /// A field that cannot change would have to, and the object as desired could be created anew.
    Immutable(Rejection),
    /// The server does not know the kind; `promised` when a CRD in the same commit brings it.
    NoKind { promised: bool },
    /// The namespace is missing; `promised` when the same commit brings it.
    NoNamespace { promised: bool },
    /// The CRD that the object asks for is not installed.
    NoCrd(String),
    /// Only fields of it are ours, and it does not exist.
    Absent,
}

/// A field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Conflict {
    pub manager: String,
    pub field: String,
    /// Whether the field was changed by a person's tool, outside of any apply.
    pub by_hand: bool,
}

/// The API server's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub message: String,
    /// The first field at fault.
    pub field: Option<String>,
}

/// An object that was applied by an earlier revision.
#[derive(Clone, Debug)]
pub struct Former {
    pub live: Option<Value>,
    /// What would remain if we let go of our fields.
    pub released: Option<Value>,
}

/// Looks at the cluster. `dirty` chooses which desired objects are looked at; the others are known to be as desired.
///
/// # Errors
/// The API server does not answer.
pub async fn observe(
    cluster: &Cluster,
    rendered: &Rendered,
    inventory: &BTreeSet<ObjectId>,
    dirty: impl Fn(&Object) -> bool,
) -> Result<Observed, ClusterError> {
    let promised = Promised::of(rendered);
    if rendered.objects.iter().filter(|object| dirty(object)).count() > 0 {
        refresh_when_unknown(cluster, rendered).await?;
    }
    // Boxed: the compiler cannot see that an unboxed stream of borrowing futures may move between threads.
    let looks: Vec<_> = rendered
        .objects
        .iter()
        .filter(|object| dirty(object))
        .map(|object| look(cluster, object, &promised).boxed())
        .collect();
    let desired = stream::iter(looks)
        .buffer_unordered(CONCURRENCY_MAX)
        .try_collect()
        .await?;
    let wanted: BTreeSet<&ObjectId> = rendered.objects.iter().map(|object| &object.id).collect();
    let looks: Vec<_> = inventory
        .iter()
        .filter(|id| !wanted.contains(id))
        .map(|id| look_back(cluster, id.clone()).boxed())
        .collect();
    let former = stream::iter(looks)
        .buffer_unordered(CONCURRENCY_MAX)
        .try_collect()
        .await?;
    Ok(Observed {
        desired,
        former,
        fleet: None,
        identity: Vec::new(),
    })
}

/// Kinds and namespaces that the commit itself brings.
struct Promised {
    kinds: BTreeSet<(String, String)>,
    namespaces: BTreeSet<String>,
}

impl Promised {
    fn of(rendered: &Rendered) -> Self {
        let mut promised = Self {
            kinds: BTreeSet::new(),
            namespaces: BTreeSet::new(),
        };
        for object in &rendered.objects {
            if object.id.is("", "Namespace") {
                promised.namespaces.insert(object.id.name.clone());
            }
            if object.id.is("apiextensions.k8s.io", "CustomResourceDefinition") {
                let text = |path: &[&str]| object::text_at(&object.body, path).unwrap_or_default().to_owned();
                promised
                    .kinds
                    .insert((text(&["spec", "group"]), text(&["spec", "names", "kind"])));
            }
        }
        promised
    }
}

/// Somebody may have installed a CRD since discovery was cached.
async fn refresh_when_unknown(cluster: &Cluster, rendered: &Rendered) -> Result<(), ClusterError> {
    for object in &rendered.objects {
        let missing_crd = match &object.requires_crd {
            Some(crd) => !cluster.has_crd(crd).await,
            None => false,
        };
        if missing_crd || cluster.kind_for(object).await.is_none() {
            return cluster.refresh().await;
        }
    }
    Ok(())
}

async fn look(
    cluster: &Cluster,
    object: &Object,
    promised: &Promised,
) -> Result<(ObjectId, Seen), ClusterError> {
    let id = &object.id;
    let seen = |live, trial| Ok((id.clone(), Seen { live, trial }));
    if let Some(crd) = &object.requires_crd
        && !cluster.has_crd(crd).await
    {
        return seen(None, Trial::NoCrd(crd.clone()));
    }
    let Some(kind) = cluster.kind_for(object).await else {
        let promised = promised.kinds.contains(&(id.group.clone(), id.kind.clone()));
        return seen(None, Trial::NoKind { promised });
    };
    if kind.namespaced && id.namespace.is_empty() {
        let message = "the object has no namespace".to_owned();
        return seen(
            None,
            Trial::Rejected(Rejection {
                message,
                field: Some("metadata.namespace".into()),
            }),
        );
    }
    let live = cluster.get(&kind, id).await?;
    if live.is_none() && object.partial && !id.is("", "Namespace") {
        return seen(None, Trial::Absent);
    }
    let trial = match apply(cluster, &kind, id, &object.body, How::Dry).await {
        Ok(would) => Trial::Would(would),
        Err(error) => match judge(&error) {
            Some(Verdict::NoNamespace) => Trial::NoNamespace {
                promised: promised.namespaces.contains(&id.namespace),
            },
            Some(Verdict::Conflict(conflicts)) => {
                take_back(cluster, &kind, object, live.as_ref(), conflicts).await?
            }
            Some(Verdict::Immutable(rejection)) if could_be_recreated(cluster, &kind, object).await => {
                Trial::Immutable(rejection)
            }
            Some(Verdict::Immutable(rejection) | Verdict::Rejected(rejection)) => Trial::Rejected(rejection),
            None => return Err(error),
        },
    };
    seen(live, trial)
}

/// Applies, dry or not, and again when another writer was quicker: who installs CRDs meets the API server's own
/// controllers, which write their status in the same second.
///
/// # Errors
/// As [`Cluster::apply`].
pub(crate) async fn apply(
    cluster: &Cluster,
    kind: &Kind,
    id: &ObjectId,
    body: &Value,
    how: How,
) -> Result<Value, ClusterError> {
    let mut tries = 0;
    loop {
        match cluster.apply(kind, id, body, how).await {
            Err(error) if tries < RACE_RETRIES && is_race(&error) => {
                tries += 1;
                tokio::time::sleep(RACE_PAUSE * tries).await;
            }
            result => return result,
        }
    }
}

/// A 409 without a field at fault: another writer came between.
fn is_race(error: &ClusterError) -> bool {
    error.status().is_some_and(|status| status.code == 409) && judge(error).is_none()
}

/// Whether the object could be made if the old one were not there: tried under another name, dry.
async fn could_be_recreated(cluster: &Cluster, kind: &Kind, object: &Object) -> bool {
    if object.partial || matches!(object.stage, Stage::Definitions) {
        return false;
    }
    let mut body = object.body.clone();
    let name = format!("{}-trial", object.id.name);
    body["metadata"]["name"] = name.as_str().into();
    let id = ObjectId {
        name,
        ..object.id.clone()
    };
    cluster.create(kind, &id, &body, true).await.is_ok()
}

/// What an answer of the API server means.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Conflict(Vec<Conflict>),
    Immutable(Rejection),
    Rejected(Rejection),
    NoNamespace,
}

/// Tells what the object is to blame for from what the server is; `None` for the latter.
pub fn judge(error: &ClusterError) -> Option<Verdict> {
    let status = error.status()?;
    let causes = status
        .details
        .as_ref()
        .map(|details| details.causes.as_slice())
        .unwrap_or_default();
    let field = causes
        .iter()
        .map(|cause| cause.field.clone())
        .find(|field| !field.is_empty());
    let rejection = || Rejection {
        message: status.message.clone(),
        field: field.clone(),
    };
    match status.code {
        409 => {
            let conflicts: Vec<_> = causes
                .iter()
                .filter(|cause| cause.reason == "FieldManagerConflict")
                .map(|cause| conflict_of(&cause.message, &cause.field))
                .collect();
            // Another 409 is a race with another writer: try again.
            if conflicts.is_empty() {
                None
            } else {
                Some(Verdict::Conflict(conflicts))
            }
        }
        404 => match status.details.as_ref() {
            Some(details) if details.kind == "namespaces" => Some(Verdict::NoNamespace),
            _ => Some(Verdict::Rejected(rejection())),
        },
        422 if status.message.contains("immutable")
            || status.message.contains("may not change once set")
            || status.message.contains("cannot change roleRef") =>
        {
            Some(Verdict::Immutable(rejection()))
        }
        400 | 403 | 405 | 413 | 415 | 422 => Some(Verdict::Rejected(rejection())),
        // An apply whose fields do not fit the schema is answered as if the server had failed.
        500 if status.message.contains("failed to create typed patch object") => {
            let (_, detail) = status.message.rsplit_once("): ").unwrap_or(("", &status.message));
            let field = detail
                .split_once(": ")
                .map(|(field, _)| field.trim_start_matches('.').to_owned());
            Some(Verdict::Rejected(Rejection {
                message: detail.trim().to_owned(),
                field,
            }))
        }
        _ => None,
    }
}

/// Tools that people change objects with. What they write outside of an apply is nobody's declared wish.
const HANDS: [&str; 8] = [
    "kubectl",
    "k9s",
    "lens",
    "dashboard",
    "headlamp",
    "curl",
    "Mozilla",
    "before-first-apply",
];

/// Reads `conflict with "kubectl-edit" using apps/v1 at …`; only an update, not an apply, is `using` a version.
fn conflict_of(message: &str, field: &str) -> Conflict {
    let mut parts = message.splitn(3, '"');
    let (_, manager, rest) = (
        parts.next(),
        parts.next().unwrap_or(message),
        parts.next().unwrap_or_default(),
    );
    let tool = |name: &&str| {
        manager == *name
            || manager
                .strip_prefix(*name)
                .is_some_and(|rest| rest.starts_with('-'))
    };
    let by_hand = rest.contains(" using ") && HANDS.iter().any(tool);
    Conflict {
        manager: manager.to_owned(),
        field: field.to_owned(),
        by_hand,
    }
}

/// Git wins over hands, and over nobody else: when every conflict of an object of ours is an edit by hand, it is drift.
async fn take_back(
    cluster: &Cluster,
    kind: &Kind,
    object: &Object,
    live: Option<&Value>,
    conflicts: Vec<Conflict>,
) -> Result<Trial, ClusterError> {
    let labelled =
        live.is_some_and(|live| object::at(live, &["metadata", "labels", label::PROFILE]).is_some());
    let ours = object.partial || labelled;
    let version = live.and_then(|live| object::text_at(live, &["metadata", "resourceVersion"]));
    let (Some(version), true) = (version, ours && conflicts.iter().all(|conflict| conflict.by_hand)) else {
        return Ok(Trial::Conflict(conflicts));
    };
    let body = at_version(&object.body, version);
    match cluster.apply(kind, &object.id, &body, How::DryOverHands).await {
        Ok(would) => Ok(Trial::Edited {
            would,
            by: conflicts,
            resource_version: version.to_owned(),
        }),
        Err(error) => match judge(&error) {
            Some(Verdict::Rejected(rejection) | Verdict::Immutable(rejection)) => {
                Ok(Trial::Rejected(rejection))
            }
            _ => Err(error),
        },
    }
}

/// An apply that is void unless the live object still has this version.
pub fn at_version(body: &Value, version: &str) -> Value {
    let mut body = body.clone();
    if let Some(meta) = object::map_mut(&mut body, &["metadata"]) {
        meta.insert("resourceVersion".to_owned(), version.into());
    }
    body
}

async fn look_back(cluster: &Cluster, id: ObjectId) -> Result<(ObjectId, Former), ClusterError> {
    let gone = Former {
        live: None,
        released: None,
    };
    let Some(kind) = cluster.kind_of(&id).await else {
        return Ok((id, gone));
    };
    let Some(live) = cluster.get(&kind, &id).await? else {
        return Ok((id, gone));
    };
    let released = match is_released(&id, &live) {
        true => Some(
            cluster
                .apply(&kind, &id, &empty(&kind.resource.api_version, &id), How::Dry)
                .await?,
        ),
        false => None,
    };
    Ok((
        id,
        Former {
            live: Some(live),
            released,
        },
    ))
}

/// An apply of nothing: takes our fields away and leaves the object.
pub fn empty(api_version: &str, id: &ObjectId) -> Value {
    let mut body = json!({"apiVersion": api_version, "kind": id.kind, "metadata": {"name": id.name}});
    if !id.namespace.is_empty() {
        body["metadata"]["namespace"] = id.namespace.as_str().into();
    }
    body
}

/// Whether we let go of an object rather than delete it: it was never wholly ours, or what hangs on it is too much to
/// lose by a commit. Namespaces and CRDs take everything in them along.
pub fn is_released(id: &ObjectId, live: &Value) -> bool {
    let ours = object::at(live, &["metadata", "labels", label::PROFILE]).is_some();
    !ours || id.is("", "Namespace") || id.is("apiextensions.k8s.io", "CustomResourceDefinition")
}

/// Whether a live object asks to be left alone.
pub fn opted_out(live: &Value) -> bool {
    object::text_at(live, &["metadata", "annotations", annotation::RECONCILE]) == Some("disabled")
}

/// An object without what the API server keeps for itself, for comparison and display.
pub fn normal(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in [
            "managedFields",
            "resourceVersion",
            "uid",
            "creationTimestamp",
            "generation",
            "selfLink",
        ] {
            meta.remove(key);
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(value: Value) -> ClusterError {
        let status = serde_json::from_value(value).unwrap();
        ClusterError::Request {
            verb: "try",
            object: "x".into(),
            source: kube::Error::Api(Box::new(status)).into(),
        }
    }

    #[test]
    fn conflicts_name_manager_and_field() {
        let error = |message: &str| {
            refused(json!({"code": 409, "reason": "Conflict", "details": {"causes": [
                {"reason": "FieldManagerConflict", "message": message, "field": ".data.x"},
            ]}}))
        };
        let conflict = |manager: &str, by_hand| {
            Some(Verdict::Conflict(vec![Conflict {
                manager: manager.into(),
                field: ".data.x".into(),
                by_hand,
            }]))
        };
        let edited = error("conflict with \"kubectl-edit\" using v1 at 2026-11-23T08:00:00Z");
        assert_eq!(judge(&edited), conflict("kubectl-edit", true));
        assert_eq!(
            judge(&error("conflict with \"kubectl\"")),
            conflict("kubectl", false),
            "an apply is a declared wish"
        );
        assert_eq!(
            judge(&error("conflict with \"hpa\" using v1")),
            conflict("hpa", false),
            "so is a controller's update"
        );
        // A race is nobody's fault.
        assert_eq!(judge(&refused(json!({"code": 409, "reason": "Conflict"}))), None);
        assert_eq!(judge(&refused(json!({"code": 500}))), None);
        let message = "failed to create typed patch object (a/b; x/v1, Kind=Server): .spec.podSelectr: field not declared in schema";
        let rejection = Rejection {
            message: ".spec.podSelectr: field not declared in schema".into(),
            field: Some("spec.podSelectr".into()),
        };
        assert_eq!(
            judge(&refused(json!({"code": 500, "message": message}))),
            Some(Verdict::Rejected(rejection))
        );
        assert_eq!(
            judge(&refused(json!({"code": 404, "details": {"kind": "namespaces"}}))),
            Some(Verdict::NoNamespace)
        );
    }

    #[test]
    fn only_what_names_an_immutable_field_is_immutable() {
        let invalid = |message: &str| judge(&refused(json!({"code": 422, "message": message})));
        assert!(matches!(
            invalid("spec.selector: field is immutable"),
            Some(Verdict::Immutable(_))
        ));
        assert!(matches!(
            invalid("spec.replicas: must be positive"),
            Some(Verdict::Rejected(_))
        ));
    }
}
