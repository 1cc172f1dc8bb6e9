//! Where the daemon is, and the token that proves we may use it.
//!
//! In order: what the caller says, `CAIRN_API`, `api` in `HOME/config.toml`, `HOME/ready.json`, [`DEFAULT_API`]. The token
//! is in `HOME/api.token`, which only the owner can read.
//!
//! Invariant: the token is sent to a loopback address or over TLS, never in the clear to another machine.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cairn_protocol::refusal::{Reason, Refusal};
use tonic::transport::Uri;

/// Where a daemon listens unless it was told otherwise.
pub const DEFAULT_API: &str = "127.0.0.1:4180";

/// No file of a home that is read here is bigger.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A token that no log line shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text of `HOME/api.token`.
    pub fn new(text: &str) -> Token {
        Token(text.trim().to_string())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How to find a daemon; every field may stay unset.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// `IP:PORT`, `http://…` or `https://…`.
    pub api: Option<String>,
    /// The daemon's home on this machine; its token is read from there.
    pub home: Option<PathBuf>,
    /// The token itself, for a daemon whose home is elsewhere. Else `CAIRN_TOKEN`, else the home's.
    pub token: Option<Token>,
    /// PEM certificates to trust on `https`. Else `CAIRN_TLS_CA`, else `tls_ca` in `config.toml`.
    pub tls_ca: Option<PathBuf>,
}

/// A daemon's address and who said so.
#[derive(Clone, Debug)]
pub struct Found {
    /// The whole URI.
    pub uri: Uri,
    /// `--api`, `CAIRN_API`, `config.toml`, `ready.json` or `default`.
    pub source: &'static str,
    /// The token, if it may be sent there.
    pub token: Option<Token>,
    /// Certificates to trust.
    pub tls_ca: Option<PathBuf>,
}

impl Found {
    /// Whether the daemon is on this machine, and so has the same files.
    pub fn is_local(&self) -> bool {
        is_loopback(&self.uri)
    }
}

impl ConnectOptions {
    /// Looks in every place; nothing is connected yet.
    pub fn find(&self) -> Result<Found, Refusal> {
        let home = self.home.clone().unwrap_or_else(default_home);
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let config = config_of(&home)?;
        let in_config = |key: &str| config.get(key)?.as_str().map(String::from).filter(|value| !value.is_empty());
        let places = [
            ("--api", self.api.clone()),
            ("CAIRN_API", variable("CAIRN_API")),
            ("config.toml", in_config("api")),
            ("ready.json", in_ready_note(&home)),
            ("default", Some(DEFAULT_API.to_string())),
        ];
        let (source, address) = places
            .into_iter()
            .find_map(|(source, address)| address.map(|address| (source, address)))
            .expect("the last place always has an address");
        let uri = parse_api(&address, source)?;
        let said = || variable("CAIRN_TOKEN").or_else(|| read(&home.join("api.token")));
        let token = self.token.clone().or_else(|| said().map(|text| Token::new(&text)));
        let token = token.filter(|token| !token.expose().is_empty() && is_private(&uri));
        let tls_ca =
            self.tls_ca.clone().or_else(|| variable("CAIRN_TLS_CA").or_else(|| in_config("tls_ca")).map(PathBuf::from));
        Ok(Found { uri, source, token, tls_ca })
    }
}

/// The home that is used when nobody says otherwise: `CAIRN_HOME`, else the platform's data folder.
pub fn default_home() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("CAIRN_HOME")
        .or_else(|| folder("XDG_DATA_HOME").map(|data| data.join("cairn")))
        .or_else(|| folder("HOME").map(|user| user.join(".local/share/cairn")))
        .unwrap_or_else(|| PathBuf::from(".cairn"))
}

/// What `config.toml` says. No file says nothing; one that can't be read or understood is refused, for what it says matters.
fn config_of(home: &Path) -> Result<toml::Table, Refusal> {
    let path = home.join("config.toml");
    let broken = |what: String, why: String| {
        Err(Refusal::new(Reason::BadInput, what, why).try_this("mend the file or remove it"))
    };
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => String::new(),
        Err(error) => return broken(name, error.to_string()),
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let error: toml::de::Error = error;
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or_default());
            let line = before.matches('\n').count() + 1;
            return broken(format!("{name}:{line}"), error.message().to_string());
        }
    };
    match ["api", "tls_ca"].into_iter().find(|key| table.get(*key).is_some_and(|value| !value.is_str())) {
        Some(key) => broken(name, format!("{key} is not a text in quotes")),
        None => Ok(table),
    }
}

fn in_ready_note(home: &Path) -> Option<String> {
    let note: serde_json::Value = serde_json::from_str(&read(&home.join("ready.json"))?).ok()?;
    note.get("api")?.as_str().map(String::from)
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn parse_api(address: &str, source: &str) -> Result<Uri, Refusal> {
    let whole = if address.contains("://") { address.to_string() } else { format!("http://{address}") };
    let uri: Option<Uri> = whole.parse().ok();
    uri.filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    })
    .ok_or_else(|| {
        let why = format!("it is no address of a daemon (from {source})");
        Refusal::new(Reason::BadInput, address, why).try_this("IP:PORT, http://HOST:PORT or https://HOST:PORT")
    })
}

/// Whether a secret sent there stays between us and the daemon.
fn is_private(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https") || is_loopback(uri)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip| SocketAddr::new(ip, 0).ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(files: &[(&str, &str)]) -> (tempfile::TempDir, ConnectOptions) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let options = ConnectOptions { home: Some(folder.path().to_path_buf()), ..ConnectOptions::default() };
        (folder, options)
    }

    #[test]
    fn the_nearer_place_wins() {
        let ready = ("ready.json", "{\"api\":\"127.0.0.1:3\"}");
        let (_keep, mut options) = home(&[ready, ("config.toml", "api = \"127.0.0.1:2\""), ("api.token", "abc\n")]);
        assert_eq!(options.find().unwrap().uri.port_u16(), Some(2));
        options.api = Some("localhost:1".into());
        let found = options.find().unwrap();
        assert_eq!((found.uri.port_u16(), found.source, found.token), (Some(1), "--api", Some(Token::new("abc"))));
        let (_keep, options) = home(&[ready]);
        assert_eq!(options.find().unwrap().source, "ready.json");
        let (_keep, options) = home(&[]);
        assert_eq!(options.find().unwrap().uri.to_string(), "http://127.0.0.1:4180/");
    }

    #[test]
    fn a_broken_config_is_refused_with_its_line() {
        for (text, line) in [("mdns = true\napi = = 5\n", ":2"), ("api = 5\n", "")] {
            let (keep, options) = home(&[("config.toml", text)]);
            let refusal = options.find().unwrap_err();
            assert_eq!(refusal.reason, Reason::BadInput);
            assert_eq!(refusal.what, format!("{}{line}", keep.path().join("config.toml").display()));
        }
    }

    #[test]
    fn the_token_never_crosses_a_network_in_the_clear() {
        let (_keep, mut options) = home(&[("api.token", "abc\n")]);
        for (api, is_sent) in [
            ("http://10.0.0.7:4180", false),
            ("https://10.0.0.7:4180", true),
            ("http://127.0.0.1.evil.example:4180", false),
            ("http://[::1]:4180", true),
            ("127.0.0.1:4180", true),
        ] {
            options.api = Some(api.into());
            assert_eq!(options.find().unwrap().token.is_some(), is_sent, "{api}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_a_refusal_not_a_panic() {
        let (_keep, mut options) = home(&[]);
        for wrong in ["", "http://", "ftp://127.0.0.1", "::::", "a b"] {
            options.api = Some(wrong.into());
            assert_eq!(options.find().unwrap_err().reason, Reason::BadInput, "{wrong}");
        }
    }
}
