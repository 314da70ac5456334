//! `splitter flows`: the live flows.

use super::{
    args::Flows,
    check::plural,
    in_format,
    out::{self, Style},
    show,
    table::{Table, age, plain},
};
use anyhow::Result;
use splitter_api::{FlowQuery, FlowRow, client::Client};

pub async fn run(client: &Client, flows: Flows) -> Result<()> {
    let (output, query) = flows.request();
    let flows = in_format(client, output).flows(&query).await?;
    show(output, &flows, |flows| text(flows, &query, out::colour()))
}

fn text(flows: &[FlowRow], query: &FlowQuery, colour: bool) -> String {
    if flows.is_empty() {
        let filtered = *query != FlowQuery { sort: query.sort, limit: query.limit, ..FlowQuery::default() };
        return if filtered { "no live flow is like that\n" } else { "no live flows\n" }.to_owned();
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
    let total = plural(flows.len(), "flow");
    let more = if query.limit == Some(flows.len()) { ", no more than --limit asks for" } else { "" };
    format!("{}{total}{more}\n", table.render(colour))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_total() {
        let flow =
            FlowRow { service: "checkout".into(), version: "v1".into(), state: "established".into(), idle: 75.0, ..FlowRow::default() };
        let query = FlowQuery::default();
        let text = text(&[flow], &query, false);
        assert!(text.contains("checkout  v1") && text.contains("1m15s") && text.ends_with("1 flow\n"), "{text}");
        assert_eq!(super::text(&[], &query, false), "no live flows\n");
        let filtered = FlowQuery { version: Some("v2".into()), limit: Some(1), ..FlowQuery::default() };
        assert_eq!(super::text(&[], &filtered, false), "no live flow is like that\n");
        assert!(super::text(&[FlowRow::default()], &filtered, false).ends_with("1 flow, no more than --limit asks for\n"));
        let pinned = FlowRow { state: "established".into(), pinned: true, ..FlowRow::default() };
        assert!(super::text(&[pinned], &query, false).contains("established, pinned"));
    }
}
