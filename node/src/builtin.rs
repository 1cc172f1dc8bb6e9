//! The model that ships with Cairn: 1.8 million weights that write something like Shakespeare.
//!
//! Its files are part of the program. `models/tiny/README.md` says what it was trained on and how.

use std::{fs, io, path::Path};

/// What the demo asks of it.
pub const PROMPT: &str = "ROMEO:\n";

const FILES: [(&str, &[u8]); 6] = [
    ("README.md", include_bytes!("../../models/tiny/README.md")),
    ("config.json", include_bytes!("../../models/tiny/config.json")),
    ("generation_config.json", include_bytes!("../../models/tiny/generation_config.json")),
    ("model.safetensors", include_bytes!("../../models/tiny/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../models/tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../models/tiny/tokenizer_config.json")),
];

/// Writes the model's files into a new folder, ready to publish.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    FILES.iter().try_for_each(|(name, bytes)| fs::write(folder.join(name), bytes))
}
