//! Processes that end together.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The child is killed when this process ends, however it ends. The calling thread has to live as long as the child may.
pub fn dies_with_us(command: &mut Command) {
    let parent = std::process::id();
    let arm = move || {
        // SAFETY: both calls are async-signal-safe and touch no memory of ours.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have ended before.
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
        }
        Ok(())
    };
    // SAFETY: `arm` runs between fork and exec and only makes system calls.
    unsafe { command.pre_exec(arm) };
}

/// Ends the process at once, without destructors: threads of libtorch may still wait for peers that never answer.
pub fn leave(code: u8) -> ! {
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: never returns.
    unsafe { libc::_exit(code.into()) }
}
