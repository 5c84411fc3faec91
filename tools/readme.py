"""Make README.md from nbs/index.ipynb, as it stands there with its outputs, without Quarto.

    python tools/readme.py [--check]

nbdev's directives are honoured (`#| hide`, `#| export`, `#| hide_line`, `#| echo: false`,
`#| filter_stream`), figures go to docs/images/index_*, and relative links, written as seen from the
notebook's folder, are turned to the project's root. What follows from the project's address in settings.ini
is put in too, here and elsewhere, or taken out: see tools/addresses.py.
`--check` writes nothing and fails if README.md, a figure or one of those files is not up to date."""
import argparse
import copy
import os.path
import re
import sys

import addresses
import nbformat
from clean import ROOT, read
from nbconvert import MarkdownExporter
from nbdev.processors import (FilterDefaults, clean_magics, hide_, hide_line, filter_stream_,
                              populate_language, rm_export, rm_header_dash, strip_ansi)
from execnb.nbio import dict2nb, nb2dict
from traitlets.config import Config

INDEX, README, IMAGES, PREFIX = ROOT / "nbs/index.ipynb", ROOT / "README.md", "docs/images", "index"
LINK = re.compile(r"""(\]\(\s*<?|(?:src|href)=["'])(?![a-z][a-z0-9+.-]*:|[#/])([^\s)>"'#]+)""", re.I)
# A README has no scripts: an animation is kept as the picture or the text that comes with it.
PRIORITY = ["image/png", "image/jpeg", "image/svg+xml", "text/markdown", "text/html", "text/latex",
            "text/plain"]


class ReadmeProcs(FilterDefaults):
    """nbdev's processors less those for a docs site (front matter, links, generated documentation)."""
    def base_procs(self):
        return [populate_language, strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export,
                clean_magics, hide_]


def turn_links(text):
    """Links relative to nbs/ in the markdown `text`, made relative to the project's root."""
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.M | re.S)
    turn = lambda m: m[1] + os.path.relpath(os.path.normpath(INDEX.parent / m[2]), ROOT).replace(os.sep, "/")
    return "".join(p if i % 2 else LINK.sub(turn, p) for i, p in enumerate(parts))


def prepare(nb):
    """The notebook `nb` as the README shows it: hidden cells gone, directives obeyed, links turned."""
    procs = ReadmeProcs().nb_proc(dict2nb(nb2dict(copy.deepcopy(nb))))
    procs.process()
    cells = []
    for cell in procs.nb.cells:
        if cell.cell_type == "markdown": cells.append(nbformat.v4.new_markdown_cell(turn_links(cell.source)))
        if cell.cell_type != "code": continue
        option = lambda key: (cell.directives_.get(f"{key}:") or ["true"])[0].lower() != "false"
        lines = [line for line in cell.source.splitlines() if not re.match(r"\s*#\s*\|", line)]
        source = "\n".join(lines).strip()
        outputs = nbformat.from_dict(nb2dict(cell.outputs)) if option("output") else []
        for out in outputs:
            if isinstance(out.get("text"), list): out.text = "".join(out.text)
            if "<script" in out.get("data", {}).get("text/html", ""): del out.data["text/html"]
        new = nbformat.v4.new_code_cell(source, outputs=outputs)
        if not option("echo") or not source: new.metadata["transient"] = {"remove_source": True}
        cells.append(new)
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def render():
    """The text of the README and its figures, as a dict from path to bytes."""
    names = {"output_filename_template": "{unique_key}_{cell_index}_{index}{extension}"}
    exporter = MarkdownExporter(config=Config(NbConvertBase={"display_data_priority": PRIORITY},
                                              ExtractOutputPreprocessor=names))
    where = {"unique_key": PREFIX, "output_files_dir": IMAGES}
    text, resources = exporter.from_notebook_node(prepare(read(INDEX)), where)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return addresses.in_readme(text, addresses.settings()), resources["outputs"]


def broken_links(text, figures):
    """Files that the README `text` points at and that are not there."""
    prose = re.sub(r"(^```.*?^```|`[^`\n]+`)", "", text, flags=re.M | re.S)
    return sorted({m[2] for m in LINK.finditer(prose) if m[2] not in figures and not (ROOT / m[2]).exists()})


def main():
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true",
                      help="write nothing; fail if README.md is not up to date")
    args = args.parse_args()
    if not INDEX.exists(): sys.exit("nbs/index.ipynb is missing, so there is nothing to make README.md from.")
    text, figures = render()
    if broken := broken_links(text, figures):
        sys.exit(f"README.md would point at what does not exist: {', '.join(broken)}.")
    wanted = {"README.md": text.encode(), **figures, **addresses.files()}
    there = [str(p.relative_to(ROOT)) for p in (ROOT / IMAGES).glob(f"{PREFIX}_*")]
    old = [p for p in there if p not in wanted]
    new = [p for p, data in wanted.items() if not (ROOT / p).exists() or (ROOT / p).read_bytes() != data]
    if args.check:
        if old or new:
            sys.exit(f"Not what nbs/index.ipynb and settings.ini give: {', '.join(new + old)}; "
                     "run `python tools/readme.py`.")
        return
    for p in old: (ROOT / p).unlink()
    for p in new:
        (ROOT / p).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / p).write_bytes(wanted[p])
    removed = f"; removed {', '.join(old)}" if old else ""
    if old or new: print(f"wrote {', '.join(new) or 'nothing'}{removed}")


if __name__ == "__main__": main()
