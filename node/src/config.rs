//! What this node was told to be: one typed value, each part of it knowing where it came from.
//!
//! Flags beat the environment (`CAIRN_*`) beats `HOME/config.toml` beats defaults; the layers live in [`sources`].
//! This file turns the winning words into types. It never touches the network and creates nothing on disk.
//!
//! Invariant: a [`Config`] that exists is whole: every address parses, every ceiling is a number.

pub mod sources;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cairn_protocol::advert::{Grant, Grants};
use cairn_protocol::id::{NodeId, PublisherKey, RealmId};
use cairn_protocol::refusal::{Reason, Refusal};

use cairn_registry::Policy;

use crate::data::rate::{Rates, parse_far, parse_rate};

pub use sources::{Flags, Settings, Source};

/// Everything a node is told before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that holds keys, catalogue and blobs.
    pub home: PathBuf,
    /// The closed mesh this node belongs to; [`RealmId::PUBLIC`] unless said.
    pub realm: RealmId,
    /// libp2p multiaddresses to listen on.
    pub listen: Vec<String>,
    /// UDP address of the iroh endpoint.
    pub data_listen: SocketAddr,
    /// Address of the gRPC door.
    pub api_listen: SocketAddr,
    /// Address of the HTTP door, if it is to open.
    pub http_listen: Option<SocketAddr>,
    /// Multiaddresses of nodes to greet first.
    pub bootstrap: Vec<String>,
    /// Whether nodes of the local network are looked for.
    pub mdns: bool,
    /// Who may use this node, by purpose.
    pub grants: Grants,
    /// Nodes that `listed` grants speak of.
    pub listed: Vec<NodeId>,
    /// Publishers whose revisions strangers with a grant may have loaded here.
    pub trusted: Vec<PublisherKey>,
    /// Most memory that stages for others may take.
    pub stage_memory_bytes: u64,
    /// Most disk that stage weights may take.
    pub stage_disk_bytes: u64,
    /// Most disk that weights in the form of the engine may take.
    pub packed_disk_bytes: u64,
    /// Most bytes of records of known publishers that are taken from peers.
    pub catalog_bytes_max: u64,
    /// Engine threads.
    pub threads: usize,
    /// Sessions that one peer may hold at once.
    pub sessions_per_peer: u32,
    /// Sessions of one client that may wait for a place.
    pub waiting_per_peer: u32,
    /// Seconds that a request of this node waits for places.
    pub wait_s: u64,
    /// Seconds after which an idle stage lease ends.
    pub lease_idle_s: u64,
    /// Seconds for which another node's copy counts after hearing of it.
    pub mirror_lease_s: u64,
    /// Seconds that each mirror before this one has to fetch what is missing.
    pub mirror_standby_s: u64,
    /// Seconds after which a copy too many is let go.
    pub mirror_surplus_s: u64,
    /// Most bytes that mirroring fetches a day; 0 is no limit.
    pub mirror_bytes_per_day: u64,
    /// How fast bytes of blobs go.
    pub rates: Rates,
    /// What is done about advisories of those whose word counts.
    pub advisories: Policy,
    /// Certificate and key of the gRPC door, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The layers this was made from, for `cairn config show`.
    pub settings: Settings,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `config.toml` could not be read.
    #[error("{path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// A key that nobody knows.
    #[error("config.toml: no key is called `{key}`")]
    UnknownKey {
        /// As written.
        key: String,
        /// The known key most like it.
        nearest: &'static str,
    },
    /// A value that does not parse.
    #[error("{key} = `{value}` (from {from}): {why}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// As written.
        value: String,
        /// Where it came from.
        from: Source,
        /// What is wrong with it.
        why: String,
    },
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Refusal {
        let (what, why, tip) = match error {
            ConfigError::Unreadable { path, why } => {
                (path.display().to_string(), why, "mend the file or remove it".to_string())
            }
            ConfigError::UnknownKey { key, nearest } => {
                ("config.toml".to_string(), format!("no key is called `{key}`"), format!("`{nearest}`"))
            }
            ConfigError::BadValue { key, value, from, why } => (
                key.to_string(),
                format!("`{value}` (from {from}) can't be used: {why}"),
                "cairn config show".to_string(),
            ),
        };
        Refusal::new(Reason::BadInput, what, why).try_this(tip)
    }
}

impl Config {
    /// Reads the layers of `home` and makes a whole configuration of them.
    pub fn load(home: &Path, flags: Flags) -> Result<Config, ConfigError> {
        let settings = Settings::load(home, flags)?;
        Config::from_settings(home, settings)
    }

    /// Types the winning values of `settings`.
    pub fn from_settings(home: &Path, settings: Settings) -> Result<Config, ConfigError> {
        let tls = match (settings.text("tls_cert"), settings.text("tls_key")) {
            (Some(cert), Some(key)) => Some((PathBuf::from(cert), PathBuf::from(key))),
            (None, None) => None,
            _ => return Err(settings.bad("tls_cert", "tls_cert and tls_key belong together".into())),
        };
        Ok(Config {
            home: home.to_path_buf(),
            realm: settings.parse("realm", parse_realm)?,
            listen: settings.list("listen"),
            data_listen: settings.parse("data_listen", parse_display)?,
            api_listen: settings.parse("api_listen", parse_display)?,
            http_listen: settings.parse("http_listen", parse_http_listen)?,
            bootstrap: settings.list("bootstrap"),
            mdns: settings.parse("mdns", parse_display)?,
            grants: Grants {
                store: settings.parse("grant.store", parse_grant)?,
                compute: settings.parse("grant.compute", parse_grant)?,
                train: settings.parse("grant.train", parse_grant)?,
            },
            listed: settings.parse_list("listed", parse_display)?,
            trusted: settings.parse_list("trusted", parse_display)?,
            stage_memory_bytes: settings.parse("stage_memory_bytes", parse_bytes)?,
            stage_disk_bytes: settings.parse("stage_disk_bytes", parse_bytes)?,
            packed_disk_bytes: settings.parse("packed_disk_bytes", parse_bytes)?,
            catalog_bytes_max: settings.parse("catalog_bytes_max", parse_bytes)?,
            threads: settings.parse("threads", parse_threads)?,
            sessions_per_peer: settings.parse("sessions_per_peer", parse_display)?,
            waiting_per_peer: settings.parse("waiting_per_peer", parse_display)?,
            wait_s: settings.parse("wait_s", parse_display)?,
            lease_idle_s: settings.parse("lease_idle_s", parse_display)?,
            mirror_lease_s: settings.parse("mirror_lease_s", parse_display)?,
            mirror_standby_s: settings.parse("mirror_standby_s", parse_display)?,
            mirror_surplus_s: settings.parse("mirror_surplus_s", parse_display)?,
            mirror_bytes_per_day: settings.parse("mirror_bytes_per_day", parse_bytes)?,
            rates: Rates {
                up: settings.parse("rate_up", parse_rate)?,
                down: settings.parse("rate_down", parse_rate)?,
                up_per_peer: settings.parse("rate_up_per_peer", parse_rate)?,
                down_per_source: settings.parse("rate_down_per_source", parse_rate)?,
                far_always: settings.parse("far_sources", parse_far)?,
                hours: settings.parse_list("rate_hours", parse_display)?,
            },
            advisories: Policy {
                refuse: settings.parse_list("advisories_refuse", parse_display)?.into_iter().collect(),
                warn: settings.parse_list("advisories_warn", parse_display)?.into_iter().collect(),
            },
            tls,
            settings,
        })
    }
}

fn parse_display<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn parse_realm(text: &str) -> Result<RealmId, String> {
    if text == "public" { Ok(RealmId::PUBLIC) } else { parse_display(text) }
}

fn parse_http_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "none" { Ok(None) } else { parse_display(text).map(Some) }
}

fn parse_grant(text: &str) -> Result<Grant, String> {
    match text {
        "nobody" => Ok(Grant::Nobody),
        "listed" => Ok(Grant::Listed),
        "realm" => Ok(Grant::Realm),
        "anyone" => Ok(Grant::Anyone),
        _ => Err("a grant is nobody, listed, realm or anyone".into()),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match parse_display::<usize>(text)? {
        0 => Err("the engine needs at least one thread".into()),
        threads if threads > 1024 => Err("more than 1024 threads help nobody".into()),
        threads => Ok(threads),
    }
}

/// A count of bytes: a plain number, or one with KiB, MiB, GiB or TiB.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = text[digits.len()..].trim();
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(format!("`{unit}` is no unit of bytes: use KiB, MiB, GiB or TiB")),
    };
    let number: u64 = digits.parse().map_err(|_| "a count of bytes is a whole number, e.g. 4GiB".to_string())?;
    number.checked_mul(scale).ok_or_else(|| "more bytes than a machine can hold".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(file: Option<&str>, env: &[(&str, &str)], flags: Flags) -> Result<Config, ConfigError> {
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        let settings = Settings::from_layers(Path::new("/nowhere"), file, env, flags)?;
        Config::from_settings(Path::new("/nowhere"), settings)
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let file = Some("api_listen = \"127.0.0.1:1\"\ndata_listen = \"127.0.0.1:1\"\nmdns = false\n");
        let env = [("CAIRN_API_LISTEN", "127.0.0.1:2"), ("CAIRN_DATA_LISTEN", "127.0.0.1:2")];
        let mut flags = Flags::default();
        flags.set("api_listen", "127.0.0.1:3");
        let config = config(file, &env, flags).unwrap();
        assert_eq!(config.api_listen.port(), 3);
        assert_eq!(config.data_listen.port(), 2);
        assert!(!config.mdns);
        assert_eq!(config.http_listen.unwrap().port(), 4181);
        let sources: Vec<_> = ["api_listen", "data_listen", "mdns", "http_listen"]
            .map(|key| config.settings.source(key))
            .into_iter()
            .collect();
        assert_eq!(sources, [Source::Flag, Source::Environment, Source::File, Source::Default]);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = config(Some("[grant]\ncompuet = \"anyone\""), &[], Flags::default()).unwrap_err();
        assert!(
            matches!(&error, ConfigError::UnknownKey { key, nearest } if key == "grant.compuet" && *nearest == "grant.compute")
        );
        let refusal = Refusal::from(error);
        assert!(refusal.to_string().contains("grant.compute"), "{refusal}");
    }

    #[test]
    fn grants_and_lists_come_from_the_file() {
        let node = "ab".repeat(32);
        let file = format!("listed = [\"{node}\"]\nstage_memory_bytes = \"2GiB\"\n[grant]\ncompute = \"anyone\"\n");
        let config = config(Some(&file), &[], Flags::default()).unwrap();
        assert_eq!(config.listed[0].to_string(), node);
        assert_eq!(config.stage_memory_bytes, 2 << 30);
        assert!(matches!(config.grants.compute, Grant::Anyone));
        assert!(matches!(config.grants.store, Grant::Listed));
    }

    #[test]
    fn a_value_of_the_wrong_shape_says_which_and_whence() {
        let error = config(None, &[("CAIRN_LEASE_IDLE_S", "soon")], Flags::default()).unwrap_err();
        assert!(error.to_string().contains("lease_idle_s") && error.to_string().contains("environment"), "{error}");
        assert!(config(Some("listen = { a = 1 }"), &[], Flags::default()).is_err());
        assert!(config(Some("threads = 0"), &[], Flags::default()).is_err());
        assert!(config(Some("tls_cert = \"a.pem\""), &[], Flags::default()).is_err());
    }

    #[test]
    fn bytes_are_numbers_with_binary_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("3 MiB"), Ok(3 << 20));
        assert!(parse_bytes("3GB").is_err());
        assert!(parse_bytes("99999999999TiB").is_err());
        assert!(parse_bytes("").is_err());
    }
}
