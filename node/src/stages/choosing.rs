//! What a last stage does when it chooses tokens, beyond plain sampling: as it travels in an opening, and as it is set up here.
//!
//! What a coordinator asks beyond what the first version sampled with must not be passed over by a stage that does not know it:
//! its tokens would be wrong, silently. So such an opening holds a `sampling` that no version takes, and everything in a
//! message of its own, with a word for each thing that the stage has to be able to do. A stage of before refuses the
//! first, one of this version a word that it does not know; the coordinator then looks for another node.
//!
//! Not here: how a token is chosen ([`cairn_compute::choose`]).

use std::sync::Arc;

use cairn_compute::{
    choose::{Chooser, Demands, Grammar, GrammarError, LOGIT_BIAS_MAX, LOGPROBS_MAX},
    sample::Sampling,
};
use cairn_protocol::{
    peer_pb,
    refusal::{Reason, Refusal},
};

use super::{
    load,
    request::{StageRequest, bad},
};
use crate::{
    flows::{generate, holders, plan},
    shell::Node,
};

/// Whether demands ask for a thing.
type Asks = fn(&Demands) -> bool;

/// Words for what a last stage may have to be able to do, with what each is.
const WORDS: [(&str, Asks); 6] = [
    ("grammar", |d| d.grammar.is_some()),
    ("logprobs", |d| d.logprobs.is_some()),
    ("logit-bias", |d| !d.logit_bias.is_empty()),
    ("penalties", |d| d.frequency_penalty != 0.0 || d.presence_penalty != 0.0),
    ("min-p", |d| d.sampling.min_p > 0.0),
    ("sample-index", |d| d.sampling.index > 0),
];

/// A temperature that no version takes.
const NO_TEMPERATURE: f64 = -1.0;

/// How demands travel: as plain sampling where that says it all.
pub(crate) fn to_wire(demands: &Demands) -> (peer_pb::Sampling, Option<peer_pb::Choosing>) {
    let plain = sampling_to_wire(&demands.sampling);
    let needs: Vec<String> = WORDS.iter().filter(|(_, is)| is(demands)).map(|(word, _)| (*word).to_owned()).collect();
    if needs.is_empty() {
        return (plain, None);
    }
    let poison = peer_pb::Sampling { temperature: NO_TEMPERATURE, ..Default::default() };
    let bias = |(token, bias): &(u32, f32)| peer_pb::TokenBias { token: *token, bias: *bias };
    let choosing = peer_pb::Choosing {
        needs,
        sampling: Some(plain),
        min_p: f64::from(demands.sampling.min_p),
        sample_index: demands.sampling.index,
        frequency_penalty: f64::from(demands.frequency_penalty),
        presence_penalty: f64::from(demands.presence_penalty),
        logit_bias: demands.logit_bias.iter().map(bias).collect(),
        logprobs: demands.logprobs,
        grammar_kind: demands.grammar.as_ref().map_or("", Grammar::kind).to_owned(),
        grammar: demands.grammar.as_ref().map_or("", Grammar::text).to_owned(),
        prompt_tokens: demands.prompt_tokens as u64,
    };
    (poison, Some(choosing))
}

fn sampling_to_wire(sampling: &Sampling) -> peer_pb::Sampling {
    peer_pb::Sampling {
        temperature: f64::from(sampling.temperature),
        top_k: sampling.top_k,
        top_p: f64::from(sampling.top_p),
        seed: sampling.seed,
        repetition_penalty: f64::from(sampling.repetition_penalty),
    }
}

/// The demands of an opening, every number held against its bounds.
pub(super) fn parse(plain: peer_pb::Sampling, choosing: Option<peer_pb::Choosing>) -> Result<Demands, Refusal> {
    let Some(choosing) = choosing else {
        return Ok(Demands { sampling: sampling(plain)?, ..Demands::default() });
    };
    if let Some(word) = choosing.needs.iter().find(|need| !WORDS.iter().any(|(word, _)| word == need)) {
        let why = format!("it needs {word:?} of whoever chooses tokens, which this node does not know");
        return Err(Refusal::new(Reason::Unsupported, "a stage", why).try_this("a newer version of cairn on that node"));
    }
    let numbers = [choosing.min_p, choosing.frequency_penalty, choosing.presence_penalty];
    let biases = choosing.logit_bias.len();
    if numbers.iter().any(|n| !n.is_finite()) || choosing.logit_bias.iter().any(|b| !b.bias.is_finite()) {
        return Err(bad("numbers of a choice must be finite".to_owned()));
    }
    if biases > LOGIT_BIAS_MAX || choosing.logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
        return Err(bad(format!("{biases} biases and {:?} log-probabilities", choosing.logprobs)));
    }
    let grammar = match choosing.grammar_kind.as_str() {
        "" => None,
        kind => Some(Grammar::of(kind, &choosing.grammar).ok_or_else(|| bad(format!("a grammar of kind {kind:?}")))?),
    };
    let plain = sampling(choosing.sampling.unwrap_or_default())?;
    Ok(Demands {
        sampling: Sampling { min_p: choosing.min_p as f32, index: choosing.sample_index, ..plain },
        frequency_penalty: choosing.frequency_penalty as f32,
        presence_penalty: choosing.presence_penalty as f32,
        logit_bias: choosing.logit_bias.iter().map(|b| (b.token, b.bias)).collect(),
        logprobs: choosing.logprobs,
        grammar,
        prompt_tokens: usize::try_from(choosing.prompt_tokens).unwrap_or(usize::MAX),
    })
}

fn sampling(wire: peer_pb::Sampling) -> Result<Sampling, Refusal> {
    let numbers = [wire.temperature, wire.top_p, wire.repetition_penalty];
    if numbers.iter().any(|n| !n.is_finite() || *n < 0.0) {
        return Err(bad("sampling numbers must be finite and not negative".to_owned()));
    }
    Ok(Sampling {
        temperature: wire.temperature as f32,
        top_k: wire.top_k,
        top_p: wire.top_p as f32,
        seed: wire.seed,
        repetition_penalty: wire.repetition_penalty as f32,
        ..Sampling::GREEDY
    })
}

/// The chooser of a last stage whose tokens the engine does not choose by itself. A grammar needs the model's tokenizer, which is
/// fetched as a coordinator fetches it.
pub(super) async fn chooser(node: &Arc<Node>, request: &StageRequest) -> Result<Option<Chooser>, Refusal> {
    if !request.part.head || !request.demands.needs_logits() {
        return Ok(None);
    }
    let vocabulary = match request.demands.grammar {
        None => None,
        Some(_) => {
            let sources = load::sources(node, request.revision, &request.sources).await;
            let manifest = holders::ensure_manifest_from(node, request.revision, &sources).await?;
            let model = plan::served_model(&request.revision.short(), &manifest)?;
            let texts = generate::texts(node, request.revision, &manifest, &sources).await?;
            Some(texts.vocabulary(model).await?)
        }
    };
    let (demands, history) = (request.demands.clone(), request.history.clone());
    let started = tokio::task::spawn_blocking(move || Chooser::start(demands, vocabulary, history)).await;
    let started = started.map_err(|error| Refusal::internal("a chooser", error))?;
    started.map(Some).map_err(|error| refusal(&error))
}

/// Why a grammar is not taken, for the person who wrote it.
pub(crate) fn refusal(error: &GrammarError) -> Refusal {
    let (reason, attempt) = match error {
        GrammarError::TooLong(_) | GrammarError::TooDeep | GrammarError::TooManyRules | GrammarError::TooCostly(_) => {
            (Reason::Limit, "a simpler grammar")
        }
        GrammarError::Malformed(_) => (Reason::BadInput, "docs/clients.md, which says what a text may follow"),
        GrammarError::NotFollowed(_) => (Reason::BadInput, "the grammar that the generation began with"),
        GrammarError::Busy => (Reason::Busy, "again in a moment"),
        GrammarError::NoEnd => (Reason::Unsupported, "another model"),
    };
    Refusal::new(reason, "the grammar", error.to_string()).try_this(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Demands {
        Demands {
            sampling: Sampling { temperature: 0.5, seed: 9, min_p: 0.25, index: 3, ..Sampling::GREEDY },
            frequency_penalty: 0.5,
            presence_penalty: -0.5,
            logit_bias: vec![(7, 1.5)],
            logprobs: Some(0),
            grammar: Some(Grammar::Regex("a+".into())),
            prompt_tokens: 11,
        }
    }

    #[test]
    fn demands_arrive_as_they_were_sent() {
        let plain = Demands { sampling: Sampling { seed: 5, top_k: 3, ..Sampling::GREEDY }, ..Demands::default() };
        for demands in [plain, all()] {
            let (sampling, choosing) = to_wire(&demands);
            assert_eq!(parse(sampling, choosing).unwrap(), demands);
        }
    }

    #[test]
    fn a_stage_that_does_not_know_what_is_asked_refuses() {
        let (sampling, choosing) = to_wire(&all());
        // One of before reads nothing but the sampling.
        assert_eq!(parse(sampling, None).unwrap_err().reason, Reason::BadInput);
        // One of this version, asked for what a later one can do.
        let mut later = choosing.unwrap();
        assert_eq!(later.needs.len(), WORDS.len());
        later.needs.push("telepathy".into());
        let refused = parse(peer_pb::Sampling::default(), Some(later)).unwrap_err();
        assert!(refused.reason == Reason::Unsupported && refused.why.contains("telepathy"), "{refused}");
    }

    #[test]
    fn what_no_stage_should_take_is_refused() {
        let with = |change: fn(&mut peer_pb::Choosing)| {
            let mut choosing = to_wire(&all()).1.unwrap();
            change(&mut choosing);
            parse(peer_pb::Sampling::default(), Some(choosing))
        };
        assert!(with(|c| c.min_p = f64::NAN).is_err());
        assert!(with(|c| c.logprobs = Some(21)).is_err());
        assert!(with(|c| c.logit_bias = vec![peer_pb::TokenBias { token: 0, bias: f32::INFINITY }]).is_err());
        assert!(with(|c| c.logit_bias = vec![peer_pb::TokenBias::default(); LOGIT_BIAS_MAX + 1]).is_err());
        assert!(with(|c| c.grammar_kind = "prose".into()).is_err());
        assert!(with(|c| c.sampling = Some(peer_pb::Sampling { temperature: -1.0, ..Default::default() })).is_err());
        assert!(with(|_| {}).is_ok());
    }
}
