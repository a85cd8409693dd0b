//! Compiled kernels on disk: one file for each source, options and architecture, named by their hash.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::driver::command::file_error;
use crate::driver::{Compiler, DriverError, Result, Unit};

/// Opens every file, before the hash of the image and the image.
const MAGIC: [u8; 8] = *b"lqkern01";
const HASH_BYTES: usize = 32;

/// A folder of compiled kernels, or none.
pub(crate) struct Cache {
    pub folder: Option<PathBuf>,
}

/// An image, and where it came from.
pub(crate) struct Built {
    pub image: Vec<u8>,
    /// The file that holds it; `None` where it could not be kept.
    pub file: Option<PathBuf>,
    pub was_cached: bool,
}

impl Cache {
    pub fn holds(&self, unit: &Unit<'_>) -> bool {
        self.folder.as_ref().is_some_and(|folder| read(&folder.join(file_name(unit))).is_some())
    }

    /// The image of `unit`, compiled by `compiler` where no whole file holds it. A compiler is only asked for then,
    /// so that a machine without one can run what was built elsewhere.
    ///
    /// # Errors
    /// Those of the compiler. A folder that cannot be written is none: the image is used and not kept.
    pub fn image(&self, unit: &Unit<'_>, compiler: impl FnOnce() -> Result<Box<dyn Compiler>>) -> Result<Built> {
        let file = self.folder.as_ref().map(|folder| folder.join(file_name(unit)));
        if let Some(image) = file.as_deref().and_then(read) {
            return Ok(Built { image, file, was_cached: true });
        }
        let image = compiler()?.compile(unit)?;
        let file = file.filter(|file| write(file, &image).is_ok());
        Ok(Built { image, file, was_cached: false })
    }
}

fn file_name(unit: &Unit<'_>) -> String {
    let mut hash = Sha256::new();
    let texts = unit.headers.iter().flat_map(|(name, text)| [*name, *text]);
    for text in [unit.name, unit.source, unit.arch].into_iter().chain(texts).chain(unit.options.iter().map(|o| &**o)) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let plain: String =
        unit.arch.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    format!("{plain}-{hash}.kernels")
}

/// The image of a file, if the file is there and whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let (head, image) = bytes.split_at_checked(MAGIC.len() + HASH_BYTES)?;
    let whole = head.starts_with(&MAGIC) && head[MAGIC.len()..] == Sha256::digest(image)[..];
    whole.then(|| bytes.split_off(MAGIC.len() + HASH_BYTES))
}

/// Writes beside the file and renames, so that no reader ever sees a part.
fn write(path: &Path, image: &[u8]) -> Result<(), DriverError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let failed = |e: &std::io::Error| file_error(path, e);
    let folder = path.parent().expect("a file in a folder");
    std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let bytes = [&MAGIC[..], &Sha256::digest(image)[..], image].concat();
    let written = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&beside);
        failed(&e)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::driver::command::Folder;

    /// Gives the source back and counts how often it was asked.
    struct Counting(Arc<AtomicUsize>);

    impl Compiler for Counting {
        fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(unit.source.into())
        }
    }

    struct Bench {
        folder: Folder,
        asked: Arc<AtomicUsize>,
    }

    impl Bench {
        fn new() -> Self {
            Self { folder: Folder::new().unwrap(), asked: Arc::default() }
        }

        fn build(&self, unit: &Unit<'_>) -> Built {
            let cache = Cache { folder: Some(self.folder.path.join("a/b")) };
            let built = cache.image(unit, || Ok(Box::new(Counting(self.asked.clone())))).unwrap();
            assert_eq!(built.image, unit.source.as_bytes());
            built
        }

        fn files(&self) -> usize {
            std::fs::read_dir(self.folder.path.join("a/b")).unwrap().count()
        }
    }

    const UNIT: Unit<'static> =
        Unit { name: "k.cu", source: "the source", headers: &[("h", "text")], arch: "sm_90", options: &[] };

    #[test]
    fn an_image_is_compiled_once() {
        let bench = Bench::new();
        assert!(!bench.build(&UNIT).was_cached);
        assert!(bench.build(&UNIT).was_cached);
        assert_eq!((bench.asked.load(Ordering::Relaxed), bench.files()), (1, 1));
    }

    #[test]
    fn whatever_changes_the_image_changes_its_file() {
        let bench = Bench::new();
        let options = ["-O2".to_string()];
        let other = Unit { source: "another", ..UNIT };
        let units = [
            UNIT,
            other,
            Unit { arch: "gfx90a:xnack-", ..UNIT },
            Unit { headers: &[("h", "texts")], ..UNIT },
            Unit { headers: &[("ht", "ext")], ..UNIT },
            Unit { options: &options, ..UNIT },
        ];
        units.iter().for_each(|unit| assert!(!bench.build(unit).was_cached, "{unit:?}"));
        assert_eq!(bench.files(), units.len());
    }

    #[test]
    fn a_damaged_file_is_made_anew() {
        let bench = Bench::new();
        let file = bench.build(&UNIT).file.unwrap();
        let whole = std::fs::read(&file).unwrap();
        let turned = |at: usize| whole.iter().enumerate().map(|(i, b)| if i == at { b ^ 1 } else { *b }).collect();
        let damages: [Vec<u8>; 6] =
            [vec![], whole[..20].to_vec(), whole[..whole.len() - 1].to_vec(), turned(0), turned(12), turned(45)];
        for (i, damage) in damages.iter().enumerate() {
            std::fs::write(&file, damage).unwrap();
            assert!(!bench.build(&UNIT).was_cached, "damage {i}");
            assert_eq!(std::fs::read(&file).unwrap(), whole, "damage {i}");
        }
        assert_eq!(bench.files(), 1);
    }

    #[test]
    fn builders_side_by_side_leave_one_whole_file() {
        let bench = Bench::new();
        std::thread::scope(|scope| {
            (0..8).for_each(|_| {
                scope.spawn(|| bench.build(&UNIT));
            });
        });
        assert!(bench.build(&UNIT).was_cached);
        assert_eq!(bench.files(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_does_not_stop_us() {
        let folder = Folder::new().unwrap();
        folder.write("file", b"").unwrap();
        for place in [Some(folder.path.join("file/below")), None] {
            let built = Cache { folder: place }.image(&UNIT, || Ok(Box::new(Counting(Arc::default())))).unwrap();
            assert!(built.file.is_none() && !built.was_cached);
        }
    }

    #[test]
    fn a_cached_image_needs_no_compiler() {
        let bench = Bench::new();
        bench.build(&UNIT);
        let cache = Cache { folder: Some(bench.folder.path.join("a/b")) };
        let none = || Err(DriverError::NoDevice { driver: "none" });
        assert!(cache.image(&UNIT, none).unwrap().was_cached);
        assert!(cache.image(&Unit { source: "other", ..UNIT }, none).is_err());
    }
}
