//! Finding repos: what is found, in which order, in pages; and that the index says what the catalogue says, whatever happened to it.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use cairn_protocol::{
    Keypair, RealmId, Record, RecordId, RefName, RepoKind, RevisionId,
    record::{Head, Revision},
};
use cairn_registry::{Field, Found, Registry, Search, SearchError, Sort};
use house::{House, REALM, bytes, head, key, profile, repo, revision, statement};
use proptest::prelude::*;

/// A repo as a test wants it; the rest is empty.
fn model(name: &str) -> Revision {
    let id = *blake3::hash(name.as_bytes()).as_bytes();
    Revision { revision: RevisionId::from(id), card: Box::default(), ..statement(name, 1) }
}

fn records(key: &Keypair, body: &Revision) -> Vec<Record> {
    let head = Head { kind: body.kind, revision: body.revision, ..head(body.name.as_str(), 1, 1, None) };
    vec![body.sign(REALM, key).unwrap(), head.sign(REALM, key).unwrap()]
}

async fn insert(registry: &Registry, records: Vec<Record>) {
    for verdict in registry.insert_page(records).await.unwrap() {
        verdict.unwrap();
    }
}

async fn filled(bodies: &[Revision]) -> House {
    let house = House::new().await;
    insert(&house.registry, vec![profile(&key(1), "acme", 0)]).await;
    for body in bodies {
        insert(&house.registry, records(&key(1), body)).await;
    }
    house.registry.indexed().await.unwrap();
    house
}

fn asked(query: &str) -> Search {
    Search { query: query.to_owned(), limit: 100, facet_limit: 10, ..Search::default() }
}

async fn find(house: &House, search: Search) -> Found {
    house.registry.search(search).await.unwrap()
}

fn names(found: &Found) -> Vec<&str> {
    found.repos.iter().map(|repo| repo.repo.name.as_str()).collect()
}

async fn found(house: &House, query: &str) -> Vec<String> {
    let found = find(house, asked(query)).await;
    assert_eq!(found.total as usize, found.repos.len(), "{query}");
    names(&found).into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn names_are_found_as_people_search_them() {
    let house = filled(&[model("SmolLM2-135M-Instruct"), model("TinyLlama-1.1B"), model("other")]).await;
    for query in [
        "smollm2",
        "135m",
        "instruct",
        "smol",
        "instr",
        "SMOLLM2-135m-instruct",
        "\"135M Instruct\"",
        "lm 135",
        "acme smol",
    ] {
        assert_eq!(found(&house, query).await, ["SmolLM2-135M-Instruct"], "{query}");
    }
    assert_eq!(found(&house, "llama").await, ["TinyLlama-1.1B"]);
    assert_eq!(found(&house, "-smollm2 -other").await, ["TinyLlama-1.1B"]);
    assert_eq!(found(&house, "\"instruct 135m\"").await, [""; 0]);
    assert_eq!(found(&house, "acme").await.len(), 3, "a handle is found");
    house.registry.close().await;
}

#[tokio::test]
async fn a_name_ranks_before_a_tag_before_a_card() {
    let mut tagged = model("b-tagged");
    tagged.tags = vec!["poetry".to_owned()];
    let mut described = model("a-described");
    described.card.text = "Writes poetry, poetry and nothing but poetry.".to_owned();
    let house =
        filled(&[described, tagged, model("poetry-writer-large-chat"), model("Poetry"), model("poetrybot")]).await;
    assert_eq!(
        found(&house, "poetry").await,
        ["Poetry", "poetry-writer-large-chat", "poetrybot", "b-tagged", "a-described"]
    );
    house.registry.close().await;
}

fn rich(name: &str, kind: RepoKind, license: &str, languages: &[&str], parameters: u64) -> Revision {
    let mut body = model(name);
    (body.kind, body.license, body.parameters, body.bytes) = (kind, license.to_owned(), parameters, parameters * 2);
    body.created_ms = parameters as i64;
    body.card.languages = languages.iter().map(|l| (*l).to_owned()).collect();
    body.card.base_models = vec!["Acme/Base".to_owned()];
    body
}

#[tokio::test]
async fn filters_facets_and_orders() {
    let house = filled(&[
        rich("c", RepoKind::Model, "mit", &["en"], 30),
        rich("a", RepoKind::Model, "apache-2.0", &["en", "de"], 10),
        rich("b", RepoKind::Dataset, "mit", &["de"], 20),
    ])
    .await;
    assert_eq!(found(&house, "license:MIT").await, ["c", "b"]);
    assert_eq!(found(&house, "-license:mit").await, ["a"]);
    assert_eq!(found(&house, "base_model:acme/base parameters:11..20").await, ["b"]);
    assert_eq!(found(&house, "size:>40").await, ["c"]);
    assert_eq!(found(&house, "publisher:acme kind:dataset").await, ["b"]);
    assert_eq!(found(&house, "publisher:nobody").await, [""; 0]);
    for (sort, order) in [
        (Sort::Newest, ["c", "b", "a"]),
        (Sort::Name, ["a", "b", "c"]),
        (Sort::Parameters, ["c", "b", "a"]),
        (Sort::Size, ["c", "b", "a"]),
    ] {
        assert_eq!(names(&find(&house, Search { sort: Some(sort), ..asked("") }).await), order, "{sort:?}");
    }
    let filters = vec![(Field::Language, vec!["DE".to_owned(), "fr".to_owned()])];
    let facets = vec![Field::License, Field::Language, Field::Publisher, Field::Kind];
    let found = find(&house, Search { filters, facets, ..asked("") }).await;
    let counted: BTreeMap<Field, Vec<(String, u64)>> = found.facets.into_iter().collect();
    let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(v, n)| ((*v).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(counted[&Field::License], counts(&[("apache-2.0", 1), ("mit", 1)]));
    assert_eq!(counted[&Field::Language], counts(&[("de", 2), ("en", 1)]));
    assert_eq!(counted[&Field::Publisher], counts(&[("acme", 2)]), "publishers have their handles");
    assert_eq!(counted[&Field::Kind], counts(&[("dataset", 1), ("model", 1)]));
    let bounded = Search { parameters: Some((10, 20)), bytes: Some((40, u64::MAX)), ..asked("") };
    assert_eq!(names(&find(&house, bounded).await), ["b"]);
    house.registry.close().await;
}

#[tokio::test]
async fn pages_go_on_behind_the_last_repo_whatever_changed_in_between() {
    let bodies: Vec<Revision> =
        (0..30).map(|n| rich(&format!("m{n:02}"), RepoKind::Model, "mit", &[], n % 3)).collect();
    let house = filled(&bodies).await;
    for sort in [Sort::Relevance, Sort::Newest, Sort::Name, Sort::Parameters, Sort::Size] {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = find(&house, Search { sort: Some(sort), cursor, limit: 7, ..asked("license:mit") }).await;
            seen.extend(names(&page).into_iter().map(str::to_owned));
            pages += 1;
            // One more that belongs before, and one behind.
            let newcomer = rich(&format!("a{pages}-{sort:?}"), RepoKind::Dataset, "mit", &[], 2);
            insert(&house.registry, records(&key(1), &newcomer)).await;
            house.registry.indexed().await.unwrap();
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        let mut first: Vec<&String> = seen.iter().filter(|name| name.starts_with('m')).collect();
        assert_eq!(first.len(), 30, "{sort:?}: {seen:?}");
        first.sort();
        first.dedup();
        assert_eq!(first.len(), 30, "{sort:?}: a repo came twice: {seen:?}");
    }
    house.registry.close().await;
}

#[tokio::test]
async fn a_wrong_query_or_cursor_is_one_clear_error() {
    let house = filled(&[model("a"), model("b")]).await;
    let error = house.registry.search(asked("tiny licens:mit")).await.unwrap_err().to_string();
    assert!(error.contains("at character 6") && error.contains("license"), "{error}");
    let page = find(&house, Search { limit: 1, ..asked("") }).await;
    let cursor = page.next_cursor;
    for wrong in [Some("xyz".to_owned()), Some("00".to_owned()), Some(String::new()), cursor.clone()] {
        let search = Search { cursor: wrong, limit: 1, ..asked("kind:model") };
        assert!(matches!(house.registry.search(search).await, Err(SearchError::Cursor)));
    }
    assert_eq!(find(&house, Search { cursor, limit: 1, ..asked("") }).await.repos.len(), 1);
    house.registry.close().await;
}

#[tokio::test]
async fn a_new_revision_and_a_new_handle_are_found_and_the_old_ones_are_not() {
    let house = filled(&[model("tiny")]).await;
    let first = records(&key(1), &model("tiny")).remove(1).id();
    let mut second = revision_of("tiny", 2);
    second.card.text = "Now it knows opera.".to_owned();
    let next = Head { revision: second.revision, ..head("tiny", 2, 2, Some(first)) };
    insert(&house.registry, vec![second.sign(REALM, &key(1)).unwrap(), next.sign(REALM, &key(1)).unwrap()]).await;
    insert(&house.registry, vec![profile(&key(1), "umbrella", 1)]).await;
    house.registry.indexed().await.unwrap();
    assert_eq!(found(&house, "opera").await, ["tiny"]);
    assert_eq!(found(&house, "umbrella").await, ["tiny"]);
    assert_eq!(found(&house, "acme").await, [""; 0]);
    assert_eq!(found(&house, "publisher:umbrella").await, ["tiny"]);
    house.registry.close().await;
}

fn revision_of(name: &str, id: u8) -> Revision {
    statement(name, id)
}

#[tokio::test]
async fn a_published_card_is_found() {
    let house = House::new().await;
    let card = "---\nlicense: mit\npipeline_tag: text-generation\nlanguage: fr\ntags: [verse]\n---\n# Sonnet\nWrites alexandrines.\n";
    let source = house.source("m", &[("README.md", card.as_bytes().to_vec()), ("w.bin", bytes(100, 1))]);
    house.publish(&source, &key(3), "sonnet", 1).await;
    house.registry.indexed().await.unwrap();
    for query in ["alexandrines", "verse", "task:text-generation", "language:fr license:mit", "sonn"] {
        assert_eq!(found(&house, query).await, ["sonnet"], "{query}");
    }
    house.registry.close().await;
}

#[tokio::test]
async fn what_is_pushed_out_of_the_catalogue_is_not_found() {
    let house = filled(&[model("stranger")]).await;
    let house = house.with_meta("ring-bytes", u64::MAX / 2).await;
    insert(&house.registry, vec![revision(&key(9), "newcomer", 9)]).await;
    house.registry.indexed().await.unwrap();
    assert!(found(&house, "stranger").await.is_empty(), "it made way");
    house.registry.close().await;
}

/// What is done to a node in the property test.
#[derive(Debug, Clone)]
enum Step {
    /// Publisher, repo, the revision's number.
    Publish(u8, u8, u8),
    Rename(u8, u8),
    Reopen,
    LoseIndex,
    KeepCopy,
    OldCopy,
    Damage(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u8..3, 0u8..5, 1u8..4).prop_map(|(p, r, n)| Step::Publish(p, r, n)),
        2 => (0u8..3, 1u8..9).prop_map(|(p, e)| Step::Rename(p, e)),
        2 => Just(Step::Reopen),
        1 => Just(Step::LoseIndex),
        1 => Just(Step::KeepCopy),
        1 => Just(Step::OldCopy),
        1 => any::<u32>().prop_map(Step::Damage),
    ];
    proptest::collection::vec(step, 1..14)
}

fn published(publisher: u8, name: u8, number: u8) -> Vec<Record> {
    let signer = key(publisher + 1);
    let name = format!("repo-{name}");
    let mut records = Vec::new();
    let mut previous: Option<RecordId> = None;
    for number in 1..=number {
        let mut body = statement(&name, publisher * 64 + number * 8 + name.as_bytes()[5] - b'0');
        body.tags = vec![format!("tag{number}")];
        let head =
            Head { revision: body.revision, ..head(&name, number.into(), 0, previous) }.sign(REALM, &signer).unwrap();
        previous = Some(head.id());
        records.extend([body.sign(REALM, &signer).unwrap(), head]);
    }
    records
}

async fn run(steps: &[Step]) {
    let mut house = House::new().await;
    for step in steps {
        match step {
            Step::Publish(publisher, name, number) => {
                insert(&house.registry, published(*publisher, *name, *number)).await
            }
            Step::Rename(publisher, epoch) => {
                let handle = format!("handle{epoch}");
                let profile = profile(&key(publisher + 1), &handle, u64::from(*epoch));
                house.registry.insert(profile).await.unwrap();
            }
            // Wherever the keeper is just then.
            Step::Reopen => house = house.reopen().await,
            Step::LoseIndex | Step::OldCopy | Step::Damage(_) | Step::KeepCopy => {
                house.registry.close().await;
                disturb(&house.home(), step);
                let registry = Registry::open(&house.home(), REALM).await.unwrap();
                house = House { folder: house.folder, registry };
            }
        }
    }
    house.registry.indexed().await.unwrap();
    check(&house).await;
    house.registry.close().await;
}

/// What crashes, restored backups and bad disks leave.
fn disturb(home: &Path, step: &Step) {
    let (index, copy) = (home.join("search"), home.join("copy"));
    match step {
        Step::LoseIndex => fs::remove_dir_all(&index).unwrap(),
        Step::KeepCopy => copy_folder(&index, &copy),
        Step::OldCopy if copy.exists() => {
            fs::remove_dir_all(&index).unwrap();
            copy_folder(&copy, &index);
        }
        Step::Damage(seed) => damage(&index, *seed),
        _ => {}
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to)
        } else {
            fs::copy(entry.path(), to).map(drop).unwrap()
        }
    }
}

/// A flipped byte in one of the files, and the mark of a node that did not stop in order.
fn damage(index: &Path, seed: u32) {
    let folder = fs::read_dir(index).unwrap().next().unwrap().unwrap().path();
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file() && path.metadata().unwrap().len() > 0);
    files.sort();
    let file = &files[seed as usize % files.len()];
    let mut bytes = fs::read(file).unwrap();
    let at = (seed as usize / 7) % bytes.len();
    bytes[at] ^= 0x40;
    fs::write(file, bytes).unwrap();
    fs::write(folder.join("in-use"), []).unwrap();
}

/// Everything that the catalogue lists is found by what it says now, and nothing else is.
async fn check(house: &House) {
    let (listed, _) = house.registry.list("", None, 1000).await.unwrap();
    let all = find(house, Search { sort: Some(Sort::Name), ..asked("") }).await;
    assert_eq!((all.total as usize, all.pending), (listed.len(), 0));
    assert_eq!(all.repos.len(), listed.len());
    for summary in &listed {
        let publisher = summary.repo.publisher;
        let tag = summary.revision.as_ref().unwrap().tags[0].clone();
        let exact = find(house, asked(&format!("{} publisher:{publisher} tag:{tag}", summary.repo.name))).await;
        assert!(exact.repos.contains(summary), "{} with {tag} is not found", summary.path);
        let stale = find(house, asked(&format!("{} publisher:{publisher} -tag:{tag}", summary.repo.name))).await;
        assert!(
            !stale.repos.iter().any(|found| found.repo == summary.repo),
            "{} is found by what it said before",
            summary.path
        );
    }
    for handle in 1..9 {
        let by_handle = find(house, asked(&format!("handle{handle}"))).await;
        let expected = listed.iter().filter(|summary| summary.path.starts_with(&format!("handle{handle}/"))).count();
        assert!(by_handle.repos.len() >= expected, "handle{handle}");
    }
}

#[test]
fn the_index_says_what_the_catalogue_says_after_anything() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    proptest!(ProptestConfig::with_cases(24), |(steps in steps())| {
        // Long after the slowest; what hangs is shrunk like anything that fails.
        let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), run(&steps)).await });
        prop_assert!(ended.is_ok(), "it hangs");
    });
}

/// Closed, disturbed and opened again.
async fn disturbed(house: House, disturb: impl Fn(&Path)) -> House {
    house.registry.close().await;
    disturb(&house.home());
    let registry = Registry::open(&house.home(), REALM).await.unwrap();
    House { folder: house.folder, registry }
}

#[tokio::test]
async fn another_realms_repos_are_not_waited_for_and_not_found() {
    let house = House::new().await;
    house.registry.insert_page(records(&key(1), &model("ours"))).await.unwrap();
    // Perhaps not indexed yet.
    house.registry.close().await;
    let other = Registry::open(&house.home(), RealmId::from([7; 32])).await.unwrap();
    other.indexed().await.unwrap();
    assert_eq!(other.search(asked("")).await.unwrap(), Found::default());
    other.close().await;
    let registry = Registry::open(&house.home(), REALM).await.unwrap();
    registry.indexed().await.unwrap();
    assert_eq!(registry.search(asked("")).await.unwrap().total, 1);
    registry.close().await;
}

#[tokio::test]
async fn an_index_from_before_is_made_anew() {
    let house = disturbed(filled(&[model("first")]).await, |home| disturb(home, &Step::KeepCopy)).await;
    insert(&house.registry, records(&key(1), &model("second"))).await;
    house.registry.indexed().await.unwrap();
    let house = disturbed(house, |home| disturb(home, &Step::OldCopy)).await;
    house.registry.indexed().await.unwrap();
    assert_eq!(found(&house, "acme").await.len(), 2, "what the journal has let go is found");
    house.registry.close().await;
}

#[tokio::test]
async fn an_index_from_after_the_catalogue_is_made_anew() {
    let house = disturbed(filled(&[model("first")]).await, |home| {
        fs::copy(home.join("catalog.redb"), home.join("catalog.copy")).unwrap();
    })
    .await;
    insert(&house.registry, records(&key(1), &model("second"))).await;
    house.registry.indexed().await.unwrap();
    let house =
        disturbed(house, |home| fs::rename(home.join("catalog.copy"), home.join("catalog.redb")).unwrap()).await;
    house.registry.indexed().await.unwrap();
    assert_eq!(found(&house, "").await, ["first"], "what the catalogue does not know is not counted");
    house.registry.close().await;
}

#[tokio::test]
async fn a_damaged_index_is_noticed_after_a_kill_and_made_anew() {
    let house = disturbed(filled(&[model("tiny"), model("other")]).await, |home| {
        let files = fs::read_dir(home.join("search")).unwrap().next().unwrap().unwrap().path();
        let is_data = |path: &Path| path.extension().is_some_and(|extension| extension != "json");
        for path in fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().path()).filter(|path| is_data(path)) {
            let mut bytes = fs::read(&path).unwrap();
            if bytes.len() > 200 {
                bytes[20..100].fill(0x5a);
                fs::write(path, bytes).unwrap();
            }
        }
        fs::write(files.join("in-use"), []).unwrap();
    })
    .await;
    find(&house, asked("tiny")).await;
    house.registry.indexed().await.unwrap();
    assert_eq!(found(&house, "tiny").await, ["tiny"]);
    house.registry.close().await;
}

#[tokio::test]
async fn a_ref_that_stands_nowhere_is_still_a_repo() {
    let house = House::new().await;
    insert(&house.registry, vec![head("waiting", 1, 7, None).sign(REALM, &key(1)).unwrap()]).await;
    house.registry.indexed().await.unwrap();
    assert_eq!(found(&house, "waiting").await, ["waiting"]);
    assert!(
        house.registry.refs(&repo(&key(1), "waiting")).await.unwrap().iter().all(|state| state.name == RefName::main())
    );
    house.registry.close().await;
}
