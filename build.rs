//! Compiles the C++ shim (`src/native/*.cpp`) against libtorch's headers and lets the binaries find libtorch.
use std::path::{Path, PathBuf};

const UNITS: [&str; 3] = ["runtime", "dropout", "optim"];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=src/native/shim.h");
    let libtorch = match find_libtorch() {
        Ok(path) => path,
        Err(reason) => {
            eprintln!("error: {reason}\n       run `make setup`, which puts libtorch 2.11.0 into .libtorch/");
            std::process::exit(1);
        }
    };
    compile_shim(&libtorch);
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    // torch's own copy of the OpenMP runtime: a second one would be a second pool of threads.
    println!("cargo:rustc-link-arg=-l:libgomp.so.1");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // Also relative to the program (target/release/), so that the folder may be moved or renamed.
    for up in ["../..", "../../.."] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/{up}/.libtorch/torch/lib");
    }
}

fn find_libtorch() -> Result<PathBuf, String> {
    let path = std::env::var("LIBTORCH").map_err(|_| "LIBTORCH is not set and .cargo/config.toml was not read".to_string())?;
    let path = Path::new(&path);
    let header = path.join("include/torch/csrc/api/include/torch/version.h");
    let found = path.canonicalize().map_err(|_| format!("no libtorch at {}", path.display()))?;
    if !header.exists() {
        return Err(format!("{} does not exist: the libtorch at {} is incomplete", header.display(), path.display()));
    }
    Ok(found)
}

fn compile_shim(libtorch: &Path) {
    let include = libtorch.join("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .warnings(false)
        .flag("-fopenmp")
        // No fused multiply-add where the source has none: the same bits from every instruction set.
        .flag("-ffp-contract=off")
        .include(&include)
        .include(include.join("torch/csrc/api/include"));
    for unit in UNITS {
        let file = format!("src/native/{unit}.cpp");
        println!("cargo:rerun-if-changed={file}");
        build.file(file);
    }
    build.compile("linformer_native");
}
