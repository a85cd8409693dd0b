//! NVRTC and hipRTC: compilers as libraries, the same but for the prefix of their names.

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr::{null, null_mut};

use libloading::Library;

use super::vendor::{open_library, symbol};
use super::{Compiler, DriverError, Result, Unit};

/// One vendor's compiler library.
pub(crate) struct RtcNames {
    pub name: &'static str,
    pub libraries: &'static [&'static str],
    pub brings: &'static str,
    pub prefix: &'static str,
    /// What its functions call the code that comes out.
    pub image: &'static str,
}

type Program = *mut c_void;
type Texts = *const *const c_char;

/// The opened library.
pub(crate) struct Rtc {
    names: &'static RtcNames,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Texts, Texts) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Texts) -> c_int,
    log_bytes: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    image_bytes: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    image: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    _library: ManuallyDrop<Library>,
}

// A program is used by the thread that made it; the libraries lock what they share.
type Ask = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Fill = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

impl Rtc {
    /// Opens `given`, or the first of the usual libraries.
    pub fn open(names: &'static RtcNames, given: Option<&Path>) -> Result<Self> {
        let given = given.map(|p| p.to_string_lossy().into_owned());
        let (library, file) = match &given {
            Some(path) => open_library(&[path], names.brings)?,
            None => open_library(names.libraries, names.brings)?,
        };
        let named = |call: &str| format!("{}{call}", names.prefix);
        Ok(Self {
            names,
            create: symbol(&library, &file, &named("CreateProgram"))?,
            compile: symbol(&library, &file, &named("CompileProgram"))?,
            log_bytes: symbol(&library, &file, &named("GetProgramLogSize"))?,
            log: symbol(&library, &file, &named("GetProgramLog"))?,
            image_bytes: symbol(&library, &file, &named(&format!("Get{}Size", names.image)))?,
            image: symbol(&library, &file, &named(&format!("Get{}", names.image)))?,
            destroy: symbol(&library, &file, &named("DestroyProgram"))?,
            _library: library,
        })
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        let words = || format!("see {}'s list of results", self.names.name);
        let failed = || DriverError::Call { call: format!("{}{call}", self.names.prefix), code, words: words() };
        if code == 0 { Ok(()) } else { Err(failed()) }
    }

    /// Bytes whose number must be asked first.
    fn bytes(&self, call: &str, program: &OpenProgram<'_>, ask: Ask, fill: Fill) -> Result<Vec<u8>> {
        let mut count = 0;
        // SAFETY: the call writes one number.
        self.check(call, unsafe { ask(program.handle, &mut count) })?;
        let mut bytes = vec![0u8; count];
        // SAFETY: the call writes as many bytes as it said.
        self.check(call, unsafe { fill(program.handle, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

/// A program that is destroyed however compilation ends.
struct OpenProgram<'a> {
    rtc: &'a Rtc,
    handle: Program,
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: created by the same library and used no more.
        unsafe { (self.rtc.destroy)(&mut self.handle) };
    }
}

/// Strings for C, and pointers to them.
struct CTexts {
    _texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CTexts {
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let texts: Vec<CString> = texts.map(|t| CString::new(t).expect("text without NUL")).collect();
        let pointers = texts.iter().map(|t| t.as_ptr()).collect();
        Self { _texts: texts, pointers }
    }

    fn pointer(&self) -> Texts {
        if self.pointers.is_empty() { null() } else { self.pointers.as_ptr() }
    }

    fn len(&self) -> c_int {
        self.pointers.len() as c_int
    }
}

impl Compiler for Rtc {
    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>> {
        let own = CTexts::new([unit.source, unit.name].into_iter());
        let names = CTexts::new(unit.headers.iter().map(|h| h.0));
        let texts = CTexts::new(unit.headers.iter().map(|h| h.1));
        let options = CTexts::new(unit.options.iter().map(String::as_str));
        let mut handle = null_mut();
        let [source, name] = [own.pointers[0], own.pointers[1]];
        // SAFETY: strings that end in NUL and outlive the call; as many headers as names.
        let code = unsafe { (self.create)(&mut handle, source, name, names.len(), texts.pointer(), names.pointer()) };
        self.check("CreateProgram", code)?;
        let program = OpenProgram { rtc: self, handle };
        // SAFETY: as many options as said, each ending in NUL.
        let code = unsafe { (self.compile)(program.handle, options.len(), options.pointer()) };
        if code != 0 {
            let log = self.bytes("GetProgramLog", &program, self.log_bytes, self.log)?;
            let log = String::from_utf8_lossy(&log).trim_matches(['\0', ' ', '\n']).to_string();
            let log = if log.is_empty() { format!("error {code}") } else { log };
            let (unit, arch) = (unit.name.into(), unit.arch.into());
            return Err(DriverError::Compile { compiler: self.names.name.into(), unit, arch, log });
        }
        self.bytes("the image", &program, self.image_bytes, self.image)
    }
}
