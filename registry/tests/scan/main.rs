//! Scans of real files: pickles that Python wrote, archives as torch, numpy and Keras write them, and bytes that nobody wrote.
//! `files.py` beside this makes the files. Nothing here is loaded by Python.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{io::Cursor, ops::ControlFlow, path::Path};

use cairn_registry::scan::{FileFindings, Kind, ScanReport, Verdict, scan, scan_path};
use proptest::prelude::*;

fn read(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scan/files");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn scanned(name: &str, bytes: &[u8]) -> FileFindings {
    scan(name, &mut Cursor::new(bytes)).unwrap()
}

fn words(found: &FileFindings) -> String {
    found.findings.iter().map(|finding| format!("{} {}\n", finding.verdict, finding.what)).collect()
}

/// The file is judged so, and some finding says this.
fn check(name: &str, verdict: Verdict, says: &str) {
    let found = scanned(name, &read(name));
    assert_eq!(found.verdict(), verdict, "{name}: {}", words(&found));
    assert!(words(&found).contains(says), "{name} does not say {says:?}: {}", words(&found));
}

fn text(name: &str, bytes: &str, verdict: Verdict, says: &str) {
    let found = scanned(name, bytes.as_bytes());
    assert_eq!(found.verdict(), verdict, "{name}: {}", words(&found));
    assert!(words(&found).contains(says), "{name} does not say {says:?}: {}", words(&found));
}

#[test]
fn checkpoints_and_data_of_all_protocols_are_clean() {
    check("torch.bin", Verdict::Clean, "archive/data.pkl: a pickle of data");
    check("torch.bin", Verdict::Clean, "torch._utils._rebuild_tensor_v2");
    // Weights follow that look like a pickle.
    check("torch-legacy.pth", Verdict::Clean, "collections.OrderedDict");
    for protocol in 0..6 {
        check(&format!("data-{protocol}.pkl"), Verdict::Clean, "collections.OrderedDict");
    }
    check("numbers.npy", Verdict::Clean, "");
    check("objects.npy", Verdict::Clean, "numpy");
}

#[test]
fn what_a_pickle_would_run_is_named_in_every_protocol_and_every_hiding_place() {
    for protocol in 0..6 {
        check(&format!("evil-{protocol}.pkl"), Verdict::Unsafe, "imports posix.system, which runs");
        check(&format!("evil-{protocol}.pkl"), Verdict::Unsafe, "calls posix.system");
    }
    check("evil-0.txt", Verdict::Unsafe, "a pickle without a mark");
    check("evil-eval.bin", Verdict::Unsafe, "builtins.eval");
    check("torch-evil.bin", Verdict::Unsafe, "archive/data.pkl: imports posix.system");
    check("torch-evil-packed.bin", Verdict::Unsafe, "archive/data.pkl: imports posix.system");
    check("second.pkl", Verdict::Unsafe, "posix.system");
    check("evil.npy", Verdict::Unsafe, "posix.system");
    check("evil.npz", Verdict::Unsafe, "x.npy: imports posix.system");
    check("lambda.keras", Verdict::Unsafe, "Lambda");
}

#[test]
fn names_that_are_not_on_the_list_and_files_that_are_not_what_they_say_are_unsafe() {
    check("torch-own.pt", Verdict::Unsafe, "imports my_model.Net, which is not on the list");
    check("hidden.safetensors", Verdict::Unsafe, "named .safetensors, and its content is pickle");
    check("out.pt", Verdict::Unsafe, "../../etc/x: leads out");
    check("two.pt", Verdict::Unsafe, "two entries have one name");
}

#[test]
fn a_name_put_together_on_the_stack_is_known_like_one_that_is_written_out() {
    // From the memo, out of order, through duplicates; and one that is no text.
    let name = b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x00\x93\x8c\x02id\x85R.";
    assert!(words(&scanned("a.pkl", name)).contains("calls os.system"));
    let computed = b"\x80\x04\x8c\x02os\x8c\x06system\x85\x93.";
    assert!(words(&scanned("a.pkl", computed)).contains("imports a name that it computes"));
    let built = b"\x80\x02ccollections\nOrderedDict\n}b.";
    assert!(words(&scanned("a.pkl", built)).contains("changes collections.OrderedDict itself"));
    let called = b"\x80\x02ccollections\nOrderedDict\n)R)R.";
    assert!(words(&scanned("a.pkl", called)).contains("calls what it computed"));
    assert_eq!(scanned("a.pkl", b"\x80\x02\x82\x01.").verdict(), Verdict::Unsafe);
}

#[test]
fn a_pickle_that_breaks_off_is_unsafe_and_weights_that_begin_like_one_are_not() {
    let evil = read("evil-4.pkl");
    let found = scanned("a.pkl", &evil[..evil.len() - 4]);
    assert!(words(&found).contains("can't be followed") && words(&found).contains("posix.system"), "{}", words(&found));
    assert_eq!(scanned("model.pt", b"\x80\x02\xff\xff").verdict(), Verdict::Unsafe);
    assert_eq!(scanned("weights.bin", b"\x80\x02\xff\xff\x00\x00\x00").verdict(), Verdict::Clean);
    // A text that claims more than there is costs nothing.
    let claims = b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc";
    assert_eq!(scanned("a.pkl", claims).verdict(), Verdict::Unsafe);
}

#[test]
fn a_pickle_that_only_piles_up_ends() {
    let mut piles = b"\x80\x04".to_vec();
    piles.resize(4 << 20, b'N');
    assert!(words(&scanned("a.pkl", &piles)).contains("too long"));
    let marks = vec![b'('; 4 << 20];
    assert!(words(&scanned("a.pkl", &marks)).contains("too long"));
}

#[test]
fn code_that_clients_may_run_is_pointed_at() {
    text("modeling_own.py", "import torch\n", Verdict::Code, "trust_remote_code");
    text("install.sh", "#!/bin/sh\necho\n", Verdict::Code, "a script");
    let config = r#"{"auto_map": {"AutoModel": "modeling_own.Net"}}"#;
    text("config.json", config, Verdict::Code, "modeling_own.Net");
    text("modules.json", r#"[{"type": "own.Module"}]"#, Verdict::Code, "own.Module");
    text("modules.json", r#"[{"type": "sentence_transformers.models.Pooling"}]"#, Verdict::Clean, "");
    text("README.md", "# import os\nc is a letter\n", Verdict::Clean, "");
    let found = scanned("kernels.bin", b"\x7fELF\x02\x01\x01\0\0\0\0");
    assert_eq!((found.kind, found.verdict()), (Kind::Executable, Verdict::Unsafe));
}

#[test]
fn a_chat_template_is_shown_and_one_that_reaches_for_pythons_insides_is_unsafe() {
    let good = r#"{"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}"#;
    text("tokenizer_config.json", good, Verdict::Clean, "chat template of 53 bytes, SHA-256");
    let bad = "{{ ''.__class__.__mro__[1].__subclasses__() }}";
    text("chat_template.jinja", bad, Verdict::Unsafe, "reaches for __subclasses__");
    let named = r#"{"chat_template": [{"name": "tools", "template": "{{ cycler.__init__.__globals__ }}"}]}"#;
    text("tokenizer_config.json", named, Verdict::Unsafe, "the chat template tools reaches for __globals__");
}

#[test]
fn broken_headers_are_unsafe_and_whole_ones_clean() {
    let whole = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = (whole.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(whole);
    bytes.extend_from_slice(&[0; 4]);
    assert_eq!(scanned("a.safetensors", &bytes).verdict(), Verdict::Clean);
    bytes.truncate(bytes.len() - 1);
    assert!(words(&scanned("a.safetensors", &bytes)).contains("not a whole safetensors file"));
    assert_eq!(scanned("a.gguf", b"GGUF\x03\0\0\0").verdict(), Verdict::Unsafe);
}

#[test]
fn a_folder_is_judged_by_its_worst_file_and_the_summary_says_which() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), "nothing").unwrap();
    std::fs::write(folder.path().join("b.pkl"), read("evil-2.pkl")).unwrap();
    let mut heard = 0;
    let report: ScanReport = scan_path(folder.path(), |_| {
        heard += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((heard, report.verdict(), report.count(Verdict::Clean)), (2, Verdict::Unsafe, 1));
    assert!(report.summary().starts_with("2 files: 1 clean, 0 with code, 1 unsafe; b.pkl: "), "{}", report.summary());
}

const NAMES: [&str; 8] = ["a.pkl", "a.bin", "a.pt", "a.npy", "a.npz", "a.json", "a.gguf", "a"];

fn real_files() -> Vec<Vec<u8>> {
    let names = [
        "torch.bin",
        "torch-evil-packed.bin",
        "torch-legacy.pth",
        "data-0.pkl",
        "evil-1.pkl",
        "data-4.pkl",
        "evil.npz",
    ];
    names.map(read).into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_scanned_to_an_end(name in 0..NAMES.len(), bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        scanned(NAMES[name], &bytes);
        let mut pickle = vec![0x80, 4];
        pickle.extend_from_slice(&bytes);
        scanned(NAMES[name], &pickle);
    }

    #[test]
    fn real_files_with_a_few_bytes_changed_are_scanned_to_an_end(
        file in 0..7usize, name in 0..NAMES.len(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(), is_cut in any::<bool>(),
    ) {
        let mut bytes = real_files()[file].clone();
        changes.iter().for_each(|(at, byte)| { let at = at.index(bytes.len()); bytes[at] = *byte; });
        if is_cut { bytes.truncate(cut.index(bytes.len())); }
        scanned(NAMES[name], &bytes);
    }
}
