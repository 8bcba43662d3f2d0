//! Compiles the C++ shim (`src/native/*.cpp`) against libtorch's headers and lets the binaries find libtorch.
use std::path::{Path, PathBuf};

const UNITS: [&str; 18] = [
    "runtime",
    "memory",
    "products",
    "dropout",
    "adam",
    "blocks",
    "norm",
    "gelu",
    "linear",
    "feed_forward",
    "heads",
    "embedding",
    "cross_entropy",
    "attention",
    "chosen",
    "profile",
    "recompute",
    "kernels/dispatch",
];
/// By itself: the headers of c10d are not those of the others.
const DISTRIBUTED: &str = "src/native/distributed.cpp";
const HEADERS: [&str; 17] = [
    "gloo_headers",
    "shim.h",
    "attention_products.h",
    "blocks.h",
    "philox.h",
    "rows.h",
    "kernels/kernels.h",
    "kernels/lanes.h",
    "kernels/vector.h",
    "kernels/adam.h",
    "kernels/amx.h",
    "kernels/cross_entropy.h",
    "kernels/gelu.h",
    "kernels/norm.h",
    "kernels/pack.h",
    "kernels/softmax.h",
    "kernels/sums.h",
];
/// Tables of the row kernels and the instructions that each may use.
#[cfg(target_arch = "x86_64")]
const TABLES: [(&str, &[&str]); 3] = [
    ("kernels_avx512", &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]),
    ("kernels_avx2", &["-mavx2", "-mfma"]),
    ("kernels_portable", &[]),
];
#[cfg(not(target_arch = "x86_64"))]
const TABLES: [(&str, &[&str]); 1] = [("kernels_portable", &[])];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    HEADERS.iter().for_each(|header| println!("cargo:rerun-if-changed=src/native/{header}"));
    let libtorch = match find_libtorch() {
        Ok(path) => path,
        Err(reason) => {
            eprintln!("error: {reason}\n       run `make setup`, which puts libtorch 2.11.0 into .libtorch/");
            std::process::exit(1);
        }
    };
    compile_shim(&libtorch);
    compile_kernels();
    compile_amx();
    compile_nccl(&libtorch);
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    // torch's own copy of the OpenMP runtime: a second one would be a second pool of threads.
    println!("cargo:rustc-link-arg=-l:libgomp.so.1");
    // A portable folder has bin/ beside lib/ (scripts/dist.sh): its own libraries before those of this build.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
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
        // c10d with its Gloo process group, whose headers want a few of gloo's.
        .flag("-DUSE_DISTRIBUTED")
        .flag("-DUSE_C10D_GLOO")
        .include("src/native/gloo_headers")
        .include(&include)
        .include(include.join("torch/csrc/api/include"));
    // One unit for all files: reading libtorch's headers takes longer than compiling what stands below them.
    let includes = UNITS.map(|unit| {
        let file = format!("src/native/{unit}.cpp");
        println!("cargo:rerun-if-changed={file}");
        format!("#include \"{unit}.cpp\"\n")
    });
    let all = PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default()).join("all.cpp");
    if let Err(error) = std::fs::write(&all, includes.concat()) {
        eprintln!("error: {}: {error}", all.display());
        std::process::exit(1);
    }
    println!("cargo:rerun-if-changed={DISTRIBUTED}");
    build.include("src/native").file(all).file(DISTRIBUTED);
    build.compile("linformer_native");
}

/// The same source once for each instruction set; which one runs is chosen at start.
fn compile_kernels() {
    let file = "src/native/kernels/kernels.cpp";
    println!("cargo:rerun-if-changed={file}");
    for (table, instructions) in TABLES {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(3).warnings(false).flag("-ffp-contract=off").flag("-Wno-psabi");
        for flag in instructions {
            build.flag(flag);
        }
        build.define("LINFORMER_TABLE", table).file(file).compile(&format!("linformer_{table}"));
    }
}

/// Empty where the compiler does not know the instructions; whether the processor does is asked at start.
fn compile_amx() {
    let file = "src/native/kernels/amx.cpp";
    println!("cargo:rerun-if-changed={file}");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).warnings(false).flag("-fopenmp");
    let (_, avx512) = TABLES[0];
    for flag in avx512.iter().chain(&["-mamx-tile", "-mamx-bf16"]) {
        build.flag_if_supported(flag);
    }
    build.file(file).compile("linformer_amx");
}

/// The NCCL process group as a library of its own, where libtorch came with NCCL: the program starts without CUDA's libraries.
fn compile_nccl(libtorch: &Path) {
    let source = "src/native/nccl.cpp";
    println!("cargo:rerun-if-changed={source}");
    let Some(packages) = libtorch.parent() else { return };
    // Says which kind of libtorch is here; it changes when CUDA's libraries are added.
    let kind = packages.join("complete");
    if kind.exists() {
        println!("cargo:rerun-if-changed={}", kind.display());
    }
    let nvidia = packages.join("nvidia");
    if !nvidia.join("nccl/include/nccl.h").exists() {
        return;
    }
    if let Some(lacking) = ["crt/host_defines.h", "nv/target", "cublas_v2.h"].iter().find(|h| !nvidia.join("cu13/include").join(h).exists())
    {
        println!(
            "cargo:warning=NCCL is left out, {}/cu13/include lacks {lacking}: rm -r .libtorch, then make setup CUDA=1",
            nvidia.display()
        );
        return;
    }
    let (include, lib) = (libtorch.join("include"), libtorch.join("lib"));
    let library = PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default()).join("liblinformer_nccl.so");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).warnings(false).flag("-fvisibility=hidden");
    build.flag("-DUSE_DISTRIBUTED").flag("-DUSE_C10D_NCCL").include("src/native");
    build.include(&include).include(include.join("torch/csrc/api/include"));
    build.include(nvidia.join("nccl/include")).include(nvidia.join("cu13/include"));
    let mut command = build.get_compiler().to_command();
    // Every symbol that is used has to be in libtorch; what libtorch's own libraries lack is found when they are loaded.
    command.args(["-shared", "-fPIC", "-Wl,--no-undefined", "-Wl,--allow-shlib-undefined", source, "-o"]).arg(&library);
    command.arg(format!("-L{}", lib.display())).arg(format!("-Wl,-rpath,{}", lib.display()));
    command.args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
    match command.status() {
        Ok(status) if status.success() => println!("cargo:rustc-env=LINFORMER_NCCL={}", library.display()),
        status => {
            eprintln!("error: {source} does not compile against {}: {status:?}", libtorch.display());
            std::process::exit(1);
        }
    }
}
