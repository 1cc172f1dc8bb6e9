//! Every call of `cairn.v1`, with refusals for errors.
//!
//! Invariant: dropping [`Events`] cancels the call, and the daemon cancels the work behind it.

use std::time::Duration;

use cairn_protocol::api;
use cairn_protocol::refusal::{Reason, Refusal};
use futures::Stream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::discovery::{ConnectOptions, Found};
use crate::generated::compute_client::ComputeClient;
use crate::generated::jobs_client::JobsClient;
use crate::generated::node_client::NodeClient;
use crate::generated::registry_client::RegistryClient;
use crate::generated::tasks_client::TasksClient;
use crate::refusal::from_status;

/// A daemon on this machine answers in microseconds; one across the world in less than this.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A daemon that was killed says nothing: pings notice.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Largest answer that is read: a list of a repo's files.
const ANSWER_BYTES_MAX: usize = 8 << 20;

type Wire = InterceptedService<Channel, Bearer>;

/// A connected client. Cheap to clone; clones share one connection.
#[derive(Clone, Debug)]
pub struct Client {
    registry: RegistryClient<Wire>,
    compute: ComputeClient<Wire>,
    jobs: JobsClient<Wire>,
    node: NodeClient<Wire>,
    tasks: TasksClient<Wire>,
    found: Found,
    deadline: Option<Duration>,
}

/// The events of a call that streams.
#[derive(Debug)]
pub struct Events<T>(Streaming<T>);

impl<T> Events<T> {
    /// The next event; `None` when the call is done.
    pub async fn next(&mut self) -> Result<Option<T>, Refusal> {
        self.0.message().await.map_err(|status| from_status(&status))
    }
}

impl Client {
    /// Finds the daemon and connects.
    pub async fn connect(options: &ConnectOptions) -> Result<Client, Refusal> {
        let found = options.find()?;
        let channel = endpoint(&found)?.connect().await.map_err(|error| no_daemon(&found, &error))?;
        let token = match &found.token {
            Some(token) => Some(format!("Bearer {}", token.expose()).parse().map_err(|_| bad_token())?),
            None => None,
        };
        let wire = InterceptedService::new(channel, Bearer(token));
        Ok(Client {
            registry: RegistryClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            compute: ComputeClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            jobs: JobsClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            tasks: TasksClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            node: NodeClient::new(wire).max_decoding_message_size(ANSWER_BYTES_MAX),
            found,
            deadline: None,
        })
    }

    /// The same client, whose calls end after `deadline`.
    pub fn with_deadline(mut self, deadline: Duration) -> Client {
        self.deadline = Some(deadline);
        self
    }

    /// Which daemon this is and how it was found.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Signs and publishes a file or folder of the daemon's machine. Needs the token.
    pub async fn publish(&self, ask: api::PublishRequest) -> Result<Events<api::PublishEvent>, Refusal> {
        stream(self.registry.clone().publish(self.request(ask)).await)
    }

    /// Brings a model in from elsewhere. Needs the token.
    pub async fn import(&self, ask: api::ImportRequest) -> Result<Events<api::PublishEvent>, Refusal> {
        stream(self.registry.clone().import(self.request(ask)).await)
    }

    /// Makes a model again with quantised matrices and publishes it. Needs the token.
    pub async fn quantise(&self, ask: api::QuantiseRequest) -> Result<Events<api::PublishEvent>, Refusal> {
        stream(self.jobs.clone().quantise(self.request(ask)).await)
    }

    /// Finds the revision that `REPO[@REF]` stands for.
    pub async fn resolve(&self, repo: impl Into<String>) -> Result<api::ResolveResponse, Refusal> {
        answer(self.registry.clone().resolve(self.request(api::ResolveRequest { repo: repo.into() })).await)
    }

    /// One page of repos.
    pub async fn list(&self, ask: api::ListRequest) -> Result<api::ListResponse, Refusal> {
        answer(self.registry.clone().list(self.request(ask)).await)
    }

    /// One page of the repos that a search finds.
    pub async fn search(&self, ask: api::SearchRequest) -> Result<api::SearchResponse, Refusal> {
        answer(self.registry.clone().search(self.request(ask)).await)
    }

    /// Everything known of one repo.
    pub async fn show(&self, repo: impl Into<String>) -> Result<api::ShowResponse, Refusal> {
        answer(self.registry.clone().show(self.request(api::ShowRequest { repo: repo.into() })).await)
    }

    /// Fetches and verifies. Needs the token if it exports to a folder.
    pub async fn pull(&self, ask: api::PullRequest) -> Result<Events<api::PullEvent>, Refusal> {
        stream(self.registry.clone().pull(self.request(ask)).await)
    }

    /// The verified bytes of a file or blob.
    pub async fn read_blob(&self, ask: api::ReadBlobRequest) -> Result<Events<api::ReadBlobResponse>, Refusal> {
        stream(self.registry.clone().read_blob(self.request(ask)).await)
    }

    /// Reads every byte and signature again.
    pub async fn verify(&self, repo: impl Into<String>) -> Result<Events<api::VerifyEvent>, Refusal> {
        stream(self.registry.clone().verify(self.request(api::VerifyRequest { repo: repo.into() })).await)
    }

    /// What a ref stood for, newest first.
    pub async fn history(&self, ask: api::HistoryRequest) -> Result<api::HistoryResponse, Refusal> {
        answer(self.registry.clone().history(self.request(ask)).await)
    }

    /// What differs between two revisions.
    pub async fn diff(&self, ask: api::DiffRequest) -> Result<api::DiffResponse, Refusal> {
        answer(self.registry.clone().diff(self.request(ask)).await)
    }

    /// Makes a branch or tag stand for a revision. Needs the token.
    pub async fn set_ref(&self, ask: api::SetRefRequest) -> Result<api::SetRefResponse, Refusal> {
        answer(self.registry.clone().set_ref(self.request(ask)).await)
    }

    /// What a revision was made from, and what was made from it.
    pub async fn lineage(&self, ask: api::LineageRequest) -> Result<api::LineageResponse, Refusal> {
        answer(self.registry.clone().lineage(self.request(ask)).await)
    }

    /// Signs a warning, or takes one back. Needs the token.
    pub async fn advise(&self, ask: api::AdviseRequest) -> Result<api::AdviseResponse, Refusal> {
        answer(self.registry.clone().advise(self.request(ask)).await)
    }

    /// What is said of a revision, or by whom this node heeds.
    pub async fn advisories(&self, ask: api::AdvisoriesRequest) -> Result<api::AdvisoriesResponse, Refusal> {
        answer(self.registry.clone().advisories(self.request(ask)).await)
    }

    /// Signs what was found out about a revision. Needs the token.
    pub async fn attest(&self, ask: api::AttestRequest) -> Result<api::AttestResponse, Refusal> {
        answer(self.registry.clone().attest(self.request(ask)).await)
    }

    /// Who a publisher is, and which keys sign for it.
    pub async fn publisher(&self, ask: api::PublisherRequest) -> Result<api::PublisherResponse, Refusal> {
        answer(self.registry.clone().publisher(self.request(ask)).await)
    }

    /// The publishers that this node signs for. Needs the token.
    pub async fn key_list(&self) -> Result<api::KeyListResponse, Refusal> {
        answer(self.registry.clone().key_list(self.request(api::KeyListRequest {})).await)
    }

    /// Makes a key and claims a handle for it. Needs the token.
    pub async fn key_new(&self, ask: api::KeyNewRequest) -> Result<api::PublisherResponse, Refusal> {
        answer(self.registry.clone().key_new(self.request(ask)).await)
    }

    /// Changes what a profile says. Needs the token.
    pub async fn profile_set(&self, ask: api::ProfileSetRequest) -> Result<api::PublisherResponse, Refusal> {
        answer(self.registry.clone().profile_set(self.request(ask)).await)
    }

    /// Begins a new epoch with a new key. Needs the token.
    pub async fn key_rotate(&self, ask: api::KeyRotateRequest) -> Result<api::KeyRotateResponse, Refusal> {
        answer(self.registry.clone().key_rotate(self.request(ask)).await)
    }

    /// Whose handles and advisories the operator decided on. Needs the token.
    pub async fn trust_list(&self) -> Result<api::TrustListResponse, Refusal> {
        answer(self.registry.clone().trust_list(self.request(api::TrustListRequest {})).await)
    }

    /// Decides on a handle or an adviser. Needs the token.
    pub async fn trust_set(&self, ask: api::TrustSetRequest) -> Result<api::TrustSetResponse, Refusal> {
        answer(self.registry.clone().trust_set(self.request(ask)).await)
    }

    /// Writes repos into one file of the daemon's machine, or streams it. Needs the token.
    pub async fn bundle_create(
        &self,
        ask: api::BundleCreateRequest,
    ) -> Result<Events<api::BundleCreateEvent>, Refusal> {
        stream(self.registry.clone().bundle_create(self.request(ask)).await)
    }

    /// Takes in a bundle: the first message names a file of the daemon's machine, or they bring it in pieces. Needs the token.
    pub async fn bundle_apply(
        &self,
        asks: impl Stream<Item = api::BundleApplyRequest> + Send + 'static,
    ) -> Result<Events<api::BundleApplyEvent>, Refusal> {
        stream(self.registry.clone().bundle_apply(self.request(asks)).await)
    }

    /// What the daemon's node holds, in pieces. Needs the token.
    pub async fn bundle_summary(&self) -> Result<Events<api::BundleSummaryPiece>, Refusal> {
        stream(self.registry.clone().bundle_summary(self.request(api::BundleSummaryRequest {})).await)
    }

    /// What the files would do to whoever opens them: an event a file, then the whole. Needs the token for a path.
    pub async fn scan(&self, ask: api::ScanRequest) -> Result<Events<api::ScanEvent>, Refusal> {
        stream(self.registry.clone().scan(self.request(ask)).await)
    }

    /// Writes a revision to a folder of the daemon's machine. Needs the token.
    pub async fn export(&self, ask: api::ExportRequest) -> Result<Events<api::PullEvent>, Refusal> {
        stream(self.registry.clone().export(self.request(ask)).await)
    }

    /// Keeps what the pattern names, a copy here. Needs the token.
    pub async fn mirror_add(&self, pattern: impl Into<String>) -> Result<(), Refusal> {
        self.mirror_by(pattern, api::MirrorRules::default()).await
    }

    /// Keeps what the pattern names by these rules, which replace those that it had. Needs the token.
    pub async fn mirror_by(&self, pattern: impl Into<String>, rules: api::MirrorRules) -> Result<(), Refusal> {
        let ask = self.request(api::MirrorAddRequest { pattern: pattern.into(), rules: Some(rules) });
        answer(self.registry.clone().mirror_add(ask).await).map(drop)
    }

    /// Stops keeping it; false if it was not kept. Needs the token.
    pub async fn mirror_remove(&self, pattern: impl Into<String>) -> Result<api::MirrorRemoveResponse, Refusal> {
        let ask = self.request(api::MirrorRemoveRequest { pattern: pattern.into() });
        answer(self.registry.clone().mirror_remove(ask).await)
    }

    /// What is mirrored, and how far it is.
    pub async fn mirror_list(&self) -> Result<api::MirrorListResponse, Refusal> {
        answer(self.registry.clone().mirror_list(self.request(api::MirrorListRequest {})).await)
    }

    /// Where the layers would go, and why.
    pub async fn plan(&self, ask: api::PlanRequest) -> Result<api::PlanResponse, Refusal> {
        answer(self.compute.clone().plan(self.request(ask)).await)
    }

    /// Generates text: the first event that is not progress is `started`, the last is `done`.
    pub async fn generate(&self, ask: api::GenerateRequest) -> Result<Events<api::GenerateEvent>, Refusal> {
        stream(self.compute.clone().generate(self.request(ask)).await)
    }

    /// What a model is for, and which nodes would do it.
    pub async fn describe_task(&self, ask: api::DescribeRequest) -> Result<api::DescribeResponse, Refusal> {
        answer(self.tasks.clone().describe(self.request(ask)).await)
    }

    /// Texts to vectors: the first event that is not progress is `started`, the last is `done`.
    pub async fn embed(&self, ask: api::EmbedRequest) -> Result<Events<api::EmbedEvent>, Refusal> {
        stream(self.tasks.clone().embed(self.request(ask)).await)
    }

    /// The node itself.
    pub async fn status(&self) -> Result<api::StatusResponse, Refusal> {
        answer(self.node.clone().status(self.request(api::StatusRequest {})).await)
    }

    /// The nodes it knows.
    pub async fn peers(&self) -> Result<api::PeersResponse, Refusal> {
        answer(self.node.clone().peers(self.request(api::PeersRequest {})).await)
    }

    /// What its machine can do.
    pub async fn capacity(&self) -> Result<api::CapacityResponse, Refusal> {
        answer(self.node.clone().capacity(self.request(api::CapacityRequest {})).await)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        request
    }
}

fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, Refusal> {
    result.map(Response::into_inner).map_err(|status| from_status(&status))
}

fn stream<T>(result: Result<Response<Streaming<T>>, Status>) -> Result<Events<T>, Refusal> {
    answer(result).map(Events)
}

fn endpoint(found: &Found) -> Result<Endpoint, Refusal> {
    let endpoint = Endpoint::from(found.uri.clone())
        .connect_timeout(CONNECT_PATIENCE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .user_agent(concat!("cairn-client/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| no_daemon(found, &error))?;
    if found.uri.scheme_str() != Some("https") {
        return Ok(endpoint);
    }
    // Another crate may have linked a second provider in; an earlier choice stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut tls = ClientTlsConfig::new();
    if let Some(path) = &found.tls_ca {
        let pem = std::fs::read(path).map_err(|error| {
            Refusal::new(Reason::BadInput, path.display().to_string(), error.to_string()).try_this("a PEM file")
        })?;
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    endpoint.tls_config(tls).map_err(|error| no_daemon(found, &error))
}

fn no_daemon(found: &Found, error: &dyn std::error::Error) -> Refusal {
    let mut causes = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    causes.dedup();
    let why = format!("no daemon answers there (from {}): {}", found.source, causes.pop().unwrap_or_default());
    Refusal::new(Reason::Unavailable, found.uri.to_string(), why).try_this("cairn node")
}

fn bad_token() -> Refusal {
    Refusal::new(Reason::BadInput, "the token", "it holds characters that no token has")
        .try_this("HOME/api.token as the daemon wrote it")
}

/// Adds the token to every call. Its debug form hides it.
#[derive(Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(…)" } else { "Bearer(none)" })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}
