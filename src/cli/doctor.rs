//! `linformer doctor`: what was found, and what to do about what was not.

use super::out;
use crate::config::precision::has_bf16_products;
use crate::native::nccl::Nccl;
use crate::native::runtime;
use crate::train::run::cpu_model;
use anyhow::Result;
use serde_json::json;
use std::path::Path;

/// One finding.
struct Finding {
    what: &'static str,
    found: String,
    remedy: Option<&'static str>,
}

/// Prints all findings.
pub fn run(json: bool) -> Result<()> {
    let findings = [libtorch(), processor(), bf16(), threads(), cuda(), distributed(), writable("runs"), writable(".")];
    if json {
        let rows: Vec<_> = findings.iter().map(|f| json!({"what": f.what, "found": f.found, "remedy": f.remedy})).collect();
        return out(&(serde_json::to_string_pretty(&rows)? + "\n"));
    }
    for Finding { what, found, remedy } in findings {
        let mark = if remedy.is_some() { "!" } else { " " };
        out(&format!("{mark} {what:<13} {found}\n"))?;
        if let Some(remedy) = remedy {
            out(&format!("  {:<13} -> {remedy}\n", ""))?;
        }
    }
    Ok(())
}

fn libtorch() -> Finding {
    let folder = runtime::libtorch_folder().map_or_else(|| "unknown folder".into(), |f| f.display().to_string());
    Finding { what: "libtorch", found: format!("{} in {folder}", runtime::torch_version()), remedy: None }
}

fn processor() -> Finding {
    Finding {
        what: "processor",
        found: format!(
            "{}, libtorch uses {}, our kernels {}{}",
            cpu_model(),
            runtime::cpu_capability(),
            runtime::kernels(),
            if runtime::has_tiles() { " and amx" } else { "" }
        ),
        remedy: None,
    }
}

fn bf16() -> Finding {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.lines().any(|l| l.starts_with("flags") && l.split_whitespace().any(|f| f == flag));
    match (has("amx_bf16"), has_bf16_products()) {
        (true, _) => Finding { what: "bf16", found: "AMX: several times the speed of fp32 in large products".into(), remedy: None },
        (_, true) => Finding { what: "bf16", found: "AVX-512 instructions".into(), remedy: None },
        _ => Finding {
            what: "bf16",
            found: "no instructions for it: it works, but slower than fp32".into(),
            remedy: Some("use train.precision=fp32"),
        },
    }
}

fn threads() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{} for libtorch, {cores} cores", tch::get_num_threads());
    let remedy = (!runtime::shim_is_parallel())
        .then_some("the C++ shim was built without OpenMP: install libgomp's headers (package of your C++ compiler) and rebuild");
    Finding { what: "threads", found, remedy }
}

fn cuda() -> Finding {
    let loaded = runtime::load_cuda();
    let count = tch::Cuda::device_count();
    let gpu_here = Path::new("/proc/driver/nvidia").exists();
    match (count, loaded) {
        (0, Err(reason)) if gpu_here => {
            Finding { what: "CUDA", found: format!("a GPU is here, but {reason}"), remedy: Some("make setup CUDA=1") }
        }
        (0, _) => Finding { what: "CUDA", found: "no device (training runs on the CPU)".into(), remedy: None },
        (count, _) => Finding { what: "CUDA", found: format!("{count} devices"), remedy: None },
    }
}

fn distributed() -> Finding {
    if !runtime::has_gloo() {
        return Finding { what: "ranks", found: "this libtorch has no c10d: one process only".into(), remedy: None };
    }
    let nccl = Nccl::load().and_then(|nccl| nccl.version());
    match (nccl, tch::Cuda::device_count() > 1) {
        (Ok(version), _) => Finding { what: "ranks", found: format!("Gloo on CPUs, NCCL {version} on GPUs"), remedy: None },
        (Err(reason), true) => Finding { what: "ranks", found: format!("Gloo on CPUs; {reason}"), remedy: Some("make setup build CUDA=1") },
        (Err(_), false) => Finding { what: "ranks", found: "Gloo on CPUs".into(), remedy: None },
    }
}

fn writable(folder: &'static str) -> Finding {
    let what = if folder == "." { "here" } else { folder };
    let path = Path::new(folder);
    let probe = path.join(format!(".linformer-probe-{}", std::process::id()));
    if !path.exists() {
        return Finding { what, found: "does not exist yet".into(), remedy: None };
    }
    let result = std::fs::write(&probe, b"probe");
    let _ = std::fs::remove_file(&probe);
    match result {
        Ok(()) => {
            Finding { what, found: format!("{} is writable", path.canonicalize().unwrap_or_else(|_| path.into()).display()), remedy: None }
        }
        Err(error) => Finding {
            what,
            found: format!("cannot be written: {error}"),
            remedy: Some("choose a folder of your own with run.dir and data.cache_dir"),
        },
    }
}
