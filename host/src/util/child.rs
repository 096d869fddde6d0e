//! Child processes.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the process that `command` starts end (SIGTERM) when this one does, however that ends.
pub fn stops_with_parent(command: &mut Command) {
    let stop = || {
        // SAFETY: prctl is a system call and may be made between fork and exec; it reads nothing but
        // its arguments.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only the system call above is made.
    unsafe { command.pre_exec(stop) };
}
