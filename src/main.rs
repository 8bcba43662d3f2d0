use linformer::native::{panics, runtime};
use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::restart_with_short_spin();
    runtime::keep_freed_memory();
    panics::install_hook();
    linformer::cli::main()
}
