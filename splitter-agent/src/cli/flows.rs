//! `splitter flows`: the live flows.

use super::{
    check::plural,
    out::{self, Output, Style},
    show,
    table::{Table, age, plain},
};
use crate::{admin::client::Client, observed::FlowRow};
use anyhow::Result;

pub async fn run(client: &Client, service: Option<&str>, output: Output) -> Result<()> {
    let flows = client.flows(service).await?;
    show(output, &flows, |flows| text(flows, out::colour()))
}

fn text(flows: &[FlowRow], colour: bool) -> String {
    if flows.is_empty() {
        return "no live flows\n".to_owned();
    }
    let mut table = Table::new(&["<SERVICE", "<VERSION", "<PROTO", "<CLIENT", "<FRONTEND", "<BACKEND", "<STATE", ">IDLE", "<SNAT"]);
    for flow in flows {
        let state = match flow.state.as_str() {
            "established" | "replied" => Style::Green,
            "half-open" | "unreplied" | "gathering" | "opening" => Style::Yellow,
            _ => Style::Plain,
        };
        table.row([
            (flow.service.clone(), Style::Bold),
            plain(&flow.version),
            plain(&flow.protocol),
            plain(&flow.client),
            plain(&flow.frontend),
            plain(&flow.backend),
            (if flow.pinned { format!("{}, pinned", flow.state) } else { flow.state.clone() }, state),
            plain(age(flow.idle)),
            plain(flow.snat.clone().unwrap_or_default()),
        ]);
    }
    table.render(colour) + &plural(flows.len(), "flow") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_total() {
        let flow =
            FlowRow { service: "checkout".into(), version: "v1".into(), state: "established".into(), idle: 75.0, ..FlowRow::default() };
        let text = text(&[flow], false);
        assert!(text.contains("checkout  v1") && text.contains("1m15s") && text.ends_with("1 flow\n"), "{text}");
        assert_eq!(super::text(&[], false), "no live flows\n");
        let pinned = FlowRow { state: "established".into(), pinned: true, ..FlowRow::default() };
        assert!(super::text(&[pinned], false).contains("established, pinned"));
    }
}
