//! Keys of the cookies that clients of http services get. The kernel uses two in turn, by its clock; the one that is not in use is replaced here, once in
//! nine minutes. While no agent runs both stay good, and nothing fails.

use super::{CONFIG, Datapath, DatapathError, load};
use splitter_common::abi::{COOKIE_EPOCH, COOKIE_STEP, Config, cookie_key_to_replace};

impl Datapath {
    /// Replaces the key that is not in use, once in an epoch and when no cookie of it is good. `now`: CLOCK_MONOTONIC, nanoseconds. Whether it did.
    pub fn turn_cookie_key(&mut self, now: u64) -> Result<bool, DatapathError> {
        let Some(new) = turned(&self.config, now, self.cookies_turned, load::secret)? else { return Ok(false) };
        CONFIG.put_one(&mut self.tables, 0, new)?;
        (self.config, self.cookies_turned) = (new, Some(epoch(now)));
        Ok(true)
    }
}

const fn epoch(now: u64) -> u64 {
    now >> (COOKIE_STEP + COOKIE_EPOCH)
}

/// The configuration with a new key from `draw`, if one is due. `last`: the epoch in which this agent did it last.
fn turned<E>(config: &Config, now: u64, last: Option<u64>, draw: impl FnOnce() -> Result<[u64; 2], E>) -> Result<Option<Config>, E> {
    let Some(slot) = cookie_key_to_replace(now).filter(|_| last != Some(epoch(now))) else { return Ok(None) };
    let mut cookies = config.cookies;
    let [first, second] = &mut cookies;
    *if slot == 0 { first } else { second } = draw()?;
    Ok(Some(Config { cookies, ..*config }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_common::abi::{ABI_VERSION, cookie_epoch};

    /// Over two hours, looked at every five seconds: never the key in use, nor one whose cookies may be good, and each of them once in two epochs.
    #[test]
    fn the_key_that_nobody_needs_is_replaced_once_in_an_epoch() {
        const SECOND: u64 = 1_000_000_000;
        let mut config = Config {
            abi_version: ABI_VERSION,
            suspect_ticks: 1,
            snat_port_first: 1,
            snat_port_count: 1,
            max_flows: 1,
            secret: [1, 2],
            cookies: [[3, 4], [5, 6]],
            xdp_ports: [7; 256],
        };
        let (mut last, mut drawn) = (None, 100);
        let (begin, end) = (1_000 * SECOND, 8_200 * SECOND);
        for now in (begin..end).step_by(5 * SECOND as usize) {
            let new = turned::<()>(&config, now, last, || {
                drawn += 1;
                Ok([drawn, drawn])
            });
            let Ok(Some(new)) = new else { continue };
            for counter in [now >> COOKIE_STEP, (now >> COOKIE_STEP) - 1, (now >> COOKIE_STEP) + 1] {
                let used = cookie_epoch(counter as u32) as usize;
                assert_eq!(new.cookies[used], config.cookies[used], "at {now}");
            }
            assert_eq!(Config { cookies: config.cookies, ..new }, config, "and nothing else");
            (config, last) = (new, Some(epoch(now)));
        }
        let epochs = (end - begin) / (1 << (COOKIE_STEP + COOKIE_EPOCH));
        assert!((epochs - 1..=epochs + 1).contains(&(drawn - 100)), "{drawn} in {epochs}");
        // An error changes nothing, and it is tried again.
        let now = 2u64 << COOKIE_STEP;
        assert_eq!(turned(&config, now, None, || Err("no entropy")), Err("no entropy"));
        assert_eq!(turned::<()>(&config, now, Some(0), || Ok([0, 0])), Ok(None));
    }
}
