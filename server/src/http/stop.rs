//! Stop strings, found although they arrive in pieces.

/// Watches a growing text for stop strings and holds back what may become one.
pub struct StopStrings {
    stops: Vec<String>,
    /// Whether the one that ends the text is part of it.
    include: bool,
    /// Text that was not given out yet: the start of some stop string.
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Text that is safe to give out.
    pub text: String,
    /// The stop string that begins right after `text`, or ends it; nothing more will come.
    pub found: Option<String>,
}

impl StopStrings {
    /// `stops`: none of them empty.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        Self { stops, include, held: String::new() }
    }

    pub fn push(&mut self, piece: &str) -> Scan {
        self.held.push_str(piece);
        if let Some((start, stop)) = self.earliest_match() {
            let stop = stop.to_owned();
            self.held.truncate(if self.include { start + stop.len() } else { start });
            return Scan { text: std::mem::take(&mut self.held), found: Some(stop) };
        }
        let held = self.held.split_off(self.safe_len());
        Scan { text: std::mem::replace(&mut self.held, held), found: None }
    }

    /// The text ended: what was held back is no stop string.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn earliest_match(&self) -> Option<(usize, &str)> {
        let found = |stop: &'_ String| self.held.find(stop.as_str());
        let matches = self.stops.iter().filter_map(|stop| Some((found(stop)?, stop.as_str())));
        matches.min_by_key(|(start, _)| *start)
    }

    /// Length of the text before the longest ending that some stop string starts with.
    fn safe_len(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = (self.held.len() + 1).saturating_sub(longest);
        self.held
            .char_indices()
            .map(|(start, _)| start)
            .find(|&start| {
                start >= from && self.stops.iter().any(|s| s.starts_with(&self.held[start..]))
            })
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text given out for these pieces and whether a stop string ended it.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops = stops.iter().map(|s| s.to_string()).collect();
        let mut finder = StopStrings::new(stops, false);
        let mut out = String::new();
        for piece in pieces {
            let scan = finder.push(piece);
            out += &scan.text;
            if scan.found.is_some() {
                return (out, true);
            }
        }
        (out + &finder.flush(), false)
    }

    #[test]
    fn without_stop_strings_text_passes_at_once() {
        let mut finder = StopStrings::new(vec![], false);
        assert_eq!(finder.push("abc"), Scan { text: "abc".into(), found: None });
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_not_given_out() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
    }

    #[test]
    fn a_stop_string_is_named_and_part_of_the_text_if_that_is_wanted() {
        let mut finder = StopStrings::new(vec!["no".into(), "END".into()], true);
        assert_eq!(finder.push("a E").text, "a ");
        let scan = finder.push("NDno b");
        assert_eq!(scan, Scan { text: "END".into(), found: Some("END".into()) });
    }

    #[test]
    fn text_that_only_looked_like_a_stop_string_is_given_out_later() {
        let mut finder = StopStrings::new(vec!["END".into()], false);
        assert_eq!(finder.push("a EN").text, "a ");
        assert_eq!(finder.push("x").text, "ENx");
        assert_eq!(run(&["END"], &["a EN"]), ("a EN".into(), false));
    }

    #[test]
    fn the_earliest_stop_string_wins_whatever_its_place_in_the_list() {
        assert_eq!(run(&["cd", "b"], &["abcd"]), ("a".into(), true));
    }

    #[test]
    fn a_start_inside_a_failed_start_is_found() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
    }

    #[test]
    fn stop_strings_may_be_of_several_bytes_a_character() {
        assert_eq!(run(&["日本"], &["x日", "月", "日", "本"]), ("x日月".into(), true));
    }

    #[test]
    fn every_way_of_cutting_the_text_gives_the_same_answer() {
        let text = "the cat sat on the mat; the end";
        for stops in [&["the mat"][..], &["t on", "; "], &["zzz", "the ende"]] {
            let whole = run(stops, &[text]);
            for size in 1..text.len() {
                let pieces: Vec<_> =
                    text.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).unwrap()).collect();
                assert_eq!(run(stops, &pieces), whole, "{stops:?} in pieces of {size}");
            }
        }
    }
}
