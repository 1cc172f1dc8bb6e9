//! What a request asks of its tokens, held against bounds. Pure.
//!
//! Numbers mean what the OpenAI API says they mean; zero is "none" where it says nothing.

use cairn_compute::{
    choose::{Demands, GRAMMAR_BYTES_MAX, Grammar, LOGIT_BIAS_MAX, LOGPROBS_MAX, PENALTY_MAX},
    sample::Sampling,
};
use cairn_protocol::{
    api::{self, generate_request::Format},
    refusal::{Reason, Refusal},
};

/// Most answers to one prompt: as many sessions as a peer has on a node.
pub(super) const CHOICES_MAX: u32 = 8;
/// Most stop strings, and the longest. Text is held back while it may become one.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 512;
/// Biases are between minus and plus this: certain to be taken, or never.
const BIAS_MAX: f64 = 100.0;

/// How many answers.
pub(super) fn choices(request: &api::GenerateRequest) -> Result<u32, Refusal> {
    match request.n {
        0 => Ok(1),
        n if n <= CHOICES_MAX => Ok(n),
        n => {
            Err(Refusal::new(Reason::Limit, "n", format!("{n} answers were asked for, at most {CHOICES_MAX} are made"))
                .try_this("several requests"))
        }
    }
}

/// Stop strings, as they are.
pub(super) fn stops(request: &api::GenerateRequest) -> Result<Vec<String>, Refusal> {
    if request.stop.len() > STOPS_MAX || request.stop.iter().any(|stop| stop.len() > STOP_BYTES_MAX) {
        let why = format!("at most {STOPS_MAX} of at most {STOP_BYTES_MAX} bytes are taken");
        return Err(Refusal::new(Reason::Limit, "the stop strings", why).try_this("fewer, shorter ones"));
    }
    Ok(request.stop.clone())
}

/// How tokens are to be chosen. `ids` are the prompt's, with what was generated before; the model has `vocabulary` ids.
pub(super) fn demands(
    request: &api::GenerateRequest,
    seed: u64,
    ids: usize,
    vocabulary: u32,
) -> Result<Demands, Refusal> {
    let penalty = |what: &str, value: f64| -> Result<f32, Refusal> {
        let most = PENALTY_MAX;
        within(what, value, -f64::from(most), f64::from(most), "0.5").map(|value| value as f32)
    };
    Ok(Demands {
        sampling: sampling(request, seed)?,
        frequency_penalty: penalty("frequency_penalty", request.frequency_penalty)?,
        presence_penalty: penalty("presence_penalty", request.presence_penalty)?,
        logit_bias: logit_bias(request, vocabulary)?,
        logprobs: logprobs(request)?,
        grammar: grammar(request)?,
        prompt_tokens: prompt_tokens(request, ids)?,
    })
}

/// How one is drawn.
pub(super) fn sampling(request: &api::GenerateRequest, seed: u64) -> Result<Sampling, Refusal> {
    let temperature =
        within("temperature", request.temperature.unwrap_or(0.7), 0.0, f64::MAX, "0 for greedy, 0.7 for lively")?;
    let top_p = within("top_p", request.top_p, 0.0, 1.0, "0.9")?;
    let min_p = within("min_p", request.min_p, 0.0, 1.0, "0.05")?;
    let repetition_penalty = within("repetition_penalty", request.repetition_penalty, 0.0, f64::MAX, "1.1")?;
    Ok(Sampling {
        temperature: temperature as f32,
        top_k: request.top_k,
        top_p: if top_p == 0.0 { 1.0 } else { top_p as f32 },
        seed,
        repetition_penalty: if repetition_penalty == 0.0 { 1.0 } else { repetition_penalty as f32 },
        min_p: min_p as f32,
        index: request.sample_index,
    })
}

fn within(what: &str, value: f64, least: f64, most: f64, attempt: &str) -> Result<f64, Refusal> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    let why = if most == f64::MAX {
        format!("it must be {least} or more")
    } else {
        format!("it must be between {least} and {most}")
    };
    Err(Refusal::new(Reason::BadInput, what, why).try_this(attempt))
}

fn logit_bias(request: &api::GenerateRequest, vocabulary: u32) -> Result<Vec<(u32, f32)>, Refusal> {
    if request.logit_bias.len() > LOGIT_BIAS_MAX {
        let why = format!("{} ids are biased, at most {LOGIT_BIAS_MAX} may be", request.logit_bias.len());
        return Err(Refusal::new(Reason::Limit, "logit_bias", why).try_this("fewer ids"));
    }
    let bias = |one: &api::LogitBias| {
        if one.id >= vocabulary {
            let why = format!("the model has {vocabulary} ids, {} is none of them", one.id);
            return Err(Refusal::new(Reason::BadInput, "logit_bias", why).try_this("ids of this model's tokenizer"));
        }
        Ok((one.id, within("logit_bias", one.bias, -BIAS_MAX, BIAS_MAX, "-100 to forbid an id")? as f32))
    };
    request.logit_bias.iter().map(bias).collect()
}

fn logprobs(request: &api::GenerateRequest) -> Result<Option<u32>, Refusal> {
    match request.logprobs {
        Some(count) if count > LOGPROBS_MAX => {
            let why = format!("{count} tokens were asked for, at most {LOGPROBS_MAX} are told");
            Err(Refusal::new(Reason::Limit, "logprobs", why).try_this(format!("{LOGPROBS_MAX}")))
        }
        count => Ok(count),
    }
}

fn grammar(request: &api::GenerateRequest) -> Result<Option<Grammar>, Refusal> {
    let grammar = match &request.format {
        None | Some(Format::Json(false)) => return Ok(None),
        Some(Format::Json(true)) => Grammar::Json,
        Some(Format::JsonSchema(text)) => Grammar::JsonSchema(text.clone()),
        Some(Format::Regex(text)) => Grammar::Regex(text.clone()),
        Some(Format::Grammar(text)) => Grammar::Lark(text.clone()),
    };
    if grammar.text().len() > GRAMMAR_BYTES_MAX {
        let why = format!("it is {} bytes long, at most {GRAMMAR_BYTES_MAX} are taken", grammar.text().len());
        return Err(Refusal::new(Reason::Limit, "the grammar", why).try_this("a shorter one"));
    }
    Ok(Some(grammar))
}

/// Where the generated text begins.
fn prompt_tokens(request: &api::GenerateRequest, ids: usize) -> Result<usize, Refusal> {
    let generated = request.generated as usize;
    if generated > request.token_ids.len() {
        let why = format!("{generated} of {} token_ids are said to be generated", request.token_ids.len());
        return Err(Refusal::new(Reason::BadInput, "generated", why).try_this("a count of the last token_ids"));
    }
    Ok(ids - generated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_that_means_nothing_is_refused() {
        let request = |temperature, top_p| api::GenerateRequest { temperature, top_p, ..Default::default() };
        assert!(sampling(&request(Some(f64::NAN), 0.0), 1).is_err());
        assert!(sampling(&request(Some(-1.0), 0.0), 1).is_err());
        assert!(sampling(&request(None, 1.5), 1).is_err());
        let plain = sampling(&request(None, 0.0), 1).unwrap();
        assert_eq!((plain.temperature, plain.top_p, plain.repetition_penalty), (0.7, 1.0, 1.0));
    }

    #[test]
    fn demands_beyond_their_bounds_are_refused() {
        let refused = |change: fn(&mut api::GenerateRequest)| {
            let mut request = api::GenerateRequest::default();
            change(&mut request);
            let all = demands(&request, 1, 10, 100).and_then(|_| stops(&request)).and_then(|_| choices(&request));
            all.map(|_| ()).map_err(|refusal| refusal.what)
        };
        assert_eq!(refused(|_| {}), Ok(()));
        assert_eq!(refused(|r| r.min_p = 1.5), Err("min_p".into()));
        assert_eq!(refused(|r| r.frequency_penalty = 2.5), Err("frequency_penalty".into()));
        assert_eq!(refused(|r| r.presence_penalty = f64::NAN), Err("presence_penalty".into()));
        assert_eq!(refused(|r| r.logprobs = Some(21)), Err("logprobs".into()));
        assert_eq!(refused(|r| r.n = 9), Err("n".into()));
        assert_eq!(refused(|r| r.generated = 1), Err("generated".into()));
        assert_eq!(refused(|r| r.stop = vec![String::new(); 17]), Err("the stop strings".into()));
        assert_eq!(refused(|r| r.stop = vec!["x".repeat(513)]), Err("the stop strings".into()));
        assert_eq!(refused(|r| r.logit_bias = vec![api::LogitBias { id: 100, bias: 1.0 }]), Err("logit_bias".into()));
        assert_eq!(refused(|r| r.logit_bias = vec![api::LogitBias { id: 1, bias: 101.0 }]), Err("logit_bias".into()));
        assert_eq!(refused(|r| r.format = Some(Format::Regex("x".repeat(70_000)))), Err("the grammar".into()));
    }
}
