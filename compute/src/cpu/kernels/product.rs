//! The products of packed weights, written once over [`Ints`] and compiled for every level and every format.
//!
//! Integers are exact in any order; what a level chooses is how it multiplies them and how many rows and tokens it
//! takes at once. The F32 sums run over blocks in order, in the lane of their row: scale first (twice where a block has
//! two), then minimum. The scalar level has a text of its own, and tests hold this one to it.
//!
//! A *tile* is `G` groups of rows by `T` tokens with all sums in registers; a *strip* is its groups by all tokens, so that
//! its weights come from memory once.
#![allow(unsafe_code)]
// Indices run over several register arrays at once; iterators hide that.
#![allow(clippy::needless_range_loop)]

use super::{
    super::{
        acts::{Acts, Planes},
        lines::LINE_BYTES,
        packed::{BLOCK, LANES, Packed, PackedFormat, Quants, SUPER_BLOCKS, Scales, TABLE},
    },
    Post, text,
    vector::Vector,
};
use std::arch::asm;

/// Sixteen lanes of 32 bits, in the instructions of a level.
///
/// # Safety
/// Methods need the processor features of their level.
pub trait Ints: Copy {
    /// The lanes as F32.
    type Floats: Vector;
    /// Whether records hold pairs of 16-bit quants, and not planes of bytes.
    const PAIRS: bool;
    /// Whether weights are multiplied as signed bytes; formats of 8 bits then have their offset taken back beforehand.
    const SIGNED: bool;
    /// Groups that a tile takes at once.
    const GROUPS: usize;
    /// Most tokens of a tile.
    const TOKENS: usize;

    unsafe fn splat(x: i32) -> Self;
    /// From a whole line.
    unsafe fn load(line: *const u8) -> Self;
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn xor(self, other: Self) -> Self;
    /// Lanes of 16 bits shifted to the left.
    unsafe fn left(self, bits: i32) -> Self;
    /// Lanes of 16 bits shifted to the right, zeros moving in.
    unsafe fn right(self, bits: i32) -> Self;
    /// Each byte, below 16, becomes the table's.
    unsafe fn look_up(self, table: &[u8; 16]) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// Makes room for the plane below.
    unsafe fn next_plane(self) -> Self;
    unsafe fn floats(self) -> Self::Floats;
    /// Adds the products of the bytes of `word` (signed or not, as the level has it) and word `j` of the activations at `x`.
    unsafe fn dot(self, word: Self, x: *const i32, j: usize) -> Self;
    /// [`tile`], in a function that enables the level's features.
    unsafe fn tile<const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post);
}

/// With more passes over a strip than this, computing hides all fetching.
const MOST_PASSES: usize = 4;

/// How far ahead of a lone pass its own strip is fetched, in bytes.
const AHEAD: usize = 4096;

/// What a tile reads: `G` groups of weights, tokens of `acts`.
pub struct Source<'a, const G: usize> {
    groups: [*const u8; G],
    quants: usize,
    scales: Scales,
    shape: &'a Acts,
    acts: *const i32,
    fetch: Fetch<G>,
}

/// What a tile fetches ahead with each block: so many lines of each group, one block's after the other.
struct Fetch<const G: usize> {
    from: [*const u8; G],
    lines: usize,
    /// To the first-level cache: this pass will read them.
    is_near: bool,
}

/// See `kernels::product_packed`.
///
/// # Safety
/// Features; bounds as asserted there.
#[inline(always)]
pub unsafe fn product<I: Ints>(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe {
        match w.format {
            PackedFormat::Q8_0 => strips::<I, { PackedFormat::Q8_0 as u8 }>(w, first, count, acts, out, post),
            PackedFormat::Q4_0 => strips::<I, { PackedFormat::Q4_0 as u8 }>(w, first, count, acts, out, post),
            PackedFormat::Q4_1 => strips::<I, { PackedFormat::Q4_1 as u8 }>(w, first, count, acts, out, post),
            PackedFormat::Q5_0 => strips::<I, { PackedFormat::Q5_0 as u8 }>(w, first, count, acts, out, post),
            PackedFormat::Q5_1 => strips::<I, { PackedFormat::Q5_1 as u8 }>(w, first, count, acts, out, post),
            PackedFormat::IQ4_NL => strips::<I, { PackedFormat::IQ4_NL as u8 }>(w, first, count, acts, out, post),
            PackedFormat::Q4_K => strips::<I, { PackedFormat::Q4_K as u8 }>(w, first, count, acts, out, post),
            PackedFormat::Q5_K => strips::<I, { PackedFormat::Q5_K as u8 }>(w, first, count, acts, out, post),
            PackedFormat::Q6_K => strips::<I, { PackedFormat::Q6_K as u8 }>(w, first, count, acts, out, post),
        }
    }
}

#[inline(always)]
unsafe fn strips<I: Ints, const F: u8>(
    w: Packed,
    first: usize,
    count: usize,
    acts: &Acts,
    out: &mut [f32],
    post: Post,
) {
    let panel = acts.tokens * LANES;
    let mut g = 0;
    while g < count {
        let at = if post == Post::SwiGlu { g / 2 } else { g } * panel;
        // SAFETY: groups g.. are inside w, and out[at..] holds their panels.
        unsafe {
            let out = out[at..].as_mut_ptr();
            if I::GROUPS == 2 && count - g >= 2 {
                strip::<I, F, 2>(w, first + g, acts, out, post);
                g += 2;
                continue;
            }
            match post {
                // A lone group of a pair: the gate is stored, and up is what multiplies its silu.
                Post::SwiGlu if g % 2 == 0 => strip::<I, F, 1>(w, first + g, acts, out, Post::Store),
                Post::SwiGlu => strip::<I, F, 1>(w, first + g, acts, out, Post::Gate),
                _ => strip::<I, F, 1>(w, first + g, acts, out, post),
            }
            g += 1;
        }
    }
}

/// `G` groups of rows by all tokens, a few tokens at a time.
#[inline(always)]
unsafe fn strip<I: Ints, const F: u8, const G: usize>(w: Packed, g: usize, acts: &Acts, out: *mut f32, post: Post) {
    let groups: [*const u8; G] = std::array::from_fn(|r| w.group(g + r).as_ptr().cast::<u8>());
    let passes = acts.tokens.div_ceil(I::TOKENS);
    let mut t = 0;
    for pass in 0..passes {
        let tokens = (acts.tokens - t).div_ceil(passes - pass);
        // SAFETY: pointers stay inside the groups, the record and the panel.
        unsafe {
            let s = Source {
                groups,
                quants: w.scale_lines * LINE_BYTES,
                scales: Scales::of(w.format, w.blocks),
                shape: acts,
                acts: acts.words.as_ptr().add(t * acts.stride),
                fetch: Fetch::of(&w, groups, pass, passes),
            };
            let out = out.add(t * LANES);
            match tokens {
                1 => I::tile::<F, G, 1>(&s, out, post),
                2 => I::tile::<F, G, 2>(&s, out, post),
                3 => I::tile::<F, G, 3>(&s, out, post),
                4 => I::tile::<F, G, 4>(&s, out, post),
                5 => I::tile::<F, G, 5>(&s, out, post),
                _ => I::tile::<F, G, 6>(&s, out, post),
            }
        }
        t += tokens;
    }
}

impl<const G: usize> Fetch<G> {
    /// A lone pass fetches a little ahead of itself, a few passes share the fetching of the strip after theirs.
    fn of(w: &Packed, groups: [*const u8; G], pass: usize, passes: usize) -> Self {
        let (strip, each) = (w.group_lines * G, w.group_lines.div_ceil(passes * w.blocks));
        match passes {
            1 => {
                let ahead = w.scale_lines * LINE_BYTES + AHEAD;
                let from = groups.map(|group| group.wrapping_add(ahead));
                Self { from, lines: w.format.block_lines(), is_near: true }
            }
            2..=MOST_PASSES => {
                let next = (strip + pass * each * w.blocks) * LINE_BYTES;
                Self { from: groups.map(|group| group.wrapping_add(next)), lines: each, is_near: false }
            }
            _ => Self { from: groups, lines: 0, is_near: false },
        }
    }

    #[inline(always)]
    fn block(&self, b: usize) {
        for from in self.from {
            for i in 0..self.lines {
                let line = from.wrapping_add((b * self.lines + i) * LINE_BYTES);
                if self.is_near { prefetch::<true>(line) } else { prefetch::<false>(line) }
            }
        }
    }
}

/// Fetches a line to the first- or the second-level cache. Any address will do.
#[inline(always)]
fn prefetch<const NEAR: bool>(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that a program could see, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if NEAR { _mm_prefetch::<_MM_HINT_T0>(line.cast()) } else { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; every aarch64 has it.
    unsafe {
        if NEAR {
            asm!("prfm pldl1keep, [{0}]", in(reg) line, options(readonly, nostack, preserves_flags));
        } else {
            asm!("prfm pldl2keep, [{0}]", in(reg) line, options(readonly, nostack, preserves_flags));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = line;
}

/// The format that a number stands for where it is a parameter of the code.
const fn format(f: u8) -> PackedFormat {
    PackedFormat::ALL[f as usize]
}

/// Words under one scale.
const fn words(f: u8) -> usize {
    8 / format(f).scales_a_block()
}

/// Whether a level multiplies the true quants of a format and not those made unsigned: fewer bits than 8 are positive
/// either way, so only quants of 8 bits change.
const fn is_signed<I: Ints>(f: u8) -> bool {
    I::SIGNED && format(f).offset() == 128
}

/// What IQ4_NL's nibbles stand for, as signed bytes.
const SIGNED_TABLE: [u8; 16] = {
    let (mut table, mut i) = (TABLE, 0);
    while i < 16 {
        table[i] ^= 128;
        i += 1;
    }
    table
};

/// `G` groups of rows by `T` tokens, all sums in registers.
///
/// # Safety
/// Features; the source holds its groups and `T` records, `out` the panels of these groups from the first token on.
#[inline(always)]
pub unsafe fn tile<I: Ints, const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post) {
    // SAFETY: all reads are of blocks below the number of blocks.
    unsafe {
        let (blocks, stride) = (s.shape.blocks, s.shape.stride);
        let mut sums = [[I::Floats::splat(0.0); T]; G];
        for b in 0..blocks {
            s.fetch.block(b);
            let rest = s.acts.add(s.shape.head() + b);
            for part in 0..8 / words(F) {
                let mut ints = [[I::splat(0); T]; G];
                part_ints::<I, F, G, T>(s, b, part, rest, &mut ints);
                let mut d = [I::Floats::splat(0.0); G];
                for r in 0..G {
                    d[r] = s.scale::<I::Floats, F>(r, b, part);
                }
                for t in 0..T {
                    let dx = I::Floats::splat(f32::from_bits(*rest.add(t * stride) as u32));
                    for r in 0..G {
                        sums[r][t] = ints[r][t].floats().fma(d[r].mul(dx), sums[r][t]);
                    }
                }
            }
            if const { format(F).has_min() } {
                let mut m = [I::Floats::splat(0.0); G];
                for r in 0..G {
                    m[r] = s.min::<I::Floats, F>(r, b);
                }
                for t in 0..T {
                    let sx = I::Floats::splat(f32::from_bits(*rest.add(2 * blocks + t * stride) as u32));
                    for r in 0..G {
                        sums[r][t] = m[r].fma(sx, sums[r][t]);
                    }
                }
            }
        }
        finish(&sums, out, s.shape.tokens * LANES, post);
    }
}

/// Adds the integer products of a part of block `b`: all planes, the offset taken back.
#[inline(always)]
unsafe fn part_ints<I: Ints, const F: u8, const G: usize, const T: usize>(
    s: &Source<G>,
    b: usize,
    part: usize,
    rest: *const i32,
    acc: &mut [[I; T]; G],
) {
    // SAFETY: as the caller's contract.
    unsafe {
        let (blocks, stride) = (s.shape.blocks, s.shape.stride);
        let room = if I::PAIRS { BLOCK / 2 } else { BLOCK / 4 };
        let mut x = s.acts.add(b * room);
        if !I::PAIRS && s.shape.planes == Planes::Two {
            dots::<I, F, G, T>(s, b, part, x, acc);
            for r in 0..G {
                for t in 0..T {
                    acc[r][t] = acc[r][t].next_plane();
                }
            }
            x = x.add(s.shape.k / 4);
        }
        let offset = const { if is_signed::<I>(F) { 0 } else { format(F).offset() } };
        if offset != 0 {
            for t in 0..T {
                let rest = rest.add(t * stride);
                let less = match (words(F), part) {
                    (8, _) => *rest.add(blocks),
                    (_, 0) => *rest.add(3 * blocks),
                    (_, _) => *rest.add(blocks) - *rest.add(3 * blocks),
                };
                let less = I::splat(less * offset);
                for r in 0..G {
                    acc[r][t] = acc[r][t].add(less);
                }
            }
        }
        dots::<I, F, G, T>(s, b, part, x, acc);
    }
}

/// Adds the dot products of a part of block `b` with the activations at `x`, token by token.
#[inline(always)]
unsafe fn dots<I: Ints, const F: u8, const G: usize, const T: usize>(
    s: &Source<G>,
    b: usize,
    part: usize,
    x: *const i32,
    acc: &mut [[I; T]; G],
) {
    let at = s.quants + b * format(F).block_lines() * LINE_BYTES;
    let lines = s.groups.map(|group| group.wrapping_add(at));
    // SAFETY: word j of the block.
    unsafe {
        if words(F) == 4 && part == 1 {
            return four_words::<I, F, G, T, 4>(lines, x, s.shape.stride, acc);
        }
        four_words::<I, F, G, T, 0>(lines, x, s.shape.stride, acc);
        if words(F) == 8 {
            four_words::<I, F, G, T, 4>(lines, x, s.shape.stride, acc);
        }
    }
}

/// Words `J` to `J + 3`, written out, so that shifts are constants and what words share is made once.
#[inline(always)]
unsafe fn four_words<I: Ints, const F: u8, const G: usize, const T: usize, const J: usize>(
    lines: [*const u8; G],
    x: *const i32,
    stride: usize,
    acc: &mut [[I; T]; G],
) {
    // SAFETY: as the caller's contract.
    unsafe {
        let lines = lines.map(opaque);
        word_dots::<I, F, G, T>(lines, x, stride, J, acc);
        word_dots::<I, F, G, T>(lines, x, stride, J + 1, acc);
        let lines = lines.map(opaque);
        word_dots::<I, F, G, T>(lines, x, stride, J + 2, acc);
        word_dots::<I, F, G, T>(lines, x, stride, J + 3, acc);
    }
}

/// The same pointer, of which the compiler knows nothing: else it would load all words of a block at once, for both planes,
/// and there are not as many registers.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block)]
fn opaque(mut pointer: *const u8) -> *const u8 {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

#[inline(always)]
unsafe fn word_dots<I: Ints, const F: u8, const G: usize, const T: usize>(
    lines: [*const u8; G],
    x: *const i32,
    stride: usize,
    j: usize,
    acc: &mut [[I; T]; G],
) {
    // SAFETY: as the caller's contract.
    unsafe {
        let mut w = [I::splat(0); G];
        for r in 0..G {
            w[r] = word::<I, F>(lines[r], j);
        }
        for t in 0..T {
            for r in 0..G {
                acc[r][t] = acc[r][t].dot(w[r], x.add(t * stride), j);
            }
        }
    }
}

/// Word `j` of the block at `lines`: four elements of each row, as unsigned bytes.
#[inline(always)]
unsafe fn word<I: Ints, const F: u8>(lines: *const u8, j: usize) -> I {
    // SAFETY: lines of the block.
    unsafe {
        let line = |i: usize| I::load(lines.add(i * LINE_BYTES));
        let quants = const { format(F).quants() };
        let bytes = |x: u8| I::splat(i32::from_ne_bytes([x; 4]));
        if quants == Quants::Eight {
            return if const { is_signed::<I>(F) } { line(j).xor(bytes(128)) } else { line(j) };
        }
        let both = line(j / 2);
        let nibbles = if j.is_multiple_of(2) { both } else { both.right(4) }.and(bytes(15));
        // Bits `from` of a line's bytes to bit 4.
        let above = |line: I, from: i32| if from < 4 { line.left(4 - from) } else { line.right(from - 4) };
        match quants {
            Quants::Table => nibbles.look_up(if const { is_signed::<I>(F) } { &SIGNED_TABLE } else { &TABLE }),
            Quants::Five => above(line(4), j as i32).and(bytes(16)).or(nibbles),
            Quants::Six => above(line(4 + j / 4), 2 * (j % 4) as i32).and(bytes(48)).or(nibbles),
            Quants::Four | Quants::Eight => nibbles,
        }
    }
}

impl<const G: usize> Source<'_, G> {
    /// Scales of a part of block `b` of group `r`.
    #[inline(always)]
    unsafe fn scale<V: Vector, const F: u8>(&self, r: usize, b: usize, part: usize) -> V {
        // SAFETY: block b of the group.
        unsafe {
            let group = self.groups[r];
            if const { !format(F).is_super() } {
                return V::load_f16(group.add(b * LANES * 2).cast());
            }
            let d = V::load_f16(group.add(b / SUPER_BLOCKS * LANES * 2).cast());
            let small = self.scales.small + (b * 8 / words(F) + part) * LANES;
            d.mul(V::load_i8(group.add(small).cast()))
        }
    }

    /// Minima of block `b` of group `r`.
    #[inline(always)]
    unsafe fn min<V: Vector, const F: u8>(&self, r: usize, b: usize) -> V {
        // SAFETY: block b of the group.
        unsafe {
            let mins = self.groups[r].add(self.scales.mins);
            if const { !format(F).is_super() } {
                return V::load_f16(mins.add(b * LANES * 2).cast());
            }
            let least = V::load_f16(mins.add(b / SUPER_BLOCKS * LANES * 2).cast());
            least.mul(V::load_i8(self.groups[r].add(self.scales.small_mins + b * LANES).cast()))
        }
    }
}

/// Puts the sums of a tile where they belong.
#[inline(always)]
unsafe fn finish<V: Vector, const G: usize, const T: usize>(
    sums: &[[V; T]; G],
    out: *mut f32,
    panel: usize,
    post: Post,
) {
    // SAFETY: the caller's `out` holds the panels.
    unsafe {
        for t in 0..T {
            if post == Post::SwiGlu {
                text::silu(sums[0][t]).mul(sums[G - 1][t]).store(out.add(t * LANES));
                continue;
            }
            for r in 0..G {
                text::finish(sums[r][t], out.add(r * panel + t * LANES), post);
            }
        }
    }
}
