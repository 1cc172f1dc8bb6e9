//! What a node asks of another, parsed from `OpenTask` into types that cannot be wrong.
//!
//! Not here: whether it may ask ([`crate::stages`]'s admission). Invariant: a [`TaskRequest`] holds only lengths and counts
//! that were held against their limits.

use cairn_compute::plan::Privacy;
use cairn_protocol::{
    id::{PublisherKey, RealmId, RevisionId},
    limits, peer_pb,
    refusal::{Reason, Refusal},
};

use crate::stages::{self, Neighbour, bounds};

/// A task for one node.
#[derive(Debug, Clone)]
pub(crate) struct TaskRequest {
    /// The realm the asking node is in.
    pub realm: RealmId,
    /// Which model.
    pub revision: RevisionId,
    /// Who published it.
    pub publisher: PublisherKey,
    /// The task's privacy class.
    pub privacy: Privacy,
    /// Who is known to hold the revision.
    pub sources: Vec<Neighbour>,
    /// What to embed.
    pub texts: Vec<String>,
    /// The name of a prompt; none is the model's default.
    pub prompt: Option<String>,
}

impl TaskRequest {
    /// Checks every field.
    pub fn parse(open: peer_pb::OpenTask) -> Result<TaskRequest, Refusal> {
        if open.sources.len() > bounds::SOURCES_MAX {
            return Err(bad(format!("{} sources, at most {} are taken", open.sources.len(), bounds::SOURCES_MAX)));
        }
        let Some(peer_pb::open_task::Task::Embed(embed)) = open.task else {
            return Err(Refusal {
                reason: Reason::Unsupported,
                ..bad("a kind of task that is not known here".to_owned())
            });
        };
        check_texts(&embed.texts, &embed.prompt)?;
        Ok(TaskRequest {
            realm: stages::id(&open.realm, "realm")?,
            revision: stages::id(&open.revision, "revision")?,
            publisher: stages::id(&open.publisher, "publisher")?,
            privacy: stages::parse_privacy(&open.privacy)?,
            sources: open.sources.iter().map(|s| stages::neighbour(&s.node, &s.addresses)).collect::<Result<_, _>>()?,
            texts: embed.texts,
            prompt: prompt_name(&embed.prompt),
        })
    }
}

/// Empty is none.
pub(super) fn prompt_name(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether texts and a prompt's name are within the limits of one task.
pub(super) fn check_texts(texts: &[String], prompt: &str) -> Result<(), Refusal> {
    let limit = |why: String| Err(Refusal::new(Reason::Limit, "the texts", why).try_this("several requests"));
    if texts.is_empty() {
        return Err(Refusal::new(Reason::BadInput, "the texts", "there are none").try_this("one or more"));
    }
    if texts.len() > limits::TASK_TEXTS_MAX {
        return limit(format!("{} of them, at most {} are taken at once", texts.len(), limits::TASK_TEXTS_MAX));
    }
    if let Some(at) = texts.iter().position(|text| text.len() > limits::TASK_TEXT_BYTES_MAX) {
        return limit(format!(
            "text {at} has {} bytes, at most {} are taken",
            texts[at].len(),
            limits::TASK_TEXT_BYTES_MAX
        ));
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes > limits::TASK_BYTES_MAX {
        return limit(format!("{bytes} bytes together, at most {} are taken at once", limits::TASK_BYTES_MAX));
    }
    if prompt.len() > limits::WORD_BYTES_MAX {
        return Err(Refusal::new(Reason::BadInput, "the prompt's name", format!("it has {} bytes", prompt.len()))
            .try_this("one of the model's prompts"));
    }
    Ok(())
}

fn bad(why: String) -> Refusal {
    Refusal::new(Reason::BadInput, "a task", why).try_this("the same version of cairn on both nodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(texts: Vec<String>) -> peer_pb::OpenTask {
        let embed = peer_pb::EmbedTexts { texts, prompt: String::new() };
        peer_pb::OpenTask {
            realm: vec![0; 32],
            revision: vec![1; 32],
            publisher: vec![2; 32],
            privacy: String::new(),
            sources: Vec::new(),
            task: Some(peer_pb::open_task::Task::Embed(embed)),
        }
    }

    fn reason(change: impl FnOnce(&mut peer_pb::OpenTask)) -> Option<Reason> {
        let mut open = open(vec!["a".into()]);
        change(&mut open);
        TaskRequest::parse(open).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn a_task_beyond_its_limits_is_refused() {
        assert_eq!(reason(|_| ()), None);
        let embed = |texts: Vec<String>, prompt: &str| {
            let embed = peer_pb::EmbedTexts { texts, prompt: prompt.to_owned() };
            move |open: &mut peer_pb::OpenTask| open.task = Some(peer_pb::open_task::Task::Embed(embed))
        };
        let (text, texts) = (limits::TASK_TEXT_BYTES_MAX, limits::TASK_TEXTS_MAX);
        assert_eq!(reason(embed(vec![String::new(); texts], "")), None);
        assert_eq!(reason(embed(vec![String::new(); texts + 1], "")), Some(Reason::Limit));
        assert_eq!(reason(embed(vec!["x".repeat(text)], "")), None);
        assert_eq!(reason(embed(vec!["x".repeat(text + 1)], "")), Some(Reason::Limit));
        assert_eq!(reason(embed(vec!["x".repeat(text); limits::TASK_BYTES_MAX / text + 1], "")), Some(Reason::Limit));
        assert_eq!(reason(embed(Vec::new(), "")), Some(Reason::BadInput));
        assert_eq!(reason(embed(vec!["x".into()], &"p".repeat(129))), Some(Reason::BadInput));
        assert_eq!(reason(|open| open.task = None), Some(Reason::Unsupported));
        assert_eq!(reason(|open| open.revision.truncate(31)), Some(Reason::BadInput));
        assert_eq!(reason(|open| open.privacy = "secret".into()), Some(Reason::BadInput));
        let source = || peer_pb::Source { node: vec![3; 32], addresses: vec!["nowhere".into()] };
        assert_eq!(reason(|open| open.sources = vec![source()]), Some(Reason::BadInput));
        assert_eq!(reason(|open| open.sources = vec![Default::default(); 33]), Some(Reason::BadInput));
    }
}
