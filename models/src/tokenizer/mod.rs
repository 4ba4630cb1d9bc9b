//! Text to token ids and back.

mod bytes;
mod gguf;
mod sentencepiece;
mod stream;

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use tokenizers::Tokenizer;

use crate::weights::gguf::Metadata;
use bytes::TokenBytes;

pub use gguf::special_ids;
pub use stream::DecodeStream;

/// A tokenizer that many requests share; clones are cheap.
#[derive(Clone)]
pub struct TextTokenizer(Arc<Shared>);

struct Shared {
    inner: Tokenizer,
    bytes: TokenBytes,
    /// Ids that are left out of text, such as end-of-turn marks.
    special: HashSet<u32>,
    bos: Option<u32>,
}

impl TextTokenizer {
    /// From a `tokenizer.json`. `bos` is the text of the token that starts a sequence, if any.
    ///
    /// # Errors
    /// The file is missing, damaged, or of a kind that is not supported.
    pub fn from_file(path: &Path, bos: Option<&str>) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read(path).with_context(|| {
            format!("cannot read {shown}; put the model's tokenizer.json beside its weights")
        })?;
        let inner = guarded(|| Tokenizer::from_bytes(&text))
            .with_context(|| format!("{shown} is no usable tokenizer; fetch it again"))?;
        let bos = bos.and_then(|bos| inner.token_to_id(bos));
        Self::new(inner, bos).with_context(|| format!("{shown} cannot be used"))
    }

    /// From the header of a GGUF file.
    ///
    /// # Errors
    /// The header has no tokenizer, or one that is not supported.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let (inner, bos) = gguf::build(metadata)?;
        Self::new(inner, bos)
    }

    fn new(mut inner: Tokenizer, bos: Option<u32>) -> Result<Self> {
        // Some tokenizer.json files cut long prompts or pad short ones.
        inner.with_truncation(None).map_err(|error| anyhow!(error))?;
        inner.with_padding(None);
        let bytes = TokenBytes::new(&inner)?;
        let special = inner.get_added_tokens_decoder();
        let special = special.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        Ok(Self(Arc::new(Shared { inner, bytes, special, bos })))
    }

    /// Token ids of `text`; special tokens written in it count as such. With `add_special`, the
    /// model's BOS is put in front unless the text starts with it already; a rendered chat prompt
    /// has its own and takes `false`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.0.inner.encode_fast(text, add_special))?;
        let mut ids = encoding.get_ids().to_vec();
        if let (Some(bos), [first, second, ..]) = (self.0.bos, ids.as_slice())
            && add_special
            && *first == bos
            && *second == bos
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.flush());
        text
    }

    /// A decoder of generated tokens, one by one.
    pub fn stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone())
    }

    /// One token as text, special ones included, for log-probabilities. Incomplete characters show
    /// as U+FFFD; see [`TextTokenizer::token_bytes`]. Empty when there is no such token.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// The bytes one token stands for. Empty when there is no such token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.0.bytes.get(id)
    }

    /// The id of a token by its exact text, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.inner.token_to_id(token)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.0.bytes.len()
    }

    /// The token that starts a sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.0.bos
    }

    fn strips_first_space(&self) -> bool {
        self.0.bytes.strips_first_space
    }
}

/// Runs the library on data from outside, and turns its panics into errors.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| anyhow!("the tokenizer makes no sense"))?
        .map_err(|error| anyhow!(error))
}
