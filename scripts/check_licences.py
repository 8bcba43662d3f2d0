#!/usr/bin/env python3
"""Every dependency's licence is one that deny.toml allows; known advisories if a tool for them is installed.

`cargo deny` does both where it is installed and can reach its database. Without it the licences are read from
`cargo metadata` here, and the advisories are left unchecked, which is said.
"""
import json
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def allowed() -> set[str]:
    text = (ROOT / "deny.toml").read_text()
    return set(re.findall(r'"([^"]+)"', re.search(r"allow = \[(.*?)\]", text, re.S).group(1)))


def accepts(expression: str, allow: set[str]) -> bool:
    """An SPDX expression: one alternative of each OR, every part of each AND."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def alternatives() -> bool:
        nonlocal position
        result = everything()
        while position < len(tokens) and tokens[position] == "OR":
            position += 1
            other = everything()
            result = result or other
        return result

    def everything() -> bool:
        nonlocal position
        result = one()
        while position < len(tokens) and tokens[position] == "AND":
            position += 1
            other = one()
            result = result and other
        return result

    def one() -> bool:
        nonlocal position
        if tokens[position] == "(":
            position += 1
            result = alternatives()
            position += 1
            return result
        name = tokens[position]
        position += 1
        if position < len(tokens) and tokens[position] == "WITH":
            name = f"{name} WITH {tokens[position + 1]}"
            position += 2
        return name in allow

    return alternatives()


def main() -> int:
    if shutil.which("cargo-deny"):
        checks = ["licenses", "bans", "sources"]
        if subprocess.run(["cargo", "deny", "fetch"], cwd=ROOT, capture_output=True).returncode == 0:
            checks.append("advisories")
        else:
            print("check_licences: the advisory database cannot be reached: advisories were not checked")
        return subprocess.run(["cargo", "deny", "check", *checks], cwd=ROOT).returncode
    metadata = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], cwd=ROOT, check=True, capture_output=True).stdout)
    allow = allowed()
    packages = [p for p in metadata["packages"] if p["name"] != "linformer"]
    bad = [f"{p['name']} {p['version']}: {p['license'] or 'no licence named'}" for p in packages if not accepts(p["license"] or "none", allow)]
    for line in bad:
        print(f"check_licences: {line}: not allowed by deny.toml", file=sys.stderr)
    print(f"check_licences: {len(packages)} dependencies, {len(bad)} not allowed; advisories not checked (install cargo-deny for that)")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
