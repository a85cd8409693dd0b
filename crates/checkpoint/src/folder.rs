//! Where files come from: a folder on disk, memory-mapped, or bytes in memory (embedded in the binary).

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lingqu_tensor::{Bytes, Owner};

use crate::error::CheckpointError;

/// Files by name.
#[derive(Debug)]
pub enum Folder {
    Disk(PathBuf),
    Memory(Vec<(String, Bytes)>),
}

/// One file: how errors call it, and its bytes.
#[derive(Clone, Debug)]
pub struct SourceFile {
    pub label: Arc<str>,
    pub bytes: Bytes,
}

impl Folder {
    /// What errors call the folder.
    pub fn label(&self) -> String {
        match self {
            Folder::Disk(path) => path.display().to_string(),
            Folder::Memory(_) => "model in memory".into(),
        }
    }

    /// What errors call a file of it.
    pub fn file_label(&self, name: &str) -> String {
        match self {
            Folder::Disk(path) => path.join(name).display().to_string(),
            Folder::Memory(_) => format!("{name} (in memory)"),
        }
    }

    /// File names, sorted.
    pub fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let mut names: Vec<String> = match self {
            Folder::Disk(path) => {
                let failed = |source| CheckpointError::Io { file: self.label(), source };
                let entries = fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
                entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            Folder::Memory(files) => files.iter().map(|(name, _)| name.clone()).collect(),
        };
        names.sort();
        Ok(names)
    }

    /// The file `name` without reading it, or `None` where there is none.
    pub fn map(&self, name: &str) -> Result<Option<SourceFile>, CheckpointError> {
        let label: Arc<str> = self.file_label(name).into();
        let bytes = match self {
            Folder::Disk(folder) => match regular_file(&folder.join(name), &label)? {
                Some(file) => map_file(&file, &label)?,
                None => return Ok(None),
            },
            Folder::Memory(_) => match self.memory_bytes(name) {
                Some(bytes) => bytes,
                None => return Ok(None),
            },
        };
        Ok(Some(SourceFile { label, bytes }))
    }

    /// The whole file `name` in memory, or `None` where there is none. Longer than `bytes_max` is an error.
    pub fn read(&self, name: &str, bytes_max: usize) -> Result<Option<Bytes>, CheckpointError> {
        let label = self.file_label(name);
        let too_long = || CheckpointError::file(&label, format!("is longer than {bytes_max} bytes"));
        match self {
            Folder::Disk(folder) => {
                let Some(file) = regular_file(&folder.join(name), &label)? else { return Ok(None) };
                let mut bytes = Vec::new();
                let failed = |source| CheckpointError::Io { file: label.clone(), source };
                file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
                if bytes.len() > bytes_max { Err(too_long()) } else { Ok(Some(bytes.into())) }
            }
            Folder::Memory(_) => match self.memory_bytes(name) {
                Some(bytes) if bytes.len() > bytes_max => Err(too_long()),
                bytes => Ok(bytes),
            },
        }
    }

    fn memory_bytes(&self, name: &str) -> Option<Bytes> {
        let Folder::Memory(files) = self else { return None };
        files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.clone())
    }
}

/// True for a name that cannot lead out of its folder.
pub fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(std::path::Component::Normal(c)), None) if c == name)
}

/// Opens a regular file. Anything else (a pipe, a device) could block or never end.
fn regular_file(path: &Path, label: &str) -> Result<Option<fs::File>, CheckpointError> {
    let failed = |source| CheckpointError::Io { file: label.into(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => fs::File::open(path).map(Some).map_err(failed),
        Ok(_) => Err(CheckpointError::file(label, "is not a regular file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn map_file(file: &fs::File, label: &str) -> Result<Bytes, CheckpointError> {
    let failed = |source| CheckpointError::Io { file: label.into(), source };
    if file.metadata().map_err(failed)?.len() == 0 {
        return Err(CheckpointError::file(label, "is empty"));
    }
    // SAFETY: the map is private and only read, and every reader goes through a bounds-checked slice. What remains is
    // the contract of every mapped checkpoint: nobody rewrites or truncates the file while it is being served.
    let map = unsafe { memmap2::MmapOptions::new().map(file) }.map_err(failed)?;
    Ok(Bytes::new(Arc::new(MappedFile(map))))
}

struct MappedFile(memmap2::Mmap);

impl Owner for MappedFile {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn release(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is only read: whoever reads on gets the same bytes from the file again. A hint that is
            // refused changes nothing.
            let _ = unsafe { self.0.unchecked_advise_range(advice, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
