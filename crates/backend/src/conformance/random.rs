//! Shapes, values and weights from a seed.

use lingqu_tensor::{Format, HostTensor};

/// Splitmix64 (Steele, Lea and Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    /// `0..bound`
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// `low..=high`
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub fn chance(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// -1..1
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Roughly normal, of size 1.
    pub fn value(&mut self) -> f32 {
        self.unit() + self.unit() + self.unit()
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }

    pub fn shuffled(&mut self, mut items: Vec<usize>) -> Vec<usize> {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
        items
    }

    /// Numbers of rows around the sizes at which kernels change their ways. The first cases are one and many.
    pub fn rows(&mut self, case: usize) -> usize {
        match case {
            0 => 1,
            1 => self.within(33, 70),
            _ => self.pick(&[2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33]),
        }
    }

    /// Selections of rows that must give what they give among all `rows`.
    pub fn selections(&mut self, rows: usize) -> Vec<Vec<usize>> {
        let mut selections = vec![vec![self.below(rows)], vec![self.below(rows); 37]];
        if rows > 1 {
            selections.push((0..rows).rev().collect());
            selections.push(vec![rows - 1]);
            let count = self.within(2, rows.min(17));
            selections.push(self.shuffled((0..rows).collect()).split_off(rows - count));
        }
        selections
    }

    /// A width that is whole blocks of every format given, and odd where they allow it.
    pub fn width(&mut self, formats: &[Format]) -> usize {
        match formats.iter().map(|f| f.block_values()).max() {
            Some(256) => 256 * self.within(1, 2),
            Some(32) => 32 * self.within(1, 9),
            _ => self.pick(&[1, 5, 16, 31, 33, 64, 65, 100, 127, 130, 192, 259]),
        }
    }

    /// A matrix in `format`: made-up values, or (every other time) blocks of made-up bits.
    pub fn matrix(&mut self, name: &str, shape: [usize; 2], format: Format) -> HostTensor {
        let [rows, cols] = shape;
        let values: Vec<f32> = (0..rows * cols).map(|_| self.value() * 0.3).collect();
        let tensor = HostTensor::encode(name, shape, format, &values).expect("whole blocks");
        if scales(format).is_empty() || self.chance() {
            return tensor;
        }
        let mut data = tensor.data.as_slice().to_vec();
        for block in data.chunks_exact_mut(format.block_bytes()) {
            let kept: Vec<[u8; 2]> = scales(format).iter().map(|at| [block[*at], block[at + 1]]).collect();
            block.iter_mut().for_each(|byte| *byte = self.next() as u8);
            for (at, scale) in scales(format).iter().zip(kept) {
                block[*at..at + 2].copy_from_slice(&scale);
            }
        }
        HostTensor::new(name, shape, format, data.into()).expect("the same size")
    }
}

/// Where the f16 scales of a block lie: all other bits are free.
fn scales(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8E4M3 => &[],
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl | Format::Iq4Xs => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
    }
}
