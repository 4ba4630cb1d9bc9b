//! Tool calls in an answer's text, found and passed on while they arrive.

use serde_json::Value;

use super::format::ToolFormat;
use super::json_end::JsonEnd;

/// Part of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct CallPiece {
    /// The nth call of the answer.
    pub nth: usize,
    /// With the first piece of a call: its function.
    pub name: Option<String>,
    /// More of the JSON text of the arguments.
    pub arguments: String,
}

/// What text led to.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    pub text: String,
    pub calls: Vec<CallPiece>,
}

/// Splits an answer into text and calls.
pub struct ToolParser {
    format: &'static ToolFormat,
    names: Vec<String>,
    max_calls: usize,
    num_calls: usize,
    /// Text that was not understood yet.
    held: String,
    place: Place,
    is_after_call: bool,
}

/// Where in the answer `held` begins.
#[derive(Debug)]
enum Place {
    /// Where a call may begin that has no mark of its own.
    Start,
    /// In text, or between calls.
    Text,
    /// In a call's object, before its arguments.
    Head,
    Arguments(JsonEnd),
    /// After the arguments.
    Tail,
    /// Calls without a mark are the whole answer; this one has none.
    Rest,
}

impl ToolParser {
    /// `names` are the functions that can be called: a call of another one is text.
    pub fn new(format: &'static ToolFormat, names: Vec<String>, max_calls: usize) -> Self {
        Self {
            format,
            names,
            max_calls,
            num_calls: 0,
            held: String::new(),
            place: Place::Start,
            is_after_call: false,
        }
    }

    /// Whether there was a call.
    pub fn has_called(&self) -> bool {
        self.num_calls > 0
    }

    pub fn push(&mut self, piece: &str) -> Parsed {
        self.held += piece;
        let mut parsed = Parsed::default();
        while self.advance(&mut parsed) {}
        parsed
    }

    /// The text ended: what is no whole call is text.
    pub fn flush(&mut self) -> Parsed {
        let held = std::mem::take(&mut self.held);
        let mut parsed = Parsed::default();
        match self.place {
            Place::Head => parsed.text = self.marked(&held),
            Place::Arguments(_) | Place::Tail => {}
            // Brackets.
            Place::Text if !self.has_marks() => {}
            _ => self.give_text(&held, &mut parsed),
        }
        parsed
    }

    /// One step; whether another may follow.
    fn advance(&mut self, parsed: &mut Parsed) -> bool {
        match &self.place {
            Place::Start | Place::Text if self.has_marks() => self.find_mark(parsed),
            Place::Start => self.find_object(),
            Place::Text => self.find_next(),
            Place::Head => self.read_head(parsed),
            Place::Arguments(_) => self.read_arguments(parsed),
            Place::Tail => self.find_tail(),
            Place::Rest => {
                parsed.text += &std::mem::take(&mut self.held);
                false
            }
        }
    }

    fn has_marks(&self) -> bool {
        !self.format.open.is_empty()
    }

    /// The mark before a call, whatever space follows it.
    fn mark(&self) -> &'static str {
        self.format.open.trim_end()
    }

    /// A call that turned out to be none, as it was.
    fn marked(&self, held: &str) -> String {
        let bracket = self.format.brackets.filter(|_| !self.has_called());
        let before = bracket.map_or(self.mark(), |(before, _)| before);
        format!("{before}{held}")
    }

    fn find_mark(&mut self, parsed: &mut Parsed) -> bool {
        let mark = self.mark();
        if let Some(start) = self.held.find(mark) {
            let text: String = self.held.drain(..start).collect();
            self.give_text(&text, parsed);
            self.held.drain(..mark.len());
            self.place = Place::Head;
            return true;
        }
        let may_begin = |&start: &usize| mark.starts_with(&self.held[start..]);
        let starts = self.held.char_indices().map(|(start, _)| start);
        let safe = starts.filter(|start| self.held.len() - start < mark.len()).find(may_begin);
        let held = self.held.split_off(safe.unwrap_or(self.held.len()));
        let text = std::mem::replace(&mut self.held, held);
        self.give_text(&text, parsed);
        false
    }

    /// Space after a call is no text.
    fn give_text(&mut self, text: &str, parsed: &mut Parsed) {
        let text = if self.is_after_call { text.trim_start() } else { text };
        if !text.is_empty() {
            self.is_after_call = false;
            parsed.text += text;
        }
    }

    /// Without marks: an answer that begins with an object is a call.
    fn find_object(&mut self) -> bool {
        let bracket = self.format.brackets.map_or("", |(before, _)| before);
        let begin = self.held.trim_start();
        if begin.is_empty() {
            return false;
        }
        let Some(inner) = begin.strip_prefix(bracket) else {
            self.place = Place::Rest;
            return true;
        };
        match inner.trim_start().chars().next() {
            None => false,
            Some('{') => {
                self.held = inner.trim_start().to_owned();
                self.place = Place::Head;
                true
            }
            Some(_) => {
                self.place = Place::Rest;
                true
            }
        }
    }

    /// Without marks: the next object after a call.
    fn find_next(&mut self) -> bool {
        let Some(start) = self.held.find('{') else { return false };
        self.held.drain(..start);
        self.place = Place::Head;
        true
    }

    /// Up to the arguments, when the name comes first as it should; else the whole object.
    fn read_head(&mut self, parsed: &mut Parsed) -> bool {
        if let Some((name, start)) = self.head() {
            self.held.drain(..start);
            self.begin(name, parsed);
            self.place = Place::Arguments(JsonEnd::default());
            return true;
        }
        let object = self.held.trim_start();
        if !object.is_empty() && !object.starts_with('{') {
            return self.give_up(self.held.len() - object.len(), parsed);
        }
        let space = self.held.len() - object.len();
        let Some(end) = JsonEnd::default().find(object) else { return false };
        match self.whole(&object[..end]) {
            Some((name, arguments)) => {
                self.begin(name, parsed);
                self.give_arguments(&arguments, parsed);
                self.held.drain(..space + end);
                self.place = if self.has_marks() { Place::Tail } else { Place::Text };
                true
            }
            None => self.give_up(space + end, parsed),
        }
    }

    /// What began like a call is text up to `end`.
    fn give_up(&mut self, end: usize, parsed: &mut Parsed) -> bool {
        let text: String = self.held.drain(..end).collect();
        parsed.text += &self.marked(&text);
        self.place = if self.has_marks() { Place::Text } else { Place::Rest };
        true
    }

    /// The name, and where the arguments' object begins.
    fn head(&self) -> Option<(String, usize)> {
        let key = format!("\"{}\"", self.format.arguments);
        let after_key = self.held.find(&key)? + key.len();
        let colon = self.held[after_key..].trim_start().strip_prefix(':')?;
        let value = colon.trim_start();
        let start = self.held.len() - value.len();
        if !value.starts_with('{') {
            return None;
        }
        let head: Value = serde_json::from_str(&format!("{}null}}", &self.held[..start])).ok()?;
        let is_call = head.as_object().is_some_and(|head| head.len() == 2);
        let name = head["name"].as_str().filter(|_| is_call)?;
        self.names.iter().any(|known| known == name).then(|| (name.to_owned(), start))
    }

    /// Name and arguments of a whole call, whatever its order.
    fn whole(&self, object: &str) -> Option<(String, String)> {
        let call: Value = serde_json::from_str(object).ok()?;
        let name = call["name"].as_str()?;
        let arguments = call.get(self.format.arguments).filter(|value| value.is_object())?;
        let is_known = self.names.iter().any(|known| known == name);
        is_known.then(|| (name.to_owned(), arguments.to_string()))
    }

    fn begin(&mut self, name: String, parsed: &mut Parsed) {
        self.num_calls += 1;
        if self.num_calls <= self.max_calls {
            let nth = self.num_calls - 1;
            let (name, arguments) = (Some(name), String::new());
            parsed.calls.push(CallPiece { nth, name, arguments });
        }
    }

    fn give_arguments(&self, more: &str, parsed: &mut Parsed) {
        if self.num_calls > self.max_calls || more.is_empty() {
            return;
        }
        let nth = self.num_calls - 1;
        match parsed.calls.last_mut().filter(|last| last.nth == nth) {
            Some(last) => last.arguments += more,
            None => parsed.calls.push(CallPiece { nth, name: None, arguments: more.to_owned() }),
        }
    }

    fn read_arguments(&mut self, parsed: &mut Parsed) -> bool {
        let Place::Arguments(end) = &mut self.place else { return false };
        let found = end.find(&self.held);
        let more: String = self.held.drain(..found.unwrap_or(self.held.len())).collect();
        self.give_arguments(&more, parsed);
        if found.is_some() {
            self.place = Place::Tail;
        }
        found.is_some()
    }

    /// The mark after a call, or without marks the end of its object.
    fn find_tail(&mut self) -> bool {
        let mark = match self.has_marks() {
            true => self.format.close.trim_start(),
            false => "}",
        };
        let Some(start) = self.held.find(mark) else { return false };
        self.held.drain(..start + mark.len());
        self.is_after_call = true;
        self.place = Place::Text;
        true
    }
}

#[cfg(test)]
mod tests;
