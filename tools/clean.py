"""Clean notebooks in place, so that git sees what was written and not how it was run.

    python tools/clean.py [--check] [notebook or folder ...]          # default: all of nbs/

Does what nbdev_clean does (counters, cell metadata), and also: widget state, widget views (their pictures
stay) and progress bars go, pieces of one stream are joined, the random ids of matplotlib's animations become
stable ones, warnings lose the path of the kernel's temporary file, cells without an id get one that depends
on their text alone, and nbformat writes the file as format 4.5.
What no cleaning can mend is refused: an error kept as an output, or a path of the machine it ran on.
`--check` changes nothing and says what would change."""
import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import nbformat
from nbdev.clean import clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|home|tmp|work|Users)/[^\s'\"]*")
PROGRESS_BAR = re.compile(r"\d+%\||\d+(?:\.\d+)?\s?(?:it/s|s/it)\b")
# Its numbers differ in each run.
WARNING_PLACE = re.compile(r"^\S*/ipykernel_\d+/\d+\.py:\d+: (?=\w+:)", re.M)
ANIMATION_ID = re.compile(r"_anim_img([0-9a-f]{32})")


def notebooks(paths=()):
    """The notebooks that `paths` (files or folders) name, all of nbs/ if there are none, in a fixed order."""
    found = []
    for path in [Path(p).resolve() for p in paths] or [ROOT / "nbs"]:
        if not path.exists(): sys.exit(f"{path} does not exist.")
        inside = [p for p in path.rglob("*.ipynb")
                  if not any(s[0] in "._" for s in p.relative_to(path).parts)]
        found += [path] if path.is_file() else sorted(inside)
    return list(dict.fromkeys(found))


def name(path):
    """`path` as messages show it: relative to the project, where it lies in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def read(path):
    """The notebook at `path` as format 4.5; a cell without an id of its own gets one made of its text."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("nbformat") != 4:
        sys.exit(f"{name(path)}: notebook format {raw.get('nbformat')} instead of 4.")
    seen = set()
    for cell in raw["cells"]:
        n, source = 0, "".join(cell["source"])
        while cell.get("id") is None or cell["id"] in seen:
            cell["id"] = hashlib.sha1(f"{path.name}|{source}|{n}".encode()).hexdigest()[:8]
            n += 1
        seen.add(cell["id"])
    raw["nbformat_minor"] = 5
    return nbformat.reads(json.dumps(raw), as_version=4)


def clean_outputs(cell):
    """Drop widgets, but for their pictures, and progress bars, and join the pieces of each stream."""
    kept = []
    for out in cell.outputs:
        if out.output_type == "stream":
            if kept and kept[-1].output_type == "stream" and kept[-1].name == out.name:
                kept[-1].text += out.text
            else: kept.append(out)
        elif WIDGET not in out.get("data", {}): kept.append(out)
        elif picture := out.data.get("image/png"):    # what a widget shows where it is not alive
            out.data = nbformat.from_dict({"image/png": picture})
            kept.append(out)
    for out in kept:
        if out.output_type == "stream":
            lines = [re.sub(r"[^\n]*\r(?!\n)", "", line) for line in out.text.splitlines(keepends=True)
                     if not PROGRESS_BAR.search(line)] if PROGRESS_BAR.search(out.text) else [out.text]
            out.text = WARNING_PLACE.sub("", "".join(lines)).replace(f"{ROOT}/", "")
        html = out.get("data", {}).get("text/html")
        if isinstance(html, str):
            for n, old in enumerate(dict.fromkeys(ANIMATION_ID.findall(html))):
                html = html.replace(old, hashlib.md5(f"{cell.id}|{n}".encode()).hexdigest())
            out.data["text/html"] = html
    cell.outputs = [out for out in kept if out.output_type != "stream" or out.text.strip()]


def clean(nb):
    """Clean the notebook `nb`, in place."""
    cfg = get_config(path=ROOT)
    for cell in nb.cells:
        if cell.cell_type == "code": clean_outputs(cell)
    clean_nb(nb, allowed_metadata_keys=cfg.allowed_metadata_keys.split(),
             allowed_cell_metadata_keys=cfg.allowed_cell_metadata_keys.split(), clean_ids=cfg.clean_ids)
    nb.metadata = nbformat.from_dict({k: v for k, v in nb.metadata.items() if k != "widgets"})
    for cell in nb.cells: cell.metadata = nbformat.from_dict(cell.metadata)


def texts(out):
    """What a reader could read in the output `out`."""
    if out.output_type == "stream": return [out.text]
    return [v if isinstance(v, str) else json.dumps(v)
            for k, v in out.get("data", {}).items() if not k.startswith("image/")]


def refusals(nb):
    """One sentence for everything in `nb` that must not be kept and that cleaning cannot mend."""
    said = []
    for i, cell in enumerate(nb.cells):
        outputs = cell.get("outputs", [])
        said += [f"cell {i} ({cell.id}) keeps an error: {out.ename}: {out.evalue[:80]}"
                 for out in outputs if out.output_type == "error"]
        for what, parts in ("source", [cell.source]), ("output", [t for out in outputs for t in texts(out)]):
            found = sorted({m for part in parts for m in MACHINE_PATH.findall(part)})
            if not found: continue
            said.append(f"the {what} of cell {i} ({cell.id}) holds a path of this machine: {found[0]}")
    return said


def as_text(nb):
    """`nb` as it is written to its file."""
    nbformat.validate(nb)
    return nbformat.writes(nb).rstrip("\n") + "\n"


def main():
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("paths", nargs="*", help="notebooks or folders (default: nbs/)")
    args.add_argument("--check", action="store_true", help="change nothing; fail if a notebook is not clean")
    args, failed = args.parse_args(), []
    for path in notebooks(args.paths):
        nb = read(path)
        clean(nb)
        failed += [f"{name(path)}: {said}." for said in refusals(nb)]
        new = as_text(nb)
        if new == path.read_text(encoding="utf-8"): continue
        if args.check: failed.append(f"{name(path)} is not clean: run `python tools/clean.py`.")
        else:
            path.write_text(new, encoding="utf-8")
            print(f"cleaned {name(path)}")
    if failed: sys.exit("\n".join(failed))


if __name__ == "__main__": main()
