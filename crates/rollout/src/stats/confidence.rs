//! Bounds on a rate that hold at all looks together: a confidence sequence.
//!
//! The likelihood of x events among n, mixed over a Beta(1/2, 1/2) prior and divided by the likelihood at p, is a martingale when p is the truth
//! (Robbins 1970; Howard et al., arXiv 1810.08240, section 4): the p for which it stays below 1/a hold the truth at all times with probability
//! 1 - a. The rate is taken as constant since counting began (one step of a rollout); where it moves, the bound is about its mean.

/// The rate is below this, at all looks together, but for probability `alpha`. 1 without trials.
pub fn upper(events: f64, trials: f64, alpha: f64) -> f64 {
    if trials <= 0.0 { 1.0 } else { search(events, trials, alpha, 1.0) }
}

/// The same from below.
pub fn lower(events: f64, trials: f64, alpha: f64) -> f64 {
    if trials <= 0.0 { 0.0 } else { search(events, trials, alpha, 0.0) }
}

/// Bisection between the estimate and an end of the interval.
fn search(events: f64, trials: f64, alpha: f64, end: f64) -> f64 {
    let mixture = ln_beta(events + 0.5, trials - events + 0.5) - ln_beta(0.5, 0.5) + alpha.ln();
    let rejected = |p: f64| mixture > log(events, p) + log(trials - events, 1.0 - p);
    let (mut inside, mut outside) = (events / trials, end);
    if !rejected(outside) {
        return outside;
    }
    for _ in 0..40 {
        let middle = inside.midpoint(outside);
        if rejected(middle) { outside = middle } else { inside = middle }
    }
    outside
}

/// `count * ln p`, 0 for no events.
fn log(count: f64, p: f64) -> f64 {
    if count > 0.0 { count * p.ln() } else { 0.0 }
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// Stirling's series (Abramowitz and Stegun 6.1.41) after moving the argument above 8; relative error below 1e-10 for x >= 1/2.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 8.0 {
        shift += x.ln();
        x += 1.0;
    }
    let (i, i2) = (1.0 / x, 1.0 / (x * x));
    let series = i * (1.0 / 12.0 - i2 * (1.0 / 360.0 - i2 * (1.0 / 1260.0 - i2 / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_of_known_values() {
        for (x, expected) in [(0.5, 0.572_364_942_924_7), (1.0, 0.0), (5.0, 3.178_053_830_347_9), (101.0, 363.739_375_555_563_5)] {
            assert!((ln_gamma(x) - expected).abs() < 1e-9, "{x}: {}", ln_gamma(x));
        }
    }

    #[test]
    fn bounds_hold_the_estimate_and_close_in() {
        let mut width = 1.1;
        for n in [1.0, 10.0, 100.0, 1e4, 1e6] {
            let (low, high) = (lower(n * 0.1, n, 0.01), upper(n * 0.1, n, 0.01));
            assert!(low <= 0.1 && 0.1 <= high && high - low < width, "{n}: {low}..{high}");
            width = high - low;
        }
        assert!(width < 0.004);
        assert_eq!((upper(0.0, 0.0, 0.01), lower(0.0, 0.0, 0.01)), (1.0, 0.0));
        // No event among 700 shows, at 1%, a rate below about 1.2%.
        assert!((0.008..0.014).contains(&upper(0.0, 700.0, 0.01)), "{}", upper(0.0, 700.0, 0.01));
        assert_eq!(upper(5.0, 5.0, 0.01), 1.0);
    }
}
