//! Publishing, reopening, verifying and exporting whole revisions.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use std::fs;

use cairn_protocol::{FilePath, RefName};
use cairn_registry::{
    Committed, Description, ImportError, PrepareOptions, Prepared, Problem, PublishError, Transfer, sums_of,
};
use house::{House, bytes, key, repo, safetensors, sign};

/// Sizes that take different ways through the store, with why.
const SIZES: [(usize, &str); 8] = [
    (0, "always there, never stored"),
    (1, "inside the database, no proof"),
    (1024, "one chunk"),
    (16 * 1024 - 1, "largest but one inside the database"),
    (16 * 1024, "largest inside the database"),
    (16 * 1024 + 1, "smallest in a file, proof in the database"),
    (4 * 1024 * 1024, "largest with its proof in the database"),
    (4 * 1024 * 1024 + 16 * 1024 + 1, "proof in a file"),
];

fn paths(names: &[&str]) -> Vec<FilePath> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

#[tokio::test]
async fn files_of_every_size_class_survive_a_reopening_and_come_out_as_they_went_in() {
    let house = House::new().await;
    let files: Vec<_> = SIZES.iter().map(|(size, _)| (format!("{size}.bin"), bytes(*size, 3))).collect();
    let listed: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let source = house.source("sizes", &listed);
    let published = house.publish(&source, &key(1), "sizes", 1).await;
    let house = house.reopen().await;

    let manifest = house.registry.manifest(published.revision).await.unwrap().unwrap();
    for (name, bytes) in &files {
        let file = manifest.file(name).unwrap();
        let sums = sums_of(bytes);
        assert_eq!((file.size, file.sha256, file.git_sha1), (bytes.len() as u64, sums.sha256, sums.git_sha1), "{name}");
        assert_eq!(file.blake3.as_bytes(), blake3::hash(bytes).as_bytes(), "{name}");
    }
    let report = house.registry.verify(published.revision, |_| {}).await.unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.files, report.records), (8, 2));

    let out = house.folder.path().join("out");
    let all: Vec<_> = manifest.files.iter().map(|file| file.path.clone()).collect();
    let exported = house.registry.export(published.revision, &all, &out, Transfer::Copy, |_| {}).await.unwrap();
    assert_eq!((exported.files, exported.bytes), (8, manifest.bytes()));
    for (name, bytes) in &files {
        assert_eq!(fs::read(out.join(name)).unwrap(), *bytes, "{name}");
    }
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 8, "no temporary file is left: {left:?}");
    let holding = house.registry.held(published.revision).await.unwrap();
    assert!(holding.whole && holding.kept);
    assert_eq!(holding.bytes_total, Some(manifest.bytes()));
    house.registry.close().await;
}

#[tokio::test]
async fn names_in_unicode_and_folders_are_kept_and_hidden_files_are_not() {
    let house = House::new().await;
    let files = [("über/模型.txt", b"a".to_vec()), ("b c.txt", b"b".to_vec()), (".git/config", b"c".to_vec())];
    let source = house.source("names", &files);
    let published = house.publish(&source, &key(1), "names", 1).await;
    let manifest = house.registry.manifest(published.revision).await.unwrap().unwrap();
    let names: Vec<_> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["b c.txt", "über/模型.txt"]);
    let out = house.folder.path().join("out");
    let wanted = paths(&["über/模型.txt"]);
    house.registry.export(published.revision, &wanted, &out, Transfer::Copy, |_| {}).await.unwrap();
    assert_eq!(fs::read(out.join("über/模型.txt")).unwrap(), b"a");
    assert!(!out.join("b c.txt").exists());
    house.registry.close().await;
}

#[tokio::test]
async fn tensors_of_all_shards_are_indexed_and_a_second_copy_of_the_model_is_not() {
    let house = House::new().await;
    let source = house.source(
        "shards",
        &[
            ("config.json", b"{}".to_vec()),
            ("model-1.safetensors", safetensors(&[("a", &[2, 3]), ("b", &[4])])),
            ("model-2.safetensors", safetensors(&[("c", &[1000, 20])])),
            ("copy/model.safetensors", safetensors(&[("a", &[2, 3])])),
        ],
    );
    let prepared = house.prepare(&source, &repo(&key(1), "shards"), 1).await.unwrap();
    let manifest = &prepared.manifest;
    let mut names: Vec<_> = manifest.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c"]);
    let c = manifest.tensor("c").unwrap();
    assert_eq!(manifest.files[c.file as usize].path.as_str(), "model-2.safetensors");
    assert_eq!((c.shape.as_slice(), c.length), ([1000, 20].as_slice(), 80_000));
    assert_eq!(prepared.left_out, paths(&["copy/model.safetensors"]));
    assert_eq!(manifest.file("copy/model.safetensors").unwrap().header_bytes, 0);
    assert_eq!(prepared.statement().parameters, 6 + 4 + 20_000);
    assert_eq!(prepared.statement().quantisation, "F32");

    let file = manifest.file("model-2.safetensors").unwrap();
    let read = house.registry.blobs().read(file.blake3, c.offset..c.offset + c.length).await.unwrap();
    assert_eq!(read, bytes(80_000, 9));
    house.registry.close().await;
}

/// A GGUF file of version 3 with one F32 tensor of four elements and no metadata.
fn gguf(tensor: &str) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend((tensor.len() as u64).to_le_bytes());
    file.extend(tensor.as_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(4u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend([1f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()));
    file
}

#[tokio::test]
async fn a_gguf_file_is_indexed_and_its_header_is_shown_to_whoever_describes_the_model() {
    let house = House::new().await;
    let source = house.source("g", &[("a.gguf", gguf("x")), ("b.gguf", gguf("x")), ("config.json", b"{}".to_vec())]);
    let options = PrepareOptions {
        describe: Box::new(|sources| match (sources.gguf, sources.config_json) {
            (Some(gguf), Some(b"{}")) if gguf.tensors.len() == 1 && sources.tensors.len() == 1 => {
                Ok(Description::default())
            }
            _ => Err(format!("{sources:?}")),
        }),
        ..PrepareOptions::default()
    };
    let prepared = house.registry.prepare(source, repo(&key(1), "g"), options, |_| {}).await.unwrap();
    let tensor = prepared.manifest.tensor("x").unwrap();
    assert_eq!((tensor.file, tensor.length, tensor.shape.as_slice()), (0, 16, [4].as_slice()));
    assert_eq!(prepared.left_out, paths(&["b.gguf"]));
    let blob = prepared.manifest.files[0].blake3;
    let read = house.registry.blobs().read(blob, tensor.offset..tensor.offset + 4).await.unwrap();
    assert_eq!(read, 1f32.to_le_bytes().as_slice());
    house.registry.close().await;
}

#[tokio::test]
async fn a_model_whose_files_contradict_each_other_is_refused_with_the_reason() {
    let house = House::new().await;
    let source = house.source("c", &[("config.json", b"{}".to_vec())]);
    let options =
        PrepareOptions { describe: Box::new(|_| Err("layers are missing".to_owned())), ..PrepareOptions::default() };
    let refused = house.registry.prepare(source, repo(&key(1), "c"), options, |_| {}).await;
    assert!(matches!(&refused, Err(PublishError::Describe(why)) if why == "layers are missing"), "{refused:?}");
    house.registry.close().await;
}

#[tokio::test]
async fn a_broken_header_is_refused_before_anything_is_stored() {
    let house = House::new().await;
    let claims_100_gb = [&100_000_000_000u64.to_le_bytes()[..], b"{}"].concat();
    let truncated = safetensors(&[("a", &[100])])[..300].to_vec();
    let cases =
        [("x.safetensors", claims_100_gb), ("y.safetensors", truncated), ("z.gguf", b"GGUF\x03\0\0\0".to_vec())];
    for (number, (name, bytes)) in cases.into_iter().enumerate() {
        let source = house.source(&format!("broken{number}"), &[(name, bytes), ("big.bin", vec![7; 100_000])]);
        let refused = house.prepare(&source, &repo(&key(1), "broken"), 1).await;
        assert!(matches!(refused, Err(PublishError::Index { .. })), "{name}: {refused:?}");
    }
    assert_eq!(house.registry.stats().await.unwrap().bytes_stored, 0);
    house.registry.close().await;
}

#[tokio::test]
async fn a_publication_that_someone_overtook_writes_nothing() {
    let house = House::new().await;
    let source = house.source("a", &[("a.txt", b"a".to_vec())]);
    let (key, main) = (key(1), RefName::main());
    let repo = repo(&key, "race");
    let first = house.prepare(&source, &repo, 1).await.unwrap();
    let second = house.prepare(&source, &repo, 2).await.unwrap();
    let next = house.registry.next_head(&repo, &main).await.unwrap();
    let (first_records, second_records) = (sign(&first, &key, next), sign(&second, &key, next));
    let loser = second.revision;
    house.registry.commit(first, first_records).await.unwrap();
    let refused = house.registry.commit(second, second_records).await;
    assert!(matches!(refused, Err(PublishError::Moved { number: 1, .. })), "{refused:?}");
    assert!(house.registry.revision(loser).await.unwrap().is_none(), "the revision's record was written too");
    assert!(!house.registry.is_kept(loser).await.unwrap());
    house.registry.close().await;
}

#[tokio::test]
async fn a_tag_does_not_move() {
    let house = House::new().await;
    let source = house.source("a", &[("a.txt", b"a".to_vec())]);
    let key = key(1);
    let repo = repo(&key, "tagged");
    let tag: RefName = "v1".parse().unwrap();
    for (created_ms, is_allowed) in [(1, true), (2, false)] {
        let prepared = house.prepare(&source, &repo, created_ms).await.unwrap();
        let next = house.registry.next_head(&repo, &tag).await.unwrap();
        let revision = prepared.statement().sign(house::REALM, &key).unwrap();
        let head = prepared.head(tag.clone(), next, true).sign(house::REALM, &key).unwrap();
        let committed = house.registry.commit(prepared, vec![revision, head]).await;
        match committed {
            Ok(_) => assert!(is_allowed),
            Err(PublishError::TagExists(_)) => assert!(!is_allowed),
            Err(error) => panic!("{error}"),
        }
    }
    let resolved = house.registry.resolve(&format!("{repo}@v1").parse().unwrap(), &[]).await.unwrap();
    assert_eq!(house.registry.manifest(resolved.revision).await.unwrap().unwrap().created_ms, 1);
    house.registry.close().await;
}

#[tokio::test]
async fn a_byte_altered_on_disk_is_found_and_thrown_away_to_be_fetched_anew() {
    let house = House::new().await;
    let big = bytes(5 << 20, 1);
    let source = house.source("big", &[("big.bin", big.clone()), ("fine.bin", bytes(50_000, 2))]);
    let published = house.publish(&source, &key(1), "big", 1).await;
    let manifest = house.registry.manifest(published.revision).await.unwrap().unwrap();
    let blob = manifest.file("big.bin").unwrap().blake3;
    for (extension, expected) in [("data", Problem::Data), ("obao4", Problem::Proof)] {
        let path = house.home().join(format!("blobs/data/{blob}.{extension}"));
        let mut altered = fs::read(&path).unwrap();
        altered[40] ^= 1;
        fs::write(&path, &altered).unwrap();

        let report = house.registry.verify(published.revision, |_| {}).await.unwrap();
        assert!(!report.ok);
        assert_eq!(report.bad.len(), 1, "{report:?}");
        assert_eq!((report.bad[0].path.as_str(), &report.bad[0].problem), ("big.bin", &expected));
        assert_eq!(report.damaged(), [blob]);
        assert!(house.registry.blobs().read(blob, 0..1 << 20).await.is_err(), "a damaged range was handed out");

        house.registry.blobs().quarantine(blob).await.unwrap();
        assert!(!house.registry.held(published.revision).await.unwrap().whole);
        assert!(!path.exists());
        let pin = house.registry.blobs().add(big.clone()).await.unwrap();
        assert_eq!(pin.hash(), blob);
        house.registry.pin(published.revision, cairn_registry::PinClass::Record).await.unwrap();
        let report = house.registry.verify(published.revision, |_| {}).await.unwrap();
        assert!(report.ok, "{report:?}");
    }
    house.registry.close().await;
}

#[tokio::test]
async fn a_manifest_that_states_a_wrong_size_condemns_no_bytes_of_another_publisher() {
    let house = House::new().await;
    let files = [("big.bin", bytes(5 << 20, 1)), ("mid.bin", bytes(50_000, 2)), ("small.bin", bytes(500, 3))];
    let published = house.publish(&house.source("tiny", &files), &key(1), "tiny", 1).await;
    let honest = house.registry.manifest(published.revision).await.unwrap().unwrap();
    for off in [-1i64, 1] {
        let mut evil = honest.clone();
        evil.repo = repo(&key(2), "x");
        evil.files.iter_mut().for_each(|file| file.size = file.size.saturating_add_signed(off));
        let (revision, manifest) = evil.seal().unwrap();
        let _pin = house.registry.blobs().add(manifest).await.unwrap();
        house.registry.pin(revision, cairn_registry::PinClass::Record).await.unwrap();

        let report = house.registry.verify(revision, |_| {}).await.unwrap();
        assert_eq!(report.bad.len(), 3, "{report:?}");
        assert!(report.bad.iter().all(|bad| matches!(bad.problem, Problem::Size { .. })), "{report:?}");
        assert_eq!(report.damaged(), []);
        assert!(!house.registry.held(revision).await.unwrap().whole, "counted as a copy");
        let mut with = house.registry.kept_with(honest.files[0].blake3).await.unwrap();
        with.retain(|kept| [revision, published.revision].contains(kept));
        assert_eq!(with.len(), 2, "both kept revisions contain the blob");
        let out = house.folder.path().join("out");
        for name in ["big.bin", "small.bin"] {
            let refused = house.registry.export(revision, &paths(&[name]), &out, Transfer::Copy, |_| {}).await;
            assert!(matches!(refused, Err(cairn_registry::ExportError::WrongSize { .. })), "{refused:?}");
        }
    }
    assert!(house.registry.verify(published.revision, |_| {}).await.unwrap().ok);
    house.registry.close().await;
}

#[tokio::test]
async fn an_export_of_damaged_bytes_leaves_no_file() {
    let house = House::new().await;
    let source = house.source("big", &[("big.bin", bytes(100_000, 1))]);
    let published = house.publish(&source, &key(1), "big", 1).await;
    let manifest = house.registry.manifest(published.revision).await.unwrap().unwrap();
    let path = house.home().join(format!("blobs/data/{}.data", manifest.files[0].blake3));
    fs::write(&path, bytes(100_000, 2)).unwrap();
    let out = house.folder.path().join("out");
    let refused = house.registry.export(published.revision, &paths(&["big.bin"]), &out, Transfer::Copy, |_| {}).await;
    assert!(matches!(refused, Err(cairn_registry::ExportError::Corrupt { .. })), "{refused:?}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    house.registry.close().await;
}

#[tokio::test]
async fn a_hard_link_is_made_only_when_asked_for_and_is_read_only() {
    use std::os::unix::fs::MetadataExt;
    let house = House::new().await;
    let source = house.source("big", &[("big.bin", bytes(100_000, 1))]);
    let file = source.join("big.bin");
    house.publish(&source, &key(1), "copied", 1).await;
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 1);

    let other = house.source("other", &[("big.bin", bytes(200_000, 4))]);
    let file = other.join("big.bin");
    let options = PrepareOptions { transfer: Transfer::HardLink, ..PrepareOptions::default() };
    let repo = repo(&key(1), "linked");
    let prepared = house.registry.prepare(other, repo.clone(), options, |_| {}).await.unwrap();
    let next = house.registry.next_head(&repo, &RefName::main()).await.unwrap();
    let records = sign(&prepared, &key(1), next);
    let published = house.registry.commit(prepared, records).await.unwrap();
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (2, 0o444));

    let house = house.reopen().await;
    assert!(house.registry.verify(published.revision, |_| {}).await.unwrap().ok);
    let out = house.folder.path().join("out");
    house.registry.export(published.revision, &paths(&["big.bin"]), &out, Transfer::HardLink, |_| {}).await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 3);

    house.registry.unpin(published.revision).await.unwrap();
    house.registry.blobs().collect().await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 2, "the store's link went with the last pin");
    house.registry.close().await;
}

/// Prepares a folder by hard links.
async fn prepare_linked(house: &House, source: std::path::PathBuf, name: &str) -> Result<Prepared, PublishError> {
    let options = PrepareOptions { transfer: Transfer::HardLink, ..PrepareOptions::default() };
    house.registry.prepare(source, repo(&key(1), name), options, |_| {}).await
}

async fn commit(house: &House, prepared: Prepared, name: &str) -> Result<Committed, PublishError> {
    let next = house.registry.next_head(&repo(&key(1), name), &RefName::main()).await.unwrap();
    let records = sign(&prepared, &key(1), next);
    house.registry.commit(prepared, records).await
}

#[tokio::test]
async fn a_whole_link_is_not_replaced_by_a_later_import_of_the_same_content() {
    use std::os::unix::fs::MetadataExt;
    let house = House::new().await;
    let sources = ["first", "second"].map(|name| house.source(name, &[("big.bin", bytes(100_000, 1))]));
    let prepared = prepare_linked(&house, sources[0].clone(), "first").await.unwrap();
    let blob = prepared.manifest.files[0].blake3;
    let first = commit(&house, prepared, "first").await.unwrap();
    let link = house.home().join(format!("blobs/linked/{blob}.data"));
    let before = fs::metadata(&link).unwrap().ino();

    let prepared = prepare_linked(&house, sources[1].clone(), "second").await.unwrap();
    let second = commit(&house, prepared, "second").await.unwrap();
    assert_eq!(fs::metadata(&link).unwrap().ino(), before, "a whole copy was replaced");
    // What is not whole is replaced: the store's link was changed through the first folder's name.
    let mut permissions = fs::metadata(&link).unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false)]
    permissions.set_readonly(false);
    fs::set_permissions(&link, permissions).unwrap();
    fs::write(sources[0].join("big.bin"), b"edited").unwrap();
    let prepared = prepare_linked(&house, sources[1].clone(), "third").await.unwrap();
    commit(&house, prepared, "third").await.unwrap();
    for revision in [first.revision, second.revision] {
        assert!(house.registry.verify(revision, |_| {}).await.unwrap().ok);
    }
    let left = fs::read_dir(house.home().join("blobs/linked")).unwrap().count();
    assert_eq!(left, 1, "a temporary link is left");
    house.registry.close().await;
}

#[tokio::test]
async fn a_revision_whose_bytes_vanished_before_the_commit_is_not_acknowledged() {
    let house = House::new().await;
    let source = house.source("a", &[("big.bin", bytes(100_000, 1)), ("small.bin", bytes(100, 2))]);
    let prepared = prepare_linked(&house, source, "a").await.unwrap();
    let (revision, blob) = (prepared.revision, prepared.manifest.files[0].blake3);
    fs::remove_file(house.home().join(format!("blobs/linked/{blob}.data"))).unwrap();
    let refused = commit(&house, prepared, "a").await;
    assert!(matches!(refused, Err(PublishError::Blobs(_))), "{refused:?}");
    assert!(!house.registry.is_kept(revision).await.unwrap());
    house.registry.close().await;
}

#[tokio::test]
async fn a_link_is_not_swept_while_its_import_is_under_way() {
    let house = House::new().await;
    let blob = cairn_protocol::BlobHash::of(&bytes(100_000, 1));
    let link = house.home().join(format!("blobs/linked/{blob}.data"));
    let pin = house.registry.blobs().temp_pin(blob).await;
    fs::write(&link, bytes(100_000, 1)).unwrap();
    house.registry.blobs().collect().await.unwrap();
    assert!(link.exists(), "the link of an import went before the store knew its blob");
    drop(pin);
    house.registry.blobs().collect().await.unwrap();
    assert!(!link.exists());
    house.registry.close().await;
}

#[tokio::test]
async fn records_of_another_revision_or_key_are_not_committed() {
    let house = House::new().await;
    let source = house.source("a", &[("a.txt", b"a".to_vec())]);
    let repo = repo(&key(1), "mine");
    let next = house.registry.next_head(&repo, &RefName::main()).await.unwrap();
    let other = house.prepare(&source, &repo, 7).await.unwrap();
    for records in [sign(&other, &key(1), next), Vec::new()] {
        let prepared = house.prepare(&source, &repo, 1).await.unwrap();
        let refused = house.registry.commit(prepared, records).await;
        assert!(matches!(refused, Err(PublishError::Records(_))), "{refused:?}");
    }
    let prepared = house.prepare(&source, &repo, 1).await.unwrap();
    let foreign = sign(&prepared, &key(2), next);
    let refused = house.registry.commit(prepared, foreign).await;
    assert!(matches!(refused, Err(PublishError::Records(_))), "{refused:?}");
    house.registry.close().await;
}

/// Polls a publication until the catalogue has it, and drops it before it answers. `false` if it answered first.
async fn drop_between_write_and_answer(house: &House, name: &str) -> bool {
    let source = house.source(name, &[("a.bin", bytes(20_000, 1))]);
    let repo = repo(&key(1), name);
    let prepared = house.prepare(&source, &repo, 1).await.unwrap();
    let revision = prepared.revision;
    let next = house.registry.next_head(&repo, &RefName::main()).await.unwrap();
    let records = sign(&prepared, &key(1), next);
    let mut commit = Box::pin(house.registry.commit(prepared, records));
    let mut changes = house.registry.changes();
    loop {
        if futures::poll!(commit.as_mut()).is_ready() {
            return false;
        }
        if house.registry.is_kept(revision).await.unwrap() {
            break;
        }
    }
    drop(commit);
    let heard = tokio::time::timeout(std::time::Duration::from_secs(10), changes.changed()).await;
    assert!(heard.is_ok(), "a revision is committed and nobody hears of it");
    house.registry.blobs().collect().await.unwrap();
    assert!(house.registry.verify(revision, |_| {}).await.unwrap().ok);
    true
}

#[tokio::test]
async fn a_publication_whose_asker_left_during_the_write_is_whole_and_heard_of() {
    let house = House::new().await;
    let mut dropped = 0;
    for attempt in 0..50 {
        dropped += u32::from(drop_between_write_and_answer(&house, &format!("repo{attempt}")).await);
        if dropped == 3 {
            break;
        }
    }
    assert!(dropped > 0, "the moment was never met");
    house.registry.close().await;
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_published_is_refused() {
    let house = House::new().await;
    let source = house.source("a", &[("a.bin", bytes(5 << 20, 1)), ("b.bin", bytes(1 << 20, 1))]);
    let file = source.join("b.bin");
    let options = PrepareOptions::default();
    let shrink = move |_| fs::write(&file, b"short").unwrap();
    let refused = house.registry.prepare(source, repo(&key(1), "a"), options, shrink).await;
    assert!(matches!(refused, Err(PublishError::Import(ImportError::Changed(_)))), "{refused:?}");
    house.registry.close().await;
}

/// A publication that stops in its file's middle until it is told to go on, so that nobody waits for it when it does.
async fn abandon_in_the_middle(house: &House, source: std::path::PathBuf) {
    let (met, reached) = std::sync::mpsc::sync_channel(1);
    let (go_on, told) = std::sync::mpsc::sync_channel::<()>(1);
    let told = std::sync::Arc::new(std::sync::Mutex::new(told));
    let progress = move |progress: cairn_registry::Progress| {
        if progress.done * 2 >= progress.total {
            // Both ends may have gone by then.
            let _ = met.try_send(());
            let _ = told.lock().unwrap().recv();
        }
    };
    let repo = repo(&key(1), "abandoned");
    let prepare = house.registry.prepare(source, repo, PrepareOptions::default(), progress);
    let reached = tokio::task::spawn_blocking(move || reached.recv());
    tokio::select! {
        prepared = prepare => panic!("it did not stop: {prepared:?}"),
        reached = reached => reached.unwrap().unwrap(),
    }
    drop(go_on);
}

async fn is_emptied(folder: &std::path::Path) -> bool {
    let emptied = async {
        while fs::read_dir(folder).unwrap().next().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), emptied).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_given_up_leaves_no_temporary_file_and_harms_none_that_is_under_way() {
    let house = House::new().await;
    let temp = house.home().join("blobs/temp");
    let abandoned = house.source("abandoned", &[("a.bin", bytes(24 << 20, 1))]);
    abandon_in_the_middle(&house, abandoned.clone()).await;
    let other = house.source("other", &[("b.bin", bytes(24 << 20, 2))]);
    let published = house.publish(&other, &key(1), "other", 1).await;
    assert!(is_emptied(&temp).await, "{:?}", fs::read_dir(&temp).unwrap().collect::<Vec<_>>());
    assert!(is_emptied(&house.home().join("blobs/incoming")).await);
    assert!(house.registry.verify(published.revision, |_| {}).await.unwrap().ok);
    let again = house.publish(&abandoned, &key(1), "again", 1).await;
    assert!(house.registry.verify(again.revision, |_| {}).await.unwrap().ok);
    house.registry.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_store_is_not_swept_while_an_import_is_under_way() {
    let house = House::new().await;
    let nobodys = house.home().join("blobs/temp/left.temp");
    let source = house.source("a", &[("a.bin", bytes(2 << 20, 1))]);
    let file = nobodys.clone();
    let breaking = house.source("b", &[("b.bin", bytes(3 << 20, 1))]);
    let progress = move |_| {
        fs::write(&file, b"x").unwrap();
        // Longer than the first look after a broken import waits.
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        assert!(file.exists(), "swept while an import was under way");
    };
    let repo = repo(&key(1), "a");
    let shrinking = breaking.join("b.bin");
    let shrink = move |_| fs::write(&shrinking, b"short").unwrap();
    let broken = house.registry.prepare(breaking, repo.clone(), PrepareOptions::default(), shrink);
    let slow = house.registry.prepare(source, repo.clone(), PrepareOptions::default(), progress);
    let (broken, slow) = tokio::join!(broken, slow);
    assert!(matches!(broken, Err(PublishError::Import(_))), "{broken:?}");
    slow.unwrap();
    assert!(is_emptied(&house.home().join("blobs/temp")).await);
    house.registry.close().await;
}
