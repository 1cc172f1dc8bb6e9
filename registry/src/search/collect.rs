//! One walk over what matches: the page, how many there are, and how they spread over the facets' values.
//!
//! Repos come by their sort value, the largest first, and those of one value by their keys. Inside a part of the index keys are compared
//! by their rank in its dictionary; between parts, by themselves. So a page begins exactly behind the last repo of the page before,
//! whatever was added, changed or merged in between.
//!
//! Invariant: memory is bounded by the page, and by the number of different values of the facets that are asked for.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    io,
    sync::Arc,
};

use tantivy::{
    DocId, Score, SegmentOrdinal, SegmentReader, TantivyError,
    collector::{Collector, SegmentCollector},
    columnar::{BytesColumn, Column, ColumnValues, StrColumn},
    fastfield::FastFieldReaders,
};

use super::{
    query::Field,
    schema::{BYTES, CREATED, KEY, NAME_LENGTH, PARAMETERS},
};

/// Documents whose facets are counted together.
const BLOCK: usize = 512;

/// Values of each part of the index that may be among the most frequent of all. A value that is rarer than this many others in every
/// part is not counted; those are never among the first.
const CANDIDATES_MIN: usize = 64;

/// The order of what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// By where the words are found, then the shorter name first.
    #[default]
    Relevance,
    /// By the publisher's clock, the newest first.
    Newest,
    /// By name, without regard to case.
    Name,
    /// The most parameters first.
    Parameters,
    /// The most bytes first.
    Size,
}

impl std::str::FromStr for Sort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "relevance" => Ok(Self::Relevance),
            "newest" => Ok(Self::Newest),
            "name" => Ok(Self::Name),
            "parameters" => Ok(Self::Parameters),
            "size" => Ok(Self::Size),
            _ => Err("an order is relevance, newest, name, parameters or size".to_owned()),
        }
    }
}

/// Where a repo stands in an order: larger values come first, then smaller keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) value: Reverse<u64>,
    pub(super) key: Vec<u8>,
}

/// What a walk is to bring.
pub(super) struct Wanted {
    pub(super) sort: Sort,
    pub(super) limit: usize,
    pub(super) after: Option<Place>,
    pub(super) facets: Vec<Field>,
    pub(super) facet_limit: usize,
}

/// What it brings.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) total: u64,
    /// One more than the page, if there are more.
    pub(super) places: Vec<Place>,
    pub(super) facets: Vec<Vec<(String, u64)>>,
}

impl Collector for Wanted {
    type Fruit = Walked;
    type Child = Walk;

    fn for_segment(&self, _: SegmentOrdinal, segment: &SegmentReader) -> tantivy::Result<Walk> {
        let columns = segment.fast_fields();
        let keys = columns.bytes(KEY)?.ok_or_else(|| missing(KEY))?;
        let after = match &self.after {
            Some(place) => Some((place.value.0, first_after(&keys, &place.key)?)),
            None => None,
        };
        Ok(Walk {
            values: Values::open(self.sort, columns)?,
            ranks: keys.ords().values.clone(),
            keys,
            limit: self.limit + 1,
            after,
            found: BinaryHeap::new(),
            total: 0,
            facets: self.facets.iter().map(|field| Counting::open(*field, columns)).collect::<Result<_, _>>()?,
            block: Vec::with_capacity(BLOCK),
        })
    }

    fn requires_scoring(&self) -> bool {
        self.sort == Sort::Relevance
    }

    fn merge_fruits(&self, parts: Vec<io::Result<Part>>) -> tantivy::Result<Walked> {
        let mut walked = Walked::default();
        let mut counted: Vec<Vec<Counting>> = self.facets.iter().map(|_| Vec::new()).collect();
        for part in parts {
            let part = part?;
            walked.total += part.total;
            walked.places.extend(part.places);
            counted.iter_mut().zip(part.facets).for_each(|(all, one)| all.push(one));
        }
        walked.places.sort_unstable();
        walked.places.truncate(self.limit + 1);
        walked.facets =
            counted.iter().map(|parts| most_frequent(parts, self.facet_limit)).collect::<io::Result<_>>()?;
        Ok(walked)
    }
}

/// The rank of the first key after this one.
fn first_after(keys: &BytesColumn, key: &[u8]) -> io::Result<u64> {
    // No key ends so: the next one after it is the next one after `key`.
    let just_after = [key, &[0]].concat();
    Ok(
        match keys.dictionary().term_bounds_to_ord(std::ops::Bound::Included(just_after), std::ops::Bound::Unbounded)?.0
        {
            std::ops::Bound::Included(rank) | std::ops::Bound::Excluded(rank) => rank,
            std::ops::Bound::Unbounded => 0,
        },
    )
}

fn missing(column: &str) -> TantivyError {
    TantivyError::SchemaError(format!("the column {column} is missing"))
}

/// The walk over one part of the index.
pub(super) struct Walk {
    values: Values,
    ranks: Arc<dyn ColumnValues<u64>>,
    keys: BytesColumn,
    limit: usize,
    after: Option<(u64, u64)>,
    /// The best so far; the worst of them on top.
    found: BinaryHeap<(Reverse<u64>, u64)>,
    total: u64,
    facets: Vec<Counting>,
    block: Vec<DocId>,
}

/// What one part of the index has.
pub(super) struct Part {
    total: u64,
    places: Vec<Place>,
    facets: Vec<Counting>,
}

impl SegmentCollector for Walk {
    type Fruit = io::Result<Part>;

    fn collect(&mut self, document: DocId, score: Score) {
        self.total += 1;
        if !self.facets.is_empty() {
            self.block.push(document);
            if self.block.len() == BLOCK {
                self.count_block();
            }
        }
        let value = self.values.of(document, score);
        let is_full = self.found.len() == self.limit;
        let is_behind = |top: &(Reverse<u64>, u64)| Reverse(value) > top.0;
        if (is_full && self.found.peek().is_some_and(is_behind)) || self.after.is_some_and(|(after, _)| value > after) {
            return;
        }
        let rank = self.ranks.get_val(document);
        if self.after.is_some_and(|(after, first)| value == after && rank < first) {
            return;
        }
        if !is_full {
            self.found.push((Reverse(value), rank));
        } else if let Some(mut top) = self.found.peek_mut()
            && (Reverse(value), rank) < *top
        {
            *top = (Reverse(value), rank);
        }
    }

    fn harvest(mut self) -> io::Result<Part> {
        self.count_block();
        let mut places = Vec::with_capacity(self.found.len());
        for (value, rank) in self.found {
            let mut key = Vec::new();
            self.keys.ord_to_bytes(rank, &mut key)?;
            places.push(Place { value, key });
        }
        Ok(Part { total: self.total, places, facets: self.facets })
    }
}

impl Walk {
    fn count_block(&mut self) {
        for facet in &mut self.facets {
            facet.count(&self.block);
        }
        self.block.clear();
    }
}

/// What is sorted by.
enum Values {
    Relevance(Arc<dyn ColumnValues<u64>>),
    Time(Arc<dyn ColumnValues<i64>>),
    Number(Arc<dyn ColumnValues<u64>>),
    /// All alike: only the key orders.
    Name,
}

impl Values {
    fn open(sort: Sort, columns: &FastFieldReaders) -> tantivy::Result<Self> {
        let number = |column: &str| columns.column_first_or_default::<u64>(column);
        Ok(match sort {
            Sort::Relevance => Self::Relevance(number(NAME_LENGTH)?),
            Sort::Newest => Self::Time(columns.column_first_or_default::<i64>(CREATED)?),
            Sort::Parameters => Self::Number(number(PARAMETERS)?),
            Sort::Size => Self::Number(number(BYTES)?),
            Sort::Name => Self::Name,
        })
    }

    fn of(&self, document: DocId, score: Score) -> u64 {
        match self {
            Self::Relevance(lengths) => {
                let shortness = u32::MAX - lengths.get_val(document).min(u64::from(u32::MAX)) as u32;
                ((score as u64) << 32) | u64::from(shortness)
            }
            Self::Time(times) => tantivy::i64_to_u64(times.get_val(document)),
            Self::Number(numbers) => numbers.get_val(document),
            Self::Name => 0,
        }
    }
}

/// How often each value of a field was seen in one part of the index.
pub(super) struct Counting {
    column: Option<(StrColumn, Column<u64>)>,
    counts: Vec<u32>,
    rows: (Vec<DocId>, Vec<u32>),
    ranks: Vec<u64>,
}

impl Counting {
    fn open(field: Field, columns: &FastFieldReaders) -> tantivy::Result<Self> {
        let values = columns.str(&format!("is_{}", field.name()))?;
        let counts = values.as_ref().map_or(0, |values| values.dictionary().num_terms());
        let column = values.map(|values| (values.clone(), values.ords().clone()));
        Ok(Self { column, counts: vec![0; counts], rows: Default::default(), ranks: Vec::new() })
    }

    fn count(&mut self, documents: &[DocId]) {
        let Some((_, column)) = &self.column else { return };
        let (owners, rows) = &mut self.rows;
        owners.clear();
        rows.clear();
        column.row_ids_for_docs(documents, owners, rows);
        self.ranks.resize(rows.len(), 0);
        column.values.get_vals(rows, &mut self.ranks);
        for rank in &self.ranks {
            if let Some(count) = self.counts.get_mut(*rank as usize) {
                *count += 1;
            }
        }
    }

    /// The ranks of the most frequent values in order of rank, and whether others were left out.
    fn candidates(&self, limit: usize) -> (Vec<u64>, bool) {
        let mut seen: Vec<u64> =
            (0u64..).zip(&self.counts).filter(|(_, count)| **count > 0).map(|(rank, _)| rank).collect();
        let is_cut = seen.len() > limit;
        if is_cut {
            seen.select_nth_unstable_by_key(limit, |rank| Reverse(self.counts[*rank as usize]));
            seen.truncate(limit);
            seen.sort_unstable();
        }
        (seen, is_cut)
    }
}

/// The values that are most frequent in all parts together, with their exact counts.
fn most_frequent(parts: &[Counting], limit: usize) -> io::Result<Vec<(String, u64)>> {
    let mut sums: HashMap<String, u64> = HashMap::new();
    let mut cut: Vec<(&Counting, &StrColumn, HashSet<String>)> = Vec::new();
    for part in parts {
        let Some((values, _)) = &part.column else { continue };
        let (ranks, is_cut) = part.candidates(CANDIDATES_MIN.max(4 * limit));
        let (mut at, mut named) = (ranks.iter(), HashSet::new());
        values.dictionary().sorted_ords_to_term_cb(&ranks, |value| {
            let count = at.next().map_or(0, |rank| u64::from(part.counts[*rank as usize]));
            let value = String::from_utf8_lossy(value).into_owned();
            if is_cut {
                named.insert(value.clone());
            }
            *sums.entry(value).or_default() += count;
        })?;
        if is_cut {
            cut.push((part, values, named));
        }
    }
    let mut first = ordered(sums, 2 * limit);
    for (value, sum) in &mut first {
        for (part, values, _) in cut.iter().filter(|(_, _, named)| !named.contains(value.as_str())) {
            let rank = values.dictionary().term_ord(value.as_str())?;
            *sum += rank.map_or(0, |rank| u64::from(part.counts[rank as usize]));
        }
    }
    Ok(ordered(first, limit))
}

fn ordered(sums: impl IntoIterator<Item = (String, u64)>, limit: usize) -> Vec<(String, u64)> {
    let mut sums: Vec<(String, u64)> = sums.into_iter().collect();
    sums.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    sums.truncate(limit);
    sums
}
