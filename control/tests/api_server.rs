//! The real programs against a real API server: what clients are told, and what statuses say, follows what is written
//! to the cluster.
//!
//! etcd and an API server are enough: pods, slices and policies are written by hand, as controllers would write them.
//!
//! Tests named after a part of the API (`inbound_`, `outbound_`, `destination_`) share one API server and one process of
//! each program; each has a namespace of its own there. All others have clusters of their own. Those come last in the
//! order of names, in which they are run: the shared one goes away when no test has it for a moment.

mod api_server {
    pub(crate) mod show;
    pub(crate) mod space;
    pub(crate) mod world;

    mod destination;
    mod faults;
    mod gate;
    mod inbound;
    mod inbound_routes;
    mod outbound;
    mod outbound_settings;
    mod revocation;
    mod status;
    mod without_crds;
}
