//! What peers did wrong, and who is not spoken to for a while. A pure decider: time is an argument, it waits for
//! nothing and closes nothing itself.
//!
//! Four named severities stand for points; points halve every ten minutes; whoever reaches [`BAN_POINTS`] is banned
//! for ten minutes, and for twice as long each time it happens again while the ledger remembers it.
//!
//! Invariant: a ban always ends, and the ledger never holds more than `ACCOUNTS_MAX` nodes.

use std::collections::BTreeMap;

use cairn_protocol::id::NodeId;

use super::bounds::ACCOUNTS_MAX;

/// Points at which a node is banned.
pub const BAN_POINTS: f64 = 100.0;
/// Points halve in this time.
const HALF_LIFE_MS: f64 = 600_000.0;
/// First ban; every further one lasts twice as long.
const BAN_FIRST_MS: u64 = 600_000;
/// Longest ban.
const BAN_LAST_MS: u64 = 24 * 3_600_000;

/// How bad one misdeed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Happens to honest nodes under load, e.g. too many questions at once. A hundred make a ban.
    Nuisance,
    /// Happens to honest nodes with bugs or of another version, e.g. a message that can't be parsed. Ten make a ban.
    Fault,
    /// No honest node does it, but it costs us little, e.g. a forged signature. Three make a ban.
    Breach,
    /// One is enough, e.g. an identity that isn't the connection's.
    Attack,
}

impl Severity {
    /// What it adds to the node's account.
    pub fn points(self) -> f64 {
        match self {
            Severity::Nuisance => 1.0,
            Severity::Fault => 10.0,
            Severity::Breach => 34.0,
            Severity::Attack => 100.0,
        }
    }
}

/// Whether a node may still be talked to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing {
    /// It may; so many points are on its account.
    Tolerated(f64),
    /// It may not until that time.
    Banned {
        /// On the clock that was given as an argument.
        until_ms: u64,
    },
}

/// The ledger of misdeeds.
#[derive(Debug, Default)]
pub struct Conduct {
    accounts: BTreeMap<NodeId, Account>,
    /// Banned nodes whose accounts had to give way: their bans end at the next [`Conduct::wake`].
    displaced: Vec<NodeId>,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    points: f64,
    at_ms: u64,
    bans: u32,
    banned_until_ms: Option<u64>,
}

impl Conduct {
    /// Adds a misdeed and says how the node stands now.
    pub fn report(&mut self, now_ms: u64, node: NodeId, severity: Severity) -> Standing {
        self.make_room(now_ms, node);
        let account =
            self.accounts.entry(node).or_insert(Account { points: 0.0, at_ms: now_ms, bans: 0, banned_until_ms: None });
        account.points = account.decayed(now_ms) + severity.points();
        account.at_ms = now_ms;
        // A ban may be over without [`Conduct::wake`] having said so yet.
        if let Some(until_ms) = account.banned_until_ms.filter(|until_ms| *until_ms > now_ms) {
            return Standing::Banned { until_ms };
        }
        if account.points < BAN_POINTS {
            return Standing::Tolerated(account.points);
        }
        let until_ms = now_ms + (BAN_FIRST_MS << account.bans.min(16)).min(BAN_LAST_MS);
        account.bans += 1;
        account.banned_until_ms = Some(until_ms);
        account.points = 0.0;
        Standing::Banned { until_ms }
    }

    /// How the node stands.
    pub fn standing(&self, now_ms: u64, node: NodeId) -> Standing {
        match self.accounts.get(&node) {
            None => Standing::Tolerated(0.0),
            Some(Account { banned_until_ms: Some(until_ms), .. }) if *until_ms > now_ms => {
                Standing::Banned { until_ms: *until_ms }
            }
            Some(account) => Standing::Tolerated(account.decayed(now_ms)),
        }
    }

    /// Ends the bans that are over, or that nobody remembers any more, and names the nodes they were on.
    pub fn wake(&mut self, now_ms: u64) -> Vec<NodeId> {
        let mut freed = std::mem::take(&mut self.displaced);
        // Whoever was banned anew meanwhile stays so.
        freed.retain(|node| self.accounts.get(node).is_none_or(|account| account.banned_until_ms.is_none()));
        for (node, account) in &mut self.accounts {
            if account.banned_until_ms.is_some_and(|until| until <= now_ms) {
                account.banned_until_ms = None;
                freed.push(*node);
            }
        }
        freed
    }

    /// Drops the least guilty account that isn't banned, else the ban that ends first.
    fn make_room(&mut self, now_ms: u64, node: NodeId) {
        if self.accounts.len() < ACCOUNTS_MAX || self.accounts.contains_key(&node) {
            return;
        }
        let rank = |a: &Account| (a.banned_until_ms.unwrap_or(0), a.decayed(now_ms).to_bits());
        let least = self.accounts.iter().min_by_key(|(_, account)| rank(account)).map(|(node, _)| *node);
        if let Some(least) = least
            && self.accounts.remove(&least).is_some_and(|account| account.banned_until_ms.is_some())
        {
            self.displaced.push(least);
        }
    }
}

impl Account {
    fn decayed(&self, now_ms: u64) -> f64 {
        let age_ms = now_ms.saturating_sub(self.at_ms) as f64;
        self.points * (-age_ms / HALF_LIFE_MS).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u16) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        NodeId::from(bytes)
    }

    #[test]
    fn a_misdeed_just_after_a_ban_is_no_ban_in_the_past() {
        let mut conduct = Conduct::default();
        let Standing::Banned { until_ms } = conduct.report(0, node(1), Severity::Attack) else { panic!("no ban") };
        assert!(matches!(conduct.report(until_ms + 1, node(1), Severity::Nuisance), Standing::Tolerated(_)));
        assert_eq!(conduct.wake(until_ms + 2), [node(1)]);
    }

    #[test]
    fn three_breaches_make_a_ban_and_two_do_not() {
        let mut conduct = Conduct::default();
        conduct.report(0, node(1), Severity::Breach);
        assert!(matches!(conduct.report(0, node(1), Severity::Breach), Standing::Tolerated(_)));
        assert!(matches!(conduct.report(0, node(1), Severity::Breach), Standing::Banned { .. }));
        assert_eq!(conduct.standing(0, node(2)), Standing::Tolerated(0.0));
    }

    #[test]
    fn points_halve_in_ten_minutes() {
        let mut conduct = Conduct::default();
        conduct.report(0, node(1), Severity::Breach);
        let Standing::Tolerated(points) = conduct.standing(600_000, node(1)) else { panic!("banned") };
        assert!((points - 17.0).abs() < 1e-9, "{points}");
    }

    #[test]
    fn a_ban_ends_and_the_next_one_lasts_twice_as_long() {
        let mut conduct = Conduct::default();
        let Standing::Banned { until_ms } = conduct.report(0, node(1), Severity::Attack) else { panic!("tolerated") };
        assert_eq!(conduct.wake(until_ms - 1), vec![]);
        assert_eq!(conduct.wake(until_ms), vec![node(1)]);
        let Standing::Banned { until_ms: again } = conduct.report(until_ms, node(1), Severity::Attack) else {
            panic!("tolerated")
        };
        assert_eq!(again - until_ms, 2 * until_ms);
    }

    #[test]
    fn a_ban_whose_account_gave_way_ends_too() {
        let mut conduct = Conduct::default();
        for n in 0..=ACCOUNTS_MAX as u16 {
            conduct.report(u64::from(n), node(n), Severity::Attack);
        }
        assert_eq!(conduct.accounts.len(), ACCOUNTS_MAX);
        assert_eq!(conduct.wake(ACCOUNTS_MAX as u64), vec![node(0)]);
        assert_eq!(conduct.wake(ACCOUNTS_MAX as u64), vec![]);
    }

    #[test]
    fn the_ledger_is_bounded_and_keeps_the_banned() {
        let mut conduct = Conduct::default();
        conduct.report(0, node(0), Severity::Attack);
        for n in 1..=ACCOUNTS_MAX as u16 + 50 {
            conduct.report(1, node(n), Severity::Nuisance);
        }
        assert_eq!(conduct.accounts.len(), ACCOUNTS_MAX);
        assert!(matches!(conduct.standing(1, node(0)), Standing::Banned { .. }));
    }
}
