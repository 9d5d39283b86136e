use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Bytes;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use serde_json::json;
use tokio::time::Instant;
use tower::{BoxError, util::BoxCloneSyncService};

use super::*;

/// How an API server answers one request.
#[derive(Clone, Copy)]
enum Reply {
    Good,
    Hangs,
    /// With a status, and how many seconds to wait.
    Fails(u16, u32),
    CutOff,
}

/// Reviews a token where the API server answers `replies`, one after the other; how often it was asked, and how long it
/// took.
async fn review(replies: &'static [Reply]) -> (Result<Account, TokenError>, usize, Duration) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let server = tower::service_fn(move |_: Request<Full<Bytes>>| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        async move { answer(replies.get(number).copied().expect("asked no more often")).await }
    });
    let reviews = Reviews {
        api: Connections::over(BoxCloneSyncService::new(server)),
        require_pod: false,
    };
    let token = Token::parse(b"t").expect("a token");
    let began = Instant::now();
    let account = reviews.authenticate(&token).await;
    (account, asked.load(Ordering::Relaxed), began.elapsed())
}

async fn answer(reply: Reply) -> Result<Response<Bytes>, BoxError> {
    let (code, wait, object) = match reply {
        Reply::Hangs => std::future::pending().await,
        Reply::CutOff => return Err("connection reset".into()),
        Reply::Fails(code, seconds) => (
            code,
            seconds,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "not now"}),
        ),
        Reply::Good => (
            201,
            0,
            json!({
                "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
                "spec": {"token": "t"},
                "status": mk_status(true, "identity.l5d.io", "system:serviceaccount:payments:web"),
            }),
        ),
    };
    let body = serde_json::to_vec(&object)?;
    let answer = Response::builder().status(code).header("retry-after", wait);
    Ok(answer.body(Bytes::from(body))?)
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_cannot_answer_now_is_asked_once_more() {
    for first in [
        Reply::Fails(429, 0),
        Reply::Fails(500, 0),
        Reply::Fails(503, 0),
        Reply::CutOff,
    ] {
        let replies: &'static [Reply] = Box::leak(Box::new([first, Reply::Good]));
        let (account, asked, took) = review(replies).await;
        assert_eq!(account.expect("the second answer counts").account.name, "web");
        assert_eq!(asked, 2);
        assert!(
            took >= RETRY_AFTER / 2 && took <= RETRY_AFTER,
            "asked again after {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_api_server_says_how_long_to_wait_within_bounds() {
    let (account, asked, took) = review(&[Reply::Fails(429, 3600), Reply::Good]).await;
    assert!(account.is_ok() && asked == 2);
    assert!(
        took >= RETRY_AFTER_MAX && took <= RETRY_AFTER_MAX + RETRY_AFTER,
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_review_ends_in_its_time_however_often_it_fails() {
    let (account, asked, took) = review(&[Reply::Hangs, Reply::Hangs]).await;
    assert!(matches!(account, Err(TokenError::Timeout)), "{account:?}");
    assert_eq!(asked, 2);
    assert!(took <= REVIEW_TIMEOUT + Duration::from_millis(2), "{took:?}");

    let (account, asked, took) = review(&[Reply::Hangs, Reply::Good]).await;
    assert!(account.is_ok() && asked == 2);
    assert!(took <= FIRST_TIMEOUT + Duration::from_millis(2), "{took:?}");

    let (account, asked, _) = review(&[Reply::Fails(503, 0), Reply::Fails(503, 0)]).await;
    assert!(matches!(account, Err(TokenError::Unavailable(_))), "{account:?}");
    assert_eq!(asked, 2);
}

#[tokio::test(start_paused = true)]
async fn what_will_not_change_is_not_asked_again() {
    let (account, asked, _) = review(&[Reply::Fails(403, 0)]).await;
    assert!(matches!(account, Err(TokenError::Review(_))), "{account:?}");
    assert_eq!(asked, 1);
}

fn mk_status(authenticated: bool, audience: &str, username: &str) -> TokenReviewStatus {
    TokenReviewStatus {
        audiences: Some(vec![audience.to_owned()]),
        authenticated: Some(authenticated),
        error: None,
        user: Some(UserInfo {
            username: Some(username.to_owned()),
            uid: Some("1-2-3".to_owned()),
            ..UserInfo::default()
        }),
    }
}

/// Judges what the API server would write.
fn judge(status: TokenReviewStatus) -> Result<Account, TokenError> {
    let answer = serde_json::to_vec(&json!({"spec": {"token": "t"}, "status": status})).expect("JSON");
    super::judge(review::verdict(&answer).expect("a review").expect("a verdict"))
}

#[test]
fn a_service_account_with_our_audience_is_authenticated() {
    let account = judge(mk_status(
        true,
        "identity.l5d.io",
        "system:serviceaccount:payments:web",
    ));
    let expected = ServiceAccountRef {
        namespace: "payments".into(),
        name: "web".into(),
    };
    assert_eq!(
        account.expect("authenticated"),
        Account {
            account: expected,
            uid: Some("1-2-3".into()),
            pod: None,
        }
    );
}

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

#[test]
fn a_pod_is_named_whole_or_not_at_all() {
    let judged = |extra: &[(&str, &[&str])]| {
        let mut status = mk_status(true, "identity.l5d.io", "system:serviceaccount:payments:web");
        let values = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
        let extra = extra.iter().map(|&(key, of)| (key.to_owned(), values(of)));
        status.user.as_mut().expect("there").extra = Some(extra.collect());
        judge(status).map(|account| account.pod)
    };
    let bound = judged(&[(POD_NAME, &["web-1"]), (POD_UID, &["u-1"]), ("other", &["x"])]);
    let expected = BoundPod {
        name: "web-1".into(),
        uid: "u-1".into(),
    };
    assert_eq!(bound.expect("authenticated"), Some(expected));
    assert_eq!(judged(&[("other", &["x"])]).expect("authenticated"), None);
    let in_doubt = |extra: &[(&str, &[&str])]| matches!(judged(extra), Err(TokenError::PodInDoubt));
    assert!(in_doubt(&[(POD_NAME, &["web-1"])]));
    assert!(in_doubt(&[(POD_UID, &["u-1"])]));
    assert!(in_doubt(&[(POD_NAME, &["web-1", "web-2"]), (POD_UID, &["u-1"])]));
    assert!(in_doubt(&[(POD_NAME, &[""]), (POD_UID, &["u-1"])]));
}

#[test]
fn anything_less_is_refused() {
    let user = "system:serviceaccount:payments:web";
    assert!(matches!(
        judge(mk_status(false, "identity.l5d.io", user)),
        Err(TokenError::Refused { .. })
    ));
    assert!(matches!(
        judge(mk_status(true, "https://kubernetes.default.svc", user)),
        Err(TokenError::Audience)
    ));
    let none = TokenReviewStatus {
        audiences: None,
        ..mk_status(true, "", user)
    };
    assert!(matches!(judge(none), Err(TokenError::Audience)));
    let silent = TokenReviewStatus {
        authenticated: None,
        ..mk_status(true, "identity.l5d.io", user)
    };
    assert!(matches!(judge(silent), Err(TokenError::Refused { .. })));
    for user in [
        "",
        "admin",
        "system:node:n1",
        "system:serviceaccount:a",
        "system:serviceaccount:a:b:c",
    ] {
        let judged = judge(mk_status(true, "identity.l5d.io", user));
        assert!(
            matches!(judged, Err(TokenError::NotServiceAccount(_))),
            "{user:?}"
        );
    }
}

#[test]
fn a_token_is_bounded_and_never_printed() {
    let token = Token::parse(b" eyJhbGciOi.J9.x\n").expect("a token");
    assert_eq!(token.secret(), "eyJhbGciOi.J9.x");
    assert_eq!(format!("{token:?}"), "Token(..)");
    assert_eq!(Token::parse(b" \n").expect_err("blank"), InvalidToken::Empty);
    assert_eq!(
        Token::parse(b"a b").expect_err("a space"),
        InvalidToken::Malformed
    );
    assert_eq!(
        Token::parse(&[0xff]).expect_err("no ASCII"),
        InvalidToken::Malformed
    );
    let long = vec![b'a'; TOKEN_BYTES_MAX + 1];
    assert_eq!(
        Token::parse(&long).expect_err("long"),
        InvalidToken::TooLarge(TOKEN_BYTES_MAX + 1)
    );
}
