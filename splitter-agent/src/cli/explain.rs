//! `splitter explain`: which version a client gets, and why.

use super::{
    args::Explain,
    in_format,
    out::{self, Style},
    show,
    table::share,
};
use anyhow::Result;
use splitter_api::{Explanation, client::Client};

pub async fn run(client: &Client, explain: Explain) -> Result<()> {
    let (output, request) = explain.request();
    let explanation = in_format(client, output).explain(&request).await?;
    show(output, &explanation, |explanation| text(explanation, out::colour()))
}

fn text(explanation: &Explanation, colour: bool) -> String {
    let version = match (&explanation.version, explanation.decided_by.as_str()) {
        (Some(version), _) => Style::Green.paint(version, colour),
        (None, "undecided") => Style::Yellow.paint("depends", colour),
        (None, _) => Style::Red.paint("none", colour),
    };
    let mut lines =
        vec![("service", Style::Bold.paint(&explanation.service, colour)), ("version", version), ("because", explanation.reason.clone())];
    let at = explanation.rule_origin.as_ref().map(|origin| format!(", at {origin}")).unwrap_or_default();
    lines.extend(explanation.rule.clone().map(|rule| ("rule", rule + &at)));
    lines.extend(explanation.backend.clone().map(|backend| ("backend", backend)));
    lines.extend(explanation.bucket.map(|bucket| {
        let position = f64::from(bucket) / (u64::from(u32::MAX) + 1) as f64;
        ("bucket", format!("{bucket} of 2^32 (at {})", share(Some(position))))
    }));
    let shares: Vec<_> = explanation.shares.iter().map(|(version, ratio)| format!("{version} {}", share(Some(*ratio)))).collect();
    if !shares.is_empty() {
        lines.push(("shares", shares.join(", ")));
    }
    lines.iter().map(|(title, value)| format!("{}{value}\n", Style::Dim.paint(&format!("{title:<9}"), colour))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_and_why() {
        let explanation = Explanation {
            service: "checkout".into(),
            version: Some("v2".into()),
            backend: Some("10.2.2.2:8080".into()),
            decided_by: "weight".into(),
            reason: "the key 10.1.7.3 falls into v2's interval".into(),
            rule: None,
            rule_origin: None,
            bucket: Some(1 << 31),
            shares: [("v1".to_owned(), 0.95), ("v2".to_owned(), 0.05)].into(),
        };
        assert_eq!(
            text(&explanation, false),
            "service  checkout\nversion  v2\nbecause  the key 10.1.7.3 falls into v2's interval\nbackend  10.2.2.2:8080\n\
             bucket   2147483648 of 2^32 (at 50%)\nshares   v1 95%, v2 5%\n"
        );
    }
}
