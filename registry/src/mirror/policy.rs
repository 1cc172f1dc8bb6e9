//! What an operator wants kept: which revisions, how many copies of them, and within what bounds.
//!
//! A policy is a pattern and its rules; a pattern has one set of rules. Not here: what follows from policies ([`super::decide`]).
//! Invariant: rules that were parsed can be carried out: no bound is zero, no glob is broken.

use std::{fmt, num::NonZeroU32, str::FromStr};

use cairn_protocol::{
    api,
    limits::{MIRROR_WORDS_MAX, WORD_BYTES_MAX},
    name::RepoKind,
};

use super::{Candidate, Pattern};

/// A pattern and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Which repos it is about.
    pub pattern: Pattern,
    /// Which of their revisions it takes, and how.
    pub rules: Rules,
}

/// What a policy says beside its pattern. Empty lists and absent bounds take everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Kinds of repos.
    pub kinds: Vec<RepoKind>,
    /// Licences, one of which the revision's record names; without regard to case.
    pub licenses: Vec<String>,
    /// Tasks, one of which the revision's card names, e.g. `text-generation`; without regard to case.
    pub tasks: Vec<String>,
    /// Tags, one of which the revision's record has; without regard to case.
    pub tags: Vec<String>,
    /// The most bytes of one revision.
    pub bytes_max: Option<u64>,
    /// Copies that all nodes together are to keep. `None`: this node keeps one, whatever others do.
    pub copies: Option<NonZeroU32>,
    /// Whose revisions come first where not all find room, or several policies name one.
    pub priority: i32,
    /// The most bytes that this policy may take here.
    pub quota_bytes: Option<u64>,
    /// When fetches may begin.
    pub hours: Option<Hours>,
}

/// Why a policy's rules can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// No kind has this name.
    #[error("{0:?} is no kind of repo: model, dataset, adapter or space")]
    Kind(String),
    /// Not two times of a day.
    #[error("{0:?} is not a span of hours like 22:00-06:00 (UTC)")]
    Hours(String),
    /// More words than are looked through, or longer ones.
    #[error("a rule takes at most {MIRROR_WORDS_MAX} words of {WORD_BYTES_MAX} bytes")]
    Words,
}

impl Policy {
    /// Everything that the pattern names, and a copy of it here.
    pub fn all_of(pattern: Pattern) -> Self {
        Self { pattern, rules: Rules::default() }
    }

    /// Whether it is about this revision. Its size is another matter: too large a one is still its business to refuse.
    pub fn names(&self, candidate: &Candidate) -> bool {
        let rules = &self.rules;
        self.pattern.matches(&candidate.repo, &candidate.path)
            && (rules.kinds.is_empty() || rules.kinds.contains(&candidate.repo.kind))
            && (rules.licenses.is_empty() || has_word(&rules.licenses, &candidate.license))
            && (rules.tasks.is_empty() || has_word(&rules.tasks, &candidate.task))
            && (rules.tags.is_empty() || candidate.tags.iter().any(|tag| has_word(&rules.tags, tag)))
    }
}

impl Rules {
    /// Whether it matters how many others hold a revision: to know that enough do, or that a copy may go.
    pub fn needs_copies(&self) -> bool {
        self.copies.is_some() || self.quota_bytes.is_some() || self.bytes_max.is_some()
    }
}

fn has_word(words: &[String], word: &str) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

impl TryFrom<api::MirrorRules> for Rules {
    type Error = RulesError;

    fn try_from(rules: api::MirrorRules) -> Result<Self, RulesError> {
        let kinds: Result<_, _> = rules.kinds.iter().map(|kind| parse_kind(kind)).collect();
        let words = [&rules.licenses, &rules.tasks, &rules.tags];
        let is_long = |words: &&Vec<String>| {
            words.len() > MIRROR_WORDS_MAX || words.iter().any(|word| word.len() > WORD_BYTES_MAX)
        };
        if words.iter().any(is_long) {
            return Err(RulesError::Words);
        }
        let hours = (!rules.hours.is_empty()).then(|| rules.hours.parse()).transpose()?;
        Ok(Self {
            kinds: kinds?,
            licenses: rules.licenses,
            tasks: rules.tasks,
            tags: rules.tags,
            bytes_max: (rules.bytes_max > 0).then_some(rules.bytes_max),
            copies: NonZeroU32::new(rules.copies),
            priority: rules.priority,
            quota_bytes: (rules.quota_bytes > 0).then_some(rules.quota_bytes),
            hours,
        })
    }
}

impl From<&Rules> for api::MirrorRules {
    fn from(rules: &Rules) -> Self {
        Self {
            kinds: rules.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
            licenses: rules.licenses.clone(),
            tasks: rules.tasks.clone(),
            tags: rules.tags.clone(),
            bytes_max: rules.bytes_max.unwrap_or(0),
            copies: rules.copies.map_or(0, NonZeroU32::get),
            priority: rules.priority,
            quota_bytes: rules.quota_bytes.unwrap_or(0),
            hours: rules.hours.map(|hours| hours.to_string()).unwrap_or_default(),
        }
    }
}

fn parse_kind(name: &str) -> Result<RepoKind, RulesError> {
    RepoKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| RulesError::Kind(name.to_owned()))
}

/// Part of every day, UTC; it may reach over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// Minute of the day at which it begins.
    from_minute: u16,
    /// Minute of the day before which it ends.
    end_minute: u16,
}

/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

impl Hours {
    /// Whether this minute of the day is one of them.
    pub fn contain(self, minute: u16) -> bool {
        let after = |minute: u16| (minute + DAY_MINUTES - self.from_minute) % DAY_MINUTES;
        after(minute % DAY_MINUTES) < after(self.end_minute)
    }
}

impl FromStr for Hours {
    type Err = RulesError;

    fn from_str(text: &str) -> Result<Self, RulesError> {
        let hours = text.split_once('-').and_then(|(from, end)| {
            let (from_minute, end_minute) = (minute_of(from)?, minute_of(end)? % DAY_MINUTES);
            (from_minute < DAY_MINUTES && from_minute != end_minute).then_some(Self { from_minute, end_minute })
        });
        hours.ok_or_else(|| RulesError::Hours(text.to_owned()))
    }
}

/// `HH:MM`, up to 24:00.
fn minute_of(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour <= 24 && minute < 60 && hour * 60 + minute <= DAY_MINUTES).then_some(hour * 60 + minute)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, end) = (self.from_minute, self.end_minute);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, end / 60, end % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_reach_over_midnight() {
        let check = |text: &str, minute: u16, expected: bool| {
            assert_eq!(text.parse::<Hours>().unwrap().contain(minute), expected, "{text} at {minute}");
        };
        check("22:00-06:00", 22 * 60, true);
        check("22:00-06:00", 0, true);
        check("22:00-06:00", 6 * 60, false);
        check("22:00-06:00", 12 * 60, false);
        check("09:30-17:00", 9 * 60 + 29, false);
        check("09:30-17:00", 9 * 60 + 30, true);
        check("18:00-24:00", 23 * 60 + 59, true);
        check("18:00-24:00", 0, false);
    }

    #[test]
    fn what_is_no_span_of_hours_is_refused() {
        for text in
            ["", "22:00", "22:00-", "25:00-01:00", "10:60-11:00", "10:00-10:00", "24:00-00:00", "a:b-c:d", "24:30-1:00"]
        {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
    }

    #[test]
    fn rules_read_back_as_they_were_written() {
        let rules = api::MirrorRules {
            kinds: vec!["model".into(), "dataset".into()],
            licenses: vec!["mit".into()],
            tags: vec!["en".into()],
            bytes_max: 7,
            copies: 3,
            priority: -2,
            quota_bytes: 9,
            hours: "22:00-06:00".into(),
            tasks: vec!["text-generation".into()],
        };
        assert_eq!(api::MirrorRules::from(&Rules::try_from(rules.clone()).unwrap()), rules);
        assert_eq!(Rules::try_from(api::MirrorRules::default()).unwrap(), Rules::default());
        let wrong = api::MirrorRules { kinds: vec!["modell".into()], ..Default::default() };
        assert_eq!(Rules::try_from(wrong), Err(RulesError::Kind("modell".into())));
        let many = api::MirrorRules { tags: vec![String::new(); MIRROR_WORDS_MAX + 1], ..Default::default() };
        assert_eq!(Rules::try_from(many), Err(RulesError::Words));
    }
}
