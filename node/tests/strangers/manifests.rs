//! Manifests whose paths lead out of the folder that a person named.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use cairn_protocol::{BlobHash, record_pb};
use prost::Message;
use sha2::Digest as _;

use crate::{
    cairn,
    hostile::Lies,
    meet, refused, serving,
    signer::{Signer, envelopes},
    withstand,
};

/// A manifest of files at these paths, which a publisher's own tools would never make.
fn manifest(author: &Signer, name: &str, paths: &[&str], file: &[u8]) -> Vec<u8> {
    let digest = |algorithm, value: &[u8]| record_pb::Digest { algorithm, value: value.to_vec() };
    let digests =
        vec![digest(1, BlobHash::of(file).as_bytes()), digest(2, &sha2::Sha256::digest(file)), digest(3, &[0; 20])];
    let files = paths.iter().map(|path| record_pb::File {
        path: path.to_string(),
        size: file.len() as u64,
        digests: digests.clone(),
        header_bytes: 0,
    });
    record_pb::Manifest {
        version: 1,
        realm: author.realm.to_vec(),
        publisher: author.key.public().to_vec(),
        kind: 1,
        name: name.into(),
        files: files.collect(),
        ..Default::default()
    }
    .encode_to_vec()
}

/// Everything below a folder.
fn below(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        all.push(path.display().to_string());
        all.extend(below(&path));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_whose_paths_lead_out_is_refused_and_nothing_is_written() -> Result<()> {
    let (net, _folder) = serving().await?;
    let author = Signer::new(70, &net);
    let liar = meet(&net, 1, Lies::default()).await?;
    let file = b"loot".repeat(100);
    liar.serve(file.clone()).await?;
    let outside = tempfile::tempdir()?;
    let to = outside.path().join("to");
    let target = to.display().to_string();
    let absolute = outside.path().join("absolute").display().to_string();
    let pull = async |name: &str, paths: &[&str]| {
        let manifest = manifest(&author, name, paths, &file);
        liar.serve(manifest.clone()).await?;
        let records = envelopes(&[&author.revision(name, &manifest), &author.head(name, (0, 1), None, &manifest)]);
        liar.lie(Lies { resolve: records, ..Lies::default() });
        anyhow::Ok(cairn(&net, &["pull", &author.repo(name), "--to", &target, "--json"]))
    };
    // The same peer, the same way, with paths that any publisher may have: so it is the paths that are refused below.
    let honest = pull("honest", &["sub/file"]).await?;
    ensure!(honest.status.success() && to.join("sub/file").is_file(), "{honest:?}");
    fs::remove_dir_all(&to)?;
    let bad: [(&str, &[&str]); 7] = [
        ("parent", &["../x"]),
        ("deep", &["a/b/../../../x"]),
        ("absolute", &[absolute.as_str()]),
        ("zero", &["a\0b"]),
        ("case", &["Readme", "README"]),
        ("folder", &["a", "A/b"]),
        ("drive", &["C:\\x"]),
    ];
    for (name, paths) in bad {
        withstand(&net, &format!("a manifest with the path {:?}", paths[0]), async || {
            let output = pull(name, paths).await?;
            refused(&output, 1, "corrupt", "its manifest is not valid")?;
            ensure!(below(outside.path()).is_empty(), "it wrote {:?}", below(outside.path()));
            Ok(())
        })
        .await?;
    }
    ensure!(liar.seen().is_connected, "a publisher's fault is not its host's");
    net.stop().await;
    Ok(())
}
