//! What samples are made of: running text, and the model's own way to be asked.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use keepwell_models::{ChatTemplate, TextTokenizer, template::Prompt};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

pub struct Source {
    pub tokenizer: TextTokenizer,
    pub template: Option<ChatTemplate>,
    /// Token ids of each file.
    pub texts: Vec<Vec<u32>>,
}

/// Stands for the answer where the template is asked what follows one.
const ANSWER: &str = "ANSWER-GOES-HERE";

impl Source {
    /// # Errors
    /// A file that cannot be read.
    pub fn new(
        tokenizer: TextTokenizer,
        template: Option<ChatTemplate>,
        files: &[PathBuf],
    ) -> Result<Self> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            tokenizer.encode(&text, false)
        };
        let texts = files.iter().map(read).collect::<Result<Vec<_>>>()?;
        ensure!(!texts.is_empty(), "name at least one --text FILE");
        Ok(Self { texts, template, tokenizer })
    }

    /// `count` windows of `len` tokens, spread evenly over all files as if they were one, moved by
    /// what the seed draws.
    ///
    /// # Errors
    /// A file that is shorter than a window.
    pub fn windows(&self, count: usize, len: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
        if let Some(index) = self.texts.iter().position(|text| text.len() <= len) {
            bail!(
                "text number {} has {} tokens; samples take {len}: name longer files or ask for less",
                index + 1,
                self.texts[index].len()
            );
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let stride = self.stride(count, len);
        let window = |index: usize| {
            let mut start = index * stride + rng.random_range(0..stride.max(1));
            let holds = |text: &&Vec<u32>| {
                let is_in = start < text.len() - len;
                start -= if is_in { 0 } else { text.len() - len };
                is_in
            };
            let text = self.texts.iter().find(holds).context("strides end before the last text")?;
            Ok(text[start..start + len].to_vec())
        };
        (0..count).map(window).collect()
    }

    /// Tokens from one of `count` windows to the next.
    fn stride(&self, count: usize, len: usize) -> usize {
        let starts: usize = self.texts.iter().map(|text| text.len().saturating_sub(len)).sum();
        starts / count.max(1)
    }

    /// What to say of windows that share tokens, if they do: such samples are not independent.
    pub fn overlap(&self, count: usize, len: usize) -> Option<String> {
        let stride = self.stride(count, len);
        (count > 1 && stride < len).then(|| {
            format!(
                "{count} windows of {len} tokens start {stride} apart and overlap: intervals will \
                 be too narrow; name more text or ask for fewer windows"
            )
        })
    }

    /// A user's message in two pieces, the second of which starts with `question` and ends with the
    /// first words of the answer.
    ///
    /// # Errors
    /// A template that refuses the message.
    pub fn ask(&self, before: &str, question: &str, opening: &str) -> Result<[Vec<u32>; 2]> {
        let text = match &self.template {
            Some(_) => {
                self.render(&json!([{ "role": "user", "content": format!("{before}{question}") }]))?
            }
            None => format!("{before}{question}\nAnswer: "),
        };
        let at = text.rfind(question).context("the chat template drops the question")?;
        Ok([self.encode(&text[..at])?, self.encode(&format!("{}{opening}", &text[at..]))?])
    }

    /// What comes after an answer to ask the next `question`, up to the first words of its answer.
    ///
    /// # Errors
    /// A template that refuses the messages.
    pub fn follow_up(&self, question: &str, opening: &str) -> Result<Vec<u32>> {
        let text = match &self.template {
            Some(_) => self.render(&json!([
                { "role": "user", "content": "?" },
                { "role": "assistant", "content": ANSWER },
                { "role": "user", "content": question },
            ]))?,
            None => format!("{ANSWER}\n\n{question}\nAnswer: "),
        };
        let at = text.rfind(ANSWER).context("the chat template drops the answer")?;
        self.encode(&format!("{}{opening}", &text[at + ANSWER.len()..]))
    }

    fn render(&self, messages: &Value) -> Result<String> {
        let template = self.template.as_ref().context("the model has no chat template")?;
        let prompt = Prompt { messages, tools: None, add_generation_prompt: true };
        Ok(template.render(&prompt)?)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, false)
    }
}
