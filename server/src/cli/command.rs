//! What a line of the chat means.

use super::args::share;

pub const HELP: &str = "\
/budget X  keep this share, above 0 and at most 1, of the cache's F16 bytes
/clear     forget the conversation
/help      this list
/exit      leave (also Ctrl-D)
Anything else goes to the model; Ctrl-C ends its answer.";

#[derive(Debug, PartialEq)]
pub enum Line {
    Say(String),
    Budget(f32),
    Clear,
    Help,
    Exit,
    Empty,
    /// What is wrong with it.
    Wrong(String),
}

impl Line {
    pub fn parse(line: &str) -> Self {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return if line.is_empty() { Self::Empty } else { Self::Say(line.to_owned()) };
        };
        match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["budget", text] => share(text).map_or_else(Self::Wrong, Self::Budget),
            ["budget"] => Self::Wrong("/budget needs a share, such as 0.25".into()),
            ["clear"] => Self::Clear,
            ["help"] => Self::Help,
            ["exit" | "quit"] => Self::Exit,
            _ => Self::Wrong(format!("no command {line}; /help lists them")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_start_with_a_slash_is_said() {
        assert_eq!(Line::parse("  hello there "), Line::Say("hello there".into()));
        assert_eq!(Line::parse("   "), Line::Empty);
    }

    #[test]
    fn commands_are_recognised_and_checked() {
        assert_eq!(Line::parse("/budget 0.25"), Line::Budget(0.25));
        assert_eq!(Line::parse("/clear "), Line::Clear);
        assert_eq!(Line::parse("/help"), Line::Help);
        assert_eq!(Line::parse("/exit"), Line::Exit);
        for wrong in ["/budget", "/budget 2", "/budget 0", "/budget x", "/nope", "/clear now", "/"]
        {
            assert!(matches!(Line::parse(wrong), Line::Wrong(_)), "{wrong}");
        }
    }
}
