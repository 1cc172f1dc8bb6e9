//! What a node says of itself at its HTTP door.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result};
use cairn_client::Client;

/// One of the node's metrics.
pub async fn metric(client: &Client, name: &str) -> Result<f64> {
    let address = client.status().await?.http;
    let name = name.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(&address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).context("a metric")?;
        Ok(value.parse()?)
    })
    .await?
}
