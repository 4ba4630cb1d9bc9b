//! safetensors: one file, or several with an index beside them.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::GgmlDType;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{TensorFile, TensorInfo, gguf::read_range};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The format's own limit.
const LARGEST_HEADER: u64 = 100_000_000;

/// All safetensors files of a model folder.
pub struct SafetensorsFolder {
    folder: PathBuf,
    shards: Vec<File>,
    /// Name to (shard, place).
    tensors: HashMap<String, (usize, TensorInfo)>,
}

/// What the header says about one tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    /// Counted from the end of the header.
    data_offsets: (u64, u64),
}

impl SafetensorsFolder {
    /// # Errors
    /// No weights in the folder, a shard missing, or a file damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut opened =
            Self { folder: folder.to_owned(), shards: vec![], tensors: HashMap::new() };
        for name in shard_names(folder)? {
            let path = folder.join(&name);
            opened.add(&path).with_context(|| format!("{} cannot be used", path.display()))?;
        }
        Ok(opened)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mut file = File::open(path).context("fetch the missing file")?;
        let file_len = file.metadata()?.len();
        let (header, data_start) = read_header(&mut file, file_len)?;
        for (name, value) in header {
            if name == "__metadata__" {
                continue;
            }
            let info = place(&value, data_start, file_len)
                .with_context(|| format!("tensor `{name}` cannot be used"))?;
            self.tensors.insert(name, (self.shards.len(), info));
        }
        self.shards.push(file);
        Ok(())
    }
}

/// The header and where the data starts.
fn read_header(file: &mut File, file_len: u64) -> Result<(Map<String, Value>, u64)> {
    let mut len = [0; 8];
    file.read_exact(&mut len).context("the file is too short; fetch it again")?;
    let len = u64::from_le_bytes(len);
    ensure!(
        len <= LARGEST_HEADER && len <= file_len.saturating_sub(8),
        "its header would take {len} bytes: this is no safetensors file, or it is truncated; fetch \
         it again"
    );
    let mut header = vec![0; len as usize];
    file.read_exact(&mut header)?;
    let header = serde_json::from_slice(&header).context("its header is no JSON object")?;
    Ok((header, 8 + len))
}

fn place(value: &Value, data_start: u64, file_len: u64) -> Result<TensorInfo> {
    let entry = Entry::deserialize(value)?;
    let dtype = match entry.dtype.as_str() {
        "F32" => GgmlDType::F32,
        "F16" => GgmlDType::F16,
        "BF16" => GgmlDType::BF16,
        other => bail!("its format {other} is not supported; known are F32, F16 and BF16"),
    };
    let (start, end) = entry.data_offsets;
    let start_in_file = data_start.checked_add(start).context("its offset is absurd")?;
    let info = TensorInfo::checked(dtype, entry.shape, start_in_file, file_len)?;
    ensure!(
        end.checked_sub(start) == Some(info.len as u64),
        "its offsets {start}..{end} do not fit its shape {:?}",
        info.shape
    );
    Ok(info)
}

/// The files that make up the model, in order.
fn shard_names(folder: &Path) -> Result<Vec<String>> {
    if folder.join(SINGLE).exists() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let index = folder.join(INDEX);
    let shown = index.display();
    let text = std::fs::read_to_string(&index).with_context(|| {
        format!("{} holds neither {SINGLE} nor {INDEX} nor a GGUF file", folder.display())
    })?;
    let index: Value =
        serde_json::from_str(&text).with_context(|| format!("{shown} is no JSON"))?;
    let map = index["weight_map"].as_object();
    let map = map.with_context(|| format!("{shown} lacks `weight_map`"))?;
    let names: Option<BTreeSet<&str>> = map.values().map(Value::as_str).collect();
    let names = names.with_context(|| format!("{shown}: `weight_map` names no files"))?;
    for name in &names {
        ensure!(is_plain_file_name(name), "{shown} names a file outside its folder: {name:?}");
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Whether a name from a downloaded file stays within its folder.
pub fn is_plain_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|plain| plain == name)
}

impl TensorFile for SafetensorsFolder {
    fn path(&self) -> &Path {
        &self.folder
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(_, info)| info)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (shard, info) =
            self.tensors.get(name).with_context(|| format!("no tensor `{name}`"))?;
        read_range(&self.shards[*shard], info)
            .with_context(|| format!("reading `{name}` of {:?}", self.folder))
    }

    fn interleaved_rope(&self) -> bool {
        false
    }
}
