//! SentencePiece BPE vocabularies (Llama 2, Mistral, TinyLlama), which have scores, not merges.

use anyhow::{Result, anyhow};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, Tokenizer,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence, strip::Strip},
    models::bpe::{BPE, Vocab},
    normalizers::{Prepend, Replace, Sequence as Normalizers},
};

use super::bytes::SPACE_MARK;

/// A token that text can be made of, with its score: the higher, the earlier it is merged.
pub struct Piece<'a> {
    pub text: &'a str,
    pub score: f32,
}

/// `pieces` are the tokens that merges may lead to; `add_space_prefix`: a text starts with a space
/// of the tokenizer's own.
pub fn build(
    vocab: Vocab,
    pieces: &[Piece],
    unknown: Option<&str>,
    add_space_prefix: bool,
) -> Result<Tokenizer> {
    let merges = merges(&vocab, pieces);
    let mut builder =
        BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown.to_owned());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(|error| anyhow!(error))?);
    let space = SPACE_MARK.to_string();
    let replace = |from: &str, to: &str| Replace::new(from, to).map_err(|error| anyhow!(error));
    let mut normalizers: Vec<NormalizerWrapper> = vec![];
    let mut decoders: Vec<DecoderWrapper> =
        vec![replace(&space, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space_prefix {
        normalizers.push(Prepend::new(space.clone()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(replace(" ", &space)?.into());
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(|error| anyhow!(error))?;
    tokenizer.with_decoder(Some(Sequence::new(decoders)));
    Ok(tokenizer)
}

/// Every way to put a piece together from two tokens, best score first, as the converter of
/// transformers derives them.
fn merges(vocab: &Vocab, pieces: &[Piece]) -> Vec<(String, String)> {
    let mut merges = vec![];
    for piece in pieces {
        for (cut, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(cut);
            if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right)) {
                merges.push((piece.score, l, r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(_, _, _, l, r)| (l.to_owned(), r.to_owned())).collect()
}
