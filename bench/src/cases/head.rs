//! The case `head-scan`: what the head scanner costs in the kernel, by PROG_TEST_RUN.
//!
//! The reference reads every word of the same text once, in the same loop, and does nothing with it. What the program takes beside the scan is
//! subtracted from both.

use super::{Place, Rows, Samples, rows::again};
use anyhow::{Result, ensure};
use splitter_common::{
    abi::{HttpRules, http_match, http_subject, mapped},
    http::{
        compiler::{Compiler, Predicate},
        verdict,
    },
};
use splitter_lab::kernel::{Part, Scanner, pin_to_one_cpu};

const BROWSER: &str = "GET /shop/item/12345?ref=home HTTP/1.1\r\n\
Host: shop.example.com\r\n\
Connection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"126\", \"Not.A/Brand\";v=\"8\"\r\n\
sec-ch-ua-mobile: ?0\r\n\
sec-ch-ua-platform: \"Linux\"\r\n\
Upgrade-Insecure-Requests: 1\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-Mode: navigate\r\n\
Sec-Fetch-User: ?1\r\n\
Sec-Fetch-Dest: document\r\n\
Referer: https://shop.example.com/home?from=newsletter26\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-US,en;q=0.9,fr;q=0.8\r\n";

/// 200 bytes of cookies, the one of the rule among them.
const COOKIE: &str = "Cookie: sid=0123456789abcdef0123456789abcdef; theme=dark; _ga=GA1.2.1234567890.1234567890; \
_gid=GA1.2.987654321.123456789; uid=u42; consent=yes; cart=a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6e; canary=1; z=1\r\n";

/// Bytes of the long head at most, since the first figures.
const LONG: usize = 8_192;

/// Name, text, whether with rules, and how many conditions hold.
type Head = (&'static str, String, bool, u32);

fn heads() -> [Head; 6] {
    let browser = format!("{BROWSER}\r\n");
    let long = (0..).map(|i| format!("X-Trace-{i:02}: {}\r\n", "0123456789abcdef".repeat(6)));
    let lines: String = long.take((LONG - BROWSER.len() - 2) / 110).collect();
    [
        ("short", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".into(), true, 0),
        ("browser", browser.clone(), false, 0),
        ("browser-rules", browser, true, 0),
        ("browser-header", format!("{BROWSER}X-Canary: always\r\n\r\n"), true, 1),
        ("browser-cookie", format!("{BROWSER}{COOKIE}\r\n"), true, 1),
        ("long", format!("{BROWSER}{lines}\r\n"), true, 0),
    ]
}

/// Payload of a segment on Ethernet.
const SEGMENT: usize = 1_460;

/// What an outsider may send to make the scanner work: whole segments of it. The scanner reads no more than what is new in a packet, so the dearest of these is the
/// dearest packet.
fn hostile() -> Vec<(&'static str, String)> {
    let fill = |start: &str, piece: &str| {
        let mut text = start.to_owned();
        while text.len() < SEGMENT {
            text += piece;
        }
        text.truncate(SEGMENT);
        text
    };
    let start = "GET / HTTP/1.1\r\nHost: a\r\n";
    let after = |line: &str| format!("{start}{line}");
    vec![
        ("tiny-lines", fill(start, "a:\r\n")),
        ("tiny-hits", fill(start, "X-Canary:\r\n")),
        ("blank-hits", fill(start, "X-Canary:  a  \r\n")),
        ("blanks-before", fill(&after("X-Canary:"), " ")),
        ("blanks-behind", fill(&after("X-Canary: a"), "\t")[..SEGMENT - 2].to_owned() + "\r\n"),
        ("tabs", fill(&after("a: "), "\t")),
        ("names", fill(&after("a"), "_")),
        ("method", fill("G", "_")),
        ("authority", fill("GET http://", "a")),
        ("host", fill("GET / HTTP/1.1\r\nHost: ", "!")[..SEGMENT - 2].to_owned() + "\r\n"),
        ("cookies", fill(&after("Cookie: "), "a=;")[..SEGMENT - 2].to_owned() + "\r\n"),
        ("cookie-hits", fill(&after("Cookie: "), "canary=0;")[..SEGMENT - 2].to_owned() + "\r\n"),
        ("cookie-blanks", fill(&after("Cookie: "), "a  ;  ")[..SEGMENT - 2].to_owned() + "\r\n"),
        ("value", fill(&after("a: "), "x")),
    ]
}

/// A header and a cookie rule, as a canary has them.
fn rules() -> Result<Box<HttpRules>> {
    let mut compiler = Compiler::default();
    for (subject, name, value) in [(http_subject::HEADER, &b"X-Canary"[..], &b"always"[..]), (http_subject::COOKIE, b"canary", b"1")] {
        let len = value.len() as u8;
        let condition = Predicate { subject, name: name.into(), kind: http_match::EXACT, value: value.into(), len };
        compiler.rule([condition], 1).map_err(|limit| anyhow::anyhow!("more than {limit}"))?;
    }
    compiler.finish().ok_or_else(|| anyhow::anyhow!("no rules"))
}

pub fn run(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    pin_to_one_cpu();
    let mut scanner = Scanner::load(&place.objects)?;
    let rules = rules()?;
    let (rounds, repeat) = if quick { (3, 50_000) } else { (9, 200_000) };
    let heads = heads();
    let mut costs = vec![(Samples::default(), Samples::default(), Samples::default()); heads.len()];
    for _ in 0..rounds {
        for ((name, text, ruled, facts), (ours, reference, second)) in heads.iter().zip(&mut costs) {
            scanner.set(text.as_bytes(), ruled.then_some(&*rules), mapped([10, 1, 0, 2]), false)?;
            let out = scanner.request()?;
            let right = (out.verdict, out.head_len as usize, out.facts.count_ones()) == (verdict::COMPLETE, text.len(), *facts);
            ensure!(right, "{name}: the scanner answered {out:?}");
            let nothing = scanner.run(Part::Nothing, repeat)?;
            let mut per_byte = |part| scanner.run(part, repeat).map(|ns| (ns - nothing) / text.len() as f64);
            ours.push(per_byte(Part::Request)?);
            reference.push(per_byte(Part::Reference)?);
            second.push(per_byte(Part::Request)?);
        }
    }
    for ((name, text, ruled, _), (ours, reference, second)) in heads.iter().zip(&costs) {
        let baseline = format!("reference-{name}");
        rows.add_median(&baseline, "ns_per_byte", reference, None).more.insert("bytes", text.len().into());
        let row = rows.add_paired(name, "ns_per_byte", ours, Some((&baseline, ours.ratios(reference))));
        row.more.insert("bytes", text.len().into());
        row.more.insert("rules", (*ruled).into());
        rows.add_paired(&again(name), "ns_per_byte", second, Some((name, second.ratios(ours))));
    }
    let hostile = hostile();
    let mut costs = vec![Samples::default(); hostile.len()];
    for _ in 0..rounds {
        for ((_, text), cost) in hostile.iter().zip(&mut costs) {
            scanner.set(text.as_bytes(), Some(&*rules), mapped([10, 1, 0, 2]), false)?;
            let nothing = scanner.run(Part::Nothing, repeat)?;
            cost.push(scanner.run(Part::Request, repeat)? - nothing);
        }
    }
    for ((name, text), cost) in hostile.iter().zip(&costs) {
        rows.add_median(&format!("hostile-{name}"), "ns_per_segment", cost, None).more.insert("bytes", text.len().into());
    }
    let dearest = costs.iter().map(Samples::median).fold(0.0, f64::max);
    rows.add("hostile-dearest", "ns_per_segment", dearest, None);
    rows.add("request", "verified_instructions", f64::from(scanner.verified(Part::Request)?), None);
    rows.add("response", "verified_instructions", f64::from(scanner.verified(Part::Response)?), None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_segments_are_whole_ones() {
        assert!(hostile().iter().all(|(_, text)| text.len() == SEGMENT));
    }

    #[test]
    fn heads_have_the_sizes_that_the_bars_speak_of() {
        let size = |name: &str| heads().into_iter().find(|head| head.0 == name).map_or(0, |head| head.1.len());
        assert_eq!((size("browser"), size("browser-cookie") - size("browser")), (687, 200));
        assert!((35..=45).contains(&size("short")) && (8_000..=8_192).contains(&size("long")), "{} {}", size("short"), size("long"));
    }
}
