//! From a query and filters to what the index runs.
//!
//! A repo's rank is a sum over the query's words of where each is found: in the name, at the beginning of a word of it, in the
//! publisher's handle, in tags and the like, in the card. How often a word occurs elsewhere plays no part, since every word has to match
//! anyway; so a rank depends on the repo alone, and pages keep their order while others come and go.
//!
//! Invariant: ranks are whole numbers far below 2^24, exact in the index's floats.

use std::ops::Bound;

use tantivy::{
    Term,
    query::{
        AllQuery, BooleanQuery, ConstScoreQuery, DisjunctionMaxQuery, EmptyQuery, Occur, PhraseQuery,
        Query as Runnable, RangeQuery, TermQuery, TermSetQuery,
    },
    schema::{Field as Column, IndexRecordOption},
};

use super::{
    query::{Field, Number, Part, Query},
    schema::Columns,
};

/// Where a word is found, and what that is worth. What is further down never outweighs what is further up.
const WHOLE_NAME: f32 = 1000.0;
const IN_NAME: f32 = 100.0;
const BEGINS_IN_NAME: f32 = 60.0;
const IN_HANDLE: f32 = 30.0;
const IN_TAGS: f32 = 10.0;
const IN_CARD: f32 = 1.0;

/// What a repo must be, beside the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filters {
    /// Of each field one of its values; publishers are keys here.
    pub(super) any_of: Vec<(Field, Vec<String>)>,
    pub(super) parameters: Option<(u64, u64)>,
    pub(super) bytes: Option<(u64, u64)>,
}

pub(super) fn compile(columns: &Columns, query: &Query, filters: &Filters) -> Box<dyn Runnable> {
    let compiler = Compiler { columns };
    let mut clauses: Vec<(Occur, Box<dyn Runnable>)> = Vec::new();
    clauses.extend(query.must.iter().map(|part| (Occur::Must, compiler.part(part))));
    for (field, values) in &filters.any_of {
        clauses.push((Occur::Must, compiler.one_of(*field, values)));
    }
    for (number, bounds) in [(Number::Parameters, filters.parameters), (Number::Bytes, filters.bytes)] {
        clauses.extend(bounds.map(|(low, high)| (Occur::Must, compiler.between(number, low, high))));
    }
    if clauses.is_empty() {
        clauses.push((Occur::Must, unranked(AllQuery)));
    }
    clauses.extend(query.must_not.iter().map(|part| (Occur::MustNot, compiler.part(part))));
    if !query.name.is_empty() {
        let whole = TermQuery::new(Term::from_field_text(columns.whole_name, &query.name), IndexRecordOption::Basic);
        clauses.push((Occur::Should, worth(whole, WHOLE_NAME)));
    }
    match clauses.len() {
        1 => clauses.remove(0).1,
        _ => Box::new(BooleanQuery::new(clauses)),
    }
}

struct Compiler<'a> {
    columns: &'a Columns,
}

impl Compiler<'_> {
    fn part(&self, part: &Part) -> Box<dyn Runnable> {
        match part {
            Part::Word(word) => self.word(word),
            Part::Phrase(words) => self.phrase(words),
            Part::Is(field, value) => self.one_of(*field, std::slice::from_ref(value)),
            Part::OneOf(field, values) => self.one_of(*field, values),
            Part::Between(number, low, high) => self.between(*number, *low, *high),
        }
    }

    fn word(&self, word: &str) -> Box<dyn Runnable> {
        let columns = self.columns;
        let places = [
            (columns.name, IN_NAME),
            (columns.beginnings, BEGINS_IN_NAME),
            (columns.handle, IN_HANDLE),
            (columns.tags, IN_TAGS),
            (columns.card, IN_CARD),
        ];
        let found = |(column, worth_of): (Column, f32)| {
            worth(TermQuery::new(Term::from_field_text(column, word), IndexRecordOption::Basic), worth_of)
        };
        Box::new(DisjunctionMaxQuery::new(places.into_iter().map(found).collect()))
    }

    fn phrase(&self, words: &[String]) -> Box<dyn Runnable> {
        let columns = self.columns;
        let places =
            [(columns.name, IN_NAME), (columns.handle, IN_HANDLE), (columns.tags, IN_TAGS), (columns.card, IN_CARD)];
        let found = |(column, worth_of): (Column, f32)| {
            let terms = words.iter().map(|word| Term::from_field_text(column, word)).collect();
            worth(PhraseQuery::new(terms), worth_of)
        };
        Box::new(DisjunctionMaxQuery::new(places.into_iter().map(found).collect()))
    }

    fn one_of(&self, field: Field, values: &[String]) -> Box<dyn Runnable> {
        let term = |value: &String| Term::from_field_text(self.columns.of(field), value);
        match values {
            [] => Box::new(EmptyQuery),
            [value] => unranked(TermQuery::new(term(value), IndexRecordOption::Basic)),
            _ => unranked(TermSetQuery::new(values.iter().map(term))),
        }
    }

    fn between(&self, number: Number, low: u64, high: u64) -> Box<dyn Runnable> {
        let column = match number {
            Number::Parameters => self.columns.parameters,
            Number::Bytes => self.columns.bytes,
        };
        let bound = |value| Bound::Included(Term::from_field_u64(column, value));
        unranked(RangeQuery::new(bound(low), bound(high)))
    }
}

fn worth(query: impl Runnable, worth: f32) -> Box<dyn Runnable> {
    Box::new(ConstScoreQuery::new(Box::new(query), worth))
}

fn unranked(query: impl Runnable) -> Box<dyn Runnable> {
    worth(query, 0.0)
}
