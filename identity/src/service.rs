//! The Certify service: authenticate, check, sign. No lock is held while the Kubernetes API reviews a token, every wait
//! is bounded, and a review that hangs delays nobody else ([`turn`](crate::turn)).

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use heddle_daemon::report;
use heddle_mesh::{Identity, IdentityError, ServiceAccountRef, SpiffeId, TrustDomain};
use linkerd2_proxy_api::identity::{
    CertifyRequest, CertifyResponse,
    identity_server::{Identity as Certify, IdentityServer},
};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, info, warn};

use crate::{
    csr::{self, CsrError, MismatchError, Text},
    event::{Event, Events, Reason, Subject},
    issuer::{Issued, Issuer, SignError, Validity},
    limit::{Limited, Limiter, Rates},
    metrics::{Metrics, RequestResult},
    revoked::Revoked,
    token::{Account, Authenticate, InvalidToken, Token, TokenError},
    turn::{Busy, Turns},
};

/// A token, a signing request and a name.
const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// Which identities are given out, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Part of every identity.
    pub control_namespace: String,
    /// Part of every identity.
    pub trust_domain: TrustDomain,
    /// How long leaves are valid.
    pub validity: Validity,
    /// Whether leaves carry their SPIFFE ID as a URI, beside the name.
    pub spiffe: bool,
    /// How often one may ask.
    pub rates: Rates,
}

/// The Certify service.
pub struct Service<A> {
    settings: Settings,
    issuer: Arc<ArcSwapOption<Issuer>>,
    authenticate: A,
    turns: Turns,
    limiter: Limiter,
    revoked: Arc<ArcSwap<Revoked>>,
    metrics: Metrics,
    events: Events,
}

/// Why a request was not granted.
#[derive(Debug, thiserror::Error)]
enum CertifyError {
    #[error("no issuer is ready yet")]
    NoIssuer,
    #[error("identity {found} is not valid", found = Text(.found.clone()))]
    Identity { found: String, source: IdentityError },
    #[error(transparent)]
    Token(#[from] InvalidToken),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Mismatch(#[from] MismatchError),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Limited(#[from] Limited),
    #[error("failed to authenticate the token")]
    Authenticate(#[from] TokenError),
    #[error("the token's service account {account} has no valid identity")]
    AccountName {
        account: ServiceAccountRef,
        source: IdentityError,
    },
    #[error("the token is {token}'s, but a certificate for {requested} was requested")]
    WrongIdentity { token: Identity, requested: Identity },
    #[error("{0} is revoked: it gets no certificate until it is taken off the list of revocations")]
    Revoked(Identity),
    #[error("failed to sign the certificate")]
    Sign(#[from] SignError),
}

impl<A: Authenticate> Service<A> {
    /// A service that signs with whatever `issuer` holds when a request has been authenticated.
    pub fn new(
        settings: Settings,
        issuer: Arc<ArcSwapOption<Issuer>>,
        authenticate: A,
        metrics: Metrics,
        events: Events,
    ) -> Self {
        Self {
            limiter: Limiter::new(settings.rates),
            settings,
            issuer,
            authenticate,
            turns: Turns::default(),
            revoked: Arc::default(),
            metrics,
            events,
        }
    }

    /// Refuses the identities that are revoked.
    #[must_use]
    pub fn revoked(mut self, revoked: Arc<ArcSwap<Revoked>>) -> Self {
        self.revoked = revoked;
        self
    }

    /// As a gRPC server, for [`heddle_tls::serve`].
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn handle(
        &self,
        from: Option<IpAddr>,
        request: CertifyRequest,
    ) -> Result<(Identity, Account, Issued), CertifyError> {
        let CertifyRequest {
            identity,
            token,
            certificate_signing_request,
        } = request;
        if self.issuer.load().is_none() {
            return Err(CertifyError::NoIssuer);
        }
        // What costs nothing is checked before the Kubernetes API is asked.
        let requested: Identity = identity.parse().map_err(|source| CertifyError::Identity {
            found: identity,
            source,
        })?;
        let token = Token::parse(&token)?;
        let csr =
            csr::parse(&certificate_signing_request)?.for_identity(&requested, self.spiffe(&requested))?;
        self.limiter.admit(&token, Instant::now())?;

        let account = self.authenticate(from, &token).await?;
        let Settings {
            control_namespace,
            trust_domain,
            validity,
            spiffe: _,
            rates: _,
        } = &self.settings;
        let proved = Identity::for_service_account(&account.account, control_namespace, trust_domain)
            .map_err(|source| CertifyError::AccountName {
                account: account.account.clone(),
                source,
            })?;
        if proved != requested {
            return Err(CertifyError::WrongIdentity {
                token: proved,
                requested,
            });
        }
        self.limiter.take(&token, &account, &requested, Instant::now())?;
        if self.revoked.load().identities.contains(&requested) {
            return Err(CertifyError::Revoked(requested));
        }
        // Loaded anew: it may have been replaced during the review.
        let issuer = self.issuer.load_full().ok_or(CertifyError::NoIssuer)?;
        let issued = issuer.sign(&csr, *validity, SystemTime::now())?;
        Ok((requested, account, issued))
    }

    async fn authenticate(&self, from: Option<IpAddr>, token: &Token) -> Result<Account, CertifyError> {
        let review = async {
            let began = Instant::now();
            let account = self.authenticate.authenticate(token).await;
            self.metrics.reviewed(began.elapsed());
            account
        };
        Ok(self.turns.run(from, review).await??)
    }

    /// The URI of who has `requested`; that the token proves the same name is seen after the review.
    fn spiffe(&self, requested: &Identity) -> Option<SpiffeId> {
        let Settings {
            control_namespace,
            trust_domain,
            spiffe,
            ..
        } = &self.settings;
        let account = requested.account_in(control_namespace, trust_domain)?;
        spiffe.then(|| SpiffeId::for_service_account(&account, trust_domain))
    }
}

#[tonic::async_trait]
impl<A: Authenticate> Certify for Service<A> {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let peer = request
            .extensions()
            .get::<heddle_tls::Peer>()
            .map(|peer| peer.addr);
        match self
            .handle(peer.map(|addr| addr.ip()), request.into_inner())
            .await
        {
            Ok((identity, account, issued)) => {
                self.metrics.ended(RequestResult::issued);
                let until = prost_types::Timestamp::from(issued.expires);
                let serial = Serial(&issued.serial);
                let pod = account.pod.as_ref().map_or("none", |pod| pod.name.as_str());
                info!(%identity, account = %account.account, pod, %serial, %until, "Issued a certificate");
                self.events.tell_with(|| Event {
                    reason: Reason::IssuedLeafCertificate,
                    note: format!(
                        "Issued certificate for {identity} until {until}, serial {serial}, pod {pod}"
                    ),
                    subject: Subject::Account(account.clone()),
                });
                Ok(Response::new(to_proto(issued)))
            }
            Err(error) => {
                let (result, code) = error.classify();
                self.metrics.ended(result);
                let text = report::chain(&error);
                match code {
                    Code::Internal | Code::Unavailable => {
                        warn!(?peer, error = %text, ?code, "Did not issue a certificate")
                    }
                    _ => info!(?peer, error = %text, ?code, "Did not issue a certificate"),
                }
                if let CertifyError::Authenticate(TokenError::Refused { reason }) = &error {
                    debug!(?reason, "The Kubernetes API refused a token");
                }
                if let CertifyError::Sign(error) = &error {
                    let note = format!("Failed to sign a certificate: {error}");
                    self.events
                        .tell(Reason::IssuerValidationFailed, Subject::Service, note);
                }
                // What the Kubernetes API says is for the log; the caller is told that it failed.
                let text = match code {
                    Code::Internal | Code::Unavailable => error.to_string(),
                    _ => text,
                };
                Err(Status::new(code, text))
            }
        }
    }
}

impl CertifyError {
    /// For the metric, and for the caller: Linkerd's codes.
    fn classify(&self) -> (RequestResult, Code) {
        match self {
            Self::NoIssuer => (RequestResult::issuer_not_ready, Code::Unavailable),
            Self::Identity { .. } | Self::Token(_) | Self::Csr(_) => {
                (RequestResult::invalid_request, Code::InvalidArgument)
            }
            Self::Mismatch(_) => (RequestResult::csr_mismatch, Code::FailedPrecondition),
            Self::Busy(Busy) => (RequestResult::busy, Code::ResourceExhausted),
            Self::Limited(_) => (RequestResult::rate_limited, Code::ResourceExhausted),
            Self::Authenticate(
                TokenError::Refused { .. }
                | TokenError::Audience
                | TokenError::PodInDoubt
                | TokenError::NotBound,
            ) => (RequestResult::not_authenticated, Code::FailedPrecondition),
            Self::Authenticate(TokenError::NotServiceAccount(_)) => {
                (RequestResult::not_authenticated, Code::InvalidArgument)
            }
            Self::Authenticate(TokenError::NoStatus | TokenError::Review(_)) => {
                (RequestResult::review_failed, Code::Internal)
            }
            Self::Authenticate(TokenError::Unavailable(_) | TokenError::Timeout) => {
                (RequestResult::review_failed, Code::Unavailable)
            }
            Self::AccountName { .. } | Self::WrongIdentity { .. } => {
                (RequestResult::wrong_identity, Code::FailedPrecondition)
            }
            Self::Revoked(_) => (RequestResult::revoked, Code::FailedPrecondition),
            Self::Sign(_) => (RequestResult::sign_failed, Code::Internal),
        }
    }
}

fn to_proto(issued: Issued) -> CertifyResponse {
    let Issued {
        serial: _,
        leaf,
        chain,
        expires,
    } = issued;
    CertifyResponse {
        leaf_certificate: leaf,
        intermediate_certificates: chain.iter().map(|cert| cert.to_vec()).collect(),
        valid_until: Some(expires.into()),
    }
}

/// A serial number as openssl shows it, without colons.
struct Serial<'a>(&'a [u8]);

impl std::fmt::Display for Serial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let text: String = digits
            .map(|digit| char::from(DIGITS[usize::from(digit)]))
            .collect();
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests;
