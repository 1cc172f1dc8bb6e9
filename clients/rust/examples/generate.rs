//! Streams a generation from a running daemon.
//!
//! ```text
//! cargo run -p cairn-client --example generate -- acme/tiny "Once upon a time"
//! ```

use std::io::Write;

use cairn_client::api::{GenerateRequest, generate_event::Event};
use cairn_client::{Client, ConnectOptions, Refusal};

#[tokio::main]
async fn main() -> Result<(), Refusal> {
    let mut arguments = std::env::args().skip(1);
    let (Some(repo), Some(prompt)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: generate REPO PROMPT");
        std::process::exit(2);
    };
    let client = Client::connect(&ConnectOptions::default()).await?;
    let request = GenerateRequest { repo, prompt, max_tokens: 64, ..GenerateRequest::default() };
    let mut events = client.generate(request).await?;
    while let Some(event) = events.next().await? {
        match event.event {
            Some(Event::Token(token)) => {
                print!("{}", token.text);
                let _ = std::io::stdout().flush();
            }
            Some(Event::Recovery(lost)) => {
                eprintln!("[{} was lost; going on after {:.0} ms]", lost.node, lost.pause_ms)
            }
            Some(Event::Done(done)) => eprintln!("\n{} tokens at {:.1}/s", done.tokens.len(), done.tokens_per_s),
            _ => {}
        }
    }
    Ok(())
}
