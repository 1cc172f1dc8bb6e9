//! Calls that are larger than any call may be.

use anyhow::{Result, ensure};
use cairn_client::{Reason, from_status};
use cairn_protocol::api;
use tokio::task::JoinSet;

use crate::{serving, withstand};

/// A request to this method with a text of `bytes`; how it is refused.
async fn shout(channel: tonic::transport::Channel, method: &'static str, bytes: usize) -> tonic::Status {
    let codec = tonic_prost::ProstCodec::<api::ResolveRequest, api::ResolveResponse>::default();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let ask = tonic::Request::new(api::ResolveRequest { repo: "x".repeat(bytes) });
    grpc.unary(ask, tonic::codegen::http::uri::PathAndQuery::from_static(method), codec).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_messages_to_every_service_are_refused_however_many_come_at_once() -> Result<()> {
    let (net, _folder) = serving().await?;
    let methods = [
        "/cairn.v1.Registry/Resolve",
        "/cairn.v1.Registry/Publish",
        "/cairn.v1.Compute/Plan",
        "/cairn.v1.Compute/Generate",
        "/cairn.v1.Node/Status",
        "/grpc.health.v1.Health/Check",
    ];
    for method in methods {
        withstand(&net, &format!("8 messages of 24 MiB at once to {method}"), async || {
            let mut calls = JoinSet::new();
            for _ in 0..8 {
                let address = format!("http://{}", net.node(0).ready().api);
                let channel = tonic::transport::Channel::from_shared(address)?.connect().await?;
                calls.spawn(shout(channel, method, 24 << 20));
            }
            while let Some(status) = calls.join_next().await {
                let refusal = from_status(&status?);
                ensure!(refusal.reason == Reason::Limit && !refusal.why.is_empty(), "{refusal}");
            }
            Ok(())
        })
        .await?;
    }
    net.stop().await;
    Ok(())
}
