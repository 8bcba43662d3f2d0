#!/usr/bin/env python3
"""Licences of all crates that the program is made of: an overview, and the texts that the crates carry, once each.

    third_party.py FOLDER
"""
import hashlib
import json
import pathlib
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parent.parent
out = pathlib.Path(sys.argv[1])
metadata = json.loads(subprocess.run(["cargo", "metadata", "--format-version=1", "--offline", "--filter-platform=x86_64-unknown-linux-gnu"],
                                     cwd=root, check=True, capture_output=True, text=True).stdout)
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
packages = {package["id"]: package for package in metadata["packages"]}

# What is linked: ordinary dependencies, from the root on.
waiting, linked = [metadata["resolve"]["root"]], set()
while waiting:
    package = waiting.pop()
    if package not in linked:
        linked.add(package)
        waiting += [d["pkg"] for d in nodes[package]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]

rows, texts = [], {}
for package in sorted((packages[i] for i in linked if i != metadata["resolve"]["root"]), key=lambda p: (p["name"], p["version"])):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "UNLICENSE")))
    for file in files:
        text = file.read_text(errors="replace").strip() + "\n"
        texts.setdefault(hashlib.sha256(text.encode()).hexdigest(), (text, []))[1].append(f"{package['name']} {package['version']} ({file.name})")
    rows.append(f"{package['name']} {package['version']}: {package['license'] or package['license_file']}; {package['repository'] or ''}")
(out / "crates.txt").write_text("\n".join(rows) + "\n")
with (out / "crates-texts.txt").open("w") as file:
    for text, users in texts.values():
        file.write("=" * 100 + "\n" + ", ".join(users) + "\n" + "-" * 100 + "\n" + text + "\n")
