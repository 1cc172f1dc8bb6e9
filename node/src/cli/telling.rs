//! One generation on its way to the screen, and what is known of it so far.
//!
//! Of several answers the first is shown as it comes, the others after it. With `--json` events are shown as they come, each
//! with its answer's number, and the last line holds all answers.

use std::io::IsTerminal;
use std::time::Instant;

use cairn_client::Events;
use cairn_client::api::{self, generate_event::Event};
use cairn_protocol::refusal::Refusal;
use serde_json::{Value, json};

use super::progress::Bar;
use super::publish::unfinished;
use super::{Global, plan};

/// What is shown, and what was.
pub(super) struct Telling<'a> {
    global: &'a Global,
    bar: Bar,
    asked: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Of each answer, by its number; the first is there from the beginning.
    so_far: Vec<api::Done>,
    /// Answers that have come to their end.
    ended: usize,
}

impl<'a> Telling<'a> {
    pub(super) fn new(global: &'a Global, choices: u32) -> Telling<'a> {
        let none = api::Done { finish: "cancelled".to_string(), ..api::Done::default() };
        let so_far = vec![none; choices.max(1) as usize];
        let bar = Bar::new(global.output());
        Telling { global, bar, asked: Instant::now(), first: None, last: None, so_far, ended: 0 }
    }

    /// Shows events until the last. Ctrl-C drops the call, which cancels the work, and what came so far is the result.
    pub(super) async fn follow(mut self, mut events: Events<api::GenerateEvent>) -> Result<api::Done, Refusal> {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = tokio::signal::ctrl_c() => return Ok(self.cancelled()),
            };
            let event = match event {
                Ok(event) => event.ok_or_else(|| unfinished("run"))?,
                Err(refusal) => {
                    self.end_line();
                    return Err(refusal);
                }
            };
            // A node that sends more answers than were asked for is not followed.
            let choice = event.choice as usize;
            match event.event.filter(|_| choice < self.so_far.len()) {
                Some(Event::Done(done)) => {
                    self.ended += 1;
                    if choice == 0 {
                        self.end_line();
                    }
                    self.so_far[choice] = done;
                    if self.ended == self.so_far.len() {
                        return Ok(self.done());
                    }
                }
                Some(event) => self.show(choice, event),
                None => {}
            }
        }
    }

    fn show(&mut self, choice: usize, event: Event) {
        let output = self.global.output();
        match event {
            Event::Progress(progress) => {
                self.bar.show(&progress);
                if progress.place > 0 {
                    output.event(&json!({
                        "event": "progress", "choice": choice, "phase": progress.phase, "item": progress.item,
                        "place": progress.place,
                    }));
                }
            }
            Event::Started(started) => {
                self.bar.clear();
                let so_far = &mut self.so_far[choice];
                so_far.seed = started.seed;
                so_far.prompt_tokens = started.prompt_tokens;
                so_far.stages = started.plan.iter().flat_map(|plan| &plan.stages).map(planned).collect();
                output.event(&json!({
                    "event": "started", "choice": choice, "session": started.session, "revision": started.revision, "seed": started.seed,
                    "prompt_tokens": started.prompt_tokens, "resume_token": started.resume_token, "adapter": started.adapter,
                    "plan": started.plan.as_ref().map(plan::plan_value),
                }));
            }
            Event::Token(token) => {
                self.bar.clear();
                self.last = Some(Instant::now());
                self.first = self.first.or(self.last);
                self.so_far[choice].tokens.push(token.id);
                self.so_far[choice].text.push_str(&token.text);
                output.event(&token_value(choice, &token));
                if choice == 0 {
                    output.piece(&token.text);
                }
            }
            Event::Recovery(lost) => {
                output.event(&json!({
                    "event": "recovery", "choice": choice, "node": lost.node, "why": lost.why, "pause_ms": lost.pause_ms,
                    "noticed_ms": lost.noticed_ms, "replanned_ms": lost.replanned_ms, "rebuilt_ms": lost.rebuilt_ms,
                    "stages": lost.stages.iter().map(stage).collect::<Vec<_>>(),
                }));
                self.tell_of(&lost);
                let so_far = &mut self.so_far[choice];
                so_far.recoveries += 1;
                so_far.pauses_ms.push(lost.pause_ms);
                let stages = std::mem::replace(&mut so_far.stages, lost.stages);
                so_far.replans.push(api::Replan { stages });
            }
            Event::Done(_) => {}
        }
    }

    /// Says at once, to a person, why the text paused.
    fn tell_of(&self, lost: &api::Recovery) {
        self.bar.clear();
        let is_mid_line = self.is_mid_line();
        let before = if is_mid_line { "\n" } else { "" };
        self.global.output().note(&format!(
            "{before}[node {:.10} was lost ({}); its layers went on elsewhere after {:.0} ms]",
            lost.node, lost.why, lost.pause_ms
        ));
    }

    /// What is known when the person has had enough; times are measured here.
    fn cancelled(mut self) -> api::Done {
        if self.so_far[0].finish == "cancelled" {
            self.end_line();
        }
        if let (Some(first), Some(last)) = (self.first, self.last) {
            let (ttft_ms, seconds) =
                (first.duration_since(self.asked).as_secs_f64() * 1e3, last.duration_since(first).as_secs_f64());
            for so_far in self.so_far.iter_mut().filter(|so_far| so_far.finish == "cancelled") {
                so_far.ttft_ms = ttft_ms;
                let tokens = so_far.tokens.len().saturating_sub(1) as f64;
                so_far.tokens_per_s = if seconds > 0.0 { tokens / seconds } else { 0.0 };
            }
        }
        self.done()
    }

    /// The last words; the first answer is the result.
    fn done(mut self) -> api::Done {
        self.bar.clear();
        for (choice, done) in self.so_far.iter().enumerate().skip(1) {
            self.global.output().piece(&format!("\n[{}]\n{}\n", choice + 1, done.text.trim_end_matches('\n')));
        }
        self.show_done();
        self.so_far.swap_remove(0)
    }

    fn is_mid_line(&self) -> bool {
        !self.so_far[0].text.is_empty() && !self.so_far[0].text.ends_with('\n')
    }

    fn end_line(&self) {
        self.bar.clear();
        if self.is_mid_line() {
            self.global.output().piece("\n");
        }
    }

    fn show_done(&self) {
        let done = &self.so_far[0];
        let mut last = json!({"event": "done"});
        if let (Some(last), Value::Object(fields)) = (last.as_object_mut(), done_value(done)) {
            last.extend(fields);
        }
        if self.so_far.len() > 1 {
            last["choices"] = self.so_far.iter().map(done_value).collect();
        }
        self.global.output().event(&last);
        if std::io::stderr().is_terminal() {
            self.note(done);
        }
    }

    fn note(&self, done: &api::Done) {
        let lost = match done.recoveries {
            0 => String::new(),
            count => format!(", {count} stages lost and replaced"),
        };
        let known = match done.cached_tokens {
            0 => String::new(),
            count => format!(", {count} of {} prompt tokens known", done.prompt_tokens),
        };
        self.global.output().note(&format!(
            "[{} tokens, {:.1}/s, first after {:.0} ms, {} stages, seed {}{known}{lost}]",
            done.tokens.len(),
            done.tokens_per_s,
            done.ttft_ms,
            done.stages.len(),
            done.seed
        ));
    }
}

fn token_value(choice: usize, token: &api::Token) -> Value {
    let mut value =
        json!({"event": "token", "choice": choice, "id": token.id, "text": token.text, "index": token.index});
    if let Some(logprobs) = &token.logprobs {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        value["logprob"] = logprobs.logprob.into();
        value["bytes"] = logprobs.bytes.clone().into();
        value["top_logprobs"] = logprobs
            .best
            .iter()
            .map(|one| json!({"id": one.id, "text": text(&one.bytes), "logprob": one.logprob, "bytes": one.bytes}))
            .collect();
    }
    value
}

/// An answer as it is told last.
fn done_value(done: &api::Done) -> Value {
    json!({
        "tokens": done.tokens, "text": done.text, "finish": done.finish, "seed": done.seed,
        "prompt_tokens": done.prompt_tokens, "ttft_ms": done.ttft_ms, "tokens_per_s": done.tokens_per_s,
        "stages": done.stages.iter().map(stage).collect::<Vec<_>>(),
        "replans": done.replans.iter().map(|replan| {
            json!({"stages": replan.stages.iter().map(stage).collect::<Vec<_>>()})
        }).collect::<Vec<_>>(),
        "recoveries": done.recoveries, "pauses_ms": done.pauses_ms, "lap_ms": done.lap_ms,
        "cached_tokens": done.cached_tokens, "evictions": done.evictions,
    })
}

/// A stage of which only the plan is known.
fn planned(stage: &api::StagePlan) -> api::StageReport {
    api::StageReport {
        node: stage.node.clone(),
        first_layer: stage.first_layer,
        end_layer: stage.end_layer,
        bytes_needed: stage.bytes,
        ..api::StageReport::default()
    }
}

fn stage(stage: &api::StageReport) -> Value {
    json!({
        "node": stage.node, "layers": [stage.first_layer, stage.end_layer], "bytes_needed": stage.bytes_needed,
        "bytes_local": stage.bytes_local, "bytes_fetched": stage.bytes_fetched, "bytes_overhead": stage.bytes_overhead,
        "step_ms": stage.step_ms,
    })
}
