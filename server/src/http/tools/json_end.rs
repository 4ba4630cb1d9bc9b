//! Where a JSON value ends in a text that arrives in pieces.

/// Follows an object or array from its first bracket on.
#[derive(Clone, Debug, Default)]
pub struct JsonEnd {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonEnd {
    /// Bytes of `text` up to the value's end, if it is in there.
    pub fn find(&mut self, text: &str) -> Option<usize> {
        text.bytes().position(|byte| self.ends(byte)).map(|last| last + 1)
    }

    fn ends(&mut self, byte: u8) -> bool {
        if self.in_string {
            let escaped = std::mem::take(&mut self.escaped);
            self.escaped = !escaped && byte == b'\\';
            self.in_string = escaped || byte != b'"';
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_whatever_the_pieces_and_the_strings() {
        let value = r#"{"a": [1, {"b": "}\\"}], "c": "\"}"}"#;
        let text = format!("{value} and more }}");
        for size in 1..text.len() {
            let (mut end, mut found) = (JsonEnd::default(), None);
            for (nth, piece) in text.as_bytes().chunks(size).enumerate() {
                let piece = std::str::from_utf8(piece).unwrap();
                found = found.or_else(|| Some(nth * size + end.find(piece)?));
            }
            assert_eq!(found, Some(value.len()), "pieces of {size}");
        }
    }
}
