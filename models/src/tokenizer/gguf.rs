//! The tokenizer in a GGUF header.

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::{
    AddedToken, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::template::TemplateProcessing,
};

use super::{guarded, sentencepiece};
use crate::weights::gguf::{Metadata, MetadataExt};

/// Values of `tokenizer.ggml.token_type`.
mod kind {
    pub const NORMAL: u64 = 1;
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    pub const USER_DEFINED: u64 = 4;
}

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Tokens that end a turn, whatever the header says about them.
const END_OF_TURN: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>"];
const END_KEYS: [&str; 3] = ["eos_token_id", "eot_token_id", "eom_token_id"];

struct Header<'a> {
    metadata: &'a Metadata,
    tokens: Vec<&'a str>,
    /// One per token, or empty.
    kinds: Vec<u64>,
}

/// The tokenizer and the id of its BOS.
pub fn build(metadata: &Metadata) -> Result<(Tokenizer, Option<u32>)> {
    let header = Header::read(metadata)?;
    let model =
        metadata.text("tokenizer.ggml.model").context("`tokenizer.ggml.model` is missing")?;
    let (mut tokenizer, adds_bos) = match model {
        "gpt2" => header.byte_level()?,
        "llama" => (header.sentencepiece()?, true),
        other => bail!("tokenizer `{other}` is not supported; known are gpt2 and llama"),
    };
    header.add_special(&mut tokenizer)?;
    if let Some(template) = header.bos_and_eos(adds_bos)? {
        tokenizer.with_post_processor(Some(template));
    }
    Ok((tokenizer, header.id("bos_token_id")))
}

/// The ids that end a sequence, and the texts of BOS and EOS (empty when there is none).
pub fn special_ids(metadata: &Metadata) -> Result<(Vec<u32>, String, String)> {
    let header = Header::read(metadata)?;
    let by_key = END_KEYS.iter().filter_map(|key| header.id(key));
    let by_name = header.tokens.iter().enumerate().filter(|(index, token)| {
        END_OF_TURN.contains(token) && header.kinds.get(*index) == Some(&kind::CONTROL)
    });
    let mut ends: Vec<u32> = by_key.chain(by_name.map(|(index, _)| index as u32)).collect();
    ends.sort_unstable();
    ends.dedup();
    Ok((ends, header.text("bos_token_id"), header.text("eos_token_id")))
}

impl<'a> Header<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?;
        let tokens = tokens.context("the file has no tokenizer (`tokenizer.ggml.tokens`)")?;
        let kinds = metadata.integers("tokenizer.ggml.token_type").unwrap_or_default();
        ensure!(
            kinds.is_empty() || kinds.len() == tokens.len(),
            "{} token types for {} tokens",
            kinds.len(),
            tokens.len()
        );
        Ok(Self { metadata, tokens, kinds })
    }

    fn id(&self, key: &str) -> Option<u32> {
        let id = self.metadata.integer(&format!("tokenizer.ggml.{key}"))?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < self.tokens.len())
    }

    fn text(&self, key: &str) -> String {
        self.id(key).map_or_else(String::new, |id| self.tokens[id as usize].to_owned())
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.metadata.flag(&format!("tokenizer.ggml.{key}")).unwrap_or(default)
    }

    fn vocab(&self) -> Vocab {
        (0u32..).zip(&self.tokens).map(|(id, token)| ((*token).to_owned(), id)).collect()
    }

    /// The tokenizer, and whether its kind starts sequences with BOS unless told otherwise.
    fn byte_level(&self) -> Result<(Tokenizer, bool)> {
        let merges = self.metadata.texts("tokenizer.ggml.merges")?;
        let merges = merges.context("`tokenizer.ggml.merges` is missing")?;
        let split = |merge: &&str| {
            let (left, right) = merge.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        };
        let merges: Option<Vec<_>> = merges.iter().map(split).collect();
        let merges = merges.context("`tokenizer.ggml.merges` holds an entry that is no pair")?;
        let pre = PreTokenizer::named(self.metadata.text("tokenizer.ggml.pre").unwrap_or("gpt-2"));
        let builder = BPE::builder()
            .vocab_and_merges(self.vocab(), merges)
            .ignore_merges(self.flag("ignore_merges", pre.whole_words));
        let mut tokenizer = Tokenizer::new(guarded(|| builder.build())?);
        let add_space = self.flag("add_space_prefix", false);
        tokenizer.with_pre_tokenizer(Some(pre.build(add_space)?));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        Ok((tokenizer, pre.adds_bos))
    }

    fn sentencepiece(&self) -> Result<Tokenizer> {
        let scores = self.metadata.floats("tokenizer.ggml.scores");
        let scores = scores.context("`tokenizer.ggml.scores` is missing")?;
        ensure!(
            scores.len() == self.tokens.len(),
            "{} scores for {} tokens",
            scores.len(),
            self.tokens.len()
        );
        let pieces: Vec<_> = (self.tokens.iter().zip(&scores).enumerate())
            .filter(|(index, _)| self.kinds.get(*index).is_none_or(|kind| *kind == kind::NORMAL))
            .map(|(_, (text, &score))| sentencepiece::Piece { text, score })
            .collect();
        let unknown = self.id("unknown_token_id").or_else(|| {
            self.kinds.iter().position(|kind| *kind == kind::UNKNOWN).map(|id| id as u32)
        });
        let unknown = unknown.map(|id| self.tokens[id as usize]);
        sentencepiece::build(self.vocab(), &pieces, unknown, self.flag("add_space_prefix", true))
    }

    fn add_special(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let of_kind = |wanted: &'static [u64], special: bool| {
            (self.tokens.iter().zip(&self.kinds))
                .filter(move |(_, kind)| wanted.contains(kind))
                .map(move |(token, _)| AddedToken::from(*token, special).normalized(false))
        };
        tokenizer
            .add_special_tokens(of_kind(&[kind::UNKNOWN, kind::CONTROL], true))
            .map_err(|error| anyhow!(error))?;
        tokenizer
            .add_tokens(of_kind(&[kind::USER_DEFINED], false))
            .map_err(|error| anyhow!(error))?;
        Ok(())
    }

    /// Puts BOS before and EOS behind a text where the header says so.
    fn bos_and_eos(&self, adds_bos: bool) -> Result<Option<PostProcessorWrapper>> {
        let wanted = |key: &str, flag: &str, default: bool| {
            self.id(key).filter(|_| self.flag(flag, default)).map(|id| (self.text(key), id))
        };
        let bos = wanted("bos_token_id", "add_bos_token", adds_bos);
        let eos = wanted("eos_token_id", "add_eos_token", false);
        if bos.is_none() && eos.is_none() {
            return Ok(None);
        }
        let name = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| text.clone());
        let single: Vec<String> =
            [name(&bos), Some("$0".to_owned()), name(&eos)].into_iter().flatten().collect();
        let template = TemplateProcessing::builder()
            .try_single(single)
            .map_err(|error| anyhow!(error))?
            .special_tokens(bos.into_iter().chain(eos).collect::<Vec<_>>())
            .build()?;
        Ok(Some(template.into()))
    }
}

/// How text is cut into words before merging.
struct PreTokenizer {
    split: WordSplit,
    /// A word that is a token as a whole is not merged.
    whole_words: bool,
    adds_bos: bool,
}

enum WordSplit {
    Gpt2,
    /// GPT-2, digits one by one.
    Digits,
    Pattern(&'static str),
}

impl PreTokenizer {
    /// By `tokenizer.ggml.pre`.
    fn named(name: &str) -> Self {
        let plain = |split| Self { split, whole_words: false, adds_bos: false };
        let bos = |pattern| Self {
            split: WordSplit::Pattern(pattern),
            whole_words: true,
            adds_bos: true,
        };
        match name {
            "gpt-2" | "gpt2" | "default" => plain(WordSplit::Gpt2),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
                plain(WordSplit::Digits)
            }
            "llama-bpe" | "llama3" | "llama-v3" => bos(LLAMA3_SPLIT),
            "smaug-bpe" => plain(WordSplit::Pattern(LLAMA3_SPLIT)),
            "tekken" => bos(TEKKEN_SPLIT),
            other => {
                tracing::warn!("pre-tokenizer `{other}` is unknown; words are cut as GPT-2 does");
                plain(WordSplit::Gpt2)
            }
        }
    }

    fn build(&self, add_space: bool) -> Result<PreTokenizerWrapper> {
        let gpt2 = ByteLevel::new(add_space, true, true);
        Ok(match self.split {
            WordSplit::Gpt2 => gpt2.into(),
            WordSplit::Digits => Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
            WordSplit::Pattern(pattern) => {
                let pattern = SplitPattern::Regex(pattern.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                    .map_err(|error| anyhow!(error))?;
                let bytes = ByteLevel::new(add_space, true, false);
                Sequence::new(vec![split.into(), bytes.into()]).into()
            }
        })
    }
}
