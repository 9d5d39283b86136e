//! Which answers a change of objects may touch.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_control_core::discover::{ServiceName, ServiceTarget, Target, WorkloadName};

use crate::{facts::ObjectKey, store::Store};

/// The answers that have to be computed anew.
#[derive(Debug, Default)]
pub struct Dirty {
    services: Names,
    service_namespaces: BTreeSet<String>,
    profile_ips: BTreeSet<IpAddr>,
    profile_services: Names,
    profiles: bool,
    workloads: BTreeSet<WorkloadName>,
    inbound_namespaces: BTreeSet<String>,
    inbound: bool,
    outbound: bool,
    status: bool,
}

/// Names by namespace; asked for every answer that is watched, so asking must not allocate.
#[derive(Debug, Default)]
struct Names(BTreeMap<Arc<str>, BTreeSet<Arc<str>>>);

impl Names {
    fn insert(&mut self, key: ObjectKey) {
        self.0.entry(key.namespace).or_default().insert(key.name);
    }

    fn contains(&self, namespace: &str, name: &str) -> bool {
        self.0.get(namespace).is_some_and(|names| names.contains(name))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Dirty {
    pub(crate) fn service_endpoints(&mut self, service: ObjectKey) {
        self.services.insert(service);
    }

    pub(crate) fn namespace_endpoints(&mut self, namespace: &str) {
        self.service_namespaces.insert(namespace.to_owned());
    }

    pub(crate) fn profile_ip(&mut self, ip: IpAddr) {
        self.profile_ips.insert(ip);
    }

    pub(crate) fn service_profile(&mut self, service: ObjectKey) {
        self.profile_services.insert(service);
    }

    pub(crate) fn all_profiles(&mut self) {
        self.profiles = true;
    }

    pub(crate) fn workload_inbound(&mut self, workload: WorkloadName) {
        self.workloads.insert(workload);
    }

    pub(crate) fn namespace_inbound(&mut self, namespace: &str) {
        self.inbound_namespaces.insert(namespace.to_owned());
    }

    pub(crate) fn all_inbound(&mut self) {
        self.inbound = true;
    }

    pub(crate) fn all_outbound(&mut self) {
        self.outbound = true;
    }

    pub(crate) fn status(&mut self) {
        self.status = true;
    }

    /// Whether any status may have to say something else.
    pub(crate) fn any_status(&self) -> bool {
        self.status
    }

    /// Whether any answer about endpoints may have changed.
    pub(crate) fn any_endpoints(&self) -> bool {
        !self.services.is_empty() || !self.service_namespaces.is_empty()
    }

    pub(crate) fn has_endpoints(&self, target: &ServiceTarget) -> bool {
        let ServiceName { namespace, name } = &target.service;
        self.service_namespaces.contains(namespace) || self.services.contains(namespace, name)
    }

    /// Whether any profile may have changed.
    pub(crate) fn any_profile(&self) -> bool {
        self.profiles
            || !self.profile_ips.is_empty()
            || !self.profile_services.is_empty()
            || self.any_endpoints()
    }

    pub(crate) fn has_profile(&self, target: &Target, store: &Store) -> bool {
        if self.profiles {
            return true;
        }
        match target {
            Target::Addr(addr) => {
                let has_service = |key: &ObjectKey| self.profile_services.contains(&key.namespace, &key.name);
                self.profile_ips.contains(&addr.ip()) || store.services_by_ip.get(&addr.ip()).any(has_service)
            }
            Target::Service(target) => {
                self.profile_services.contains(&target.service.namespace, &target.service.name)
                    // The name of one pod behind a headless service depends on the service's slices.
                    || (target.instance.is_some() && self.has_endpoints(target))
            }
        }
    }

    /// Whether any inbound policy may have changed.
    pub(crate) fn any_inbound(&self) -> bool {
        self.inbound || !self.inbound_namespaces.is_empty() || !self.workloads.is_empty()
    }

    pub(crate) fn has_inbound(&self, workload: &WorkloadName) -> bool {
        self.inbound
            || self.inbound_namespaces.contains(workload.namespace.as_ref())
            || self.workloads.contains(workload)
    }

    /// Whether any outbound policy may have changed.
    pub(crate) fn any_outbound(&self) -> bool {
        self.outbound
    }
}
