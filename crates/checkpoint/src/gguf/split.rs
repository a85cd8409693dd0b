//! Split GGUF sets: `NAME-00001-of-0000N.gguf`, as `llama-gguf-split` writes them. The first part holds the metadata;
//! every part says `split.no` (from 0) and `split.count`, and all say `split.tensors.count` of the whole set.

use super::{GgufMetadata, parse};
use crate::error::CheckpointError;
use crate::folder::Folder;
use crate::tensors::Entry;

/// The name of one part of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitName {
    pub stem: String,
    /// 1..=count
    pub number: u16,
    pub count: u16,
}

impl SplitName {
    /// `None` for a name that is not of that pattern.
    pub fn parse(file_name: &str) -> Option<Self> {
        let rest = file_name.strip_suffix(".gguf")?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| -> Option<u16> {
            let five = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
            five.then(|| text.parse().ok()).flatten()
        };
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| Self { stem: stem.into(), number, count })
    }

    /// The file name of part `number` of the same set.
    pub fn part(&self, number: u16) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

/// A whole GGUF checkpoint of one or several files.
pub struct GgufSet {
    pub metadata: GgufMetadata,
    pub tensors: Vec<Entry>,
    /// The header bytes of each part, for the fingerprint.
    pub headers: Vec<lingqu_tensor::Bytes>,
}

/// Opens the file `name` of `folder` and, where it is a part of a split set, all other parts.
pub fn open_set(folder: &Folder, name: &str) -> Result<GgufSet, CheckpointError> {
    let split = SplitName::parse(name);
    let names = match &split {
        Some(split) => (1..=split.count).map(|number| split.part(number)).collect(),
        None => vec![name.to_string()],
    };
    let mut set: Option<GgufSet> = None;
    for (number, name) in names.iter().enumerate() {
        let file = folder.map(name)?.ok_or_else(|| {
            CheckpointError::file(&folder.file_label(name), format!("is missing (one of {} parts)", names.len()))
        })?;
        let part = parse(&file)?;
        check_part(&part.metadata, number, names.len(), split.is_some())?;
        let header = file.bytes.slice(0..part.header_bytes).expect("the header was read from there");
        match &mut set {
            None => set = Some(GgufSet { metadata: part.metadata, tensors: part.tensors, headers: vec![header] }),
            Some(set) => {
                set.tensors.extend(part.tensors);
                set.headers.push(header);
            }
        }
    }
    let set = set.expect("a set has at least one part");
    check_total(&set)?;
    Ok(set)
}

/// The file's own account of its place against the place that its name gives it.
fn check_part(metadata: &GgufMetadata, number: usize, parts: usize, named: bool) -> Result<(), CheckpointError> {
    let count = metadata.u32("split.count")?.unwrap_or(0) as usize;
    if !named {
        // llama.cpp writes 0 or 1 into files that were merged again.
        return match count {
            0 | 1 => Ok(()),
            _ => Err(metadata.error("split.count", format!("is {count}, but the name is not that of a part of a set"))),
        };
    }
    if count != parts {
        return Err(metadata.error("split.count", format!("is {count}, but the name says {parts} parts")));
    }
    let place = metadata.require::<u32>("split.no")? as usize;
    if place != number {
        return Err(metadata.error("split.no", format!("is {place}, but the name says {number}, counted from 0")));
    }
    Ok(())
}

fn check_total(set: &GgufSet) -> Result<(), CheckpointError> {
    let held = set.tensors.len();
    match set.metadata.u64("split.tensors.count")? {
        Some(count) if count != held as u64 => Err(set
            .metadata
            .error("split.tensors.count", format!("is {count}, but the {} parts hold {held}", set.headers.len()))),
        _ => Ok(()),
    }
}

/// The GGUF file to open in a folder that holds one, or one set.
pub fn only_gguf(folder: &Folder, names: &[String]) -> Result<Option<String>, CheckpointError> {
    let mut firsts = names.iter().filter(|name| name.ends_with(".gguf")).filter(|name| {
        // Of a set, any part will do; take the lowest that is there, so that a missing first part is named as such.
        SplitName::parse(name).is_none_or(|s| (1..s.number).all(|lower| !names.contains(&s.part(lower))))
    });
    let (first, second) = (firsts.next(), firsts.next());
    match (first, second) {
        (Some(first), Some(second)) => Err(CheckpointError::file(
            &folder.label(),
            format!("holds several GGUF models ({first}, {second}, …): name the file"),
        )),
        (first, _) => Ok(first.cloned()),
    }
}
