//! One generation, heard to its end.

use anyhow::{Result, bail};
use cairn_client::{Client, api};

/// Everything that a generation said.
#[derive(Debug, Default)]
pub struct Generation {
    /// The first message.
    pub started: api::Started,
    /// Each token as it came.
    pub tokens: Vec<u32>,
    /// Their text, put together.
    pub text: String,
    /// Every recovery.
    pub recoveries: Vec<api::Recovery>,
    /// The result.
    pub done: api::Done,
}

impl Generation {
    /// Runs `ask` to its end; `heard` sees each event first and may act on it.
    pub async fn run(
        client: &Client,
        ask: api::GenerateRequest,
        mut heard: impl AsyncFnMut(&api::generate_event::Event) -> Result<()>,
    ) -> Result<Self> {
        let mut events = client.generate(ask).await?;
        let mut all = Self::default();
        while let Some(event) = events.next().await? {
            let Some(event) = event.event else { continue };
            heard(&event).await?;
            match event {
                api::generate_event::Event::Started(started) => all.started = started,
                api::generate_event::Event::Token(token) => {
                    all.tokens.push(token.id);
                    all.text.push_str(&token.text);
                }
                api::generate_event::Event::Recovery(recovery) => all.recoveries.push(recovery),
                api::generate_event::Event::Done(done) => {
                    all.done = done;
                    return Ok(all);
                }
                api::generate_event::Event::Progress(_) => (),
            }
        }
        bail!("the generation ended without a result")
    }

    /// Runs `ask` to its end.
    pub async fn of(client: &Client, ask: api::GenerateRequest) -> Result<Self> {
        Self::run(client, ask, async |_| Ok(())).await
    }
}

/// A greedy request for `tokens` tokens over `stages` nodes, the prompt taken as it is.
pub fn greedy(repo: &str, prompt: &str, tokens: u32, stages: u32) -> api::GenerateRequest {
    api::GenerateRequest {
        repo: repo.into(),
        prompt: prompt.into(),
        raw: true,
        max_tokens: tokens,
        temperature: Some(0.0),
        stages,
        ..api::GenerateRequest::default()
    }
}
