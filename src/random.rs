//! Stateless randomness: every number is a function of (seed, purpose, index), by the counter-based generator
//! Philox4x32-10 (Salmon et al., 2011). Nothing is ever saved or restored, and a resumed run draws what it would have drawn.

/// What is drawn. Two purposes never share numbers, whatever the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights; index: hash of the parameter's name.
    Initialisation = 1,
    /// Order of an epoch; index: epoch.
    Order = 2,
    /// Masks of the masked LM in training; index: number of the sample since the start of the run.
    Mask = 3,
    /// Masks of the masked LM in evaluation (fixed for ever); index: sequence.
    EvaluationMask = 4,
    /// Dropout; index: hash of (step, place in the model).
    Dropout = 5,
    /// Derivation of tasks from text; index: hash of the document's name.
    Derivation = 6,
    /// Order of an epoch's batches; index: epoch.
    BatchOrder = 7,
    /// Sequences of a step of a least-squares fit; index: step.
    LeastSquares = 11,
    /// Random matrices and vectors that a trained model is measured with; index: hash of what they are.
    Measurement = 20,
}

/// One purpose's stream of numbers at one index.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub(crate) key: u64,
    pub(crate) nonce: u64,
}

impl Stream {
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        Self { key: mix(seed ^ mix(purpose as u64)), nonce: index }
    }

    /// Four independent 32-bit words at a counter.
    pub fn block(self, counter: u64) -> [u32; 4] {
        philox([counter as u32, (counter >> 32) as u32, self.nonce as u32, (self.nonce >> 32) as u32], self.key)
    }

    /// The stream read from its start.
    pub fn draws(self) -> Draws {
        Draws { stream: self, counter: 0, words: [0; 4], used: 4 }
    }
}

/// Numbers of a [`Stream`] one after the other.
pub struct Draws {
    stream: Stream,
    counter: u64,
    words: [u32; 4],
    used: usize,
}

impl Draws {
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.words = self.stream.block(self.counter);
            self.counter += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..bound (bound > 0), by the high half of a 128-bit product: biased by less than bound / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Two independent standard normal numbers (Box and Muller).
    pub fn normal_pair(&mut self) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * self.uniform();
        (radius * angle.cos(), radius * angle.sin())
    }

    /// 0..count in random order.
    pub fn permutation(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

/// A 64-bit hash of a name (FNV-1a), stable for ever.
pub fn hash_name(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One index from two numbers.
pub fn combine(a: u64, b: u64) -> u64 {
    mix(a).wrapping_add(mix(b ^ 0x5851_f42d_4c95_7f2d).rotate_left(17))
}

/// SplitMix64's finaliser: a bijection that spreads neighbouring numbers.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn philox(mut counter: [u32; 4], key: u64) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let p0 = u64::from(counter[0]) * 0xD251_1F53;
        let p1 = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(p1 >> 32) as u32 ^ counter[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ k1, p0 as u32];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the Random123 library (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, 0x299f_31d0_a409_3822), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut draws = Stream::new(1, Purpose::Initialisation, 0).draws();
        let values: Vec<f64> = (0..100_000)
            .flat_map(|_| {
                let (a, b) = draws.normal_pair();
                [a, b]
            })
            .collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 / n.sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{variance}");
    }

    #[test]
    fn a_permutation_holds_every_number_once_and_follows_its_index() {
        let order = |epoch| Stream::new(3, Purpose::Order, epoch).draws().permutation(1000);
        let mut sorted = order(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        assert_eq!(order(0), order(0));
        assert_ne!(order(0), order(1));
    }

    #[test]
    fn below_is_uniform() {
        let mut draws = Stream::new(5, Purpose::Mask, 2).draws();
        let mut counts = [0f64; 7];
        (0..70_000).for_each(|_| counts[draws.below(7) as usize] += 1.0);
        // 5 standard deviations of a binomial count.
        assert!(counts.iter().all(|c| (c - 10_000.0).abs() < 5.0 * (10_000.0f64 * 6.0 / 7.0).sqrt()), "{counts:?}");
    }
}
