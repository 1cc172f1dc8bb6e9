//! A daemon's doors as strangers find them: the lock, the token, wrong hosts, oversized and garbled input, and the end.
#![allow(clippy::unwrap_used, clippy::panic)]

mod daemon;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cairn_client::generated::node_client::NodeClient;
use cairn_client::generated::registry_client::RegistryClient;
use cairn_client::{Client, ConnectOptions, Reason, Refusal, api};
use daemon::{Daemon, cairn, error_of};
use rustix::process::Signal;
use tonic::Code;
use tonic::transport::Channel;

/// More memory than this for strangers' nonsense is a leak.
const STRANGERS_BYTES_MAX: u64 = 64 << 20;

async fn channel(daemon: &Daemon) -> Channel {
    Channel::from_shared(format!("http://{}", daemon.api())).unwrap().connect().await.unwrap()
}

async fn client(daemon: &Daemon) -> Client {
    let home = Some(daemon.home().to_path_buf());
    Client::connect(&ConnectOptions { home, api: Some(daemon.api()), ..ConnectOptions::default() }).await.unwrap()
}

fn http(daemon: &Daemon, request: &str) -> String {
    let mut stream = TcpStream::connect(daemon.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(daemon: &Daemon, path: &str, host: &str) -> String {
    http(daemon, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

#[test]
fn a_second_daemon_on_a_home_is_refused_with_the_pid_of_the_first() {
    let daemon = Daemon::start();
    let output = daemon::node(daemon.home()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = error_of(&output);
    assert!(error["why"].as_str().unwrap().contains(&daemon.pid().to_string()), "{error}");
    assert_eq!(daemon.cairn(&["status", "--json"]).status.code(), Some(0), "the first goes on");
}

#[test]
fn ready_json_says_where_the_doors_are_and_goes_with_them() {
    let daemon = Daemon::start();
    let note = daemon.home().join("ready.json");
    let said: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&note).unwrap()).unwrap();
    assert_eq!(said, daemon.ready);
    assert_eq!((said["event"].as_str(), said["pid"].as_u64()), (Some("ready"), Some(u64::from(daemon.pid()))));
    let peer = said["peer_id"].as_str().unwrap();
    let listen = said["listen"].as_array().unwrap();
    assert!(!listen.is_empty() && listen.iter().all(|a| a.as_str().unwrap().ends_with(&format!("/p2p/{peer}"))));
    // Found by ready.json alone: the test's daemon has no usual port.
    assert_eq!(daemon.cairn(&["status"]).status.code(), Some(0));
    daemon.signal(Signal::TERM);
    let (status, _, home) = daemon.wait();
    assert_eq!(status.code(), Some(0));
    assert!(!home.path().join("ready.json").exists());
}

#[test]
fn a_note_left_by_a_killed_daemon_does_not_stop_the_next() {
    let daemon = Daemon::start();
    daemon.signal(Signal::KILL);
    let (_, _, home) = daemon.wait();
    assert!(home.path().join("ready.json").exists(), "SIGKILL leaves the note");
    let output = cairn(home.path(), &["status", "--json"]);
    assert_eq!(output.status.code(), Some(5), "a note without a daemon is no daemon");
    let next = Daemon::start_in(home, &[]);
    assert_eq!(next.cairn(&["status"]).status.code(), Some(0));
}

#[test]
fn sigterm_stops_in_order_doors_first_and_the_registry_last() {
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &["-v"]);
    let started = Instant::now();
    daemon.signal(Signal::TERM);
    let (status, log, _home) = daemon.wait();
    assert_eq!(status.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "it took {:?}", started.elapsed());
    let steps =
        ["doors are closed", "flows have ended", "net has ended", "data has ended", "engine has ended", "stopped"];
    let places: Vec<_> =
        steps.iter().map(|step| log.find(step).unwrap_or_else(|| panic!("`{step}` is not in:\n{log}"))).collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn ctrl_c_stops_like_sigterm() {
    let daemon = Daemon::start();
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().0.code(), Some(0));
}

#[tokio::test]
async fn calls_that_administer_need_the_token_and_reads_do_not() {
    let daemon = Daemon::start();
    let mut registry = RegistryClient::new(channel(&daemon).await);
    registry.list(api::ListRequest::default()).await.unwrap();
    let ask = || api::MirrorAddRequest { pattern: "acme/tiny".into(), rules: None };
    let status = registry.mirror_add(ask()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(Refusal::from_details(status.details()).unwrap().reason, Reason::TokenRequired);
    let mut wrong = tonic::Request::new(ask());
    wrong.metadata_mut().insert("authorization", format!("Bearer {}", "0".repeat(64)).parse().unwrap());
    assert_eq!(registry.mirror_add(wrong).await.unwrap_err().code(), Code::Unauthenticated);
    let publish = api::PublishRequest { path: "/etc".into(), repo: "acme/etc".into(), ..Default::default() };
    assert_eq!(registry.publish(publish).await.unwrap_err().code(), Code::Unauthenticated);
    let export = api::PullRequest { repo: "acme/tiny".into(), to: "/tmp".into(), ..Default::default() };
    assert_eq!(registry.pull(export).await.unwrap_err().code(), Code::Unauthenticated);
    client(&daemon).await.mirror_add("acme/tiny").await.unwrap();
    assert_eq!(client(&daemon).await.mirror_list().await.unwrap().patterns, ["acme/tiny"]);
}

#[tokio::test]
async fn a_repo_that_nobody_has_is_exit_3_and_a_whole_refusal() {
    let daemon = Daemon::start();
    let output = daemon.cairn(&["show", "acme/nothing", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(error_of(&output)["code"], "not_found");
    let refusal = client(&daemon).await.show("acme/nothing").await.unwrap_err();
    assert_eq!(refusal.reason, Reason::NotFound);
    let output = daemon.cairn(&["show", "not a repo", "--json"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_wish_that_can_not_be_met_is_refused_in_words_that_help() {
    let daemon = Daemon::start();
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");
    assert_eq!(daemon.cairn(&["publish", tiny, "acme/tiny", "--quiet"]).status.code(), Some(0));
    let file = daemon.home().join("a-file");
    std::fs::write(&file, b"x").unwrap();
    let (file, long, http) = (file.display().to_string(), "x".repeat(4097), daemon.http());
    let http = http.to_string();
    for (words, exit, why) in [
        (&["publish", tiny, "acme/tiny", "-m", &long][..], 4, "the message has 4097 bytes, at most 4096 are accepted"),
        (&["pull", "acme/tiny", "--to", &file][..], 2, "is a file, and a folder is needed"),
        (&["pull", "acme/none"][..], 3, "neither this node nor a peer that it reaches knows it"),
        (&["ls", "--api", &http][..], 4, "it is the node's HTTP door, not its gRPC API"),
    ] {
        let output = daemon.cairn(&[words, &["--json"]].concat());
        let error = error_of(&output);
        assert!(error["why"].as_str().unwrap().ends_with(why), "{error}");
        assert_eq!(output.status.code(), Some(exit), "{error}");
    }
}

#[tokio::test]
async fn a_prompt_is_given_in_one_way_and_its_roles_are_known_ones() {
    let daemon = Daemon::start();
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");
    assert_eq!(daemon.cairn(&["publish", tiny, "acme/tiny", "--quiet"]).status.code(), Some(0));
    let client = client(&daemon).await;
    let robot = api::ChatMessage { role: "robot".into(), content: "hum".into() };
    let ask = api::GenerateRequest { repo: "acme/tiny".into(), max_tokens: 1, ..Default::default() };
    let both = api::GenerateRequest { prompt: "Once".into(), messages: vec![robot.clone()], ..ask.clone() };
    let ids = api::GenerateRequest { prompt: "Once".into(), token_ids: vec![1], ..ask.clone() };
    let role = api::GenerateRequest { messages: vec![robot], ..ask };
    for (ask, told) in [(both, "several ways"), (ids, "several ways"), (role, "\"robot\" is not a role")] {
        let refusal = client.generate(ask).await.unwrap().next().await.unwrap_err();
        assert_eq!(refusal.reason, Reason::BadInput, "{refusal}");
        assert!(refusal.why.contains(told) && !refusal.try_.contains("--raw"), "{refusal}");
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_daemon_lives() {
    let daemon = Daemon::start();
    let client = client(&daemon).await;
    let before = daemon.rss_bytes();
    for _ in 0..8 {
        let ask = api::GenerateRequest { repo: "acme/tiny".into(), prompt: "x".repeat(16 << 20), ..Default::default() };
        let refusal = match client.generate(ask).await {
            Ok(mut events) => events.next().await.unwrap_err(),
            Err(refusal) => refusal,
        };
        assert_eq!(refusal.reason, Reason::Limit, "{refusal}");
    }
    client.status().await.unwrap();
    assert!(daemon.rss_bytes().saturating_sub(before) < STRANGERS_BYTES_MAX);
}

#[tokio::test]
async fn health_and_reflection_tell_what_is_served() {
    use tonic_reflection::pb::{v1, v1alpha};
    let daemon = Daemon::start();
    let channel = channel(&daemon).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    for service in ["", "cairn.v1.Registry", "cairn.v1.Compute", "cairn.v1.Node"] {
        let ask = tonic_health::pb::HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(ask).await.unwrap().into_inner().status, 1, "{service}");
    }
    let ask = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer.message_response
    else {
        panic!("no list")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["cairn.v1.Registry", "cairn.v1.Compute", "cairn.v1.Node", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == service), "{names:?}");
    }
    let ask = v1alpha::ServerReflectionRequest {
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "cairn.v1.Registry".into(),
        )),
        ..Default::default()
    };
    let mut reflection = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    assert!(matches!(
        answer.message_response,
        Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
    ));
}

#[test]
fn the_http_door_answers_only_to_our_own_names() {
    let daemon = Daemon::start();
    let port = daemon.http().rsplit_once(':').unwrap().1.to_string();
    for (path, holds) in
        [("/healthz", "ok"), ("/readyz", "ready"), ("/metrics", "# TYPE cairn_peers gauge"), ("/", "Cairn node")]
    {
        let answer = get(&daemon, path, &format!("localhost:{port}"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(holds), "{path}: {answer}");
    }
    for host in ["evil.example", &format!("evil.example:{port}"), "127.0.0.1:1", ""] {
        let answer = get(&daemon, "/metrics", host);
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("host_refused"), "{host}: {answer}");
    }
    assert!(get(&daemon, "/nothing", &format!("127.0.0.1:{port}")).starts_with("HTTP/1.1 404"));
    let metrics = get(&daemon, "/metrics", &format!("127.0.0.1:{port}"));
    assert!(metrics.lines().any(|line| line == "cairn_refusals_total 5"), "{metrics}");
}

#[test]
fn the_grpc_door_does_not_speak_http_1() {
    let daemon = Daemon::start();
    let mut stream = TcpStream::connect(daemon.api()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"POST /cairn.v1.Node/Status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) => assert!(error.kind() != ErrorKind::WouldBlock, "it hangs"),
        Ok(_) => assert!(!answer.windows(6).any(|bytes| bytes == b"HTTP/1"), "it answered in HTTP/1"),
    }
}

#[tokio::test]
async fn garbage_and_silence_on_every_port_cost_little_and_break_nothing() {
    let mut daemon = Daemon::start();
    client(&daemon).await.status().await.unwrap();
    let before = daemon.rss_bytes();
    let talk = format!("127.0.0.1:{}", daemon.talk_port());
    let tcp = [daemon.api(), daemon.http(), talk];
    let garbage: Vec<u8> = (0..32 << 10).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut silent = Vec::new();
    for address in &tcp {
        for round in 0..150 {
            let Ok(mut stream) = TcpStream::connect(address) else { continue };
            if round % 2 == 0 {
                silent.push(stream);
            } else {
                // The daemon may hang up half way: that is the point.
                let _ = stream.write_all(&garbage);
            }
        }
    }
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let quic =
        daemon.ready["listen"].as_array().unwrap().iter().find_map(|a| a.as_str().unwrap().split("/udp/").nth(1));
    let quic = format!("127.0.0.1:{}", quic.unwrap().split('/').next().unwrap());
    for address in [quic, daemon.ready["data"].as_str().unwrap().to_string()] {
        for piece in garbage.chunks(1200).cycle().take(2000) {
            let _ = udp.send_to(piece, &address);
        }
    }
    // With half of the places taken by the silent, a client is still served.
    client(&daemon).await.status().await.unwrap();
    let grown = daemon.rss_bytes().saturating_sub(before);
    eprintln!("{} KiB more after garbage and silence", grown >> 10);
    assert!(grown < STRANGERS_BYTES_MAX, "{} MiB more", grown >> 20);
    assert!(daemon.is_running());
    assert!(get(&daemon, "/healthz", &daemon.http()).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_silent_connection_is_hung_up_on() {
    let daemon = Daemon::start();
    for address in [daemon.api(), daemon.http()] {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut sink = Vec::new();
        let ended = stream.read_to_end(&mut sink);
        let is_hung_up = ended.as_ref().map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |_| true);
        assert!(is_hung_up, "{address} leaves a silent connection open: {ended:?}");
    }
}

#[tokio::test]
async fn a_door_full_of_clients_closes_at_once_and_opens_again() {
    let daemon = Daemon::start();
    let greeted = || {
        let mut stream = TcpStream::connect(daemon.api()).unwrap();
        stream.set_read_timeout(Some(daemon::PATIENCE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        // The door's own settings: it has heard the hello.
        stream.read_exact(&mut [0; 9]).unwrap();
        stream
    };
    let held: Vec<_> = (0..cairn_node::doors::guard::CONNECTIONS_MAX).map(|_| greeted()).collect();
    let mut last = TcpStream::connect(daemon.api()).unwrap();
    last.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let ended = last.read(&mut [0; 1]);
    assert!(
        matches!(&ended, Ok(0)) || ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
        "{ended:?}"
    );
    drop(held);
    let deadline = Instant::now() + daemon::PATIENCE;
    while NodeClient::connect(format!("http://{}", daemon.api())).await.is_err() {
        assert!(Instant::now() < deadline, "the door stays full");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn with_tls_others_may_reach_the_door_and_every_call_needs_the_token() {
    let home = tempfile::tempdir().unwrap();
    let (cert, key) = (home.path().join("cert.pem"), home.path().join("key.pem"));
    // A certificate for 127.0.0.1 made for this test alone; it opens nothing.
    std::fs::write(&cert, include_str!("daemon/tls-cert.pem")).unwrap();
    std::fs::write(&key, include_str!("daemon/tls-key.pem")).unwrap();
    let config = format!("tls_cert = {cert:?}\ntls_key = {key:?}\n");
    std::fs::write(home.path().join("config.toml"), config).unwrap();
    let daemon = Daemon::start_in(home, &["--api-listen", "0.0.0.0:0"]);
    let port = daemon.api().rsplit_once(':').unwrap().1.to_string();
    let options = ConnectOptions {
        api: Some(format!("https://127.0.0.1:{port}")),
        home: Some(daemon.home().to_path_buf()),
        tls_ca: Some(cert),
        ..ConnectOptions::default()
    };
    let status = Client::connect(&options).await.unwrap().status().await.unwrap();
    assert_eq!(status.node_id, daemon.ready["node_id"].as_str().unwrap());
    let nobody = tempfile::tempdir().unwrap();
    let stranger = ConnectOptions { home: Some(nobody.path().to_path_buf()), ..options.clone() };
    let refusal = Client::connect(&stranger).await.unwrap().status().await.unwrap_err();
    assert_eq!(refusal.reason, Reason::TokenRequired, "a read needs the token too: {refusal}");
    let in_the_clear = ConnectOptions { api: Some(format!("http://127.0.0.1:{port}")), ..options };
    let refusal = match Client::connect(&in_the_clear).await {
        Ok(client) => client.status().await.unwrap_err(),
        Err(refusal) => refusal,
    };
    assert_eq!(refusal.reason, Reason::Unavailable, "{refusal}");
}

#[tokio::test]
async fn a_deadline_ends_the_call_and_the_work_behind_it() {
    let daemon = Daemon::start();
    let client = client(&daemon).await;
    let model = daemon.home().join("model");
    cairn_node::builtin::write(&model).unwrap();
    let publish =
        api::PublishRequest { path: model.display().to_string(), repo: "acme/tiny".into(), ..Default::default() };
    let mut events = client.publish(publish).await.unwrap();
    while events.next().await.unwrap().is_some() {}
    let ask = api::GenerateRequest {
        repo: "acme/tiny".into(),
        prompt: "x".repeat(100),
        raw: true,
        max_tokens: 200,
        temperature: Some(1.0),
        ..Default::default()
    };
    let hasty = client.clone().with_deadline(Duration::from_millis(15));
    let refusal = match hasty.generate(ask).await {
        Err(refusal) => refusal,
        Ok(mut events) => loop {
            match events.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("200 tokens in 15 ms"),
                Err(refusal) => break refusal,
            }
        },
    };
    assert_eq!(refusal.reason, Reason::Deadline, "{refusal}");
    let deadline = Instant::now() + daemon::PATIENCE;
    while client.status().await.unwrap().sessions != 0 {
        assert!(Instant::now() < deadline, "the work goes on without its caller");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_leashed_daemon_stops_when_its_parent_lets_go() {
    let home = tempfile::tempdir().unwrap();
    let mut child = daemon::node(home.path()).arg("--until-stdin-closes").stdin(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("ready"), "{line}");
    drop(child.stdin.take());
    let deadline = Instant::now() + daemon::PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it outlives its parent");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0));
    assert!(!home.path().join("ready.json").exists());
}
