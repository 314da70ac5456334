//! What a kernel's verifier says of a program, as one line of JSON: from the machine that asks to the one that judges.

use serde::{Deserialize, Serialize};

/// One program, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub program: String,
    pub ok: bool,
    /// Instructions that the verifier walked; `None` when it refused, and on kernels before 5.16, which do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<u32>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last lines of the verifier's log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is what is read, with and without a log.
    #[test]
    fn verdicts_survive_json() {
        let good = Verdict { program: "a".into(), ok: true, verified: Some(7), ..Verdict::default() };
        let bad = Verdict { program: "b".into(), error: Some("EACCES".into()), log: vec!["R1 !read_ok".into()], ..Verdict::default() };
        for verdict in [good, bad] {
            let text = serde_json::to_string(&verdict).unwrap();
            assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict, "{text}");
        }
    }
}
