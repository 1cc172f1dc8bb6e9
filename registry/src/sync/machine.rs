//! The talk of two nodes about their sets: pure, no clock, no wire. The one that asks learns which ids it lacks.
//!
//! An item speaks of one prefix: of its children's fingerprints, or of all ids that the speaker has under it. Who hears fingerprints answers
//! for each child that differs with those of its children, or with its ids, if they are few; who hears ids answers with those that the other
//! lacks. So each message goes a step deeper, and branches that agree cost nothing. (After Meyer's "Range-based set reconciliation" and the
//! negentropy protocol, with prefixes for ranges, since ids are hashes.)
//!
//! Invariant: an answer is about what was asked, and deeper or final; so a talk ends, whatever the other says.

use std::collections::{BTreeSet, VecDeque};

use cairn_protocol::{
    id::RecordId,
    limits::{RANGE_BYTES_MAX, RANGE_ITEMS_MAX},
    peer_pb::{RangeItem, RangeKind},
};

use super::prefix::{CHILDREN, FINGERPRINT_BYTES, Prefix, STEPS_MAX, Summary};

/// So many ids or fewer are told instead of fingerprints.
pub const IDS_MAX: u64 = 8;
/// Ids that a talk finds before they are to be fetched; another talk finds the rest.
pub const LACK_MAX: usize = 65_536;
/// Look-ups that one question may cost its hearer; what it asks beyond is left for the next.
const LOOK_UPS_MAX: usize = 16_384;
/// Questions of one talk. Two sets of millions that have nothing in common need some hundred for each 65,536 ids.
const QUESTIONS_MAX: u32 = 4_096;

/// Items that wait to be asked. One question adds at most 16 for each of its own, and the talk goes depth first.
const QUEUE_MAX: usize = 128 * RANGE_ITEMS_MAX;

/// A set of ids, as far as the talk looks at it.
pub trait IdSet {
    /// Why it can't be looked at.
    type Error;

    /// What stands for the ids under each child of a prefix that has children.
    fn children(&self, prefix: Prefix) -> Result<[Summary; CHILDREN], Self::Error>;

    /// The first `limit` ids under a prefix, in order.
    fn ids(&self, prefix: Prefix, limit: usize) -> Result<Vec<RecordId>, Self::Error>;

    /// Whether it holds an id.
    fn has(&self, id: RecordId) -> Result<bool, Self::Error>;
}

/// What was said and makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a range that makes no sense: {0}")]
pub struct Garbled(pub &'static str);

/// An answer: items, and how many of the question's it is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// What differs.
    pub items: Vec<RangeItem>,
    /// Items of the question that were looked at, from the first on.
    pub handled: usize,
}

/// The one that asks.
#[derive(Debug)]
pub struct Reconciler {
    queue: VecDeque<Item>,
    asked: Vec<Item>,
    lacking: BTreeSet<RecordId>,
    declined: BTreeSet<RecordId>,
    questions: u32,
    has_begun: bool,
}

/// One item, read.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    /// Fingerprints of the children that are not empty.
    Fingerprints(Prefix, Box<[Option<[u8; FINGERPRINT_BYTES]>; CHILDREN]>),
    /// All ids of the speaker.
    Ids(Prefix, Vec<RecordId>),
    /// Ids that the other lacks.
    Lacking(Prefix, Vec<RecordId>),
}

impl Reconciler {
    /// A talk that does not count `declined` as lacking: this node heard them and keeps them not.
    pub fn new(declined: BTreeSet<RecordId>) -> Self {
        Self {
            queue: VecDeque::new(),
            asked: Vec::new(),
            lacking: BTreeSet::new(),
            declined,
            questions: 0,
            has_begun: false,
        }
    }

    /// What to ask next; `None` when all is said, or enough is found.
    pub fn question<S: IdSet>(&mut self, set: &S) -> Result<Option<Vec<RangeItem>>, S::Error> {
        if !self.has_begun {
            self.has_begun = true;
            self.queue.push_back(fingerprints(set, Prefix::ALL)?);
        }
        if self.queue.is_empty() || self.lacking.len() >= LACK_MAX || self.questions >= QUESTIONS_MAX {
            return Ok(None);
        }
        self.questions += 1;
        let mut bytes = 0;
        while let Some(item) = self.queue.front()
            && self.asked.len() < RANGE_ITEMS_MAX
            && bytes + item.bytes() <= RANGE_BYTES_MAX / 2
        {
            bytes += item.bytes();
            self.asked.extend(self.queue.pop_front());
        }
        Ok(Some(self.asked.iter().map(Item::to_pb).collect()))
    }

    /// Takes in the answer to the last question.
    pub fn answer<S: IdSet, E: From<Garbled> + From<S::Error>>(&mut self, set: &S, answer: Answered) -> Result<(), E> {
        let asked = std::mem::take(&mut self.asked);
        if answer.handled == 0 || answer.handled > asked.len() {
            return Err(Garbled("an answer to nothing that was asked").into());
        }
        let (handled, rest) = asked.split_at(answer.handled);
        rest.iter().rev().for_each(|item| self.queue.push_front(item.clone()));
        let mut heard = BTreeSet::new();
        for item in &answer.items {
            let item = Item::parse(item)?;
            if !heard.insert(item.prefix()) {
                return Err(Garbled("an answer that says one thing twice").into());
            }
            if !handled.iter().any(|asked| asked.is_answered_by(&item)) {
                return Err(Garbled("an answer about something else").into());
            }
            self.take::<S, E>(set, item)?;
            if self.queue.len() > QUEUE_MAX {
                return Err(Garbled("more differences than depth-first talk can have").into());
            }
        }
        Ok(())
    }

    fn take<S: IdSet, E: From<Garbled> + From<S::Error>>(&mut self, set: &S, item: Item) -> Result<(), E> {
        match item {
            Item::Fingerprints(prefix, theirs) => {
                let ours = set.children(prefix)?;
                for (step, theirs) in theirs.iter().enumerate() {
                    // What the other has none of, this node lacks none of.
                    if let (Some(theirs), Some(child)) = (theirs, prefix.child(step))
                        && ours[step].fingerprint() != *theirs
                    {
                        // Depth first, so that the queue stays short.
                        self.queue.push_front(told(set, child, ours[step].count)?);
                    }
                }
            }
            Item::Ids(_, theirs) | Item::Lacking(_, theirs) => {
                for id in theirs {
                    if !self.declined.contains(&id) && !set.has(id)? {
                        self.lacking.insert(id);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ids that the other has and this node lacks, as far as the talk has come.
    pub fn lacking(self) -> BTreeSet<RecordId> {
        self.lacking
    }

    /// Questions so far.
    pub fn questions(&self) -> u32 {
        self.questions
    }

    /// Whether enough was found that the talk ended before its end.
    pub fn is_cut_short(&self) -> bool {
        !self.queue.is_empty()
    }
}

/// Answers a question about `set`.
pub fn respond<S: IdSet, E: From<Garbled> + From<S::Error>>(set: &S, items: &[RangeItem]) -> Result<Answered, E> {
    if items.is_empty() || items.len() > RANGE_ITEMS_MAX {
        return Err(Garbled("a question of no items or too many").into());
    }
    let (mut answered, mut bytes, mut look_ups) = (Answered::default(), 0, 0);
    for item in items {
        let item = Item::parse(item)?;
        let said = reply::<S, E>(set, &item)?;
        let size: usize = said.iter().map(Item::bytes).sum();
        if answered.handled > 0 && (bytes + size > RANGE_BYTES_MAX || look_ups > LOOK_UPS_MAX) {
            break;
        }
        bytes += size;
        // Children and ids lie side by side: a row each, and a page of ids as many as two rounds of children.
        look_ups += if matches!(item, Item::Ids(..)) { CHILDREN * 2 } else { CHILDREN } + said.len() * CHILDREN;
        answered.items.extend(said.iter().map(Item::to_pb));
        answered.handled += 1;
    }
    Ok(answered)
}

/// At most 16 items of at most 16 fingerprints each.
fn reply<S: IdSet, E: From<Garbled> + From<S::Error>>(set: &S, item: &Item) -> Result<Vec<Item>, E> {
    match item {
        Item::Fingerprints(prefix, theirs) => {
            let ours = set.children(*prefix)?;
            let mut said = Vec::new();
            for (step, theirs) in theirs.iter().enumerate() {
                let is_same = *theirs == (ours[step].count > 0).then(|| ours[step].fingerprint());
                if let Some(child) = prefix.child(step)
                    && !is_same
                    && ours[step].count > 0
                {
                    said.push(told(set, child, ours[step].count)?);
                }
            }
            Ok(said)
        }
        Item::Ids(prefix, theirs) => {
            let ours = set.ids(*prefix, RANGE_ITEMS_MAX + 1)?;
            if ours.len() > RANGE_ITEMS_MAX {
                return Ok(vec![fingerprints(set, *prefix)?]);
            }
            let theirs: BTreeSet<&RecordId> = theirs.iter().collect();
            let lacking: Vec<RecordId> = ours.into_iter().filter(|id| !theirs.contains(id)).collect();
            Ok(if lacking.is_empty() { Vec::new() } else { vec![Item::Lacking(*prefix, lacking)] })
        }
        Item::Lacking(..) => Err(Garbled("a question that is an answer").into()),
    }
}

/// The ids under a prefix, if they are few, else its children's fingerprints.
fn told<S: IdSet>(set: &S, prefix: Prefix, count: u64) -> Result<Item, S::Error> {
    if count <= IDS_MAX || prefix.steps() == STEPS_MAX {
        return Ok(Item::Ids(prefix, set.ids(prefix, IDS_MAX as usize)?));
    }
    fingerprints(set, prefix)
}

fn fingerprints<S: IdSet>(set: &S, prefix: Prefix) -> Result<Item, S::Error> {
    let children = set.children(prefix)?;
    let told = children.map(|child| (child.count > 0).then(|| child.fingerprint()));
    Ok(Item::Fingerprints(prefix, Box::new(told)))
}

impl Item {
    /// About as many bytes as it takes in a message.
    fn bytes(&self) -> usize {
        const AROUND: usize = 48;
        match self {
            Self::Fingerprints(_, told) => AROUND + told.iter().flatten().count() * FINGERPRINT_BYTES,
            Self::Ids(_, ids) | Self::Lacking(_, ids) => AROUND + ids.len() * 32,
        }
    }

    fn prefix(&self) -> Prefix {
        let (Self::Fingerprints(prefix, _) | Self::Ids(prefix, _) | Self::Lacking(prefix, _)) = self;
        *prefix
    }

    /// Fingerprints lead to children or ids, ids to what is lacking, or to fingerprints of the same prefix.
    fn is_answered_by(&self, answer: &Self) -> bool {
        let (asked, about) = (self.prefix(), answer.prefix());
        match (self, answer) {
            (Self::Fingerprints(..), Self::Fingerprints(..) | Self::Ids(..)) => {
                about.steps() == asked.steps() + 1 && asked.contains(about)
            }
            (Self::Ids(..), Self::Lacking(..) | Self::Fingerprints(..)) => asked == about,
            _ => false,
        }
    }

    fn to_pb(&self) -> RangeItem {
        let prefix = self.prefix();
        let item = RangeItem { prefix: prefix.to_bytes(), steps: prefix.steps().into(), ..RangeItem::default() };
        let listed = |ids: &[RecordId]| ids.iter().flat_map(|id| *id.as_bytes()).collect();
        match self {
            Self::Fingerprints(_, told) => {
                let present = told.iter().enumerate().filter(|(_, told)| told.is_some());
                let children = present.fold(0, |mask, (step, _)| mask | 1 << step);
                let fingerprints = told.iter().flatten().flatten().copied().collect();
                RangeItem { kind: RangeKind::Fingerprints as i32, children, fingerprints, ..item }
            }
            Self::Ids(_, ids) => RangeItem { kind: RangeKind::Ids as i32, ids: listed(ids), ..item },
            Self::Lacking(_, ids) => RangeItem { kind: RangeKind::Lacking as i32, ids: listed(ids), ..item },
        }
    }

    fn parse(item: &RangeItem) -> Result<Self, Garbled> {
        let prefix = Prefix::parse(&item.prefix, item.steps).ok_or(Garbled("no prefix"))?;
        let ids = || {
            let (ids, rest) = item.ids.as_chunks::<32>();
            let ids: Vec<RecordId> = ids.iter().map(|id| RecordId::from(*id)).collect();
            let fits = rest.is_empty() && ids.len() <= RANGE_ITEMS_MAX && ids.iter().all(|id| prefix.holds(*id));
            if fits { Ok(ids) } else { Err(Garbled("ids that are none, or of another prefix")) }
        };
        match RangeKind::try_from(item.kind) {
            Ok(RangeKind::Fingerprints) if prefix.steps() < STEPS_MAX => {
                let (told, rest) = item.fingerprints.as_chunks::<FINGERPRINT_BYTES>();
                let is_whole = item.children >> CHILDREN == 0 && item.children.count_ones() as usize == told.len();
                if !is_whole || !rest.is_empty() {
                    return Err(Garbled("fingerprints that don't fit their children"));
                }
                let mut told = told.iter();
                let read =
                    std::array::from_fn(
                        |step| {
                            if item.children >> step & 1 == 1 { told.next().copied() } else { None }
                        },
                    );
                Ok(Self::Fingerprints(prefix, Box::new(read)))
            }
            Ok(RangeKind::Ids) => ids().map(|ids| Self::Ids(prefix, ids)),
            Ok(RangeKind::Lacking) => ids().map(|ids| Self::Lacking(prefix, ids)),
            _ => Err(Garbled("an item of no kind")),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
