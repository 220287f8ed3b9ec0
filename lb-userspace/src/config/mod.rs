//! The config file: TOML text becomes a [`Desired`] once, or one [`Error`] with its line.
//!
//! [`parse`] is pure; whether an interface exists, or a backend can be reached, is asked by
//! who holds the result. Every field is documented in `sluice.example.toml`.

mod added;
mod dataplane;
mod desired;
mod error;
mod export;
mod health;
mod nat;
mod raw;
mod spec;
mod values;
mod warnings;

use std::{fs::File, io::Read, ops::Range, path::Path};

pub use added::{backend, service};
pub(crate) use dataplane::FLOW_CAPACITY_MAX;
pub use error::{Error, Family, Place, Problem, Unusable};
pub use export::export;
pub use nat::NatProblem;
pub use spec::{BackendSpec, HealthSpec, IdleTimeoutSpec, NatSpec, ServiceSpec};
pub use warnings::warnings;

use crate::model::Desired;

/// Largest file read: 65,535 backends, at 100 bytes a line, fit twice.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Largest weight of a backend.
pub const MAX_WEIGHT: u16 = 1000;

/// Reads a config file: its text, not checked yet.
pub fn read(path: &Path) -> Result<String, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        let source = Source { name: &path.display().to_string(), text: &text };
        source.refuse(valid..valid, Problem::NotText)
    })
}

/// Reads and checks a config file.
pub fn load(path: &Path) -> Result<Desired, Error> {
    parse(&read(path)?, &path.display().to_string())
}

/// Checks a config file's text; `name` is what errors call it.
pub fn parse(text: &str, name: &str) -> Result<Desired, Error> {
    let source = Source { name, text };
    let raw = toml::from_str(text).map_err(|error| source.refuse_toml(error))?;
    desired::desired(&source, raw)
}

/// A text under examination.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn refuse(&self, at: Range<usize>, problem: Problem) -> Error {
        Error::Invalid { place: self.place(at.start), problem: Box::new(problem) }
    }

    fn refuse_toml(&self, mut error: toml::de::Error) -> Error {
        let at = error.span().unwrap_or(0..0);
        // It may quote what is in the file, which is anything.
        let line = |text: &str| text.replace('\n', "; ").replace(char::is_control, " ");
        let message = line(error.message().trim_end());
        // TOML's own words for a text without quotes: "invalid float, expected `nan`".
        let about_scalars = ["invalid float", "invalid boolean", "string values must be quoted"];
        if about_scalars.iter().any(|start| message.starts_with(start)) {
            return match self.word(at.start) {
                (at, "") => self.refuse(at, Problem::NoValue),
                (at, word) => self.refuse(at, Problem::Unquoted { word: word.to_owned() }),
            };
        }
        // Without the text at hand, the error tells the field's path instead of showing its line.
        error.set_input(None);
        let field = error
            .to_string()
            .lines()
            .find_map(|text| Some(line(text.strip_prefix("in `")?.strip_suffix('`')?)));
        self.refuse(at, Problem::Toml { message, field })
    }

    fn place(&self, offset: usize) -> Place {
        let before = self.before(offset);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            file: self.name.to_owned(),
            line: self.line(offset),
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.before(offset).bytes().filter(|byte| *byte == b'\n').count() + 1
    }

    /// The word around an offset, up to what may stand beside a value.
    fn word(&self, offset: usize) -> (Range<usize>, &str) {
        let ends = |c: char| c.is_whitespace() || c.is_control() || "=,[]{}#".contains(c);
        let before = self.before(offset);
        let start = before.rfind(ends).map_or(0, |delimiter| delimiter + 1);
        let rest = self.text.get(start..).unwrap_or_default();
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        (start..start + word.len(), word)
    }

    fn before(&self, offset: usize) -> &str {
        self.text.get(..offset).unwrap_or(self.text)
    }
}

#[cfg(test)]
mod tests;
