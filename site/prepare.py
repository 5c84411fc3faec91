"""Pages for Sphinx from the notebooks as they are in git; nothing of the library is executed or imported.

    python site/prepare.py OUT

Hidden cells and directives go. Before an exported cell stands an entry for each of its public definitions;
the cell itself is folded. Links to files that are no pages lead to the repository, or are plain text while
`git_url` in settings.ini is empty."""
import argparse
import ast
import re
import shutil
from configparser import ConfigParser
from pathlib import Path, PurePosixPath
from posixpath import normpath

import nbformat
from entries import constants, entries, escape
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
DIRECTIVE = re.compile(r"^#\s*\|\s*(\w+):?[ \t]*(.*)\n?", re.M)
CHAPTERS = {"Start": r"own$|measured$", "Tutorials": r"tutorials/", "Ground": r"0\d_",
            "Teachers": r"1\d_|20_", "The method": r"2[1-9]_",
            "Analysis": r"3\d_", "Interface": r"4\d_", "Experiments": r"experiments/"}


def settings():
    """What settings.ini says of the project."""
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def directives(source):
    """The `#| name value` lines of a cell, and the cell without them."""
    return dict(DIRECTIVE.findall(source)), DIRECTIVE.sub("", source).strip("\n")


def links(text, page, address):
    """Images and links to files of the repository, as they are found from the site."""
    folder = PurePosixPath("nbs" if page else ".") / PurePosixPath(page).parent

    def turn(found):
        image, words, target = found.groups()
        path = normpath(folder / target)
        if not page and path.startswith("nbs/"): return f"[{words}]({path[4:]})"    # beside it here
        is_page = path.startswith("nbs/") or re.match(r"\w+:|#", target)
        if is_page or not (ROOT / path).exists(): return found[0]
        if path.startswith("docs/images/"): return f"{image}[{words}]({'../' * page.count('/')}{path[5:]})"
        return f"[{words}]({address}/{path})" if address else words
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", turn, text)


def suffixes(objects):
    """The names that prose uses, `{short: [(full, page, anchor)]}`, of `(full, page, anchor, kind)`."""
    short = {}
    for full, page, anchor, kind in objects:
        parts = full.split(".")
        for n in range(1 + (kind in ("method", "property")), len(parts) + 1):
            short.setdefault(".".join(parts[-n:]), []).append((full, page, anchor))
    return short


def meant(word, page, pages, short):
    """`(page, anchor)` that a word in backticks stands for; None if it is a word like others or not clear."""
    near = [f"{folder}{word}" for folder in ("", "tutorials/", "experiments/", page.rpartition("/")[0] + "/")]
    found = [(p, "") for p in near if p in pages and re.search(r"\d_|/", p)]
    bare = re.sub(r"\(.*\)$", "", word).removeprefix("db.")
    if bare != word or re.search("[A-Z_.]", bare):
        known = short.get(bare, [])
        own = [o for o in known if o[1] == page]
        found += [(page, anchor) for _, page, anchor in own or known]
    return found[0] if len(set(found)) == 1 else None


def page_cells(nb, page, address):
    """The cells of a page, and `(module, names)` of what it exports."""
    cells, module, names = [], None, []
    for cell in nb.cells:
        if cell.id == "colab-badge": continue    # an image from elsewhere; the site has a button of its own
        if cell.cell_type != "code":
            cells.append(new_markdown_cell(links(cell.source, page, address), id=cell.id))
            continue
        marks, source = directives(cell.source)
        if "default_exp" in marks:
            module = marks["default_exp"]
            cells.append(new_markdown_cell(f":::{{py:module}} disback.{module}\n:::", id=cell.id))
        if "hide" in marks or not source: continue
        tags = [mark for mark in ("slow", "gpu") if mark in marks]
        tags += ["remove-input"] if marks.get("echo") == "false" else []
        if "export" in marks:
            found = entries(source)
            names += found
            if found: cells.append(new_markdown_cell("\n\n".join(e for *_, e in found), id=f"{cell.id}-api"))
            if not constants(ast.parse(source).body[-1]): tags.append("hide-input")
        cells.append(new_code_cell(source, outputs=cell.outputs, id=cell.id, metadata=dict(tags=tags)))
    return cells, (module, names)


def trees(pages):
    """The chapters, as the sidebar shows them."""
    chapters = {caption: [p for p in pages if re.match(start, p)] for caption, start in CHAPTERS.items()}
    chapters["Reference"] = ["paper", "api", "changelog", "contributing"]
    one = "```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```"
    return "\n\n".join(one.format(caption, "\n".join(inside)) for caption, inside in chapters.items())


def api(exports):
    """The page that lists every name, by module."""
    lines = ["# Every name", "", "Each leads to its parameters, its source and an example."]
    for page, (module, names) in exports.items():
        if not names: continue
        lines += ["", f"## [{module}]({page}.ipynb)", ""]
        lines += [f"- {{py:obj}}`{name} <disback.{module}.{name}>` {escape(doc)}" for name, doc, _ in names]
    return "\n".join(lines) + "\n"


def main():
    """The command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("out", type=Path)
    out, cfg = parser.parse_args().out, settings()
    address = cfg["git_url"] and f"{cfg['git_url']}/blob/{cfg['branch']}"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "images", out / "images")
    nbs, exports = ROOT / "nbs", {}
    files = [f for f in sorted(nbs.rglob("*.ipynb")) if ".ipynb_checkpoints" not in f.parts]
    pages = [f.relative_to(nbs).with_suffix("").as_posix() for f in files]
    for file, page in zip(files, pages):
        nb = nbformat.read(file, as_version=4)
        nb.cells, exports[page] = page_cells(nb, page, address)
        if page == "index": nb.cells.append(new_markdown_cell(trees(pages), id="chapters"))
        (out / page).parent.mkdir(exist_ok=True)
        nbformat.write(nb, out / f"{page}.ipynb")
    for name in ("CHANGELOG", "CONTRIBUTING"):
        (out / f"{name.lower()}.md").write_text(links((ROOT / f"{name}.md").read_text(), "", address))
    (out / "api.md").write_text(api(exports))
    print(f"{len(pages)} notebooks, {sum(len(names) for _, names in exports.values())} entries")


if __name__ == "__main__": main()
