//! What templates know from Python: `tojson` as transformers has it (Python's spacing, nothing escaped
//! for HTML), and methods of strings. All of it is paid for with fuel before it is done: minijinja
//! itself charges for what comes out of it, when the memory is taken already.

use std::io::{self, Write};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind},
};
use minijinja_contrib::pycompat;
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

/// Bytes that one unit of fuel pays for, as in minijinja.
const BYTES: u64 = 64;

/// Takes the fuel for a text of this length.
fn pay(state: &State, len: usize) -> Result<(), Error> {
    state.consume_fuel(len as u64 / BYTES)
}

/// Methods of values.
pub fn method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, method, args);
    };
    let first = args.first().and_then(Value::as_str);
    match (method, args) {
        ("join", [list]) => {
            let (list, separator) = (list.clone(), value.clone());
            return state.apply_filter("join", &[list, separator]);
        }
        ("replace", [_, new, ..]) => {
            let num_found = first.map_or(0, |old| text.matches(old).count());
            let grown = new.as_str().map_or(0, str::len).saturating_mul(num_found);
            pay(state, text.len().saturating_add(grown))?;
        }
        // Each piece is a value of its own.
        ("split", [_, ..]) if first.is_some() => {
            let num_pieces = first.map_or(0, |separator| text.matches(separator).count());
            state.consume_fuel(num_pieces as u64)?;
        }
        ("split" | "splitlines", _) => {
            let num_pieces = text.matches(char::is_whitespace).count();
            state.consume_fuel(num_pieces as u64)?;
        }
        ("format", _) => pay(state, formatted_len(text, args)?)?,
        // The others give a part of the text, or as much of it.
        _ => pay(state, text.len())?,
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// A bound of what `str.format` makes.
fn formatted_len(text: &str, args: &[Value]) -> Result<usize, Error> {
    let mut longest = 32;
    for arg in args {
        match arg.kind() {
            ValueKind::String => longest = longest.max(arg.as_str().map_or(0, str::len)),
            ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number => {}
            kind => {
                let message = format!("str.format takes texts and numbers, not a {kind}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    // Widths and precisions, and a place of an argument now and then.
    let widths = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX));
    let widths = widths.fold(0, usize::saturating_add);
    let fields = text.matches('{').count().saturating_mul(longest);
    Ok(text.len().saturating_add(fields).saturating_add(widths))
}

/// Takes the fuel for what is written.
struct Paid<'a, 'env> {
    state: &'a State<'a, 'env>,
    out: Vec<u8>,
}

impl Write for Paid<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.out.len() / BYTES as usize;
        self.out.extend_from_slice(bytes);
        let fuel = (self.out.len() / BYTES as usize - before) as u64;
        self.state.consume_fuel(fuel).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The filter; knows `indent`.
pub fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    // Deeper than any real template asks for; longer would be a way to fill the memory.
    let indent = options.get::<Option<usize>>("indent")?.map(|width| " ".repeat(width.min(16)));
    let text = match indent {
        Some(indent) => serialize(state, value, PrettyFormatter::with_indent(indent.as_bytes())),
        None => serialize(state, value, Spaced),
    };
    let text = text.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

fn serialize(
    state: &State,
    value: &Value,
    formatter: impl Formatter,
) -> Result<String, serde_json::Error> {
    let mut out = Paid { state, out: vec![] };
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8_lossy(&out.out).into_owned())
}
