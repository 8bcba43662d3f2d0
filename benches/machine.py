"""What the record of a benchmark says of where it was made."""
import hashlib
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/linformer"


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def units():
    flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split()
    return [unit for unit in ["avx2", "avx512f", "avx512_bf16", "amx_bf16"] if unit in flags]


def machine():
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    revision = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    torch = (ROOT / ".libtorch/torch/version.py").read_text().split("__version__ = '")[1].split("'")[0]
    return {"cpu": names[0], "cores": len(names), "units": units(), "kernel": platform.release(), "revision": revision,
            "program_sha256": sha256(PROGRAM), "libtorch": torch}
