//! `tojson` as transformers has it: Python's spacing, nothing escaped for HTML.

use std::io::{self, Write};

use minijinja::{Error, ErrorKind, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Python's `json.dumps`: a space after `,` and `:`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The filter; knows `indent`.
pub fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    // Deeper than any real template asks for; longer would be a way to fill the memory.
    let indent = options.get::<Option<usize>>("indent")?.map(|width| " ".repeat(width.min(16)));
    let text = match indent {
        Some(indent) => serialize(value, PrettyFormatter::with_indent(indent.as_bytes())),
        None => serialize(value, Spaced),
    };
    let text = text.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

fn serialize(value: &Value, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut out = vec![];
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}
