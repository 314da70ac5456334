//! SPDX licence expressions: `MIT OR (Apache-2.0 AND ISC)`, `Apache-2.0 WITH LLVM-exception`, and `/` for OR as older packages write it.

use anyhow::{Result, bail, ensure};

/// Whether the expression holds when `allowed` says of each licence whether it may be used.
///
/// # Errors
/// With the licences that are missing, or why the expression cannot be read.
pub fn allows(expression: &str, allowed: impl Fn(&str) -> bool) -> Result<()> {
    ensure!(!expression.trim().is_empty(), "no licence is declared");
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut reader = Reader { words: spaced.split_whitespace().collect(), at: 0, allowed: &allowed };
    let holds = reader.either()?;
    ensure!(reader.at == reader.words.len(), "odd licence `{expression}`");
    ensure!(holds, "{expression} is not allowed");
    Ok(())
}

struct Reader<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a dyn Fn(&str) -> bool,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.at += 1;
        self.words.get(self.at - 1).copied()
    }

    fn takes(&mut self, word: &str) -> bool {
        let found = self.words.get(self.at) == Some(&word);
        self.at += usize::from(found);
        found
    }

    fn either(&mut self) -> Result<bool> {
        let mut holds = self.both()?;
        while self.takes("OR") {
            holds |= self.both()?;
        }
        Ok(holds)
    }

    fn both(&mut self) -> Result<bool> {
        let mut holds = self.one()?;
        while self.takes("AND") {
            holds &= self.one()?;
        }
        Ok(holds)
    }

    fn one(&mut self) -> Result<bool> {
        match self.next() {
            Some("(") => {
                let holds = self.either()?;
                ensure!(self.takes(")"), "a bracket is not closed");
                Ok(holds)
            }
            None | Some("OR" | "AND" | "WITH" | ")") => bail!("a licence is missing in the expression"),
            Some(licence) if self.takes("WITH") => {
                let exception = self.next().unwrap_or_default();
                // An exception only adds what may be done.
                Ok((self.allowed)(licence) || (self.allowed)(&format!("{licence} WITH {exception}")))
            }
            Some(licence) => Ok((self.allowed)(licence)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::allows;

    #[test]
    fn expressions_are_read_as_spdx_means_them() {
        let own = |licence: &str| ["MIT", "ISC", "Unicode-3.0"].contains(&licence);
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "GPL-3.0 AND GPL-2.0 OR MIT",
            "ISC WITH LLVM-exception",
        ] {
            assert!(allows(good, own).is_ok(), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT)", "MIT MIT", "MIT OR", "", "mit", "(MIT OR GPL-3.0) AND Apache-2.0"] {
            assert!(allows(bad, own).is_err(), "{bad}");
        }
    }
}
