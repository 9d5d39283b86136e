//! Which answers a change of objects may touch.

use std::{collections::BTreeSet, net::IpAddr};

use heddle_control_core::discover::{PodName, ServiceTarget, Target};

use crate::{facts::ObjectKey, store::Store};

/// The answers that have to be computed anew.
#[derive(Debug, Default)]
pub struct Dirty {
    services: BTreeSet<ObjectKey>,
    service_namespaces: BTreeSet<String>,
    profile_ips: BTreeSet<IpAddr>,
    profile_services: BTreeSet<ObjectKey>,
    profiles: bool,
    pods: BTreeSet<ObjectKey>,
    inbound_namespaces: BTreeSet<String>,
    inbound: bool,
    outbound: bool,
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

    pub(crate) fn pod_inbound(&mut self, pod: ObjectKey) {
        self.pods.insert(pod);
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

    pub(crate) fn has_endpoints(&self, target: &ServiceTarget) -> bool {
        let service = &target.service;
        self.service_namespaces.contains(&service.namespace)
            || self.services.contains(&ObjectKey::new(&service.namespace, &service.name))
    }

    pub(crate) fn has_profile(&self, target: &Target, store: &Store) -> bool {
        if self.profiles {
            return true;
        }
        let has_service = |service: &ObjectKey| self.profile_services.contains(service);
        match target {
            Target::Addr(addr) => {
                self.profile_ips.contains(&addr.ip()) || store.services_by_ip.get(&addr.ip()).is_some_and(has_service)
            }
            Target::Service(target) => {
                has_service(&ObjectKey::new(&target.service.namespace, &target.service.name))
                    // The name of one pod behind a headless service depends on the service's slices.
                    || (target.instance.is_some() && self.has_endpoints(target))
            }
        }
    }

    pub(crate) fn has_inbound(&self, pod: &PodName) -> bool {
        self.inbound
            || self.inbound_namespaces.contains(&pod.namespace)
            || self.pods.contains(&ObjectKey::new(&pod.namespace, &pod.name))
    }

    pub(crate) fn has_outbound(&self) -> bool {
        self.outbound
    }
}
