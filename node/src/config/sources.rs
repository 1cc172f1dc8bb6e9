//! The four layers that a setting can come from, and which of them won.
//!
//! Not the place where words become types (that is [`super::Config`]): here a value is still text, or a list of texts.
//!
//! Invariant: every key of [`KEYS`] has exactly one value, and a key that is not in [`KEYS`] never gets in.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::ConfigError;

/// `config.toml` is a page that a person wrote; anything bigger is a mistake.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Memory that is assumed when the machine does not tell.
const MEMORY_UNKNOWN_BYTES: u64 = 2 << 30;

/// Disk that is assumed free when the machine does not tell.
const DISK_UNKNOWN_BYTES: u64 = 10 << 30;

/// One thing that can be set.
pub struct Key {
    /// As written in `config.toml`, with a dot for a table.
    pub name: &'static str,
    /// What it means, for `cairn config show`.
    pub means: &'static str,
    default: &'static str,
}

const fn key(name: &'static str, default: &'static str, means: &'static str) -> Key {
    Key { name, means, default }
}

/// Everything that can be set, in the order in which it is shown.
pub const KEYS: &[Key] = &[
    key("realm", "public", "the closed mesh this node belongs to, 64 hex digits"),
    key("listen", "/ip4/0.0.0.0/tcp/4177,/ip4/0.0.0.0/udp/4177/quic-v1", "libp2p addresses"),
    key("data_listen", "0.0.0.0:4178", "UDP address of the data endpoint"),
    key("api_listen", "127.0.0.1:4180", "address of the gRPC door"),
    key("http_listen", "127.0.0.1:4181", "address of the HTTP door, or none"),
    key("bootstrap", "", "nodes to greet first"),
    key("mdns", "true", "look for nodes on the local network"),
    key("grant.store", "listed", "who may store here: nobody, listed, realm, anyone"),
    key("grant.compute", "listed", "who may compute here"),
    key("grant.train", "listed", "who may train here"),
    key("listed", "", "node ids that `listed` means, besides this host's own"),
    key("trusted", "", "publishers whose models strangers with a grant may have loaded here"),
    key("stage_memory_bytes", AUTO, "most memory for stages"),
    key("stage_disk_bytes", AUTO, "most disk for stage weights"),
    key(
        "packed_disk_bytes",
        AUTO,
        "most disk for weights as the engine holds them, so that they load at once; 0 keeps none",
    ),
    key("catalog_bytes_max", "16GiB", "most bytes of records of known publishers that are taken from peers"),
    key("threads", AUTO, "engine threads"),
    key("sessions_per_peer", "8", "sessions that one peer may hold"),
    key("waiting_per_peer", "16", "sessions of one client that may wait for a place"),
    key("wait_s", "60", "seconds that a request waits for a place where all are taken; 0 is refused at once"),
    key("lease_idle_s", "60", "seconds until an idle lease ends"),
    key("mirror_lease_s", "600", "seconds for which a mirror counts another node's copy after hearing of it"),
    key("mirror_standby_s", "60", "seconds that each mirror before this one has to fetch what is missing"),
    key("mirror_surplus_s", "600", "seconds after which a copy too many is let go"),
    key("mirror_bytes_per_day", "0", "most bytes that mirroring fetches a day (UTC), e.g. 200GiB; 0 is no limit"),
    key("rate_up", "0", "most bytes of blobs a second to all peers, e.g. 20MiB; 0 is no limit"),
    key("rate_down", "0", "most bytes of blobs a second from all sources"),
    key("rate_up_per_peer", "0", "most bytes of blobs a second to one peer"),
    key("rate_down_per_source", "0", "most bytes of blobs a second from one source"),
    key("rate_hours", "", "hours (UTC) with another total each way, e.g. 08:00-18:00=5MiB,22:00-06:00=0"),
    key(
        "far_sources",
        "when_needed",
        "whether sources of other networks are asked while near ones suffice: when_needed, always",
    ),
    key("advisories_refuse", "malware,legal,yanked", "what is under such advisories is not fetched, run or mirrored"),
    key("advisories_warn", "license,deprecated", "advisories that a person is told of"),
    key("api", "", "the daemon that clients of this home talk to"),
    key("tls_cert", "", "PEM certificate chain of the gRPC door"),
    key("tls_key", "", "PEM key of the gRPC door"),
    key("tls_ca", "", "PEM certificates that clients of this home trust"),
];

/// Stands for a default that depends on the machine.
const AUTO: &str = "auto";

/// Where a value came from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// `HOME/config.toml`.
    File,
    /// A `CAIRN_*` variable.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "default",
            Source::File => "config.toml",
            Source::Environment => "environment",
            Source::Flag => "flag",
        })
    }
}

/// What the command line said; strongest layer.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(&'static str, Vec<String>)>);

impl Flags {
    /// Sets one value.
    pub fn set(&mut self, key: &'static str, value: impl Into<String>) {
        self.0.push((key, vec![value.into()]));
    }

    /// Sets one value if there is one.
    pub fn set_some(&mut self, key: &'static str, value: Option<String>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// Sets a list unless it is empty.
    pub fn set_list(&mut self, key: &'static str, values: Vec<String>) {
        if !values.is_empty() {
            self.0.push((key, values));
        }
    }
}

/// Every key with its winning value and source.
#[derive(Clone, Debug)]
pub struct Settings(BTreeMap<&'static str, (Vec<String>, Source)>);

impl Settings {
    /// Reads `home/config.toml` and the environment, and lays `flags` on top.
    pub fn load(home: &Path, flags: Flags) -> Result<Settings, ConfigError> {
        let file = read_file(&home.join("config.toml"))?;
        let env = |name: &str| std::env::var(name).ok();
        Settings::from_layers(home, file.as_deref(), env, flags)
    }

    /// The same from values in hand.
    pub fn from_layers(
        home: &Path,
        file: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
        flags: Flags,
    ) -> Result<Settings, ConfigError> {
        let mut settings = Settings(BTreeMap::new());
        for key in KEYS {
            let value = if key.default == AUTO { machine_default(key.name, home) } else { key.default.to_string() };
            settings.put(key.name, split_list(&value), Source::Default);
        }
        if let Some(text) = file {
            for (name, values) in parse_file(home, text)? {
                settings.put(name, values, Source::File);
            }
        }
        for key in KEYS {
            if let Some(value) = env(&variable(key.name)) {
                settings.put(key.name, split_list(&value), Source::Environment);
            }
        }
        for (name, values) in flags.0 {
            settings.put(name, values, Source::Flag);
        }
        Ok(settings)
    }

    fn put(&mut self, key: &'static str, values: Vec<String>, source: Source) {
        self.0.insert(key, (values, source));
    }

    /// Each key with its value as text and its source, in the order of [`KEYS`].
    pub fn shown(&self) -> impl Iterator<Item = (&'static Key, String, Source)> + '_ {
        KEYS.iter().filter_map(|key| {
            let (values, source) = self.0.get(key.name)?;
            Some((key, values.join(","), *source))
        })
    }

    /// The value of a key, if it has one that is not empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|(values, _)| values.first()).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All values of a key.
    pub fn list(&self, key: &str) -> Vec<String> {
        self.0.get(key).map(|(values, _)| values.clone()).unwrap_or_default()
    }

    /// Where the value of a key came from.
    pub fn source(&self, key: &str) -> Source {
        self.0.get(key).map_or(Source::Default, |(_, source)| *source)
    }

    /// An error that blames the value of `key`.
    pub fn bad(&self, key: &'static str, why: String) -> ConfigError {
        ConfigError::BadValue { key, value: self.list(key).join(","), from: self.source(key), why }
    }

    /// Types the one value of `key`.
    pub fn parse<T>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        parse(&self.list(key).join(",")).map_err(|why| self.bad(key, why))
    }

    /// Types every value of `key`.
    pub fn parse_list<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigError> {
        self.list(key).iter().map(|value| parse(value).map_err(|why| self.bad(key, why))).collect()
    }
}

/// `grant.store` is set by `CAIRN_GRANT_STORE`.
pub fn variable(key: &str) -> String {
    format!("CAIRN_{}", key.replace('.', "_").to_uppercase())
}

fn read_file(path: &Path) -> Result<Option<String>, ConfigError> {
    let unreadable = |why: String| ConfigError::Unreadable { path: path.to_path_buf(), why };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error.to_string())),
        Ok(found) if found.len() > CONFIG_BYTES_MAX => {
            Err(unreadable(format!("{} bytes, of which at most {CONFIG_BYTES_MAX} are read", found.len())))
        }
        Ok(_) => std::fs::read_to_string(path).map(Some).map_err(|error| unreadable(error.to_string())),
    }
}

fn parse_file(home: &Path, text: &str) -> Result<Vec<(&'static str, Vec<String>)>, ConfigError> {
    let path = home.join("config.toml");
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Unreadable {
        path,
        why: error.to_string().lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" "),
    })?;
    let mut found = Vec::new();
    for (name, value) in &table {
        match value {
            toml::Value::Table(inner) if is_table(name) => {
                for (part, value) in inner {
                    found.push(file_entry(&format!("{name}.{part}"), value)?);
                }
            }
            _ => found.push(file_entry(name, value)?),
        }
    }
    Ok(found)
}

/// Whether some known key lives in a table of this name.
fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(table, _)| table == name))
}

fn file_entry(name: &str, value: &toml::Value) -> Result<(&'static str, Vec<String>), ConfigError> {
    let key = KEYS
        .iter()
        .find(|key| key.name == name)
        .ok_or_else(|| ConfigError::UnknownKey { key: name.to_string(), nearest: nearest_key(name) })?
        .name;
    let values = match value {
        toml::Value::Array(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>(),
        one => scalar(one).map(|text| vec![text]),
    };
    values.map(|values| (key, values)).ok_or_else(|| ConfigError::BadValue {
        key,
        value: value.to_string(),
        from: Source::File,
        why: "a value is a text, a number, true or false, or a list of these".into(),
    })
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(String::from).collect()
}

fn nearest_key(name: &str) -> &'static str {
    KEYS.iter().map(|key| key.name).min_by_key(|known| edit_distance(name, known)).unwrap_or("realm")
}

/// Levenshtein's distance, with one row of memory; names are cut at 64 characters.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// Half of memory, a tenth of free disk, all cores.
fn machine_default(key: &str, home: &Path) -> String {
    match key {
        "stage_memory_bytes" => (memory_bytes() / 2).to_string(),
        "stage_disk_bytes" | "packed_disk_bytes" => (disk_free_bytes(home) / 10).to_string(),
        _ => std::thread::available_parallelism().map_or(1, usize::from).to_string(),
    }
}

fn memory_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    match system.total_memory().min(limit) {
        0 => MEMORY_UNKNOWN_BYTES,
        bytes => bytes,
    }
}

/// Free bytes of the disk that a folder is on, or will be.
pub fn disk_free_bytes(home: &Path) -> u64 {
    home.ancestors()
        .find_map(|folder| rustix::fs::statvfs(folder).ok())
        .map_or(DISK_UNKNOWN_BYTES, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}
