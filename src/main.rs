use linformer::native::{panics, runtime};
use std::process::ExitCode;

/// Commands that train or measure.
const LONG: [&str; 5] = ["pretrain", "finetune", "efficiency", "replay", "info"];

fn main() -> ExitCode {
    // Starting anew loads libtorch twice; that pays only where a process computes for long.
    if std::env::args().nth(1).is_some_and(|command| LONG.contains(&command.as_str())) {
        runtime::restart_with_short_spin();
    }
    runtime::keep_freed_memory();
    panics::install_hook();
    linformer::cli::main()
}
