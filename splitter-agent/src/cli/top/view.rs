//! Draws what `top` knows: the list of services, the page of one, the help. Changes nothing.

use super::{
    detail,
    rows::{Column, Row, ServiceRow},
    state::{Page, Top},
};
use crate::cli::table::{bytes, count, seconds, share, since};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph},
};

/// A column of the list.
struct Field {
    title: &'static str,
    width: usize,
    /// Narrow terminals show those with a low number.
    rank: u8,
    /// What it sorts by, and the letter of its title that does so.
    sort: Option<(Column, char)>,
    cell: fn(&ServiceRow, &Row) -> (String, Style),
}

/// Narrowest column of services.
const SERVICE: usize = 14;
/// Widest one, where there is room.
const WIDE_SERVICE: usize = 40;
const VERSION: usize = 9;

const fn sorted(column: Column, letter: char) -> Option<(Column, char)> {
    Some((column, letter))
}

/// In the order of the screen, behind service and version.
const FIELDS: [Field; 13] = [
    Field { title: "ASKED", width: 6, rank: 0, sort: None, cell: |_, row| plain(share(Some(row.asked))) },
    Field { title: "ACHIEVED", width: 9, rank: 0, sort: sorted(Column::Achieved, 'h'), cell: |_, row| achieved(row) },
    Field { title: "RATE/s", width: 8, rank: 0, sort: sorted(Column::Rate, 't'), cell: |_, row| plain(number(row.rate)) },
    Field { title: "SUCCESS", width: 8, rank: 0, sort: sorted(Column::Success, 'u'), cell: |_, row| success(row) },
    Field { title: "FAILED/s", width: 9, rank: 2, sort: sorted(Column::Failed, 'd'), cell: |_, row| failed(row) },
    Field { title: "FLOWS", width: 8, rank: 0, sort: sorted(Column::Flows, 'f'), cell: |_, row| plain(count(row.flows)) },
    Field { title: "P50", width: 9, rank: 2, sort: sorted(Column::P50, '5'), cell: |_, row| plain(seconds(row.p50)) },
    Field { title: "P99", width: 9, rank: 0, sort: sorted(Column::P99, '9'), cell: |_, row| plain(seconds(row.p99)) },
    Field { title: "CONNECT", width: 9, rank: 3, sort: sorted(Column::Connect, 'c'), cell: |_, row| plain(seconds(row.connect)) },
    Field { title: "IN/s", width: 10, rank: 4, sort: sorted(Column::In, 'i'), cell: |_, row| plain(amount(row.bytes_in)) },
    Field { title: "OUT/s", width: 10, rank: 4, sort: sorted(Column::Out, 'o'), cell: |_, row| plain(amount(row.bytes_out)) },
    Field { title: "READY", width: 7, rank: 1, sort: sorted(Column::Ready, 'a'), cell: |_, row| ready(row) },
    Field { title: "ROLLOUT", width: 17, rank: 1, sort: sorted(Column::Rollout, 'l'), cell: |service, row| rollout(service, row) },
];

/// What a letter sorts by.
pub fn column_of(letter: char) -> Option<Column> {
    let fields = FIELDS.iter().filter_map(|field| field.sort);
    fields.chain([(Column::Service, 'v')]).find(|(_, of)| *of == letter).map(|(column, _)| column)
}

fn plain(text: String) -> (String, Style) {
    (text, Style::new())
}

pub fn number(rate: Option<f64>) -> String {
    rate.map_or("-".into(), |rate| if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { count(rate.round() as u64) })
}

fn amount(rate: Option<f64>) -> String {
    rate.map_or("-".into(), bytes)
}

pub fn achieved(row: &Row) -> (String, Style) {
    let style = match row.achieved {
        None => Style::new().dim(),
        Some(_) if row.deviates => Style::new().yellow(),
        Some(_) => Style::new().green(),
    };
    (share(row.achieved), style)
}

/// Rounded down: 99.999% is not 100%.
pub fn success(row: &Row) -> (String, Style) {
    let Some(success) = row.success else { return ("-".into(), Style::new().dim()) };
    let style = match success {
        0.999.. => Style::new().green(),
        0.99.. => Style::new(),
        0.95.. => Style::new().yellow(),
        _ => Style::new().red().bold(),
    };
    (share(Some((success * 1e4).floor() / 1e4)), style)
}

pub fn failed(row: &Row) -> (String, Style) {
    (number(row.failed), if row.failed.is_some_and(|rate| rate > 0.0) { Style::new().red() } else { Style::new() })
}

pub fn ready(row: &Row) -> (String, Style) {
    let style = match row.ready {
        all if all == row.backends => Style::new(),
        0 => Style::new().red().bold(),
        _ => Style::new().yellow(),
    };
    (format!("{}/{}", row.ready, row.backends), style)
}

/// Beside the first version only.
fn rollout(service: &ServiceRow, row: &Row) -> (String, Style) {
    let first = service.versions.first().is_some_and(|first| first.name == row.name);
    match service.rollout.as_ref().filter(|_| first) {
        Some((phase, canary)) => (format!("{phase} {}", share(Some(*canary))), phase_style(phase)),
        None => plain(String::new()),
    }
}

pub fn phase_style(phase: &str) -> Style {
    match phase {
        "promoted" => Style::new().green(),
        "rolled-back" | "aborted" => Style::new().red(),
        "paused" | "waiting" => Style::new().yellow(),
        "running" => Style::new().cyan().bold(),
        _ => Style::new(),
    }
}

/// A text in a column: cut where it is too long, the cut marked.
pub fn fit(text: &str, width: usize, right: bool) -> String {
    let wide = |text: &str| Span::raw(text.to_owned()).width();
    let mut shown = text.to_owned();
    if wide(text) > width {
        while wide(&shown) >= width && shown.pop().is_some() {}
        shown.push('…');
    }
    let pad = " ".repeat(width.saturating_sub(wide(&shown)));
    if right { pad + &shown } else { shown + &pad }
}

/// As [`fit`] for a name: names that differ at their end still do when they are cut.
fn fit_name(name: &str, width: usize) -> String {
    let wide = |text: &str| Span::raw(text.to_owned()).width();
    if wide(name) <= width || width < 8 {
        return fit(name, width, false);
    }
    let (mut head, mut tail) = (name.to_owned(), name.to_owned());
    while wide(&head) > (width - 1) / 2 && head.pop().is_some() {}
    while wide(&tail) > width - 1 - wide(&head) {
        tail.remove(0);
    }
    fit(&format!("{head}…{tail}"), width, false)
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, top: &Top, now: f64, interval: f64) {
    let warnings = top.warnings();
    let rows = [Constraint::Length(2), Constraint::Length(warnings.len() as u16), Constraint::Min(1), Constraint::Length(1)];
    let [head, warned, body, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(self::head(top, now, interval)), head);
    frame.render_widget(Paragraph::new(warnings.into_iter().map(|text| Line::from(text).red().bold()).collect::<Vec<_>>()), warned);
    let lines = match &top.page {
        Page::List => list(top, usize::from(body.width)),
        Page::Service(_) => {
            let title = std::iter::once(Line::default());
            title.chain(detail::lines(top).into_iter().skip(top.scroll)).collect()
        }
    };
    let dim = if top.lost.is_some() { Style::new().dim() } else { Style::new() };
    frame.render_widget(Paragraph::new(lines).style(dim), body);
    frame.render_widget(Paragraph::new(self::foot(top)).style(Style::new().bg(Color::DarkGray).fg(Color::White)), foot);
    if top.help {
        help(frame);
    }
}

fn head(top: &Top, now: f64, interval: f64) -> Vec<Line<'static>> {
    let Some(status) = &top.status else { return vec![Line::from("asking the agent")] };
    let agent = &status.agent;
    let policy = match status.desired.state.as_str() {
        "ok" => Span::from("ok").green(),
        other => Span::from(other.to_owned()).red().bold(),
    };
    let link = if top.lost.is_some() { Span::from("gone").red().bold() } else { Span::from("up").green() };
    let first = Line::from(vec![
        Span::from("splitter ").bold(),
        Span::from(format!("{} ", agent.version)),
        link,
        Span::from(format!(" {}  policy ", since(now, agent.started))),
        policy,
        Span::from(format!(", generation {}  every {interval} s", status.applied.generation)),
    ]);
    let rows = || top.services.iter().flat_map(|service| &service.versions);
    let sum = |of: fn(&Row) -> Option<f64>| rows().filter_map(of).reduce(|a, b| a + b);
    let failed = sum(|row| row.failed);
    let shown = top.visible().len();
    let services =
        if shown == top.services.len() { count(shown as u64) } else { format!("{shown} of {}", count(top.services.len() as u64)) };
    // A table that is nearly empty is no news.
    let fullest = status.tables.iter().filter(|table| table.max_entries > 0 && table.entries * 10 >= table.max_entries);
    let fullest = fullest.max_by_key(|table| table.entries * 1_000 / table.max_entries);
    let fullest = fullest.map(|table| format!("  {} {}% full", table.name, table.entries * 100 / table.max_entries)).unwrap_or_default();
    let second = Line::from(vec![
        Span::from(format!("services {services}  rate {}/s  failed ", number(sum(|row| row.rate)))),
        Span::styled(
            format!("{}/s", number(failed)),
            if failed.is_some_and(|rate| rate > 0.0) { Style::new().red() } else { Style::new() },
        ),
        Span::from(format!("  flows {}{fullest}", count(rows().map(|row| row.flows).sum()))),
    ]);
    vec![first, second]
}

/// The fields that fit, and the width that is left for the service's name.
fn fields(top: &Top, width: usize) -> (Vec<&'static Field>, usize) {
    let mut left = width.saturating_sub(SERVICE + 1 + VERSION);
    let mut chosen = [false; FIELDS.len()];
    for rank in 0..=4 {
        for (at, field) in FIELDS.iter().enumerate().filter(|(_, field)| field.rank == rank) {
            if field.width < left {
                chosen[at] = true;
                left -= field.width + 1;
            }
        }
    }
    let longest = top.services.iter().map(|service| Span::raw(service.name.as_str()).width()).max().unwrap_or(0);
    let name = longest.clamp(SERVICE, WIDE_SERVICE).min(SERVICE + left);
    (FIELDS.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(field, _)| field).collect(), name)
}

fn list(top: &Top, width: usize) -> Vec<Line<'static>> {
    let (fields, name) = fields(top, width);
    let mut lines = vec![titles(top, &fields, name)];
    let visible = top.visible();
    if visible.is_empty() {
        lines.push(Line::from(if top.filter.is_empty() { "no services" } else { "no service matches the filter; Esc clears it" }).dim());
    }
    for (index, service) in visible.into_iter().enumerate().skip(top.first).take(top.body()) {
        let empty = [Row::default()];
        let versions = if service.versions.is_empty() { &empty[..] } else { &service.versions };
        for (at, row) in versions.iter().enumerate() {
            let service_name = if at == 0 { service.name.as_str() } else { "" };
            let mut spans = vec![Span::from(fit_name(service_name, name)).bold(), Span::from(" ")];
            spans.push(Span::from(fit_name(&row.name, VERSION)));
            for field in &fields {
                let (text, style) = (field.cell)(service, row);
                spans.push(Span::from(" "));
                spans.push(Span::styled(fit(&text, field.width, field.title != "ROLLOUT"), style));
            }
            let line = Line::from(spans);
            lines.push(if index == top.selected { line.style(Style::new().add_modifier(Modifier::REVERSED)) } else { line });
        }
    }
    lines
}

fn titles(top: &Top, fields: &[&Field], name: usize) -> Line<'static> {
    let mut spans = title(top, "SERVICE", name, Some((Column::Service, 'v')), false);
    spans.push(Span::from(format!(" {}", fit("VERSION", VERSION, false))));
    for field in fields {
        spans.push(Span::from(" "));
        spans.extend(title(top, field.title, field.width, field.sort, field.title != "ROLLOUT"));
    }
    Line::from(spans).style(Style::new().bold().cyan())
}

/// A title with the letter that sorts by it underlined, and an arrow where it does.
fn title(top: &Top, text: &str, width: usize, sort: Option<(Column, char)>, right: bool) -> Vec<Span<'static>> {
    let arrow = match sort {
        Some((column, _)) if column == top.sort && top.reversed => "▲",
        Some((column, _)) if column == top.sort => "▼",
        _ => "",
    };
    let shown = fit(&format!("{text}{arrow}"), width, right);
    let letter = sort.map(|(_, letter)| letter.to_ascii_uppercase());
    let Some(at) = letter.and_then(|letter| shown.to_uppercase().find(letter)) else { return vec![Span::from(shown)] };
    let (before, rest) = shown.split_at(at);
    let (letter, after) = rest.split_at(1);
    vec![Span::from(before.to_owned()), Span::from(letter.to_owned()).underlined(), Span::from(after.to_owned())]
}

fn foot(top: &Top) -> Line<'static> {
    if top.typing {
        return Line::from(format!(" /{}▏  Enter keeps the filter, Esc clears it", top.filter));
    }
    let filter = if top.filter.is_empty() { String::new() } else { format!("  [/{}]", top.filter) };
    Line::from(match &top.page {
        Page::List => format!(" ↑↓ PgUp PgDn move  Enter open  s sort  r reverse  / filter{filter}  ? help  q quit"),
        Page::Service(_) => {
            let (begin, all) = (top.scroll, top.lines);
            let more =
                if all > top.body() { format!("  lines {}-{} of {all}", begin + 1, (begin + top.body()).min(all)) } else { String::new() };
            format!(" ↑↓ PgUp PgDn scroll  Esc back  ? help  q quit{more}")
        }
    })
}

const HELP: &str = "\
↑ ↓ PgUp PgDn Home End   move (also k j g G)
Enter →                  open a service; Esc ← goes back
/                        show only services whose name contains a text
s S                      sort by the next, the previous column
underlined letter        sort by that column; again: in reverse
r                        reverse the order
q Ctrl-C                 quit

ACHIEVED  share since the weights changed; yellow: beyond chance
RATE/s    requests of http services, connections of others
SUCCESS   of the last 10 to 20 s: without refusals, timeouts, resets
          by the backend, and 5xx responses
P50 P99   time to the first response byte, since the counters began
CONNECT   99th percentile of the backend's handshake
READY     backends that take new connections, of all";

fn help(frame: &mut Frame<'_>) {
    let lines: Vec<Line<'_>> = HELP.lines().map(Line::from).collect();
    let (width, height) = (lines.iter().map(Line::width).max().unwrap_or(0) as u16 + 4, lines.len() as u16 + 2);
    let area = frame.area();
    let (width, height) = (width.min(area.width), height.min(area.height));
    let area = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" keys and columns ").title_bottom(" any key closes ");
    frame.render_widget(Paragraph::new(lines).block(block.padding(ratatui::widgets::Padding::horizontal(1))), area);
}
