//! Copies of requests, for rules that mirror them: sent beside the request, never waited for, answers thrown away.

use std::rc::Rc;

use heddle_proxy_policy::outbound::Mirror;
use http::request::Parts;
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::{
    http::{Client, Errand},
    target::Policy,
};
use crate::{
    balance::{Layer, Terms, Wish},
    http::{ProxyError, RequestBody, body::Repeatable},
};

/// Copies of one worker that are under way; more are not made.
const UNDER_WAY_MAX: usize = 128;
/// A request with a larger body is not copied.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// An answer is read, so that its connection can be used again, up to this.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// A copy that takes longer is given up.
const TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// A request's copies, to be sent as soon as its body is there.
pub(super) struct Copies {
    head: Box<Parts>,
    mirrors: Vec<Mirror>,
}

impl Copies {
    /// The copies of a request that goes by `mirrors`, if the draw is for any.
    pub(super) fn draw(mirrors: &[Mirror], head: &Parts) -> Option<Self> {
        let drawn = mirrors.iter().filter(|mirror| mirror.takes(rand::random()));
        let mirrors: Vec<_> = drawn.cloned().collect();
        (!mirrors.is_empty()).then(|| Self {
            head: Box::new(head.clone()),
            mirrors,
        })
    }

    /// Sends the request by `send`, and the copies: at once when there is no body, else when the request has been
    /// answered, if all of its body was there by then.
    pub(super) async fn beside<T>(
        self,
        client: &Rc<Client>,
        policy: &Rc<Policy>,
        body: RequestBody,
        send: impl AsyncFnOnce(RequestBody) -> T,
    ) -> T {
        if body.is_end_stream() {
            self.send(client, policy, &Repeatable::Empty);
            return send(body).await;
        }
        let kept = body.repeatable(BODY_BYTES_MAX);
        let answer = send(kept.body()).await;
        self.send(client, policy, &kept);
        answer
    }

    fn send(self, client: &Rc<Client>, policy: &Rc<Policy>, body: &Repeatable) {
        let Some(body) = body.whole() else {
            debug!("Not mirroring a request whose body is too large, or has not come to its end");
            return;
        };
        for mirror in self.mirrors {
            let Some(place) = client.mirror_place(UNDER_WAY_MAX) else {
                debug!("Not mirroring a request: as many copies as may be are under way");
                return;
            };
            let (head, body) = (self.head.clone(), RequestBody::Kept(body.clone()));
            let (client, policy) = (client.clone(), policy.clone());
            tokio::task::spawn_local(async move {
                let sent = timeout_at(
                    Instant::now() + TIME_MAX,
                    one(&client, &policy, &mirror, head, body),
                );
                match sent.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        debug!(error = %heddle_daemon::report::chain(&error), "A mirrored request failed");
                    }
                    Err(_) => debug!(limit = ?TIME_MAX, "A mirrored request took too long"),
                }
                drop(place);
            });
        }
    }
}

async fn one(
    client: &Client,
    policy: &Policy,
    mirror: &Mirror,
    head: Box<Parts>,
    body: RequestBody,
) -> Result<(), ProxyError> {
    let balancer = policy.balancer(&mirror.backend)?;
    let errand = Errand {
        accrual: None,
        counter: None,
        meta: None,
        terms: Terms {
            layer: Layer::Http,
            wish: Wish::Any,
            limits: mirror.backend.limits,
            failfast: mirror.backend.failfast_timeout,
        },
        route: None,
        require_id: None,
        started: Instant::now(),
        clock: None,
    };
    let (_, answer) = client.to_balancer(balancer, errand, head, body).await?;
    // What is not read to its end closes its connection, which is as good.
    let _ = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok(())
}
