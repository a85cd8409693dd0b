//! What the system tells and allows: a process's memory, our own limit of open files.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Bytes of a process in RAM; none where there is no `/proc`, or no such process.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Raises our limit of open files as far as it goes; gives the limit then in force.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let mut raised = limit;
    raised.current = limit.maximum;
    let in_force = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    in_force.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_files() {
        let bytes = resident_bytes(std::process::id()).expect("/proc is there");
        assert!(bytes > 1 << 20, "{bytes}");
        assert!(raise_open_files() >= 256);
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
