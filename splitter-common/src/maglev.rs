//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4): which backend of a version serves a key.

/// Sizes a table can have: primes, each at least a hundred times the backends it serves, so that no backend gets 1% more than another.
#[cfg(any(test, feature = "std"))]
const SIZES: [(usize, u32); 4] = [(5, 509), (40, 4_093), (160, 16_381), (usize::MAX, 65_521)];

/// Entries of the table for a number of backends. 0: nobody; 1: no table needed.
#[cfg(any(test, feature = "std"))]
pub fn table_size(backends: usize) -> u32 {
    match backends {
        0 => 0,
        1 => 1,
        n => SIZES.iter().find(|(most, _)| n <= *most).map_or(65_521, |(_, size)| *size),
    }
}

/// Slot of a hash in a table of `size` entries, without bias.
#[inline(always)]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

/// Builds a table of `size` (prime) entries: positions into `identities`. An identity is a stable 64-bit hash of the backend's endpoint,
/// so that every node builds the same table whatever ids it gave. Backends must be in the same order everywhere (sort by identity).
#[cfg(any(test, feature = "std"))]
pub fn build(identities: &[u64], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let m = u64::from(size);
    if identities.is_empty() || size == 0 {
        return Vec::new();
    }
    let mut next: Vec<(u64, u64)> = identities.iter().map(|id| (id % m, (id >> 32) % (m.saturating_sub(1).max(1)) + 1)).collect();
    let mut table = vec![FREE; size as usize];
    let mut left = size;
    loop {
        for (backend, (offset, skip)) in next.iter_mut().enumerate() {
            while table[*offset as usize] != FREE {
                // Less than twice `m`: cheaper than a division.
                *offset += *skip;
                *offset -= if *offset >= m { m } else { 0 };
            }
            table[*offset as usize] = backend as u32;
            left -= 1;
            if left == 0 {
                return table;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identities(n: u64) -> Vec<u64> {
        (1..=n).map(|i| crate::decide::salt(&i.to_le_bytes())).collect()
    }

    #[test]
    fn backends_get_equal_shares() {
        for n in [2u64, 3, 5, 10, 40, 100] {
            let size = table_size(n as usize);
            let table = build(&identities(n), size);
            let mut seen = vec![0u32; n as usize];
            table.iter().for_each(|b| seen[*b as usize] += 1);
            let (least, most) = (seen.iter().min(), seen.iter().max());
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1 + size / 100), "{n}: {seen:?}");
        }
    }

    /// Removing one of n backends moves its share (1/n) and, by Maglev's design, little else: at most 5% more here.
    #[test]
    fn disruption_is_minimal() {
        for n in [3u64, 10, 30] {
            let (all, size) = (identities(n), table_size(n as usize));
            let less: Vec<u64> = all[1..].to_vec();
            let (before, after) = (build(&all, size), build(&less, size));
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != 0 && all[**b as usize] != less[**a as usize]).count();
            assert!(moved as f64 / f64::from(size) < 0.05, "{n} backends: {moved} of {size} slots moved needlessly");
        }
    }

    #[test]
    fn slots_stay_in_the_table() {
        assert_eq!(slot(0, 509), 0);
        assert_eq!(slot(u32::MAX, 509), 508);
    }
}
