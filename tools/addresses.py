"""What follows from the project's address, `git_url` in settings.ini; it is left out while that is empty.

`tools/readme.py` writes it: each tutorial's badge and first cell for Colab, the README's badges and the line
that fetches the project, and the address in CITATION.cff. setup.py makes the package's links of it."""
import re
from configparser import ConfigParser

from clean import ROOT, as_text, clean, read
from nbformat.v4 import new_code_cell, new_markdown_cell

COLAB = "https://colab.research.google.com"
GITHUB = "https://github.com/"    # the only host that Colab and the badge of the tests know
FOR_COLAB = ("colab-badge", "colab-install")
FIRST = "nbs/tutorials/01_from_teacher_to_one_step.ipynb"
INSTALL = '''#| hide
#| eval: false
import sys
if 'google.colab' in sys.modules:    # ipywidgets 8 comes with it
    %pip install -q "disback[diffusers] @ git+{git_url}@{branch}"'''


def settings():
    """What settings.ini says of the project; its address without a `/` at the end."""
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    cfg = dict(ini["DEFAULT"])
    return cfg | dict(git_url=cfg["git_url"].rstrip("/"))


def badge(cfg, page):
    """The badge that opens the notebook `page`, a path in the project, on Colab; empty for other hosts."""
    if not cfg["git_url"].startswith(GITHUB): return ""
    project = cfg["git_url"].removeprefix(GITHUB).removesuffix(".git")
    link = f"{COLAB}/github/{project}/blob/{cfg['branch']}/{page}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({link})"


def with_address(nb, cfg, page):
    """The tutorial `nb` with its badge and install cell behind the title, or without them."""
    title, *others = [c for c in nb.cells if c.id not in FOR_COLAB]
    install = INSTALL.format_map(cfg) * bool(cfg["git_url"])
    new = new_markdown_cell(badge(cfg, page), id=FOR_COLAB[0]), new_code_cell(install, id=FOR_COLAB[1])
    nb.cells = [title, *[c for c in new if c.source], *others]
    clean(nb)
    return nb


def in_readme(text, cfg):
    """The README `text` with badges under its title, and the line that fetches the project."""
    url, mark = cfg["git_url"], badge(cfg, FIRST)
    if not url: return text
    tests = f"{url.removesuffix('.git')}/actions/workflows/ci.yml"
    marks = f"\n[![tests]({tests}/badge.svg)]({tests}) {mark}\n" if mark else ""
    title, rest = text.split("\n", 1)
    block = "```sh\n"
    fetch = f"{block}git clone {url} && cd {url.rpartition('/')[2].removesuffix('.git')}\n"
    return f"{title}\n{marks}{rest.replace(block, fetch, 1)}"


def in_citation(text, cfg):
    """CITATION.cff's `text` with the address, or without it."""
    text = re.sub(r"^repository-code: .*\n", "", text, flags=re.M)
    line = f'repository-code: "{cfg["git_url"]}"\n' * bool(cfg["git_url"])
    return re.sub(r"^(?=license:)", line, text, count=1, flags=re.M)


def files():
    """The files that hold the address, as a dict from path to bytes."""
    cfg, pages = settings(), sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))
    pages = {p.relative_to(ROOT).as_posix(): p for p in pages}
    texts = {page: as_text(with_address(read(p), cfg, page)) for page, p in pages.items()}
    texts["CITATION.cff"] = in_citation((ROOT / "CITATION.cff").read_text(encoding="utf-8"), cfg)
    return {path: text.encode() for path, text in texts.items()}
