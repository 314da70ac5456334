//! Whether observed shares agree with asked ones, and what a run cost in CPU time.

use anyhow::{Context, Result};

/// Two-sided 99.99% quantile of the normal distribution.
const Z_9999: f64 = 3.8906;

/// The range of counts that `n` independent draws with probability `p` leave in fewer than one of 10,000 runs. Wilson-like: the normal
/// approximation with a continuity correction of one, exact at p = 0 and p = 1, where nothing but 0 and n is allowed.
pub fn binomial_bound(n: u64, p: f64) -> (u64, u64) {
    if p <= 0.0 {
        return (0, 0);
    }
    if p >= 1.0 {
        return (n, n);
    }
    let (mean, spread) = (n as f64 * p, (n as f64 * p * (1.0 - p)).sqrt());
    // The Poisson-like tail of small means is fatter than the normal one: the second-order Cornish-Fisher term widens the upper side.
    let skew = (1.0 - 2.0 * p) * (Z_9999 * Z_9999 - 1.0) / 6.0;
    let low = (mean - Z_9999 * spread + skew.min(0.0) - 1.0).floor().max(0.0);
    let high = (mean + Z_9999 * spread + skew.max(0.0) + 1.0).ceil().min(n as f64);
    (low as u64, high as u64)
}

/// Whether `hits` of `n` are a plausible result of probability `p` (99.99%).
pub fn plausible(hits: u64, n: u64, p: f64) -> bool {
    let (low, high) = binomial_bound(n, p);
    (low..=high).contains(&hits)
}

/// Pearson's statistic of observed counts against expected shares (which sum to 1). Infinite when something came that has no share.
pub fn chi_square(observed: &[u64], shares: &[f64]) -> f64 {
    let n = observed.iter().sum::<u64>() as f64;
    let term = |(count, share): (&u64, &f64)| match (*count as f64, n * share) {
        (count, expected) if expected > 0.0 => (count - expected).powi(2) / expected,
        (0.0, _) => 0.0,
        _ => f64::INFINITY,
    };
    observed.iter().zip(shares).map(term).sum()
}

/// The value that chi-square with `degrees` (at least one) of freedom exceeds once in 10,000: exact for one and two, Wilson-Hilferty (within 4%)
/// from three on.
pub fn chi_square_limit(degrees: u32) -> f64 {
    const Z: f64 = 3.7190;
    match degrees {
        0 | 1 => Z_9999 * Z_9999,
        2 => -2.0 * 1e-4f64.ln(),
        _ => {
            let k = f64::from(degrees);
            let a = 2.0 / (9.0 * k);
            k * (1.0 - a + Z * a.sqrt()).powi(3)
        }
    }
}

/// Seconds that all CPUs have spent outside idle and iowait, from the text of /proc/stat.
pub fn busy_seconds(proc_stat: &str) -> Result<f64> {
    let line = proc_stat.lines().find(|line| line.starts_with("cpu ")).context("/proc/stat has no cpu line")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>().context("/proc/stat is not numbers")?;
    // user nice system [idle iowait] irq softirq steal; guest time is within user.
    let busy: u64 = ticks.iter().enumerate().filter(|(i, _)| ![3, 4, 8, 9].contains(i)).map(|(_, ticks)| ticks).sum();
    // SAFETY: no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(busy as f64 / per_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_the_mean_and_refuse_the_far() {
        let (low, high) = binomial_bound(10_000, 0.05);
        assert!((405..=420).contains(&low) && (580..=595).contains(&high), "{low}..{high}");
        assert!(plausible(500, 10_000, 0.05) && !plausible(700, 10_000, 0.05) && !plausible(300, 10_000, 0.05));
    }

    #[test]
    fn certainty_is_exact() {
        assert!(plausible(0, 1000, 0.0) && !plausible(1, 1000, 0.0));
        assert!(plausible(1000, 1000, 1.0) && !plausible(999, 1000, 1.0));
    }

    /// Exact tail sums of the binomial distribution, by recurrence, against the bound.
    #[test]
    fn the_bound_is_at_least_9999_per_10000() {
        for (n, p) in [(50u64, 0.05f64), (200, 0.05), (200, 0.5), (1000, 0.01), (5000, 0.0005), (3000, 0.95)] {
            let (low, high) = binomial_bound(n, p);
            let mut log_mass = n as f64 * (1.0 - p).ln();
            let mut inside = 0.0;
            for k in 0..=n {
                if (low..=high).contains(&k) {
                    inside += log_mass.exp();
                }
                log_mass += ((n - k) as f64 / (k + 1) as f64 * p / (1.0 - p)).ln();
            }
            assert!(inside >= 0.9999, "n {n} p {p}: {low}..{high} holds {inside}");
        }
    }

    #[test]
    fn chi_square_by_hand() {
        assert!((chi_square(&[44, 56], &[0.5, 0.5]) - 1.44).abs() < 1e-9);
        assert_eq!(chi_square(&[10, 0], &[1.0, 0.0]), 0.0);
        assert_eq!(chi_square(&[10, 1], &[1.0, 0.0]), f64::INFINITY);
        for (degrees, table) in [(1, 15.137), (2, 18.421), (3, 21.108), (10, 35.564)] {
            let limit = chi_square_limit(degrees);
            assert!((limit - table).abs() / table < 0.04, "{degrees}: {limit}");
        }
    }

    #[test]
    fn busy_time_leaves_out_idle() {
        // SAFETY: no pointers.
        let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        assert_eq!(busy_seconds("cpu  100 0 50 900 30 0 25 25 7 0\ncpu0 1 2\n").unwrap(), 200.0 / hz);
        assert!(busy_seconds("intr 0\n").is_err());
    }
}
