//! Stages asked for by those who have no grant.

use anyhow::{Context, Result, ensure};
use cairn_client::Reason;
use cairn_node::data::link::{self, MessageReader, MessageWriter};
use cairn_protocol::{Keypair, RealmId, peer_pb};
use cairn_testnet::Testnet;

use crate::{CAIRN, SOON, hostile, withstand};

/// Asks for a stage as a stranger would, from `from`; the refusal, or what else came.
async fn ask_for_a_stage(net: &Testnet, from: &str, to: std::net::SocketAddr) -> Result<peer_pb::Refused> {
    let key = Keypair::from_seed([9; 32]);
    let endpoint = hostile::endpoint_on(&key, from).await?;
    let node = net.node(0).ready().node_id.parse()?;
    let connection = link::dial(&endpoint, node, &[to], SOON).await?;
    let (send, receive) = connection.open_bi().await?;
    let open = peer_pb::OpenStage {
        session: vec![1; 16],
        epoch: 1,
        realm: net.realm().parse::<RealmId>().ok().context("a realm")?.to_vec(),
        revision: vec![2; 32],
        publisher: vec![3; 32],
        end_layer: 6,
        embedding: true,
        head: true,
        context: 512,
        planes: 2,
        previous_node: key.node_id().to_vec(),
        privacy: "trusted".into(),
        ..Default::default()
    };
    let mut writer = MessageWriter::new(send);
    writer.write(&open).await?;
    let mut reader = MessageReader::new(receive);
    let answering = async {
        loop {
            let event: peer_pb::StageEvent = reader.read().await?;
            if let Some(peer_pb::stage_event::Event::Refused(refused)) = event.event {
                return Ok::<_, anyhow::Error>(refused);
            }
        }
    };
    let refused = tokio::time::timeout(SOON, answering).await.context("no answer")??;
    endpoint.close().await;
    Ok(refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_for_a_stranger_without_a_grant_is_refused_by_name() -> Result<()> {
    let config = "[grant]\ncompute = \"nobody\"\n";
    let net = Testnet::start_configured(CAIRN, 1, &["-v"], &[config]).await?;
    let data = net.node(0).ready().data.parse()?;
    withstand(&net, "50 requests for a stage where nobody has a grant", async || {
        for _ in 0..50 {
            let refused = ask_for_a_stage(&net, "127.0.0.1:0", data).await?;
            ensure!(refused.reason == Reason::NoGrant.code(), "{refused:?}");
            ensure!(refused.why.contains("nobody") && !refused.why.contains('\n'), "{refused:?}");
        }
        Ok(())
    })
    .await?;
    net.stop().await;
    Ok(())
}

/// The address that this machine has on a network, if it has one; nothing is sent.
fn address_on_a_network() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_from_another_host_is_not_among_the_listed_and_this_host_is() -> Result<()> {
    let Some(ip) = address_on_a_network() else {
        eprintln!("NOT TESTED: this machine has no address but loopback");
        ensure!(std::env::var_os("CAIRN_REQUIRE_NETWORK").is_none(), "and one is required");
        return Ok(());
    };
    // What comes over the network's address counts as another host, for the door trusts loopback alone.
    let home = tempfile::tempdir()?;
    let net = Testnet::start(CAIRN, 1, &["-v", "--data-listen", &format!("{ip}:0")]).await?;
    let data = net.node(0).ready().data.parse()?;
    withstand(&net, "20 requests for a stage from another host, where the listed have the grant", async || {
        for _ in 0..20 {
            let refused = ask_for_a_stage(&net, &format!("{ip}:0"), data).await?;
            ensure!(refused.reason == Reason::NoGrant.code(), "{refused:?}");
            ensure!(refused.why.contains("listed"), "{refused:?}");
        }
        Ok(())
    })
    .await?;
    net.stop().await;
    drop(home);
    // The same request over loopback passes that rule, and fails later for want of the model.
    let net = Testnet::start(CAIRN, 1, &["-v"]).await?;
    let near = ask_for_a_stage(&net, "127.0.0.1:0", net.node(0).ready().data.parse()?).await?;
    ensure!(near.reason != Reason::NoGrant.code(), "{near:?}");
    net.stop().await;
    Ok(())
}
