//! A client of a Cairn daemon: finds it, speaks gRPC to it, and turns its refusals into typed errors.
//!
//! ```no_run
//! # async fn example() -> Result<(), cairn_client::Refusal> {
//! use cairn_client::{Client, ConnectOptions, api, api::generate_event::Event};
//!
//! let client = Client::connect(&ConnectOptions::default()).await?;
//! let request = api::GenerateRequest { repo: "acme/tiny".into(), prompt: "Once".into(), ..Default::default() };
//! let mut events = client.generate(request).await?;
//! while let Some(event) = events.next().await? {
//!     if let Some(Event::Token(token)) = event.event {
//!         print!("{}", token.text);
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! Messages are the API's own ([`api`]): what is in `cairn/v1/cairn.proto` is here, under the same names. Not here: how
//! things look to a person (that is the command line's) and anything that needs no daemon.

mod calls;
mod discovery;
pub mod generated;
mod refusal;

pub use cairn_protocol::api;
pub use cairn_protocol::refusal::{Reason, Refusal};
pub use cairn_protocol::resume::{NoResumeToken, ResumeToken};
pub use calls::{Client, Events};
pub use discovery::{ConnectOptions, DEFAULT_API, Found, Token, default_home};
pub use refusal::from_status;
