//! Which way new flows take through the node: as the user said, or by what netfilter has to say to packets that are routed.

use super::actor::Actor;
use splitter_datapath::{Firewall, Hooked};
use splitter_policy::model::Way;

/// What is known of the way.
#[derive(Default)]
pub(super) struct Course {
    firewall: Firewall,
    /// `stack` or `redirect`, and why.
    pub(super) now: &'static str,
    pub(super) reason: String,
}

/// Chains that are named one by one.
const NAMED: usize = 3;

impl Actor {
    /// Looks at the firewall, and turns new flows to the way that it asks for. Flows keep theirs.
    pub(super) fn follow_firewall(&mut self) {
        let (stack, reason) = match self.settings.path {
            Way::Auto => by_firewall(self.course.firewall.look()),
            said => (said == Way::Stack, format!("--path {}", said.name())),
        };
        if (stack == (self.course.now == Way::Stack.name())) && reason == self.course.reason {
            return;
        }
        self.course.now = if stack { Way::Stack.name() } else { Way::Redirect.name() };
        tracing::info!(path = self.course.now, "new flows, where their service does not say otherwise: {reason}");
        self.course.reason = reason;
        if self.reconciler.set_stack(stack) && !self.reconciler.is_unsure() {
            self.apply_soon(false);
        }
    }
}

/// Whether new flows go through the stack, and why. What cannot be read may hold something back.
fn by_firewall(found: std::io::Result<Vec<Hooked>>) -> (bool, String) {
    match found {
        Ok(found) if found.is_empty() => (false, "no rules of netfilter for packets that are routed".into()),
        Ok(found) => {
            let more = if found.len() > NAMED { format!(" and {} more", found.len() - NAMED) } else { String::new() };
            let named: Vec<String> = found.iter().take(NAMED).map(described).collect();
            (true, format!("{}{more} look at packets that are routed", named.join(", ")))
        }
        Err(error) => (true, format!("rules of netfilter cannot be read: {error}")),
    }
}

/// Without numbers that change while the way does not.
fn described(hooked: &Hooked) -> String {
    if hooked.drops { format!("{} (policy drop)", hooked.name) } else { hooked.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_turn_flows_to_the_stack() {
        let hooked = |name: &str, drops| Hooked { name: name.into(), rules: 1, drops };
        assert!(!by_firewall(Ok(Vec::new())).0);
        let (stack, why) = by_firewall(Ok(vec![hooked("nft inet filter forward", true), hooked("iptables-legacy nat", false)]));
        assert!(stack);
        assert_eq!(why, "nft inet filter forward (policy drop), iptables-legacy nat look at packets that are routed");
        let many = (0..5).map(|i| hooked(&format!("c{i}"), false)).collect();
        assert_eq!(by_firewall(Ok(many)).1, "c0, c1, c2 and 2 more look at packets that are routed");
        assert!(by_firewall(Err(std::io::ErrorKind::PermissionDenied.into())).0);
    }
}
