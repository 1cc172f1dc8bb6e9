//! The hostile list, against real daemons: whatever strangers send, the answer is a clear refusal, the daemon goes on
//! serving, and its memory rises by at most [`RISE_BYTES_MAX`] at the peak. `--nocapture` shows each rise.
//!
//! Not here: what a daemon's owner may ask (`doors`), stages that die (`generation`), disks that lie (`storage`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod daemon;
mod hostile;

use std::{
    fs,
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cairn_client::{Client, ConnectOptions, Reason, from_status};
use cairn_node::data::link::{self, MessageReader, MessageWriter};
use cairn_protocol::{
    BlobHash, Head, Keypair, Profile, RealmId, Record, RecordId, RefName, RepoKind, Revision, RevisionId, api, peer_pb,
    record_pb,
};
use cairn_testnet::{Memory, Testnet, tiny_model, wait_until};
use daemon::error_of;
use hostile::{Lies, Stranger};
use prost::Message;
use serde_json::Value;
use sha2::Digest as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
/// More memory than this for strangers' nonsense is a leak.
const RISE_BYTES_MAX: u64 = 64 << 20;
/// "Within a few seconds": a half-open connection's time, and one pause between two dials.
const SOON: Duration = Duration::from_secs(10);

/// Has `attack` done to node 0, and demands that the node serves afterwards and took little memory for it.
async fn withstand(net: &Testnet, what: &str, attack: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    // What a first call brings into memory is not the attack's.
    net.client(0).status().await?;
    let memory = Memory::watch(net.node(0).ready().pid)?;
    attack().await.with_context(|| what.to_owned())?;
    net.client(0).status().await.with_context(|| format!("after {what} it no longer serves"))?;
    let rise_bytes = memory.rise_bytes().with_context(|| format!("after {what} it is gone"))?;
    eprintln!("rise {:6.1} MiB  {what}", rise_bytes as f64 / f64::from(1 << 20));
    ensure!(rise_bytes <= RISE_BYTES_MAX, "{what} took {rise_bytes} bytes of memory");
    Ok(())
}

/// A daemon that has published the built-in model, and logs its decisions.
async fn serving() -> Result<(Testnet, tempfile::TempDir)> {
    let net = Testnet::start(CAIRN, 1, &["-v"]).await?;
    let folder = tempfile::tempdir()?;
    net.publish(0, &tiny_model(folder.path())?, "honest/tiny").await?;
    Ok((net, folder))
}

/// Runs a client command of node 0's owner to its end.
fn cairn(net: &Testnet, words: &[&str]) -> Output {
    tokio::task::block_in_place(|| daemon::cairn(net.node(0).home(), words))
}

/// The command failed with that exit code and that reason, in one line that says why and what to try.
fn refused(output: &Output, exit: i32, code: &str, why: &str) -> Result<Value> {
    ensure!(output.status.code() == Some(exit), "exit {:?}: {output:?}", output.status.code());
    let error = error_of(output);
    ensure!(error["code"] == code && error["why"].as_str().unwrap().contains(why), "{error}");
    ensure!(!error["try"].as_str().unwrap().is_empty(), "no advice: {error}");
    Ok(error)
}

/// Waits until node 0's log holds a line with all of these words.
async fn logged(net: &Testnet, words: &[&str]) -> Result<()> {
    let log = net.node(0).home().join("stderr.log");
    let is_there = || async {
        let text = fs::read_to_string(&log)?;
        Ok(text.lines().any(|line| words.iter().all(|word| line.contains(word))))
    };
    wait_until(&format!("the log says {words:?}"), is_there).await
}

async fn meet(net: &Testnet, seed: u8, lies: Lies) -> Result<Stranger> {
    let ready = net.node(0).ready();
    let tcp = ready.listen.iter().find(|address| address.contains("/tcp/")).context("a TCP address")?;
    Stranger::meet(seed, net.realm(), tcp, lies).await
}

/// A publisher that signs whatever a test wants signed.
struct Signer {
    key: Keypair,
    realm: RealmId,
}

impl Signer {
    fn new(seed: u8, net: &Testnet) -> Signer {
        Signer { key: Keypair::from_seed([seed; 32]), realm: net.realm().parse().unwrap() }
    }

    fn repo(&self, name: &str) -> String {
        format!("{}/{name}", self.key.public())
    }

    fn profile(&self, handle: &str) -> Record {
        let profile = Profile {
            handle: handle.parse().unwrap(),
            display_name: String::new(),
            epoch: 0,
            recovery_key: None,
            previous: None,
            created_ms: 0,
        };
        profile.sign(self.realm, &self.key).unwrap()
    }

    fn revision(&self, name: &str, manifest: &[u8]) -> Record {
        let revision = Revision {
            revision: BlobHash::of(manifest).into(),
            manifest_bytes: manifest.len() as u64,
            kind: RepoKind::Model,
            name: name.parse().unwrap(),
            parents: vec![],
            files: 1,
            bytes: 1,
            message: String::new(),
            created_ms: 0,
            architecture: String::new(),
            parameters: 0,
            license: String::new(),
            quantisation: String::new(),
            tags: vec![],
        };
        revision.sign(self.realm, &self.key).unwrap()
    }

    fn head(&self, name: &str, place: (u64, u64), previous: Option<RecordId>, manifest: &[u8]) -> Record {
        let head = Head {
            kind: RepoKind::Model,
            name: name.parse().unwrap(),
            ref_name: RefName::main(),
            epoch: place.0,
            number: place.1,
            revision: BlobHash::of(manifest).into(),
            previous,
            created_ms: 0,
            tag: false,
        };
        head.sign(self.realm, &self.key).unwrap()
    }
}

fn envelopes(records: &[&Record]) -> Vec<record_pb::Envelope> {
    records.iter().map(|record| record.envelope().clone()).collect()
}

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
    let profile = author.profile("author");
    let revisions = [author.revision("m", old), author.revision("m", new), author.revision("m", other)];
    let today = envelopes(&[&profile, &revisions[0], &revisions[1], &first, &second]);
    let honest = meet(&net, 1, Lies { heads: today.clone(), resolve: today }).await?;
    let stands = async || Ok::<_, anyhow::Error>(net.client(0).resolve(&author.repo("m")).await?.revision);
    let newest = RevisionId::from(BlobHash::of(new)).to_string();
    wait_until("the newest is known", || async { Ok(stands().await? == newest) }).await?;
    drop(honest);
    // Lower numbers, and a lower epoch with a higher number; each is signed by the author's own key.
    let again = author.head("m", (1, 1), None, other);
    let before = author.head("m", (0, 9), Some(RecordId::from([9; 32])), other);
    withstand(&net, "old heads: replayed, of a lower epoch, from a page and for a name", async || {
        let yesterday = envelopes(&[&profile, &revisions[0], &revisions[2], &first, &again, &before]);
        let liar = meet(&net, 2, Lies { heads: yesterday.clone(), resolve: yesterday }).await?;
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

/// A manifest of files at these paths, which a publisher's own tools would never make.
fn manifest(author: &Signer, name: &str, paths: &[&str], file: &[u8]) -> Vec<u8> {
    let digest = |algorithm, value: &[u8]| record_pb::Digest { algorithm, value: value.to_vec() };
    let digests =
        vec![digest(1, BlobHash::of(file).as_bytes()), digest(2, &sha2::Sha256::digest(file)), digest(3, &[0; 20])];
    let files = paths.iter().map(|path| record_pb::File {
        path: path.to_string(),
        size: file.len() as u64,
        digests: digests.clone(),
        header_bytes: 0,
    });
    record_pb::Manifest {
        version: 1,
        realm: author.realm.to_vec(),
        publisher: author.key.public().to_vec(),
        kind: 1,
        name: name.into(),
        files: files.collect(),
        ..Default::default()
    }
    .encode_to_vec()
}

/// Everything below a folder.
fn below(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        all.push(path.display().to_string());
        all.extend(below(&path));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_whose_paths_lead_out_is_refused_and_nothing_is_written() -> Result<()> {
    let (net, _folder) = serving().await?;
    let author = Signer::new(70, &net);
    let liar = meet(&net, 1, Lies::default()).await?;
    let file = b"loot".repeat(100);
    liar.serve(file.clone()).await?;
    let outside = tempfile::tempdir()?;
    let to = outside.path().join("to");
    let target = to.display().to_string();
    let absolute = outside.path().join("absolute").display().to_string();
    let pull = async |name: &str, paths: &[&str]| {
        let manifest = manifest(&author, name, paths, &file);
        liar.serve(manifest.clone()).await?;
        let records = envelopes(&[&author.revision(name, &manifest), &author.head(name, (0, 1), None, &manifest)]);
        liar.lie(Lies { resolve: records, ..Lies::default() });
        anyhow::Ok(cairn(&net, &["pull", &author.repo(name), "--to", &target, "--json"]))
    };
    // The same peer, the same way, with paths that any publisher may have: so it is the paths that are refused below.
    let honest = pull("honest", &["sub/file"]).await?;
    ensure!(honest.status.success() && to.join("sub/file").is_file(), "{honest:?}");
    fs::remove_dir_all(&to)?;
    let bad: [(&str, &[&str]); 7] = [
        ("parent", &["../x"]),
        ("deep", &["a/b/../../../x"]),
        ("absolute", &[absolute.as_str()]),
        ("zero", &["a\0b"]),
        ("case", &["Readme", "README"]),
        ("folder", &["a", "A/b"]),
        ("drive", &["C:\\x"]),
    ];
    for (name, paths) in bad {
        withstand(&net, &format!("a manifest with the path {:?}", paths[0]), async || {
            let output = pull(name, paths).await?;
            refused(&output, 1, "corrupt", "its manifest is not valid")?;
            ensure!(below(outside.path()).is_empty(), "it wrote {:?}", below(outside.path()));
            Ok(())
        })
        .await?;
    }
    ensure!(liar.seen().is_connected, "a publisher's fault is not its host's");
    net.stop().await;
    Ok(())
}

/// A GGUF file with one tensor of 32 singles; `counts` are tensors and metadata entries, `entries` follow them.
fn gguf(counts: (u64, u64), entries: &[u8]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(counts.0.to_le_bytes());
    file.extend(counts.1.to_le_bytes());
    file.extend(entries);
    file.extend(tensor_info(1, 32));
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend([0; 128]);
    file
}

fn tensor_info(name_bytes: u64, elements: u64) -> Vec<u8> {
    [&name_bytes.to_le_bytes()[..], b"t", &1u32.to_le_bytes(), &elements.to_le_bytes(), &0u32.to_le_bytes(), &[0; 8]]
        .concat()
}

/// A key, and the beginning of its value: the type, and what follows it.
fn entry(kind: u32, value: &[u8]) -> Vec<u8> {
    [&1u64.to_le_bytes()[..], b"k", &kind.to_le_bytes(), value].concat()
}

/// A safetensors file: what its header says, how long it says the header is, and bytes after it.
fn safetensors(header: &str, length: u64, data: usize) -> Vec<u8> {
    [&length.to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// Publishes each of these files, and demands that none is taken.
async fn refuse_files(extension: &str, sound: &[u8], bad: &[(&str, Vec<u8>)]) -> Result<()> {
    let (net, folder) = serving().await?;
    let path = folder.path().join(format!("file.{extension}"));
    let words = |repo: &'static str| ["publish", path.to_str().unwrap(), repo, "--json"];
    fs::write(&path, sound)?;
    let output = cairn(&net, &words("honest/sound"));
    ensure!(output.status.success(), "the sound file: {output:?}");
    let stored = net.client(0).status().await?.bytes_stored;
    for (what, bytes) in bad {
        fs::write(&path, bytes)?;
        withstand(&net, &format!("{extension}: {what}"), async || {
            let error = refused(&cairn(&net, &words("honest/bad")), 2, "bad_input", "")?;
            ensure!(error["why"].as_str().unwrap().contains(&format!("file.{extension}")), "which file? {error}");
            Ok(())
        })
        .await?;
    }
    refused(&cairn(&net, &["show", "honest/bad", "--json"]), 3, "not_found", "")?;
    ensure!(net.client(0).status().await?.bytes_stored == stored, "bytes of a refused file were kept");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gguf_that_is_cut_or_lies_about_its_counts_is_refused() -> Result<()> {
    let sound = gguf((1, 0), &[]);
    let (many, max) = (u64::MAX, u64::MAX.to_le_bytes());
    let string = entry(8, &max);
    let array = entry(9, &[&4u32.to_le_bytes()[..], &max].concat());
    let texts = entry(9, &[&8u32.to_le_bytes()[..], &max].concat());
    let mut huge_tensor = gguf((1, 0), &[]);
    huge_tensor.splice(24.., tensor_info(1, u64::MAX));
    let mut long_name = gguf((1, 0), &[]);
    long_name.splice(24.., tensor_info(u64::MAX, 32));
    let bad = [
        ("cut inside its header", sound[..40].to_vec()),
        ("cut inside its tensors", sound[..sound.len() - 64].to_vec()),
        ("cut after its magic", sound[..4].to_vec()),
        ("u64::MAX tensors", gguf((many, 0), &[])),
        ("u64::MAX metadata entries", gguf((1, many), &[])),
        ("a text of u64::MAX bytes", gguf((1, 1), &string)),
        ("a list of u64::MAX numbers", gguf((1, 1), &array)),
        ("a list of u64::MAX texts", gguf((1, 1), &texts)),
        ("a tensor of u64::MAX elements", huge_tensor),
        ("a tensor's name of u64::MAX bytes", long_name),
    ];
    refuse_files("gguf", &sound, &bad).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safetensors_file_that_claims_what_it_does_not_have_is_refused() -> Result<()> {
    let header = |end: u64| format!(r#"{{"t":{{"dtype":"F32","shape":[32],"data_offsets":[{},{end}]}}}}"#, end - 128);
    let file = |end: u64| safetensors(&header(end), header(end).len() as u64, 128);
    let bad = [
        ("a header of 100 GB", safetensors(&header(128), 100_000_000_000, 128)),
        ("a header of u64::MAX bytes", safetensors(&header(128), u64::MAX, 128)),
        ("a header as long as is permitted, and a short file", safetensors(&header(128), 99_999_999, 128)),
        ("a tensor after the file's end", file(1 << 40)),
        ("a tensor at the end of all numbers", file(u64::MAX)),
        ("a header that is no JSON", safetensors("{{{{", 4, 128)),
        ("deep nesting", safetensors(&"{\"a\":".repeat(100_000), 500_000, 128)),
    ];
    refuse_files("safetensors", &file(128), &bad).await
}

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

/// Where strangers knock: libp2p on TCP and QUIC, iroh, gRPC, HTTP.
struct Ports {
    talk: String,
    quic: String,
    data: String,
    api: String,
    http: String,
}

impl Ports {
    fn of(net: &Testnet) -> Ports {
        let ready = net.node(0).ready();
        let port = |kind: &str| {
            let address = ready.listen.iter().find_map(|address| address.split(kind).nth(1)).unwrap();
            format!("127.0.0.1:{}", address.split('/').next().unwrap())
        };
        Ports {
            talk: port("/tcp/"),
            quic: port("/udp/"),
            data: ready.data.clone(),
            api: ready.api.clone(),
            http: ready.http.clone().unwrap(),
        }
    }
}

/// Connects from another address of this machine, as a stranger elsewhere would; `None` if the door is shut at once.
async fn knock(from: &str, to: &str) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    tokio::time::timeout(SOON, socket.connect(to.parse().unwrap())).await.ok()?.ok()
}

/// Holds `count` connections that say nothing, and knocks again whenever one is hung up on; returns when as many have come.
async fn hold_idle(from: &'static str, to: &str, count: usize) -> Result<JoinSet<()>> {
    let mut held = JoinSet::new();
    let arrivals = Arc::new(AtomicUsize::new(0));
    for _ in 0..count {
        let (to, arrivals) = (to.to_owned(), arrivals.clone());
        held.spawn(async move {
            loop {
                if let Some(mut stream) = knock(from, &to).await {
                    arrivals.fetch_add(1, Ordering::Relaxed);
                    // However it ends, the next one takes its place.
                    let _ = stream.read(&mut [0; 64]).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    wait_until("the idle connections have come", || async { Ok(arrivals.load(Ordering::Relaxed) >= count) }).await?;
    Ok(held)
}

/// A port from which every connection goes on to `to`, where it comes from another address of this machine.
async fn by_way_of(
    from: &'static str,
    to: String,
    arrivals: Arc<AtomicUsize>,
) -> Result<(std::net::SocketAddr, JoinSet<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let (address, mut forwarding) = (listener.local_addr()?, JoinSet::new());
    forwarding.spawn(async move {
        let mut links = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, arrivals) = (to.clone(), arrivals.clone());
            links.spawn(async move {
                let Some(mut far) = knock(from, &to).await else { return };
                arrivals.fetch_add(1, Ordering::Relaxed);
                // Either end may hang up.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    Ok((address, forwarding))
}

/// An honest client and an honest probe are served, each over a new connection, within [`SOON`].
async fn serves_newcomers(net: &Testnet) -> Result<()> {
    let node = net.node(0);
    let options = ConnectOptions {
        api: Some(node.ready().api.clone()),
        home: Some(node.home().to_path_buf()),
        ..ConnectOptions::default()
    };
    let serving = async {
        Client::connect(&options).await.context("connect to gRPC")?.status().await.context("a call")?;
        let ports = Ports::of(net);
        let mut http = TcpStream::connect(&ports.http).await?;
        let ask = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", ports.http);
        http.write_all(ask.as_bytes()).await?;
        let mut answer = String::new();
        http.read_to_string(&mut answer).await.context("the probe's answer")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    };
    tokio::time::timeout(SOON, serving).await.context("in time")?
}

/// An honest peer gets in and shows its advert within [`SOON`], trying again as nodes do.
async fn welcomes_a_newcomer(net: &Testnet, seed: u8) -> Result<()> {
    let started = Instant::now();
    let coming = async {
        loop {
            match meet(net, seed, Lies::default()).await {
                Ok(peer) => return peer,
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    };
    let peer = tokio::time::timeout(SOON, coming).await.context("an honest peer is kept out")?;
    let me = peer.key.node_id().to_string();
    wait_until("the newcomer is a member", || async {
        let peers = net.client(0).peers().await?.peers;
        Ok(peers.iter().any(|peer| peer.node_id == me && peer.connected && peer.capacity.is_some()))
    })
    .await?;
    eprintln!("     an honest peer got in after {:?}", started.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_on_the_doors_keep_no_client_out_while_they_are_held() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    withstand(&net, "400 idle connections each on gRPC and HTTP, held", async || {
        let held = (hold_idle("127.0.0.1", &ports.api, 400).await?, hold_idle("127.0.0.1", &ports.http, 400).await?);
        for _ in 0..20 {
            serves_newcomers(&net).await?;
        }
        drop(held);
        Ok(())
    })
    .await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_on_the_peers_port_keep_no_honest_peer_out_while_they_are_held() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    withstand(&net, "300 idle connections on libp2p TCP, held and renewed", async || {
        let _held = hold_idle("127.0.0.2", &ports.talk, 300).await?;
        logged(&net, &["an incoming connection failed", "127.0.0.2"]).await?;
        for seed in 1..4 {
            welcomes_a_newcomer(&net, seed).await?;
        }
        serves_newcomers(&net).await
    })
    .await?;
    withstand(&net, "300 idle connections on libp2p TCP from an honest peer's own address, once", async || {
        let mut held = Vec::new();
        for _ in 0..300 {
            held.extend(knock("127.0.0.1", &ports.talk).await);
        }
        welcomes_a_newcomer(&net, 4).await
    })
    .await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_shake_hands_and_say_nothing_keep_no_honest_peer_out() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    let arrivals = Arc::new(AtomicUsize::new(0));
    let (way, _forwarding) = by_way_of("127.0.0.2", ports.talk, arrivals.clone()).await?;
    let address: libp2p::Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", way.port()).parse()?;
    withstand(&net, "300 silent libp2p peers with finished handshakes, held", async || {
        let mut silent = JoinSet::new();
        for _ in 0..300 {
            silent.spawn(hostile::stay_silent(address.clone()));
        }
        logged(&net, &["connected", "/ip4/127.0.0.2/"]).await?;
        // Every peer has come, and those that found no place have come back: what can be taken is taken.
        wait_until("all have come", || async { Ok(arrivals.load(Ordering::Relaxed) >= 1000) }).await?;
        logged(&net, &["an incoming connection failed", "127.0.0.2"]).await?;
        for seed in 1..4 {
            welcomes_a_newcomer(&net, seed).await?;
        }
        serves_newcomers(&net).await
    })
    .await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_port_breaks_nothing() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    let mut garbage = vec![0; 64 << 10];
    blake3::Hasher::new().finalize_xof().fill(&mut garbage);
    for (what, port) in [("libp2p TCP", &ports.talk), ("gRPC", &ports.api), ("HTTP", &ports.http)] {
        withstand(&net, &format!("garbage over 300 connections to {what}"), async || {
            let mut held = Vec::new();
            for _ in 0..300 {
                let Some(mut stream) = knock("127.0.0.2", port).await else { continue };
                // The daemon may hang up half way: that is the point.
                let _ = stream.write_all(&garbage).await;
                held.push(stream);
            }
            welcomes_a_newcomer(&net, 1).await?;
            serves_newcomers(&net).await
        })
        .await?;
    }
    for (what, port) in [("libp2p QUIC", &ports.quic), ("iroh", &ports.data)] {
        withstand(&net, &format!("garbage from 300 sockets to {what}"), async || {
            for n in 0..300u32 {
                let socket = UdpSocket::bind("127.0.0.2:0").await?;
                // Short, long, and what looks like the first packet of a connection.
                let start = (n as usize * 131) % (32 << 10);
                for size in [1, 100, 1200, 1400] {
                    let mut packet = garbage[start..start + size].to_vec();
                    packet[0] |= 0xc0;
                    packet.splice(1..1, 1u32.to_be_bytes());
                    // A full buffer drops it, as a network would.
                    let _ = socket.try_send_to(&packet, port.parse()?);
                }
            }
            welcomes_a_newcomer(&net, 1).await?;
            serves_newcomers(&net).await
        })
        .await?;
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_bytes_port_stop_no_pull() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &["-v"]).await?;
    let folder = tempfile::tempdir()?;
    net.publish(0, &tiny_model(folder.path())?, "honest/tiny").await?;
    net.knows(1, "honest/tiny").await?;
    let node = net.node(0).ready().node_id.parse()?;
    let address = net.node(0).ready().data.parse()?;
    withstand(&net, "200 idle iroh connections, for blobs and for stages, held", async || {
        let endpoint = hostile::endpoint(&Keypair::from_seed([9; 32])).await?;
        let mut held = Vec::new();
        for n in 0..200 {
            let alpn = if n % 2 == 0 { iroh_blobs::ALPN } else { link::STAGE_ALPN };
            let id = iroh::EndpointId::from_bytes(cairn_protocol::NodeId::as_bytes(&node))?;
            let to = iroh::EndpointAddr::new(id).with_ip_addr(address);
            held.extend(tokio::time::timeout(SOON, endpoint.connect(to, alpn)).await?);
        }
        ensure!(held.len() > 100, "only {} connections were made", held.len());
        let pull = net.pull(1, api::PullRequest { repo: "honest/tiny".into(), ..Default::default() });
        let pulled = tokio::time::timeout(SOON, pull).await.context("no pull in time")??;
        ensure!(pulled.bytes_fetched > 0, "nothing was fetched: {pulled:?}");
        endpoint.close().await;
        Ok(())
    })
    .await?;
    net.stop().await;
    Ok(())
}

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
