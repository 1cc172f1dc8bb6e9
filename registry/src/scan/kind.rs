//! What a file is by its first bytes, and what its name makes people expect. It reads no further than the head.
//!
//! Invariant: the name decides only where the bytes say nothing: text formats, and formats without a mark of their own.

use super::{FileFindings, Verdict};

/// What a file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tensors with a header of JSON.
    Safetensors,
    /// Tensors with metadata.
    Gguf,
    /// Instructions that build Python objects.
    Pickle,
    /// An archive, as `torch.save`, numpy and Keras write.
    Zip,
    /// One array of numpy.
    Numpy,
    /// What Keras wrote before.
    Hdf5,
    /// A graph of operators.
    Onnx,
    /// Files in a row.
    Tar,
    /// gzip, bzip2, xz, zstd, 7z.
    Compressed,
    /// Machine code: ELF, PE, Mach-O.
    Executable,
    /// Text whose first line names its interpreter, or by name a shell's or Windows' script.
    Script,
    /// Source code of Python.
    Python,
    /// A Jupyter notebook.
    Notebook,
    /// A template.
    Jinja,
    /// An object or list.
    Json,
    /// Any other text.
    Text,
    /// Pictures, sound, video, documents, tables of columns.
    Media,
    /// None of these.
    Unknown,
}

impl Kind {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "gguf",
            Self::Pickle => "pickle",
            Self::Zip => "zip",
            Self::Numpy => "numpy",
            Self::Hdf5 => "hdf5",
            Self::Onnx => "onnx",
            Self::Tar => "tar",
            Self::Compressed => "compressed",
            Self::Executable => "executable",
            Self::Script => "script",
            Self::Python => "python",
            Self::Notebook => "notebook",
            Self::Jinja => "jinja",
            Self::Json => "json",
            Self::Text => "text",
            Self::Media => "media",
            Self::Unknown => "unknown",
        }
    }
}

/// Marks at a file's beginning.
const MARKS: [(&[u8], Kind); 27] = [
    (b"GGUF", Kind::Gguf),
    (b"PK\x03\x04", Kind::Zip),
    (b"PK\x05\x06", Kind::Zip),
    (b"\x93NUMPY", Kind::Numpy),
    (b"\x89HDF\r\n\x1a\n", Kind::Hdf5),
    (b"\x7fELF", Kind::Executable),
    (b"MZ", Kind::Executable),
    (b"\xfe\xed\xfa\xce", Kind::Executable),
    (b"\xfe\xed\xfa\xcf", Kind::Executable),
    (b"\xce\xfa\xed\xfe", Kind::Executable),
    (b"\xcf\xfa\xed\xfe", Kind::Executable),
    (b"\xca\xfe\xba\xbe", Kind::Executable),
    (b"#!", Kind::Script),
    (b"\x1f\x8b", Kind::Compressed),
    (b"BZh", Kind::Compressed),
    (b"\xfd7zXZ\x00", Kind::Compressed),
    (b"\x28\xb5\x2f\xfd", Kind::Compressed),
    (b"7z\xbc\xaf\x27\x1c", Kind::Compressed),
    (b"\x89PNG\r\n", Kind::Media),
    (b"\xff\xd8\xff", Kind::Media),
    (b"GIF8", Kind::Media),
    (b"RIFF", Kind::Media),
    (b"OggS", Kind::Media),
    (b"fLaC", Kind::Media),
    (b"%PDF", Kind::Media),
    (b"PAR1", Kind::Media),
    (b"ARROW1", Kind::Media),
];

/// Names that loaders unpickle.
pub(super) const PICKLE_NAMES: [&str; 7] = ["pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill"];

/// What the file is.
pub(super) fn of(name: &str, head: &[u8]) -> Kind {
    if let Some((_, kind)) = MARKS.iter().find(|(mark, _)| head.starts_with(mark)) {
        // `MZ` is short enough to begin a text.
        return if *kind == Kind::Executable && is_text(head) { by_name(name, head) } else { *kind };
    }
    if head.get(257..262) == Some(b"ustar") {
        return Kind::Tar;
    }
    if matches!(head, [0x80, 2..=5, ..]) {
        return Kind::Pickle;
    }
    // A length, then the object.
    if head.len() > 8 && head[8] == b'{' && head[4..8] == [0; 4] {
        return Kind::Safetensors;
    }
    by_name(name, head)
}

fn by_name(name: &str, head: &[u8]) -> Kind {
    match extension(name) {
        "safetensors" => return Kind::Safetensors,
        "gguf" => return Kind::Gguf,
        "onnx" => return Kind::Onnx,
        extension if PICKLE_NAMES.contains(&extension) => return Kind::Pickle,
        _ => {}
    }
    if !is_text(head) {
        return Kind::Unknown;
    }
    match extension(name) {
        "py" | "pyw" | "pyi" => Kind::Python,
        "ipynb" => Kind::Notebook,
        "jinja" | "jinja2" | "j2" => Kind::Jinja,
        "sh" | "bash" | "zsh" | "bat" | "cmd" | "ps1" | "js" | "vbs" | "lua" | "rb" | "pl" => Kind::Script,
        "json" => Kind::Json,
        _ => Kind::Text,
    }
}

/// What follows the last dot.
pub(super) fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

fn is_text(head: &[u8]) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(_) => head.len(),
        Err(error) => error.valid_up_to(),
    };
    // The head may end inside a character.
    valid + 4 > head.len() && !head.contains(&0)
}

/// Says where name and content contradict each other.
pub(super) fn compare(name: &str, kind: Kind, found: &mut FileFindings) {
    let extension = extension(name);
    let is_lie = match extension {
        "safetensors" => kind != Kind::Safetensors,
        "gguf" => kind != Kind::Gguf,
        "json" | "txt" | "md" | "jinja" | "yaml" | "yml" | "csv" | "model" | "onnx" => {
            matches!(kind, Kind::Pickle | Kind::Executable)
        }
        "png" | "jpg" | "jpeg" | "gif" | "webp" | "mp3" | "mp4" | "wav" | "pdf" | "parquet" | "npy" | "npz" | "h5" => {
            matches!(kind, Kind::Pickle | Kind::Executable | Kind::Script | Kind::Python)
        }
        _ => false,
    };
    if is_lie {
        found.found(Verdict::Unsafe, format!("named .{extension}, and its content is {}", kind.name()));
    }
    match kind {
        Kind::Executable => {
            let is_named = matches!(extension, "so" | "dll" | "exe" | "dylib" | "pyd" | "o" | "engine")
                || name.contains(".so.")
                || extension.is_empty() && !name.contains('.');
            let verdict = if is_named { Verdict::Code } else { Verdict::Unsafe };
            found.found(verdict, "machine code");
        }
        Kind::Compressed | Kind::Tar if PICKLE_NAMES.contains(&extension) => {
            found
                .found(Verdict::Unsafe, format!("a pickle by its name, packed as {}, is not looked into", kind.name()));
        }
        Kind::Compressed | Kind::Tar => found.found(Verdict::Clean, "its content is not looked into"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides_and_the_name_only_where_it_is_silent() {
        for (name, head, kind) in [
            ("a.txt", &b"\x80\x04\x95"[..], Kind::Pickle),
            ("model.bin", b"PK\x03\x04....", Kind::Zip),
            ("weights.bin", b"\x00\x01\x02\xff", Kind::Unknown),
            ("model.pkl", b"cos\nsystem\n", Kind::Pickle),
            ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}", Kind::Safetensors),
            ("readme.md", "MZ is a pair of letters — so".as_bytes(), Kind::Text),
            ("setup", b"#!/bin/sh\n", Kind::Script),
            ("lib.bin", b"\x7fELF\x02\x01\x01\x00", Kind::Executable),
            ("modeling.py", b"import torch", Kind::Python),
            ("empty", b"", Kind::Text),
        ] {
            assert_eq!(of(name, head), kind, "{name}");
        }
    }

    #[test]
    fn a_name_that_lies_is_unsafe_and_one_that_tells_is_not() {
        for (name, kind, verdict) in [
            ("model.safetensors", Kind::Pickle, Verdict::Unsafe),
            ("model.safetensors", Kind::Safetensors, Verdict::Clean),
            ("weights.bin", Kind::Executable, Verdict::Unsafe),
            ("kernels.so", Kind::Executable, Verdict::Code),
            ("data.tar", Kind::Tar, Verdict::Clean),
            ("model.pt", Kind::Tar, Verdict::Unsafe),
            ("cat.png", Kind::Script, Verdict::Unsafe),
        ] {
            let mut found = FileFindings::new(name, kind);
            compare(name, kind, &mut found);
            assert_eq!(found.verdict(), verdict, "{name} {kind:?}");
        }
    }
}
