//! The gRPC door: `cairn.v1` with reflection (v1 and v1alpha) and the standard health service.
//!
//! Every method is one line: who may call it, and which flow answers. Deadlines, cancellation and places are in
//! [`super::call`], conversions in `convert`. HTTP/1 is refused by the HTTP/2 preface, so no web page can speak to it.
//!
//! Invariant: no message larger than [`MESSAGE_BYTES_MAX`] is read into memory.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cairn_protocol::api;
use cairn_protocol::refusal::{Reason, Refusal};
use futures::TryStreamExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::InterceptorLayer;
use tonic::transport::server::TlsConnectInfo;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::auth::Auth;
use super::call::{Calls, Events, Needs};
use super::convert;
use super::generated::compute_server::{Compute, ComputeServer};
use super::generated::jobs_server::{Jobs, JobsServer};
use super::generated::node_server::{Node as NodeService, NodeServer};
use super::generated::registry_server::{Registry, RegistryServer};
use super::generated::tasks_server::TasksServer;
use super::guard::{ConnectionNumber, Guarded, Patience};
use super::status::status;
use crate::flows;
use crate::shell::Node;

/// Largest request: a chat of a few hundred pages. Bytes of models travel as streams of small pieces.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Largest answer: what clients of every language accept unless told otherwise.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Calls on one connection at once.
const STREAMS_MAX: u32 = 64;

/// Headers of one call; ours are a token and a deadline.
const HEADERS_BYTES_MAX: u32 = 8 << 10;

/// The preface is 24 bytes and comes at once. A peer that does not answer pings is gone.
const PATIENCE: Patience = Patience { hello_bytes: 24, hello: Duration::from_secs(10), idle: None };
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// A service with the door's limits on messages.
macro_rules! limited {
    ($service:ident, $calls:expr) => {
        $service::new($calls.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(ANSWER_BYTES_MAX)
    };
}
/// Makes the future that serves the door until `closing`, then lets calls under way end.
pub(super) fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    closing: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static, Refusal> {
    let everywhere = !node.config.api_listen.ip().is_loopback();
    let auth = Auth::new(&node.home.api_token()?, everywhere);
    let calls = Calls::new(node.clone(), auth.clone());
    let mut server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_PATIENCE));
    if let Some((cert, key)) = &node.config.tls {
        // Two providers are linked in; an earlier choice stands.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let identity = Identity::from_pem(read_pem(cert)?, read_pem(key)?);
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).map_err(|error| bad_tls(cert, &error))?;
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    let door = move |request: Request<()>| match auth.admit(request.metadata()) {
        Ok(()) => Ok(request),
        Err(refusal) => Err(status(&refusal)),
    };
    let router = server
        .layer(InterceptorLayer::new(door))
        .add_service(health_service)
        .add_service(reflection_builder().build_v1().map_err(bad_descriptors)?)
        .add_service(reflection_builder().build_v1alpha().map_err(bad_descriptors)?)
        .add_service(limited!(RegistryServer, calls))
        .add_service(limited!(ComputeServer, calls))
        .add_service(limited!(JobsServer, calls))
        .add_service(limited!(NodeServer, calls))
        .add_service(limited!(TasksServer, calls));
    let guarded = Guarded::new(listener, PATIENCE, node);
    let incoming = futures::stream::unfold(guarded, async |guarded| {
        let (stream, _) = guarded.next().await;
        Some((Ok::<_, std::io::Error>(stream), guarded))
    });
    Ok(async move {
        health.set_serving::<RegistryServer<Calls>>().await;
        health.set_serving::<ComputeServer<Calls>>().await;
        health.set_serving::<JobsServer<Calls>>().await;
        health.set_serving::<NodeServer<Calls>>().await;
        health.set_serving::<TasksServer<Calls>>().await;
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, closing.cancelled_owned()).await {
            tracing::error!(%error, "the gRPC door broke");
        }
    })
}

#[tonic::async_trait]
impl Registry for Calls {
    type PublishStream = Events<api::PublishEvent>;
    type ImportStream = Events<api::PublishEvent>;
    type PullStream = Events<api::PullEvent>;
    type ReadBlobStream = Events<api::ReadBlobResponse>;
    type VerifyStream = Events<api::VerifyEvent>;
    type ScanStream = Events<api::ScanEvent>;
    type ExportStream = Events<api::PullEvent>;
    type BundleCreateStream = Events<api::BundleCreateEvent>;
    type BundleApplyStream = Events<api::BundleApplyEvent>;
    type BundleSummaryStream = Events<api::BundleSummaryPiece>;

    async fn publish(&self, request: Request<api::PublishRequest>) -> Result<Response<Self::PublishStream>, Status> {
        self.stream(request, Needs::Token("publish"), flows::publish::publish)
    }

    async fn import(&self, request: Request<api::ImportRequest>) -> Result<Response<Self::ImportStream>, Status> {
        self.stream(request, Needs::Token("import"), flows::import::import)
    }

    async fn resolve(&self, request: Request<api::ResolveRequest>) -> Result<Response<api::ResolveResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::show::resolve(&node, ask).await).await
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<api::ListResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::show::list(&node, ask).await).await
    }

    async fn search(&self, request: Request<api::SearchRequest>) -> Result<Response<api::SearchResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, request| flows::search::search(&node, request).await).await
    }

    async fn show(&self, request: Request<api::ShowRequest>) -> Result<Response<api::ShowResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::show::show(&node, ask).await).await
    }

    async fn pull(&self, request: Request<api::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let needs = if request.get_ref().to.is_empty() { Needs::Nothing } else { Needs::Token("pull to a folder") };
        self.stream(request, needs, flows::pull::pull)
    }

    async fn read_blob(
        &self,
        request: Request<api::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        self.stream(request, Needs::Nothing, flows::pull::read_blob)
    }

    async fn verify(&self, request: Request<api::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        self.stream(request, Needs::Nothing, flows::verify::verify)
    }

    async fn scan(&self, request: Request<api::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let is_path = matches!(request.get_ref().what, Some(api::scan_request::What::Path(_)));
        let needs = if is_path { Needs::Token("scan of a path") } else { Needs::Nothing };
        self.stream(request, needs, flows::scan::scan)
    }

    async fn export(&self, request: Request<api::ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        self.stream(request, Needs::Token("export"), flows::export::export)
    }

    async fn mirror_add(
        &self,
        request: Request<api::MirrorAddRequest>,
    ) -> Result<Response<api::MirrorAddResponse>, Status> {
        self.once(request, Needs::Token("mirror add"), async |node, ask| flows::mirror::add(&node, ask).await).await
    }

    async fn mirror_remove(
        &self,
        request: Request<api::MirrorRemoveRequest>,
    ) -> Result<Response<api::MirrorRemoveResponse>, Status> {
        self.once(request, Needs::Token("mirror rm"), async |node, ask| flows::mirror::remove(&node, ask).await).await
    }

    async fn mirror_list(
        &self,
        request: Request<api::MirrorListRequest>,
    ) -> Result<Response<api::MirrorListResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::mirror::list(&node, ask).await).await
    }

    async fn history(&self, request: Request<api::HistoryRequest>) -> Result<Response<api::HistoryResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::history::history(&node, ask).await).await
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::diff::diff(&node, ask).await).await
    }

    async fn set_ref(&self, request: Request<api::SetRefRequest>) -> Result<Response<api::SetRefResponse>, Status> {
        self.once(request, Needs::Token("branch"), async |node, ask| flows::history::set_ref(&node, ask).await).await
    }

    async fn lineage(&self, request: Request<api::LineageRequest>) -> Result<Response<api::LineageResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::lineage::lineage(&node, ask).await).await
    }

    async fn advise(&self, request: Request<api::AdviseRequest>) -> Result<Response<api::AdviseResponse>, Status> {
        self.once(request, Needs::Token("advise"), async |node, ask| flows::advisories::advise(&node, ask).await).await
    }

    async fn advisories(
        &self,
        request: Request<api::AdvisoriesRequest>,
    ) -> Result<Response<api::AdvisoriesResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::advisories::list(&node, ask).await).await
    }

    async fn attest(&self, request: Request<api::AttestRequest>) -> Result<Response<api::AttestResponse>, Status> {
        self.once(request, Needs::Token("attest"), async |node, ask| flows::attest::attest(&node, ask).await).await
    }

    async fn publisher(
        &self,
        request: Request<api::PublisherRequest>,
    ) -> Result<Response<api::PublisherResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, ask| flows::publishers::show(&node, ask).await).await
    }

    async fn key_list(&self, request: Request<api::KeyListRequest>) -> Result<Response<api::KeyListResponse>, Status> {
        self.once(request, Needs::Token("key ls"), async |node, _| flows::publishers::list(&node).await).await
    }

    async fn key_new(&self, request: Request<api::KeyNewRequest>) -> Result<Response<api::PublisherResponse>, Status> {
        self.once(request, Needs::Token("key new"), async |node, ask| flows::publishers::new(&node, ask).await).await
    }

    async fn profile_set(
        &self,
        request: Request<api::ProfileSetRequest>,
    ) -> Result<Response<api::PublisherResponse>, Status> {
        self.once(request, Needs::Token("profile"), async |node, ask| flows::publishers::set(&node, ask).await).await
    }

    async fn key_rotate(
        &self,
        request: Request<api::KeyRotateRequest>,
    ) -> Result<Response<api::KeyRotateResponse>, Status> {
        self.once(request, Needs::Token("key rotate"), async |node, ask| flows::publishers::rotate(&node, ask).await)
            .await
    }

    async fn trust_list(
        &self,
        request: Request<api::TrustListRequest>,
    ) -> Result<Response<api::TrustListResponse>, Status> {
        self.once(request, Needs::Token("trust ls"), async |node, _| flows::trust::list(&node).await).await
    }

    async fn trust_set(
        &self,
        request: Request<api::TrustSetRequest>,
    ) -> Result<Response<api::TrustSetResponse>, Status> {
        self.once(request, Needs::Token("trust"), async |node, ask| flows::trust::set(&node, ask).await).await
    }

    async fn bundle_create(
        &self,
        request: Request<api::BundleCreateRequest>,
    ) -> Result<Response<Self::BundleCreateStream>, Status> {
        self.stream(request, Needs::Token("bundle create"), flows::bundle::create)
    }

    async fn bundle_apply(
        &self,
        request: Request<Streaming<api::BundleApplyRequest>>,
    ) -> Result<Response<Self::BundleApplyStream>, Status> {
        self.stream(request, Needs::Token("bundle apply"), |node, requests, events| {
            flows::bundle::apply(node, requests.map_err(|status| broken(&status)), events)
        })
    }

    async fn bundle_summary(
        &self,
        request: Request<api::BundleSummaryRequest>,
    ) -> Result<Response<Self::BundleSummaryStream>, Status> {
        self.stream(request, Needs::Token("bundle summary"), flows::bundle::summary)
    }
}

/// A client that streams its request broke off.
fn broken(status: &Status) -> Refusal {
    Refusal::new(Reason::Unavailable, "what the client sends", status.message()).try_this("the same again")
}

#[tonic::async_trait]
impl Compute for Calls {
    type GenerateStream = Events<api::GenerateEvent>;

    async fn plan(&self, request: Request<api::PlanRequest>) -> Result<Response<api::PlanResponse>, Status> {
        self.once(request, Needs::Nothing, flows::plan::plan).await
    }

    async fn generate(&self, request: Request<api::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let client = connection(&request);
        self.stream(request, Needs::Nothing, move |node, request, events| {
            flows::generate::generate_for(node, request, events, client)
        })
    }
}

/// The number of the connection that a call came in on: its clients share this node fairly. 0 where it is not known.
fn connection<T>(request: &Request<T>) -> u64 {
    let plain = request.extensions().get::<ConnectionNumber>();
    let sealed = request.extensions().get::<TlsConnectInfo<ConnectionNumber>>();
    plain.or(sealed.map(TlsConnectInfo::get_ref)).map_or(0, |connection| connection.0)
}

#[tonic::async_trait]
impl Jobs for Calls {
    type QuantiseStream = Events<api::PublishEvent>;

    async fn quantise(&self, request: Request<api::QuantiseRequest>) -> Result<Response<Self::QuantiseStream>, Status> {
        self.stream(request, Needs::Token("quantise"), flows::quantise::quantise)
    }
}

#[tonic::async_trait]
impl NodeService for Calls {
    async fn status(&self, request: Request<api::StatusRequest>) -> Result<Response<api::StatusResponse>, Status> {
        self.once(request, Needs::Nothing, async |node, _| flows::status::status(&node).await).await
    }

    async fn peers(&self, request: Request<api::PeersRequest>) -> Result<Response<api::PeersResponse>, Status> {
        let peers = async |node: Arc<Node>, _| {
            Ok(api::PeersResponse { peers: node.net.peers().into_iter().map(convert::peer).collect() })
        };
        self.once(request, Needs::Nothing, peers).await
    }

    async fn capacity(
        &self,
        request: Request<api::CapacityRequest>,
    ) -> Result<Response<api::CapacityResponse>, Status> {
        let capacity = async |node: Arc<Node>, _| Ok(convert::capacity(&node.capacity));
        self.once(request, Needs::Nothing, capacity).await
    }
}

fn reflection_builder() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cairn_protocol::API_DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn bad_descriptors(error: tonic_reflection::server::Error) -> Refusal {
    Refusal::new(Reason::Internal, "reflection", error.to_string()).try_this("a build whose generated code is whole")
}

fn read_pem(path: &std::path::Path) -> Result<Vec<u8>, Refusal> {
    std::fs::read(path).map_err(|error| bad_tls(path, &error))
}

fn bad_tls(path: &std::path::Path, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::BadInput, path.display().to_string(), error.to_string())
        .try_this("a PEM certificate chain and its key")
}
