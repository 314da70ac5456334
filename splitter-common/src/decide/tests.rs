use super::*;
use crate::abi::{Service, TCP, mapped};
use proptest::prelude::*;

fn service(weights: &[u32]) -> Service {
    let mut service = Service { salt: salt(b"checkout"), version_count: weights.len() as u8, ..Default::default() };
    let ends = intervals(weights).unwrap_or_default();
    for (slot, end) in service.versions.iter_mut().zip(ends).take(weights.len()) {
        slot.end = end;
    }
    service
}

fn key(i: u32) -> u64 {
    connection_key(&mapped((0x0a01_0000 + i / 50_000).to_be_bytes()), (i % 50_000) as u16, &mapped([10, 9, 9, 9]), 80, TCP)
}

fn version(service: &Service, key: u64) -> Option<usize> {
    pick(service, bucket(service.salt, key))
}

/// Pearson's chi-square over a million real keys; the bound is the 99.99% quantile for the degrees of freedom.
#[test]
fn shares_are_exact() {
    for (weights, bound) in [(&[9_999u32, 1][..], 15.14), (&[95, 5], 15.14), (&[50, 50], 15.14), (&[70, 20, 10], 18.42)] {
        let service = service(weights);
        let (keys, total) = (1_000_000u32, weights.iter().sum::<u32>());
        let mut seen = vec![0u32; weights.len()];
        for i in 0..keys {
            seen[version(&service, key(i)).expect("a version has weight")] += 1;
        }
        let chi: f64 = (seen.iter().zip(weights))
            .map(|(seen, weight)| {
                let expected = f64::from(keys) * f64::from(*weight) / f64::from(total);
                (f64::from(*seen) - expected).powi(2) / expected
            })
            .sum();
        assert!(chi < bound, "{weights:?}: {seen:?}, chi-square {chi:.1}");
    }
}

#[test]
fn the_answer_is_a_contract() {
    // Golden values: another value here moves users on every node.
    let salt = salt(b"checkout");
    let client = mapped([192, 0, 2, 7]);
    let connection = connection_key(&client, 40_000, &mapped([10, 9, 9, 9]), 80, TCP);
    let got = (salt, bucket(salt, client_key(&client)), bucket(salt, connection), backend_hash(salt, connection, 0));
    assert_eq!(got, (515_878_789_929_431_076, 1_597_711_207, 1_679_248_055, 196_255_120));
}

#[test]
fn all_zero_means_nobody() {
    assert_eq!(intervals(&[0, 0]), None);
    assert_eq!(pick(&service(&[0, 0]), 0), None);
}

proptest! {
    #[test]
    fn zero_weight_owns_nothing(before in 0u32..1000, after in 1u32..1000, i: u32) {
        let service = service(&[before, 0, after]);
        prop_assert_ne!(version(&service, key(i)), Some(1));
    }

    #[test]
    fn every_bucket_has_an_owner(weights in prop::collection::vec(0u32..=u32::MAX, 1..=8), bucket: u32) {
        prop_assume!(weights.iter().any(|w| *w > 0));
        let service = service(&weights);
        for bucket in [0, bucket, u32::MAX] {
            let owner = pick(&service, bucket);
            prop_assert!(owner.is_some_and(|i| weights[i] > 0));
        }
    }

    #[test]
    fn a_growing_canary_keeps_its_users(old in 0u32..=100, grow in 0u32..=100, canary_first: bool, i: u32) {
        let new = (old + grow).min(100);
        let weights = |canary: u32| if canary_first { [canary, 100 - canary] } else { [100 - canary, canary] };
        let (small, large) = (service(&weights(old)), service(&weights(new)));
        let canary = Some(usize::from(!canary_first));
        if version(&small, key(i)) == canary {
            prop_assert_eq!(version(&large, key(i)), canary);
        }
    }

    #[test]
    fn one_of_three_may_grow(weights in prop::array::uniform3(1u32..1000), which in 0usize..3, grow in 1u32..1000, i: u32) {
        let mut larger = weights;
        larger[which] += grow;
        let (small, large) = (service(&weights), service(&larger));
        if version(&small, key(i)) == Some(which) {
            prop_assert_eq!(version(&large, key(i)), Some(which));
        }
    }
}
