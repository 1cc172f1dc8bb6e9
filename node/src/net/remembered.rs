//! Peers that outlive a restart: one whole multiaddress a line in `HOME/peers`, so that a node finds the mesh again
//! without its bootstrap list.
//!
//! Not a cache of adverts: those run out. Invariant: a spoilt or hostile file costs at most a few hundred failed dials.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use cairn_protocol::id::NodeId;
use libp2p::Multiaddr;

use super::{behaviour::peer_of, identity, statement::write_durably};

/// Peers that are kept.
const KEPT_MAX: usize = 128;
/// Addresses that are kept of each.
const ADDRESSES_MAX: usize = 3;
/// More of the file isn't read.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Who was known when this node last ran. Blocks on the disk.
pub(super) fn recall(home: &Path) -> BTreeMap<NodeId, Vec<Multiaddr>> {
    let mut peers: BTreeMap<NodeId, Vec<Multiaddr>> = BTreeMap::new();
    let Ok(file) = File::open(path(home)) else { return peers };
    for line in BufReader::new(file.take(FILE_BYTES_MAX)).lines().map_while(Result::ok) {
        let Ok(address) = line.trim().parse::<Multiaddr>() else { continue };
        let Some(node) = peer_of(&address).and_then(|peer| identity::node_id(&peer)) else { continue };
        if peers.len() < KEPT_MAX || peers.contains_key(&node) {
            let addresses = peers.entry(node).or_default();
            if addresses.len() < ADDRESSES_MAX {
                addresses.push(address);
            }
        }
    }
    peers
}

/// Keeps them for the next run. Blocks on the disk.
pub(super) fn keep(home: &Path, peers: &BTreeMap<NodeId, Vec<String>>) -> io::Result<()> {
    let mut text = String::new();
    for (node, addresses) in peers.iter().take(KEPT_MAX) {
        let Some(peer) = identity::peer_id(*node) else { continue };
        for address in addresses.iter().take(ADDRESSES_MAX) {
            text.push_str(&format!("{address}/p2p/{peer}\n"));
        }
    }
    write_durably(&path(home), text.as_bytes())
}

fn path(home: &Path) -> PathBuf {
    home.join("peers")
}

#[cfg(test)]
mod tests {
    use cairn_protocol::Keypair;

    use super::*;

    #[test]
    fn peers_are_there_again_after_a_restart_and_nonsense_is_passed_over() {
        let home = tempfile::tempdir().expect("a folder");
        assert!(recall(home.path()).is_empty());
        let node = Keypair::from_seed([3; 32]).node_id();
        let addresses = vec!["/ip4/10.0.0.1/tcp/4177".to_owned(), "/ip4/10.0.0.1/udp/4177/quic-v1".to_owned()];
        keep(home.path(), &BTreeMap::from([(node, addresses)])).expect("written");
        let mut text = std::fs::read_to_string(path(home.path())).expect("read");
        text.push_str("nonsense\n/ip4/10.0.0.2/tcp/1\n\u{0}\n");
        std::fs::write(path(home.path()), text).expect("written");
        let kept = recall(home.path());
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[&node].len(), 2);
    }
}
