//! Forged records, and old heads shown as new.

use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_client::Reason;
use cairn_protocol::{BlobHash, RecordId, RevisionId, record_pb};
use cairn_testnet::wait_until;
use prost::Message;

use crate::{
    cairn,
    hostile::Lies,
    logged, meet, serving,
    signer::{Signer, envelopes},
    withstand,
};

/// Statements in the name of `victim` that it never signed: a spoiled signature, a forger's signature, a changed payload.
fn forgeries(victim: &Signer, forger: &Signer) -> [record_pb::Envelope; 3] {
    let mut spoiled = victim.head("loot", (0, 1), None, b"a").envelope().clone();
    spoiled.signature[7] ^= 1;
    let mut borrowed = forger.head("loot", (0, 1), None, b"b").envelope().clone();
    borrowed.key = victim.key.public().to_vec();
    let mut changed = victim.revision("loot", b"c").envelope().clone();
    *changed.payload.last_mut().unwrap() ^= 1;
    [spoiled, borrowed, changed]
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_records_are_neither_kept_nor_passed_on_and_their_sender_is_banned() -> Result<()> {
    let (net, _folder) = serving().await?;
    let (victim, forger) = (Signer::new(50, &net), Signer::new(51, &net));
    let forged = forgeries(&victim, &forger);
    let witness = meet(&net, 1, Lies::default()).await?;
    let liar = meet(&net, 2, Lies::default()).await?;
    // Once the witness hears what the liar says, the node passes on what it believes.
    let mut count = 0;
    while witness.seen().heard.is_empty() {
        ensure!(count < 600, "gossip never reached the witness");
        liar.gossip(forger.revision(&format!("true-{count}"), b"true").to_bytes()).await?;
        count += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    withstand(&net, "forged records by gossip", async || {
        for envelope in &forged[..2] {
            liar.gossip(envelope.encode_to_vec()).await?;
        }
        let sound = forger.revision("still-true", b"true");
        liar.gossip(sound.to_bytes()).await?;
        witness.until("the sound record came", |seen| seen.heard.contains(&sound.to_bytes())).await?;
        liar.gossip(forged[2].encode_to_vec()).await?;
        liar.until("the third forgery gets it banned", |seen| !seen.is_connected).await?;
        logged(&net, &["a peer is banned", "a record that is no record"]).await
    })
    .await?;
    for seed in [3, 4] {
        let lies = match seed {
            3 => Lies { heads: forged.to_vec(), ..Lies::default() },
            _ => Lies { resolve: forged.to_vec(), ..Lies::default() },
        };
        let what = if seed == 3 { "forged records in a page of heads" } else { "forged records for a name" };
        withstand(&net, what, async || {
            let liar = meet(&net, seed, lies).await?;
            let refusal = net.client(0).resolve(&victim.repo("loot")).await.unwrap_err();
            ensure!(refusal.reason == Reason::NotFound, "{refusal}");
            // Asked again, for on a busy machine its answer may come too late to be heard.
            let asked_and_banned = || async {
                let _ = net.client(0).resolve(&victim.repo("loot")).await;
                Ok(!liar.seen().is_connected)
            };
            wait_until("it is banned", asked_and_banned).await?;
            logged(&net, &["a peer is banned", &liar.key.node_id().short().to_string(), "forged"]).await
        })
        .await?;
    }
    let kept = witness.catalogue().await?;
    ensure!(!kept.is_empty() && forged.iter().all(|forgery| !kept.contains(forgery)), "a forgery was kept");
    let heard = witness.seen().heard;
    ensure!(forged.iter().all(|forgery| !heard.contains(&forgery.encode_to_vec())), "a forgery was passed on");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_head_takes_no_node_back() -> Result<()> {
    let (net, _folder) = serving().await?;
    let author = Signer::new(60, &net);
    let (old, new, other) = (&b"the old"[..], &b"the new"[..], &b"another old"[..]);
    let first = author.head("m", (1, 1), None, old);
    let second = author.head("m", (1, 2), Some(first.id()), new);
    let profile = author.profile_of("author", 1);
    let revisions = [author.revision("m", old), author.revision("m", new), author.revision("m", other)];
    let today = envelopes(&[&profile, &revisions[0], &revisions[1], &first, &second]);
    let honest = meet(&net, 1, Lies { heads: today.clone(), resolve: today, ..Lies::default() }).await?;
    let stands = async || Ok::<_, anyhow::Error>(net.client(0).resolve(&author.repo("m")).await?.revision);
    let newest = RevisionId::from(BlobHash::of(new)).to_string();
    wait_until("the newest is known", || async { Ok(stands().await? == newest) }).await?;
    drop(honest);
    // Lower numbers, and a lower epoch with a higher number; each is signed by the author's own key.
    let again = author.head("m", (1, 1), None, other);
    let before = author.head("m", (0, 9), Some(RecordId::from([9; 32])), other);
    withstand(&net, "old heads: replayed, of a lower epoch, from a page and for a name", async || {
        let yesterday = envelopes(&[&profile, &revisions[0], &revisions[2], &first, &again, &before]);
        let liar = meet(&net, 2, Lies { heads: yesterday.clone(), resolve: yesterday, ..Lies::default() }).await?;
        liar.gossip(before.to_bytes()).await?;
        liar.gossip(again.to_bytes()).await?;
        let are_known = || async {
            let known = liar.catalogue().await?;
            Ok([&again, &before].iter().all(|head| known.contains(head.envelope())))
        };
        wait_until("the old heads are in the history", are_known).await?;
        let output = cairn(&net, &["pull", &author.repo("m"), "--json"]);
        ensure!(liar.seen().asked_resolve > 0, "the pull asked nobody");
        ensure!(!output.status.success(), "there is nothing to pull, and it pulled: {output:?}");
        ensure!(stands().await? == newest, "it went back");
        Ok(())
    })
    .await?;
    net.stop().await;
    Ok(())
}
