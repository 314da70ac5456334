//! Requests a second of each version, from counters looked at every few seconds. Pure; time is given.

use std::{collections::HashMap, sync::Arc};

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    last: Option<(f64, Arc<HashMap<u32, u64>>)>,
    rates: Arc<HashMap<u32, f64>>,
}

impl Rates {
    /// Notes the totals of versions (by number) at `now`, seconds of any clock that does not go back.
    pub fn note(&mut self, now: f64, totals: HashMap<u32, u64>) {
        if let Some((then, before)) = &self.last {
            let elapsed = now - then;
            if elapsed <= 0.0 {
                return;
            }
            // A total that fell belongs to a number that was given to another version.
            let rate = |(version, total): (&u32, &u64)| {
                let grown = total.checked_sub(*before.get(version)?)?;
                Some((*version, grown as f64 / elapsed))
            };
            self.rates = Arc::new(totals.iter().filter_map(rate).collect());
        }
        self.last = Some((now, Arc::new(totals)));
    }

    /// `None` before the second look.
    pub fn of(&self, version: u32) -> Option<f64> {
        self.rates.get(&version).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_looks_make_a_rate() {
        let mut rates = Rates::default();
        rates.note(10.0, HashMap::from([(1, 100), (2, 50)]));
        assert_eq!(rates.of(1), None);
        rates.note(15.0, HashMap::from([(1, 600), (2, 0), (3, 7)]));
        assert_eq!((rates.of(1), rates.of(2), rates.of(3)), (Some(100.0), None, None));
        rates.note(15.0, HashMap::from([(1, 700)]));
        assert_eq!(rates.of(1), Some(100.0), "no time has gone by");
        rates.note(16.0, HashMap::from([(1, 600)]));
        assert_eq!(rates.of(1), Some(0.0));
    }
}
