//! `heddle-identity`: turns a service-account token and a certificate signing request into a leaf certificate, and is
//! the only program that ever holds the issuer's key.
//!
//! In go Linkerd's `Identity.Certify` requests over mesh TLS, an issuer from a mounted Secret and trust anchors from a
//! mounted ConfigMap; out come leaf certificates that last a day, Events and metrics. The stages of a request are
//! [`token`] (who asks?), [`csr`] (what for? only a [`csr::ValidCsr`] can be signed) and [`issuer`]; [`service`] puts
//! them together, with [`turn`] and [`limit`] as its bounds, and [`watch`] keeps the issuer current. What [`revoked`] names is signed
//! by [`lists`], and [`served`] beside the rest. Kubernetes is known to [`token`] and [`event`] alone.

pub mod csr;
mod der;
pub mod event;
pub mod issuer;
pub mod limit;
pub mod lists;
pub mod metrics;
pub mod own;
pub mod revoked;
pub mod served;
pub mod service;
pub mod token;
pub mod turn;
pub mod watch;
