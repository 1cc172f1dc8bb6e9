//! The fields of the index, and a repo as one document of them.
//!
//! Nothing is stored but what is searched, filtered, sorted and counted by: what is shown of a repo comes from the catalogue.
//!
//! Invariant: [`VERSION`] rises with every change here, in `words` or in the library's format; an index of another version is made anew.

use std::collections::BTreeSet;

use cairn_protocol::{
    id::PublisherKey,
    name::{RepoId, RepoKind, RepoName},
    record::Revision,
};
use tantivy::{
    TantivyDocument,
    schema::{
        BytesOptions, Field as Column, IndexRecordOption, NumericOptions, Schema, TextFieldIndexing, TextOptions,
    },
    tokenizer::{PreTokenizedString, Token},
};

use super::{
    query::Field,
    words::{Word, folded_value, name_words, prefixes, words},
};

/// The index's layout; part of its folder's name.
pub(super) const VERSION: u32 = 1;

/// Names of the columns that are sorted by.
pub(super) const KEY: &str = "key";
pub(super) const NAME_LENGTH: &str = "name_length";
pub(super) const CREATED: &str = "created";
pub(super) const PARAMETERS: &str = "parameters";
pub(super) const BYTES: &str = "bytes";

/// Between the values of a field of several, so that no phrase goes over their edge.
const VALUE_GAP: usize = 16;

/// What the index says of one repo.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) repo: RepoId,
    pub(super) handle: Option<String>,
    pub(super) revision: Option<Revision>,
}

/// Handles of the fields.
#[derive(Clone)]
pub(super) struct Columns {
    pub(super) schema: Schema,
    pub(super) key: Column,
    pub(super) name: Column,
    pub(super) whole_name: Column,
    pub(super) beginnings: Column,
    pub(super) handle: Column,
    pub(super) tags: Column,
    pub(super) card: Column,
    name_length: Column,
    created: Column,
    pub(super) parameters: Column,
    pub(super) bytes: Column,
    fields: [Column; Field::ALL.len()],
}

impl Columns {
    pub(super) fn new() -> Self {
        let mut schema = Schema::builder();
        let words = |option| {
            let indexing = TextFieldIndexing::default().set_tokenizer("raw").set_fieldnorms(false);
            TextOptions::default().set_indexing_options(indexing.set_index_option(option))
        };
        let fast = || NumericOptions::default().set_fast();
        Self {
            key: schema.add_bytes_field(KEY, BytesOptions::default().set_indexed().set_fast()),
            name: schema.add_text_field("name", words(IndexRecordOption::WithFreqsAndPositions)),
            whole_name: schema.add_text_field("whole_name", words(IndexRecordOption::Basic)),
            beginnings: schema.add_text_field("beginnings", words(IndexRecordOption::Basic)),
            handle: schema.add_text_field("handle", words(IndexRecordOption::WithFreqsAndPositions)),
            tags: schema.add_text_field("tags", words(IndexRecordOption::WithFreqsAndPositions)),
            card: schema.add_text_field("card", words(IndexRecordOption::WithFreqsAndPositions)),
            name_length: schema.add_u64_field(NAME_LENGTH, fast()),
            created: schema.add_i64_field(CREATED, fast()),
            parameters: schema.add_u64_field(PARAMETERS, fast()),
            bytes: schema.add_u64_field(BYTES, fast()),
            fields: Field::ALL.map(|field| {
                let column = format!("is_{}", field.name());
                schema.add_text_field(&column, words(IndexRecordOption::Basic).set_fast("raw"))
            }),
            schema: schema.build(),
        }
    }

    pub(super) fn of(&self, field: Field) -> Column {
        self.fields[field as usize]
    }

    /// A repo as a document.
    pub(super) fn document(&self, facts: &Facts) -> TantivyDocument {
        let mut document = TantivyDocument::default();
        let repo = &facts.repo;
        document.add_bytes(self.key, &key_of(repo));
        self.add_name(&mut document, repo.name.as_str());
        self.add_value(&mut document, Field::Kind, repo.kind.name());
        self.add_value(&mut document, Field::Publisher, &repo.publisher.to_string());
        if let Some(handle) = &facts.handle {
            document.add_pre_tokenized_text(self.handle, tokens(name_words(handle)));
        }
        match &facts.revision {
            Some(revision) => self.add_revision(&mut document, revision),
            None => self.add_numbers(&mut document, i64::MIN, 0, 0),
        }
        document
    }

    fn add_name(&self, document: &mut TantivyDocument, name: &str) {
        let found = name_words(name);
        let beginnings: BTreeSet<&str> = found.iter().flat_map(|word| prefixes(&word.text)).collect();
        let beginnings = beginnings.into_iter().map(|text| Word { text: text.to_owned(), at: 0 });
        document.add_pre_tokenized_text(self.beginnings, tokens(beginnings.collect()));
        let whole: Vec<String> = words(name).into_iter().map(|word| word.text).collect();
        document.add_u64(self.name_length, whole.len() as u64);
        document.add_text(self.whole_name, whole.join("-"));
        document.add_pre_tokenized_text(self.name, tokens(found));
    }

    fn add_revision(&self, document: &mut TantivyDocument, revision: &Revision) {
        self.add_numbers(document, revision.created_ms, revision.parameters, revision.bytes);
        let card = &revision.card;
        let mut spoken = Vec::new();
        let one = |text: &str| (!text.is_empty()).then(|| text.to_owned()).into_iter().collect::<Vec<_>>();
        for (field, values) in [
            (Field::Task, one(&card.task)),
            (Field::Library, one(&card.library)),
            (
                Field::License,
                revision.license.split(',').map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect(),
            ),
            (Field::Language, card.languages.clone()),
            (Field::BaseModel, card.base_models.clone()),
            (Field::Architecture, one(&revision.architecture)),
            (Field::Quantisation, one(&revision.quantisation)),
            (Field::Dataset, card.datasets.clone()),
            (Field::Tag, revision.tags.clone()),
        ] {
            let folded: BTreeSet<String> = values.iter().map(|value| folded_value(value)).collect();
            folded.iter().for_each(|value| self.add_value(document, field, value));
            if field != Field::Language {
                spoken.extend(folded);
            }
        }
        document.add_pre_tokenized_text(self.tags, tokens(words_of_all(&spoken)));
        document
            .add_pre_tokenized_text(self.card, tokens(words_of_all(&[card.text.clone(), revision.message.clone()])));
    }

    fn add_numbers(&self, document: &mut TantivyDocument, created_ms: i64, parameters: u64, bytes: u64) {
        document.add_i64(self.created, created_ms);
        document.add_u64(self.parameters, parameters);
        document.add_u64(self.bytes, bytes);
    }

    fn add_value(&self, document: &mut TantivyDocument, field: Field, value: &str) {
        if !value.is_empty() {
            document.add_text(self.of(field), value);
        }
    }
}

/// What names a repo in the index, and orders repos whose sort values are the same: by name, without regard to case.
pub(super) fn key_of(repo: &RepoId) -> Vec<u8> {
    [repo.name.folded().as_bytes(), &[0, repo.kind as u8], repo.publisher.as_bytes()].concat()
}

/// The repo of a key; its name is folded, which is the same repo.
pub(super) fn repo_of(key: &[u8]) -> Option<RepoId> {
    let (rest, publisher) = key.split_last_chunk::<32>()?;
    let (kind, rest) = rest.split_last()?;
    let name: RepoName = std::str::from_utf8(rest.strip_suffix(&[0])?).ok()?.parse().ok()?;
    Some(RepoId { publisher: PublisherKey::from(*publisher), kind: RepoKind::from_pb((*kind).into())?, name })
}

fn words_of_all(texts: &[String]) -> Vec<Word> {
    let (mut all, mut offset) = (Vec::new(), 0);
    for text in texts {
        let found = words(text);
        let length = found.last().map_or(0, |word| word.at + 1);
        all.extend(found.into_iter().map(|word| Word { at: word.at + offset, ..word }));
        offset += length + VALUE_GAP;
    }
    all
}

fn tokens(words: Vec<Word>) -> PreTokenizedString {
    let token = |word: Word| Token { position: word.at, text: word.text, ..Token::default() };
    PreTokenizedString { text: String::new(), tokens: words.into_iter().map(token).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_repo_and_sorts_by_name() {
        let repo = |name: &str, publisher: u8| RepoId {
            publisher: PublisherKey::from([publisher; 32]),
            kind: RepoKind::Dataset,
            name: name.parse().unwrap(),
        };
        assert_eq!(repo_of(&key_of(&repo("Poems", 3))), Some(repo("poems", 3)));
        assert!(key_of(&repo("ab", 9)) < key_of(&repo("AB-c", 1)));
        assert_eq!(repo_of(b"short"), None);
        assert_eq!(repo_of(&[0; 80]), None);
    }
}
