//! GGUF: one file with settings, tokenizer and (quantized) tensors.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::quantized::gguf_file::Content;

use super::{TensorFile, TensorInfo};

pub use candle_core::quantized::gguf_file::Value;

/// Keys and values of the header.
pub type Metadata = HashMap<String, Value>;

/// An open GGUF file. Tensors are read one by one, so that loading never holds the file twice.
pub struct GgufFile {
    path: PathBuf,
    file: File,
    pub metadata: Metadata,
    /// By Hugging Face name where there is one, else by GGUF name.
    tensors: HashMap<String, TensorInfo>,
}

impl GgufFile {
    /// # Errors
    /// The file cannot be read, is no GGUF file, or is truncated.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let file_len = file.metadata()?.len();
        let content = read_header(&file, file_len)
            .with_context(|| format!("{shown} is no GGUF file or is damaged; fetch it again"))?;
        let mut tensors = HashMap::new();
        for (name, info) in content.tensor_infos {
            let start = content.tensor_data_offset.saturating_add(info.offset);
            let shape = info.shape.dims().to_vec();
            let info = TensorInfo::checked(info.ggml_dtype, shape, start, file_len)
                .with_context(|| format!("{shown}: tensor `{name}` cannot be used"))?;
            tensors.insert(hugging_face_name(&name), info);
        }
        Ok(Self { path: path.to_owned(), file, metadata: content.metadata, tensors })
    }
}

/// Bytes of a header: four times what the largest vocabularies take. In memory each may become 32.
const LARGEST_HEADER: u64 = 48 << 20;

/// The beginning of a file, which is all that there is to read.
struct Beginning<R> {
    file: R,
    at: u64,
    len: u64,
}

impl<R: Read> Read for Beginning<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = buffer.len().min(rest);
        let num_read = self.file.read(&mut buffer[..most])?;
        self.at += num_read as u64;
        Ok(num_read)
    }
}

impl<R: Seek> Seek for Beginning<R> {
    fn seek(&mut self, place: SeekFrom) -> io::Result<u64> {
        let place = match place {
            SeekFrom::End(offset) => SeekFrom::Start(self.len.saturating_add_signed(offset)),
            place => place,
        };
        self.at = self.file.seek(place)?;
        Ok(self.at)
    }
}

fn read_header(file: &File, file_len: u64) -> Result<Content> {
    let mut beginning =
        Beginning { file: BufReader::new(file), at: 0, len: file_len.min(LARGEST_HEADER) };
    // candle divides by the header's alignment, so a hostile file can make it panic.
    catch_unwind(AssertUnwindSafe(|| Content::read(&mut beginning)))
        .map_err(|_| anyhow!("the header makes no sense"))?
        .map_err(Into::into)
}

impl TensorFile for GgufFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.info(name).with_context(|| format!("no tensor `{name}`"))?;
        read_range(&self.file, info).with_context(|| format!("reading `{name}` of {:?}", self.path))
    }

    fn interleaved_rope(&self) -> bool {
        true
    }
}

/// Reads a tensor's bytes; its range was checked when the file was opened.
pub(super) fn read_range(mut file: &File, info: &TensorInfo) -> Result<Vec<u8>> {
    let mut data = vec![0; info.len];
    file.seek(SeekFrom::Start(info.start))?;
    file.read_exact(&mut data)?;
    Ok(data)
}

/// (GGUF, Hugging Face), within a layer.
const LAYER_NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const MODEL_NAMES: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// The Hugging Face name of a tensor, or the same name when there is none.
fn hugging_face_name(name: &str) -> String {
    if let Some((_, ours)) = MODEL_NAMES.iter().find(|(gguf, _)| *gguf == name) {
        return (*ours).to_owned();
    }
    let layer = name.strip_prefix("blk.").and_then(|rest| {
        let (layer, rest) = rest.split_once('.')?;
        let (part, kind) = rest.split_once('.')?;
        let (_, ours) = LAYER_NAMES.iter().find(|(gguf, _)| *gguf == part)?;
        Some(format!("model.layers.{layer}.{ours}.{kind}"))
    });
    layer.unwrap_or_else(|| name.to_owned())
}

/// Reads typed values by key, and names the key in errors.
pub trait MetadataExt {
    fn text(&self, key: &str) -> Option<&str>;
    fn flag(&self, key: &str) -> Option<bool>;
    fn integer(&self, key: &str) -> Option<u64>;
    fn float(&self, key: &str) -> Option<f64>;
    fn texts(&self, key: &str) -> Result<Option<Vec<&str>>>;
    fn floats(&self, key: &str) -> Option<Vec<f32>>;
    fn integers(&self, key: &str) -> Option<Vec<u64>>;
}

impl MetadataExt for Metadata {
    fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.to_string().ok().map(String::as_str)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.to_bool().ok()
    }

    fn integer(&self, key: &str) -> Option<u64> {
        integer(self.get(key)?)
    }

    fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            value => integer(value).map(|v| v as f64),
        }
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.to_vec().ok().and_then(|array| {
            array.iter().map(|v| v.to_string().ok().map(String::as_str)).collect::<Option<Vec<_>>>()
        });
        ensure!(texts.is_some(), "`{key}` is no list of texts");
        Ok(texts)
    }

    fn floats(&self, key: &str) -> Option<Vec<f32>> {
        self.get(key)?.to_vec().ok()?.iter().map(|v| v.to_f32().ok()).collect()
    }

    fn integers(&self, key: &str) -> Option<Vec<u64>> {
        self.get(key)?.to_vec().ok()?.iter().map(integer).collect()
    }
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::I8(v) => u64::try_from(*v).ok(),
        Value::I16(v) => u64::try_from(*v).ok(),
        Value::I32(v) => u64::try_from(*v).ok(),
        Value::I64(v) => u64::try_from(*v).ok(),
        Value::Bool(_) => None,
        value => value.to_u64().ok(),
    }
}
