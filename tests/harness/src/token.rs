//! Tokens of service accounts, as the kubelet puts them into pods.

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};

/// A token of `account` in `namespace` for `audience`, valid as long as the API server thinks fit (an hour).
pub async fn request(client: &Client, namespace: &str, account: &str, audience: &str) -> Result<String> {
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("failed to request a token of {namespace}/{account}"))?;
    let token = answer.status.and_then(|status| status.token);
    token.context("a token request is answered with a token")
}
