//! `splitter weight`: sets weights through the agent and shows before and after.

use super::{
    in_format,
    out::{self, Output, Style},
    show,
    table::{Table, count, plain, share},
};
use anyhow::{Result, bail};
use splitter_api::{WeightChange, WeightRequest, client::Client};
use std::collections::BTreeMap;

pub async fn run(client: &Client, service: &str, weights: Vec<(String, u32)>, dry_run: bool, output: Output) -> Result<()> {
    let mut request = WeightRequest { weights: BTreeMap::new(), dry_run };
    for (version, weight) in weights {
        if request.weights.insert(version.clone(), weight).is_some() {
            bail!("version {version} is named twice: give it one weight");
        }
    }
    let change = in_format(client, output).set_weights(service, &request).await?;
    show(output, &change, |change| text(change, out::colour()))
}

fn text(change: &WeightChange, colour: bool) -> String {
    let total = |weights: &BTreeMap<String, u32>| weights.values().map(|w| f64::from(*w)).sum::<f64>();
    let (before, after) = (total(&change.before), total(&change.after));
    let ratio = |weight: u32, total: f64| if total > 0.0 { f64::from(weight) / total } else { 0.0 };
    let mut table = Table::new(&["<VERSION", ">BEFORE", ">", "<", ">AFTER", ">"]);
    for (version, weight) in &change.after {
        let old = change.before.get(version).copied().unwrap_or(0);
        let style = if old == *weight { Style::Plain } else { Style::Bold };
        table.row([
            (version.clone(), style),
            plain(old.to_string()),
            plain(share(Some(ratio(old, before)))),
            plain("->"),
            (weight.to_string(), style),
            (share(Some(ratio(*weight, after))), style),
        ]);
    }
    let mut text = format!("{}\n{}", Style::Bold.paint(&change.service, colour), table.render(colour));
    if change.applied {
        text += &format!("applied as generation {} in {:.0} us", change.generation, change.write_us);
    } else {
        text += "dry run: nothing was changed";
    }
    if change.flows_to_end > 0 {
        text += &format!("; onWeightChange ends {} live flows", count(change.flows_to_end));
    }
    if after == 0.0 {
        text += "\nevery weight is 0: new connections are refused";
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_and_after_stand_side_by_side() {
        let weights = |v1, v2| BTreeMap::from([("v1".to_owned(), v1), ("v2".to_owned(), v2)]);
        let change = WeightChange {
            service: "checkout".into(),
            before: weights(95, 5),
            after: weights(50, 50),
            applied: true,
            generation: 8,
            write_us: 12.4,
            flows_to_end: 0,
        };
        assert_eq!(
            text(&change, false),
            "checkout\n\
             VERSION  BEFORE           AFTER\n\
             v1           95  95%  ->     50  50%\n\
             v2            5   5%  ->     50  50%\n\
             applied as generation 8 in 12 us\n"
        );
        let dry = WeightChange { applied: false, after: weights(0, 0), flows_to_end: 1234, ..change };
        let text = text(&dry, false);
        assert!(text.contains("dry run: nothing was changed; onWeightChange ends 1,234 live flows\nevery weight is 0"), "{text}");
    }
}
