//! The list as plain text, every column of it.

use super::rows::{Row, ServiceRow};
use crate::cli::table::{Table, bytes, count, plain, seconds, share};

pub fn text(services: &[ServiceRow]) -> String {
    let mut table = Table::new(&[
        "<SERVICE",
        "<VERSION",
        ">ASKED",
        ">ACHIEVED",
        ">RATE/s",
        ">SUCCESS",
        ">FAILED/s",
        ">FLOWS",
        ">IN/s",
        ">OUT/s",
        ">CONNECT p99",
        ">FIRST BYTE p50",
        ">p99",
        ">READY",
        "<ROLLOUT",
    ]);
    for service in services {
        for (at, row) in service.versions.iter().enumerate() {
            let name = if at == 0 { service.name.as_str() } else { "" };
            let rollout = service.rollout.as_ref().filter(|_| at == 0);
            let rollout = rollout.map(|(phase, canary)| format!("{phase} {}", share(Some(*canary)))).unwrap_or_default();
            table.row(std::iter::once(name.to_owned()).chain(cells(row)).chain([rollout]).map(plain));
        }
    }
    if services.is_empty() { "no services\n".into() } else { table.render(false) }
}

fn cells(row: &Row) -> [String; 13] {
    let number = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| count(rate.round() as u64));
    [
        row.name.clone(),
        share(Some(row.asked)),
        share(row.achieved),
        number(row.rate),
        share(row.success.map(|success| (success * 1e4).floor() / 1e4)),
        number(row.failed),
        count(row.flows),
        row.bytes_in.map_or("-".into(), bytes),
        row.bytes_out.map_or("-".into(), bytes),
        seconds(row.connect),
        seconds(row.p50),
        seconds(row.p99),
        format!("{}/{}", row.ready, row.backends),
    ]
}
