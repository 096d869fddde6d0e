//! The memory of this process.

use std::fs;

/// The most memory that this process has had resident so far, in MiB; none where the system does not
/// say.
pub(crate) fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_that_of_this_process() {
        let before = peak().expect("Linux says it");
        let filled = vec![1u8; 64 << 20];
        assert!(filled.iter().all(|byte| *byte == 1));
        let after = peak().expect("Linux says it");
        assert!(before > 0 && (64..1 << 24).contains(&after), "{before} MiB, then {after} MiB");
    }
}
