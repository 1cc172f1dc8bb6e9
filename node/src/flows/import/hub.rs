//! The questions that an import asks of a Hub: which commit a revision is, which files it has; and the manners of asking.
//!
//! Answers are another's word. Every page is bounded, a page's successor lies at the same origin, paths are checked, and digests are
//! what bytes are held against later. Invariant: the token goes to the endpoint's origin and to no other.

use std::time::Duration;

use cairn_protocol::{
    limits::MANIFEST_FILES_MAX,
    manifest::ManifestFile,
    name::FilePath,
    refusal::{Reason, Refusal},
};
use rand::RngExt;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, LINK, RETRY_AFTER},
    redirect::Policy,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::source::HubSource;

/// The Hub that is asked unless another is named.
const ENDPOINT: &str = "https://huggingface.co";
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// Nothing came for so long: the connection is given up.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one answer; a page holds a thousand files.
const ANSWER_BYTES_MAX: usize = 32 << 20;
const PAGES_MAX: usize = 2000;
const REDIRECTS_MAX: usize = 8;
/// Tries in a row without a byte of progress.
pub(super) const TRIES_MAX: u32 = 6;
const WAIT_FIRST: Duration = Duration::from_millis(500);
/// A Hub may ask for more patience than this; nobody watches so long.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// A Hub, or another that speaks its API.
pub(super) struct Hub {
    client: Client,
    /// Ends in a slash.
    endpoint: Url,
    authorization: Option<HeaderValue>,
}

/// What a revision holds.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// A file of a listing.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub path: FilePath,
    pub size: u64,
    pub digest: RemoteDigest,
}

/// What its bytes must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemoteDigest {
    /// Of large files.
    Sha256([u8; 32]),
    /// Of small files: git's name for them.
    GitSha1([u8; 20]),
}

impl RemoteFile {
    /// Whether the manifest's file is this one.
    pub(super) fn is(&self, kept: &ManifestFile) -> bool {
        kept.size == self.size
            && match self.digest {
                RemoteDigest::Sha256(sha256) => kept.sha256 == sha256,
                RemoteDigest::GitSha1(git_sha1) => kept.git_sha1 == git_sha1,
            }
    }

    /// Its SHA-256, where the listing says it.
    pub(super) fn sha256(&self) -> Option<[u8; 32]> {
        match self.digest {
            RemoteDigest::Sha256(sha256) => Some(sha256),
            RemoteDigest::GitSha1(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct Info {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    r#type: String,
    path: String,
    #[serde(default)]
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Hub {
    /// The Hub at `endpoint`, or the usual one if it is empty. An empty token is none.
    pub(super) fn new(endpoint: &str, token: &str) -> Result<Self, Refusal> {
        let named = if endpoint.is_empty() { ENDPOINT } else { endpoint };
        let bad = |why: String| Refusal::new(Reason::BadInput, named, why).try_this("--endpoint https://HOST[:PORT]");
        let endpoint =
            Url::parse(&format!("{}/", named.trim_end_matches('/'))).map_err(|error| bad(error.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            return Err(bad("it is no address of a web server".to_owned()));
        }
        if !endpoint.username().is_empty() || endpoint.query().is_some() || endpoint.fragment().is_some() {
            return Err(bad("it holds more than an address".to_owned()));
        }
        let authorization = match token {
            "" => None,
            token => Some(bearer(token)?),
        };
        let client = client(&endpoint).map_err(|error| Refusal::internal(named, error))?;
        Ok(Self { client, endpoint, authorization })
    }

    /// Its address.
    pub(super) fn endpoint(&self) -> &str {
        self.endpoint.as_str()
    }

    /// Where a file lies.
    pub(super) fn url_of(&self, source: &HubSource, commit: &str, path: &FilePath) -> Result<Url, Refusal> {
        self.url(&source.file(commit, path.as_str()))
    }

    /// The commit and the files of a source, without hidden ones.
    pub(super) async fn listing(&self, source: &HubSource) -> Result<Listing, Refusal> {
        let info: Info = self.json(self.url(&source.api(&format!("revision/{}", source.revision())))?).await?.0;
        let is_commit = matches!(info.sha.len(), 40 | 64) && info.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit {
            return Err(self.senseless("a commit that is none"));
        }
        let mut next = Some(self.url(&source.api(&format!("tree/{}?recursive=true", info.sha)))?);
        let mut files = Vec::new();
        for _ in 0..PAGES_MAX {
            let Some(page) = next.take() else { return Ok(Listing { commit: info.sha, files }) };
            let (entries, headers) = self.json::<Vec<Entry>>(page).await?;
            for entry in entries.into_iter().filter(|entry| entry.r#type == "file") {
                files.extend(self.file(entry)?);
            }
            if files.len() > MANIFEST_FILES_MAX {
                let why = format!("it has more than {MANIFEST_FILES_MAX} files");
                return Err(Refusal::new(Reason::Limit, self.endpoint(), why).try_this("--include"));
            }
            next = self.next_page(&headers)?;
        }
        Err(self.senseless("pages without end"))
    }

    /// A file of the listing; hidden ones (`.gitattributes`) are not published.
    fn file(&self, entry: Entry) -> Result<Option<RemoteFile>, Refusal> {
        if entry.path.split('/').any(|part| part.starts_with('.') && part != "." && part != "..") {
            return Ok(None);
        }
        let path: FilePath = entry.path.parse().map_err(|error| {
            Refusal::new(
                Reason::Corrupt,
                format!("{:?}", entry.path),
                format!("a path that can't be published: {error}"),
            )
            .try_this("--exclude, or another endpoint")
        })?;
        let (size, digest) = match &entry.lfs {
            Some(lfs) => (lfs.size, hex_of(&lfs.oid).map(RemoteDigest::Sha256)),
            None => (entry.size, hex_of(&entry.oid).map(RemoteDigest::GitSha1)),
        };
        let digest = digest.ok_or_else(|| self.senseless("a file without a digest"))?;
        Ok(Some(RemoteFile { path, size, digest }))
    }

    /// `Link: <URL>; rel="next"`, at this origin alone: the question carries the token.
    fn next_page(&self, headers: &HeaderMap) -> Result<Option<Url>, Refusal> {
        let links =
            headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
        let next = links.filter(|link| link.contains("rel=\"next\"")).find_map(|link| {
            let (_, rest) = link.split_once('<')?;
            rest.split_once('>').map(|(url, _)| url.to_owned())
        });
        let Some(next) = next else { return Ok(None) };
        let url = self.endpoint.join(&next).map_err(|_| self.senseless("a next page that has no address"))?;
        if url.origin() != self.endpoint.origin() {
            return Err(self.senseless("a next page that lies elsewhere"));
        }
        Ok(Some(url))
    }

    /// A request with the token, which redirects to other origins lose.
    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        let request = self.client.get(url).header("accept-encoding", "identity");
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization.clone()),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(&self, url: Url) -> Result<(T, HeaderMap), Refusal> {
        let mut tries = 0;
        loop {
            let (why, wait) = match self.body(url.clone()).await {
                Ok((bytes, headers)) => {
                    let value = serde_json::from_slice(&bytes).map_err(|_| self.senseless("what is no listing"))?;
                    return Ok((value, headers));
                }
                Err(Failure::Final(refusal)) => return Err(refusal),
                Err(Failure::Passing { why, wait }) => (why, wait),
            };
            tries += 1;
            self.wait_or_give_up(tries, why, wait).await?;
        }
    }

    async fn body(&self, url: Url) -> Result<(Vec<u8>, HeaderMap), Failure> {
        let mut response = self.answer(self.get(url)).await?;
        let headers = response.headers().clone();
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| broken(&error))? {
            if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Final(self.senseless("more than any listing")));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok((bytes, headers))
    }

    /// Sends, and sorts what went wrong into what may pass and what will not.
    pub(super) async fn answer(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| broken(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let may_pass =
            status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        if may_pass {
            return Err(Failure::Passing {
                why: format!("it answers {status}"),
                wait: retry_after(response.headers()),
            });
        }
        Err(Failure::Final(self.refused(&response)))
    }

    fn refused(&self, response: &Response) -> Refusal {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (code, status) = (header("x-error-code").unwrap_or_default(), response.status());
        let what = response.url().origin().ascii_serialization() + response.url().path();
        let token = "--token-file with a token that may read it, or HF_TOKEN";
        match (code, status) {
            ("GatedRepo", _) | (_, StatusCode::FORBIDDEN) => {
                Refusal::new(Reason::NoGrant, what, "it is open only to those whom its owner admits").try_this(token)
            }
            ("RepoNotFound", _) | (_, StatusCode::UNAUTHORIZED) => {
                Refusal::new(Reason::NotFound, what, "no such repo, or a private one").try_this(token)
            }
            ("RevisionNotFound", _) => {
                Refusal::new(Reason::NotFound, what, "the repo has no such revision").try_this("hf://ORG/NAME@main")
            }
            (_, StatusCode::NOT_FOUND) => {
                Refusal::new(Reason::NotFound, what, "nothing is there").try_this("another name or endpoint")
            }
            _ => Refusal::new(Reason::Unavailable, what, format!("it answers {status}")).try_this("again later"),
        }
    }

    /// Waits before the next try; the last one was one too many.
    pub(super) async fn wait_or_give_up(
        &self,
        tries: u32,
        why: String,
        asked: Option<Duration>,
    ) -> Result<(), Refusal> {
        if tries >= TRIES_MAX {
            let why = format!("{why}, {tries} times in a row");
            return Err(Refusal::new(Reason::Unavailable, self.endpoint(), why)
                .try_this("the same again later; it goes on where it stopped"));
        }
        let grown = WAIT_FIRST * 2u32.pow(tries.min(8)) / 2;
        let jitter = rand::rng().random_range(0.8..1.2);
        let wait = asked.unwrap_or_else(|| grown.mul_f64(jitter)).min(WAIT_MAX);
        tracing::debug!(%why, ?wait, "a question to a Hub is asked again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn url(&self, path: &str) -> Result<Url, Refusal> {
        self.endpoint.join(path).map_err(|error| Refusal::internal(path, error))
    }

    fn senseless(&self, what: &str) -> Refusal {
        Refusal::new(Reason::Corrupt, self.endpoint(), format!("it answers with {what}")).try_this("another endpoint")
    }
}

/// Why a question has no answer yet.
pub(super) enum Failure {
    /// Asking again won't help.
    Final(Refusal),
    Passing {
        why: String,
        /// What the Hub asked for.
        wait: Option<Duration>,
    },
}

/// A connection that did not come about, or broke.
pub(super) fn broken(error: &reqwest::Error) -> Failure {
    let mut why = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        why = inner.to_string();
        cause = inner.source();
    }
    Failure::Passing { why, wait: None }
}

fn client(endpoint: &Url) -> Result<Client, reqwest::Error> {
    // Two providers are linked in; an earlier choice stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::limited(REDIRECTS_MAX))
        // What begins under TLS stays there, wherever a redirect leads.
        .https_only(endpoint.scheme() == "https")
        .referer(false)
        .connect_timeout(CONNECT_PATIENCE)
        .read_timeout(READ_PATIENCE);
    client.build()
}

fn bearer(token: &str) -> Result<HeaderValue, Refusal> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|_| {
        Refusal::new(Reason::BadInput, "the Hub's token", "it holds characters that no token has")
            .try_this("--token-file with the token on its first line")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whole seconds; a date is as good as nothing.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn hex_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}
