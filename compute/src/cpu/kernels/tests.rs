//! Every level against the scalar one: the same bits, on random inputs and odd sizes.

use super::*;
use crate::cpu::{
    acts::PLANE_SHIFT,
    cache::{Cache, PageShape},
    kv::{KV_BLOCK, KvFormat, TileMut},
    level::Level,
    lines::Line,
    packed::{self, PackedFormat},
    plain::{self, PlainFormat},
};

/// xorshift: the seed of a failing case is in its test.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

const PACKED: [PackedFormat; 9] = PackedFormat::ALL;
const PLAIN: [PlainFormat; 3] = [PlainFormat::F32, PlainFormat::F16, PlainFormat::Bf16];

/// Levels above scalar that this machine has. Scalar is checked on its own meaning below.
fn levels() -> Vec<Level> {
    Level::ALL.into_iter().filter(|level| *level > Level::Scalar && level.is_available()).collect()
}

/// Random source blocks, as in a file: any quants, scales of either sign. `k` is the elements of all.
fn blocks(dice: &mut Dice, format: PackedFormat, k: usize) -> Vec<u8> {
    let dtype = format.dtype();
    let mut out = Vec::new();
    for _ in 0..k / dtype.block_elements() as usize {
        let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| (dice.next() >> 24) as u8).collect();
        for at in halves(format) {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(dice.float() * 0.01).to_le_bytes());
        }
        out.extend(block);
    }
    out
}

/// Where a source block has halves.
fn halves(format: PackedFormat) -> &'static [usize] {
    match format {
        PackedFormat::Q6_K => &[208],
        _ if format.has_min() => &[0, 2],
        _ => &[0],
    }
}

/// A row length that the format has, at least `k`.
fn length(format: PackedFormat, k: usize) -> usize {
    k.next_multiple_of(format.dtype().block_elements() as usize)
}

fn row_bytes(format: PackedFormat, k: usize) -> usize {
    format.dtype().bytes_for(k as u64).expect("whole blocks") as usize
}

fn packed_lines(format: PackedFormat, rows: usize, k: usize, source: &[u8]) -> Vec<Line> {
    let (blocks, per) = (k / BLOCK, format.group_lines(k / BLOCK));
    let mut lines = vec![Line::ZERO; rows.div_ceil(LANES) * per];
    for (row, bytes) in source.chunks_exact(row_bytes(format, k)).enumerate() {
        packed::fill_row(format, blocks, &mut lines[row / LANES * per..][..per], row % LANES, bytes);
    }
    lines
}

fn plain_bytes(format: PlainFormat, values: &[f32]) -> Vec<u8> {
    let one = |v: &f32| match format {
        PlainFormat::F32 => v.to_le_bytes().to_vec(),
        PlainFormat::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
        PlainFormat::Bf16 => half::bf16::from_f32(*v).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(one).collect()
}

fn plain_lines(format: PlainFormat, rows: usize, k: usize, source: &[u8]) -> Vec<Line> {
    let per = format.group_lines(k);
    let mut lines = vec![Line::ZERO; rows.div_ceil(LANES) * per];
    for (row, bytes) in source.chunks_exact(k * format.bytes()).enumerate() {
        plain::fill_row(format, &mut lines[row / LANES * per..][..per], row % LANES, bytes);
    }
    lines
}

/// Random values of `tokens` tokens, a panel.
fn panel(dice: &mut Dice, k: usize, tokens: usize) -> Vec<f32> {
    dice.floats(k * tokens)
}

/// Their records, for products of `level`.
fn acts(level: Level, x: &[f32], k: usize, tokens: usize, planes: Planes) -> Acts {
    let mut acts = Acts::new(k, tokens, planes);
    let stride = acts.stride;
    for (i, record) in acts.words.chunks_exact_mut(stride).enumerate() {
        let view = View { values: &x[i * LANES..], step: tokens * LANES };
        quantise(level, view, k, planes, None, record);
    }
    acts
}

fn same_bits(what: &str, want: &[f32], got: &[f32]) {
    assert_eq!(want.len(), got.len());
    for (i, (a, b)) in want.iter().zip(got).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}, element {i}: {a} and {b}");
    }
}

fn close(want: f64, got: f32, size: f64, tolerance: f64) {
    assert!((want - got as f64).abs() <= tolerance * size.max(1e-6), "{want} and {got}");
}

#[test]
fn packing_keeps_every_value() {
    let mut dice = Dice(7);
    for format in PACKED {
        for (rows, k) in [(16, 32), (21, 96), (64, 576), (3, 1024)] {
            let k = length(format, k);
            let source = blocks(&mut dice, format, rows * k);
            let lines = packed_lines(format, rows, k, &source);
            let w = Packed::new(format, k / BLOCK, &lines);
            for (row, bytes) in source.chunks_exact(row_bytes(format, k)).enumerate() {
                let mut want = Vec::new();
                assert!(crate::quant::dequantise(format.dtype(), bytes, &mut want));
                w.row(row, |i, v| assert_eq!(v, want[i], "{format:?}, element {i} of row {row}"));
            }
        }
    }
}

#[test]
fn no_format_takes_much_more_room_than_in_a_file() {
    for format in PACKED {
        let k = 2048;
        let (held, stored) = (format.group_lines(k / BLOCK) * 64, LANES * row_bytes(format, k));
        assert!(held <= stored + stored / 32 + 64, "{format:?}: {held} bytes for {stored}");
    }
}

#[test]
fn scalar_packed_products_are_dot_products() {
    let mut dice = Dice(11);
    for format in PACKED {
        let (rows, k) = (21, length(format, 160));
        let source = blocks(&mut dice, format, rows * k);
        let lines = packed_lines(format, rows, k, &source);
        let w = Packed::new(format, k / BLOCK, &lines);
        let x = dice.floats(k);
        let record = acts(Level::Scalar, &x, k, 1, Planes::Two);
        let mut out = vec![0.0; w.groups() * LANES];
        product_packed(Level::Scalar, w, 0, &record, &mut out, Post::Store);
        for (row, got) in out[..rows].iter().enumerate() {
            let (mut want, mut size) = (0.0, 0.0);
            w.row(row, |i, v| {
                want += v as f64 * x[i] as f64;
                size += (v as f64 * x[i] as f64).abs();
            });
            close(want, *got, size, 2e-4);
        }
        assert!(out[rows..].iter().all(|v| *v == 0.0), "rows past the last are zero");
    }
}

#[test]
fn packed_products_are_the_same_bits_at_every_level() {
    let mut dice = Dice(1);
    for format in PACKED {
        for (rows, k) in [(16, 32), (48, 96), (37, 160), (80, 576)] {
            let k = length(format, k);
            let source = blocks(&mut dice, format, rows * k);
            let lines = packed_lines(format, rows, k, &source);
            let w = Packed::new(format, k / BLOCK, &lines);
            for tokens in (1..=14).chain([23, 24]) {
                let planes = if tokens % 2 == 0 { Planes::One } else { Planes::Two };
                let x = panel(&mut dice, k, tokens);
                for post in [Post::Store, Post::Add, Post::Gate, Post::Gelu, Post::Times] {
                    compare_packed(&mut dice, w, &x, tokens, planes, w.groups(), post);
                }
                compare_packed(&mut dice, w, &x, tokens, planes, w.groups() / 2, Post::SwiGlu);
            }
        }
    }
}

fn compare_packed(dice: &mut Dice, w: Packed, x: &[f32], tokens: usize, planes: Planes, groups: usize, post: Post) {
    let k = w.blocks * BLOCK;
    let start = dice.floats(groups * tokens * LANES);
    let mut want = start.clone();
    product_packed(Level::Scalar, w, 0, &acts(Level::Scalar, x, k, tokens, planes), &mut want, post);
    for level in levels() {
        let mut got = start.clone();
        product_packed(level, w, 0, &acts(level, x, k, tokens, planes), &mut got, post);
        same_bits(&format!("{:?} {post:?} {level} {tokens}", w.format), &want, &got);
    }
}

#[test]
fn a_token_gives_the_same_bits_alone_and_in_any_batch() {
    let mut dice = Dice(3);
    for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
        for format in PACKED {
            let (rows, k) = (48, length(format, 96));
            let source = blocks(&mut dice, format, rows * k);
            let lines = packed_lines(format, rows, k, &source);
            let w = Packed::new(format, k / BLOCK, &lines);
            let all = acts(level, &panel(&mut dice, k, 13), k, 13, Planes::Two);
            let mut together = vec![0.0; w.groups() * 13 * LANES];
            product_packed(level, w, 0, &all, &mut together, Post::Store);
            for t in 0..13 {
                let mut one = Acts::new(k, 1, Planes::Two);
                one.words.copy_from_slice(&all.words[t * all.stride..][..all.stride]);
                let mut alone = vec![0.0; w.groups() * LANES];
                product_packed(level, w, 0, &one, &mut alone, Post::Store);
                for g in 0..w.groups() {
                    same_bits("batch", &alone[g * LANES..][..LANES], &together[(g * 13 + t) * LANES..][..LANES]);
                }
            }
        }
    }
}

#[test]
fn extreme_quants_do_not_overflow() {
    for format in PACKED {
        for byte in [0x80u8, 0x7f, 0xff, 0x00] {
            let k = length(format, 64);
            let lines = packed_lines(
                format,
                16,
                k,
                &uniform(format, byte).repeat(16 * k / format.dtype().block_elements() as usize),
            );
            let w = Packed::new(format, k / BLOCK, &lines);
            for (x, planes) in [(1.0, Planes::One), (-1.0, Planes::One), (1.0, Planes::Two), (-1.0, Planes::Two)] {
                let values = vec![x; k];
                let record = acts(Level::Scalar, &values, k, 1, planes);
                let mut want = [0.0; LANES];
                product_packed(Level::Scalar, w, 0, &record, &mut want, Post::Store);
                let mut exact = 0.0;
                w.row(0, |_, v| exact += (v * x) as f64);
                close(exact, want[0], exact.abs(), 1e-6);
                compare_packed(&mut Dice(3), w, &values, 1, planes, 1, Post::Store);
            }
        }
    }
}

/// A source block of one byte everywhere but in its halves, which are one.
fn uniform(format: PackedFormat, byte: u8) -> Vec<u8> {
    let dtype = format.dtype();
    let mut block = vec![byte; dtype.block_bytes() as usize];
    for at in halves(format) {
        block[*at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
    }
    block
}

#[test]
fn plain_products_are_dot_products_and_the_same_bits_at_every_level() {
    let mut dice = Dice(13);
    for format in PLAIN {
        for (rows, k) in [(16, 16), (37, 7), (64, 172), (80, 130)] {
            let lines = plain_lines(format, rows, k, &plain_bytes(format, &dice.floats(rows * k)));
            let w = Plain::new(format, k, &lines);
            for tokens in 1..=14 {
                let mut x = Rows::new(k, tokens);
                let stride = x.stride;
                x.values.chunks_exact_mut(stride).for_each(|row| row[..k].copy_from_slice(&dice.floats(k)));
                for post in [Post::Store, Post::Add, Post::Gate, Post::Gelu, Post::Times] {
                    let start = dice.floats(w.groups() * tokens * LANES);
                    let mut want = start.clone();
                    product_plain(Level::Scalar, w, 0, &x, &mut want, post);
                    if post == Post::Store {
                        check_plain(w, &x, rows, &want);
                    }
                    for level in levels() {
                        let mut got = start.clone();
                        product_plain(level, w, 0, &x, &mut got, post);
                        same_bits(&format!("{format:?} {rows}x{k} {post:?} {level} {tokens}"), &want, &got);
                    }
                }
            }
        }
    }
}

fn check_plain(w: Plain, x: &Rows, rows: usize, got: &[f32]) {
    for t in 0..x.tokens {
        for row in 0..rows {
            let terms = (0..w.k).map(|i| w.at(row, i) as f64 * x.values[t * x.stride + i] as f64);
            let (want, size) = terms.fold((0.0, 0.0), |(s, a), v| (s + v, a + v.abs()));
            close(want, got[(row / LANES * x.tokens + t) * LANES + row % LANES], size, 1e-5);
        }
    }
}

#[test]
fn quantised_records_are_the_same_bits_at_every_level() {
    let mut dice = Dice(2);
    for (k, tokens, planes) in [
        (32, 1, Planes::One),
        (96, 3, Planes::One),
        (576, 2, Planes::Two),
        (1536, 5, Planes::Two),
        (32, 1, Planes::Two),
    ] {
        let (mut x, weights) = (dice.floats(k * tokens), dice.floats(k));
        x[..LANES].fill(0.0);
        for norm in [None, Some(Norm { weights: &weights, epsilon: 1e-5 })] {
            let view = View { values: &x[LANES * (tokens - 1)..], step: tokens * LANES };
            let mut want = Acts::new(k, 1, planes);
            quantise(Level::Scalar, view, k, planes, norm, &mut want.words);
            check_record(&want, view, k, norm);
            for level in levels() {
                let mut got = Acts::new(k, 1, planes);
                quantise(level, view, k, planes, norm, &mut got.words);
                if level == Level::Avx2 {
                    unpair(&mut got);
                }
                assert_eq!(want.words, got.words, "{level} {k}");
            }
        }
    }
}

/// Turns the pairs of whole quants of an AVX2 record into the planes of bytes of the other levels.
fn unpair(record: &mut Acts) {
    let room: Vec<i32> = record.words[..record.head()].to_vec();
    let quant = |i: usize| (room[i / 4 * 2 + i % 2] >> (i % 4 / 2 * 16)) as i16;
    let mut bytes = vec![0u8; 4 * record.head()];
    for i in 0..record.k {
        let high = if record.planes == Planes::Two { (quant(i) + (1 << (PLANE_SHIFT - 1))) >> PLANE_SHIFT } else { 0 };
        bytes[i] = high as u8;
        bytes[(record.planes.count() - 1) * record.k + i] = (quant(i) - (high << PLANE_SHIFT)) as u8;
    }
    record.words.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(word, bytes)| *word = i32::from_le_bytes(*bytes));
}

/// A record gives back the (normalised) values within half a step, and its sums are right.
fn check_record(acts: &Acts, x: View, k: usize, norm: Option<Norm>) {
    let value = |i: usize| x.values[i / LANES * x.step + i % LANES] as f64;
    let mean = (0..k).map(|i| value(i).powi(2)).sum::<f64>() / k as f64;
    let scaled = |i: usize| value(i) * norm.map_or(1.0, |n| n.weights[i] as f64 / (mean + n.epsilon as f64).sqrt());
    let byte = |plane: usize, i: usize| acts.words[plane * k / 4 + i / 4].to_le_bytes()[i % 4] as i8 as i32;
    let quant = |i: usize| (0..acts.planes.count()).fold(0, |q, p| (q << PLANE_SHIFT) + byte(p, i));
    for i in 0..k {
        let d = f32::from_bits(acts.words[acts.head() + i / BLOCK] as u32);
        assert!((d as f64 * quant(i) as f64 - scaled(i)).abs() <= d as f64 * 0.51 + 1e-5, "element {i}");
    }
    for b in 0..acts.blocks {
        let sum: i32 = (0..BLOCK).map(|i| quant(b * BLOCK + i)).sum();
        assert_eq!(acts.words[acts.head() + acts.blocks + b], -sum);
        let half: i32 = (0..BLOCK / 2).map(|i| quant(b * BLOCK + i)).sum();
        assert_eq!(acts.words[acts.head() + 3 * acts.blocks + b], -half);
    }
}

#[test]
fn rows_are_normalised_to_the_same_bits_at_every_level() {
    let mut dice = Dice(4);
    for (k, tokens) in [(16usize, 1), (64, 3), (172, 2)] {
        let padded = k.next_multiple_of(LANES);
        let (mut x, mut weights) = (vec![0.0; padded * tokens], vec![0.0; padded]);
        for i in 0..k {
            weights[i] = dice.float();
            x[i / LANES * tokens * LANES + i % LANES] = dice.float();
        }
        let view = View { values: &x, step: tokens * LANES };
        let norm = Some(Norm { weights: &weights, epsilon: 1e-5 });
        let mut want = vec![0.0; padded];
        normalise(Level::Scalar, view, k, norm, &mut want);
        let value = |i: usize| x[i / LANES * tokens * LANES + i % LANES] as f64;
        let rms = ((0..k).map(|i| value(i).powi(2)).sum::<f64>() / k as f64 + 1e-5).sqrt();
        (0..k).for_each(|i| close(value(i) / rms * weights[i] as f64, want[i], 1.0, 1e-5));
        for level in levels() {
            let mut got = vec![0.0; padded];
            normalise(level, view, k, norm, &mut got);
            same_bits("norm", &want, &got);
        }
    }
}

#[test]
fn attention_is_softmax_and_the_same_bits_at_every_level() {
    let mut dice = Dice(5);
    for d in [8usize, 16, 24, 32, 64, 80, 96, 128, 256] {
        for (start, n) in [
            (0usize, 1usize),
            (0, 2),
            (0, 15),
            (0, 17),
            (0, 64),
            (0, 65),
            (0, 130),
            (1, 2),
            (3, 40),
            (20, 64),
            (63, 64),
            (63, 65),
            (64, 130),
            (70, 130),
            (127, 128),
        ] {
            let padded = padded_head(d);
            let (keys, values) = (dice.floats(n * d), dice.floats(n * d));
            let q: Vec<f32> = dice.floats(d).iter().map(|q| q * 3.0).collect();
            for format in KvFormat::ALL {
                let cache = cached(format, &keys, &values, d);
                let mut want = vec![0.0; padded];
                let whole = start..n;
                let queries = Queries { width: d, rows: &q, at: std::slice::from_ref(&whole), to: &[0] };
                attend(Level::Scalar, &queries, cache.head(0, 0), &mut want);
                let [keys, values] = [&keys, &values].map(|rows| held(format, rows, d));
                check_attention(&q, &keys, &values, start..n, &want);
                for level in levels() {
                    let mut got = vec![0.0; padded];
                    attend(level, &queries, cache.head(0, 0), &mut got);
                    same_bits(&format!("d {d} at {start}..{n} {format} {level}"), &want, &got);
                }
            }
        }
    }
}

#[test]
fn a_query_gives_the_same_bits_alone_and_beside_any_others() {
    let mut dice = Dice(7);
    for d in [8usize, 24, 64, 80, 128, 256] {
        let (positions, padded) = (4 * KV_TILE, padded_head(d));
        // What nobody attends to may be anything.
        let (keys, mut values) = (dice.floats(positions * d), dice.floats(positions * d));
        values[200 * d..].fill(f32::NAN);
        for format in KvFormat::ALL {
            let cache = cached(format, &keys, &values, d);
            let kv = cache.head(0, 0);
            for (count, heads, first, window) in [
                (2usize, 2usize, 5usize, usize::MAX),
                (3, 1, 62, usize::MAX),
                (4, 4, 130, 7),
                (5, 1, 126, 64),
                (7, 7, 199, usize::MAX),
                (11, 3, 0, usize::MAX),
                (13, 1, 120, 1),
                (24, 3, 60, 3),
                (48, 1, 40, 70),
                (48, 3, 100, usize::MAX),
            ] {
                let ends = (0..count).map(|i| first + i / heads + 1);
                let at: Vec<Range<usize>> = ends.map(|end| end.saturating_sub(window)..end).collect();
                let rows: Vec<f32> = dice.floats(count * d).iter().map(|q| q * 3.0).collect();
                // Rows of results in another order, and apart.
                let to: Vec<usize> = (0..count).rev().map(|i| i * (padded + LANES)).collect();
                for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                    let mut together = vec![9.0; count * (padded + LANES)];
                    attend(level, &Queries { width: d, rows: &rows, at: &at, to: &to }, kv, &mut together);
                    for i in 0..count {
                        let mut alone = vec![0.0; padded];
                        let one = Queries { width: d, rows: &rows[i * d..], at: &at[i..=i], to: &[0] };
                        attend(Level::Scalar, &one, kv, &mut alone);
                        let got = &together[to[i]..][..padded + LANES];
                        assert!(alone.iter().all(|x| x.is_finite()) && got[padded..] == [9.0; LANES]);
                        same_bits(
                            &format!("d {d} query {i} of {count} at {:?} {level}", at[i]),
                            &alone,
                            &got[..padded],
                        );
                    }
                }
            }
        }
    }
}

/// Keys and values of one head of width `d`, a row for each position.
fn cached(format: KvFormat, keys: &[f32], values: &[f32], d: usize) -> Cache {
    let shape = PageShape { layers: 1, kv_heads: 1, width: d, format };
    let mut cache = Cache::new(shape, keys.len() / d);
    for (position, (key, value)) in keys.chunks(d).zip(values.chunks(d)).enumerate() {
        let mut tile = TileMut::new(format, d, cache.layer_mut(position / KV_TILE, 0));
        let padded = |row: &[f32], width: usize| [row, &vec![0.0; width - d]].concat();
        tile.put_key(Level::Scalar, position % KV_TILE, &padded(key, d.next_multiple_of(LANES)));
        tile.put_value(Level::Scalar, position % KV_TILE, &padded(value, padded_head(d)));
    }
    cache
}

/// What is held of rows of width `d`, by the plainest arithmetic.
fn held(format: KvFormat, rows: &[f32], d: usize) -> Vec<Vec<f64>> {
    let of_block = |block: &[f32]| -> Vec<f64> {
        let top = block.iter().fold(0f32, |top, x| top.max(x.abs()));
        let scale = f16::from_f32(top / 127.0).to_f64();
        let whole =
            |x: f32| if scale > 0.0 { (f64::from(x) / scale).round_ties_even().clamp(-127.0, 127.0) } else { 0.0 };
        block.iter().map(|x| whole(*x) * scale).collect()
    };
    let of_row = |row: &[f32]| match format {
        KvFormat::F16 => row.iter().map(|x| f16::from_f32(*x).to_f64()).collect(),
        KvFormat::Int8 => row.chunks(KV_BLOCK).flat_map(of_block).collect(),
    };
    rows.chunks(d).map(of_row).collect()
}

fn check_attention(q: &[f32], keys: &[Vec<f64>], values: &[Vec<f64>], at: Range<usize>, got: &[f32]) {
    let score = |p: usize| q.iter().zip(&keys[p]).map(|(q, k)| f64::from(*q) * k).sum();
    let scores: Vec<f64> = at.clone().map(score).collect();
    let top = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    for (i, got) in got[..q.len()].iter().enumerate() {
        let want: f64 = at.clone().zip(&scores).map(|(p, s)| (s - top).exp() / total * values[p][i]).sum();
        close(want, *got, 1.0, 1e-5);
    }
}

#[test]
fn bytes_are_the_same_at_every_level_whatever_the_values() {
    let mut dice = Dice(11);
    for (width, scale) in [(16, 1.0f32), (32, 1e-5), (48, 1e5), (64, 1e-8), (80, 0.0), (256, 3.0)] {
        let mut x: Vec<f32> = dice.floats(width).iter().map(|x| x * scale).collect();
        let bytes = |level: Level, x: &[f32]| {
            let (mut bytes, mut scales) = ([0; HEAD_WIDTH_MAX], [f16::ZERO; HEAD_WIDTH_MAX / KV_BLOCK]);
            to_bytes(level, x, &mut bytes, &mut scales);
            (bytes[..width].to_vec(), scales.map(f16::to_bits))
        };
        for odd in [0.0, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE] {
            x[width / 2] += odd;
            let want = bytes(Level::Scalar, &x);
            assert!(levels().into_iter().all(|level| bytes(level, &x) == want), "{width} {scale} {odd}");
        }
    }
}

#[test]
fn rotation_and_rounding_are_the_same_bits_at_every_level() {
    let mut dice = Dice(6);
    let (x, cos, sin) = (dice.floats(64), dice.floats(64), dice.floats(64));
    let mut want = x.clone();
    rotate(Level::Scalar, &mut want, &cos, &sin, 0.125);
    (0..64).for_each(|i| close(((x[i] * cos[i] + x[i ^ 1] * sin[i]) * 0.125) as f64, want[i], 1.0, 1e-6));
    let mut halves = [f16::ZERO; 64];
    to_halves(Level::Scalar, &want, &mut halves);
    for level in levels() {
        let (mut got, mut rounded) = (x.clone(), [f16::ZERO; 64]);
        rotate(level, &mut got, &cos, &sin, 0.125);
        same_bits("rotation", &want, &got);
        to_halves(level, &got, &mut rounded);
        assert_eq!(halves, rounded);
    }
}
