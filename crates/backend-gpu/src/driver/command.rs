//! Compilers that are commands: the host's C++ compiler for the emulator, `hipcc` where hipRTC is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Compiler, DriverError, Result, Unit};
use crate::config::Environment;

/// A command that compiles.
pub(crate) struct CommandCompiler {
    command: PathBuf,
    kind: Kind,
    /// Options of this machine, beside those of the unit.
    more: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Host,
    Hipcc,
}

fn answers(command: &Path) -> bool {
    let mut asked = Command::new(command);
    asked.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok_and(|s| s.success())
}

impl CommandCompiler {
    /// `$CXX`, else the first usual one that is there.
    pub fn host(environment: &Environment) -> Result<Self> {
        let usual = ["c++", "g++", "clang++"].map(PathBuf::from);
        let tried: Vec<PathBuf> = environment.cxx.iter().cloned().chain(usual).collect();
        let more = environment.emu_flags.clone();
        match tried.iter().find(|c| answers(c)) {
            Some(command) => Ok(Self { command: command.clone(), kind: Kind::Host, more }),
            None => Err(DriverError::NoLibrary {
                tried: tried.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(", "),
                reason: "no such command".into(),
                brings: "the emulator needs a C++17 compiler at run time (Debian: g++), or CXX=its path",
            }),
        }
    }

    /// `hipcc`, or the reason why hipRTC could not be opened.
    pub fn hipcc(_: &Environment, missing: DriverError) -> Result<Self> {
        let usual = ["hipcc", "/opt/dtk/bin/hipcc", "/opt/rocm/bin/hipcc"].map(PathBuf::from);
        let found = usual.into_iter().find(|c| answers(c));
        found.map(|command| Self { command, kind: Kind::Hipcc, more: Vec::new() }).ok_or(missing)
    }

    fn arguments(&self, unit: &Unit<'_>, folder: &Path) -> Vec<String> {
        let path = |name: &str| folder.join(name).display().to_string();
        let own: Vec<String> = match self.kind {
            Kind::Host => vec!["-x".into(), "c++".into()],
            Kind::Hipcc => vec!["--genco".into()],
        };
        let renamed = |option: &String| option.replace("--gpu-architecture=", "--offload-arch=");
        let options = unit.options.iter().map(renamed).chain(self.more.iter().cloned());
        let files = ["-I".to_string(), folder.display().to_string(), path(unit.name), "-o".into(), path("image")];
        own.into_iter().chain(options).chain(files).collect()
    }
}

impl Compiler for CommandCompiler {
    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>> {
        let folder = Folder::new()?;
        for (name, text) in unit.headers.iter().chain([&(unit.name, unit.source)]) {
            folder.write(name, text.as_bytes())?;
        }
        let mut command = Command::new(&self.command);
        command.args(self.arguments(unit, &folder.path)).stdin(Stdio::null());
        let output = command.output().map_err(|e| file_error(&self.command, &e))?;
        if !output.status.success() {
            return Err(DriverError::Compile {
                compiler: self.command.display().to_string(),
                unit: unit.name.into(),
                arch: unit.arch.into(),
                log: String::from_utf8_lossy(&output.stderr).trim().into(),
            });
        }
        let image = folder.path.join("image");
        std::fs::read(&image).map_err(|e| file_error(&image, &e))
    }
}

pub(crate) fn file_error(path: &Path, error: &std::io::Error) -> DriverError {
    DriverError::File { path: path.display().to_string(), problem: error.to_string() }
}

/// A folder of our own that goes away with its content.
pub(crate) struct Folder {
    pub path: PathBuf,
}

impl Folder {
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("lingqu-{}-{number}", std::process::id()));
            let mut builder = std::fs::DirBuilder::new();
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700); // what lies here is executed
            match builder.create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue, // a process of old
                Err(e) => return Err(file_error(&path, &e)),
            }
        }
    }

    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        std::fs::write(&path, content).map_err(|e| file_error(&path, &e))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path); // what is left lies in the system's folder for such things
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(cxx: &str) -> Environment {
        Environment { cxx: Some(cxx.into()), ..Environment::default() }
    }

    #[test]
    fn what_the_compiler_says_comes_back() {
        let Ok(host) = CommandCompiler::host(&Environment::read()) else {
            return println!("skipped: this machine has no C++ compiler");
        };
        let options = ["-std=c++17".into(), "-fPIC".into(), "-shared".into()];
        let unit =
            |source| Unit { name: "a.cu", source, headers: &[("b.h", "int b();\n")], arch: "x", options: &options };
        assert!(host.compile(&unit("#include \"b.h\"\nint a() { return b(); }")).unwrap().starts_with(b"\x7fELF"));
        match host.compile(&unit("int a() { return nonsense; }")) {
            Err(DriverError::Compile { unit, arch, log, .. }) => {
                assert!(unit == "a.cu" && arch == "x" && log.contains("nonsense"), "{unit} {arch} {log}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn folders_go_away() {
        let folder = Folder::new().unwrap();
        folder.write("a", b"b").unwrap();
        let path = folder.path.clone();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn an_unusable_cxx_is_passed_over_or_named() {
        match CommandCompiler::host(&environment("/no/such/compiler")) {
            Ok(found) => assert_ne!(found.command, Path::new("/no/such/compiler")),
            Err(error) => assert!(error.to_string().contains("/no/such/compiler"), "{error}"),
        }
    }
}
