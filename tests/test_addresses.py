"""One address in settings.ini, and everything that follows from it: set in a copy, and taken out again."""
import importlib
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import setuptools
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
NAME = "somebody/somewhere"
URL = f"https://github.com/{NAME}"
CALLED = f'-q "disback[diffusers] @ git+{URL}@main"'


class Project:
    """A copy of this project with its tools, in this process: to start one takes seconds."""
    def __init__(self, root):
        self.root, names = root, ("clean", "addresses", "readme", "execute")
        left_out = shutil.ignore_patterns(".git", "_docs", "runs", "__pycache__", "build", "*.egg-info")
        shutil.copytree(ROOT, root, ignore=left_out)
        before = {name: sys.modules.pop(name, None) for name in names}
        sys.path.insert(0, str(root / "tools"))
        self.tools = {name: importlib.import_module(name) for name in names}
        sys.path.remove(str(root / "tools"))
        for name, module in before.items():
            del sys.modules[name]
            if module: sys.modules[name] = module

    def run(self, tool, *args):
        """Run a tool; what it says if it fails, else None."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [tool, *args])
            try: self.tools[tool].main()
            except SystemExit as stop: return stop.code

    def set(self, url):
        """Write `url` into the settings, and bring what is generated up to date; whether it was not."""
        file = self.root / "settings.ini"
        file.write_text(re.sub(r"^git_url =.*$", f"git_url = {url}".rstrip(), file.read_text(), flags=re.M))
        stale = self.run("readme", "--check")
        assert self.run("readme") is None
        return stale

    def contents(self):
        """What the generated files hold."""
        files = [self.root / name for name in ("README.md", "CITATION.cff")]
        files += (self.root / "nbs/tutorials").glob("*.ipynb")
        return {f.relative_to(self.root).as_posix(): f.read_bytes() for f in files}

    def checks(self):
        """What the tools say that look at what is generated."""
        return {tool: self.run(tool, "--check") for tool in ("clean", "execute", "readme")}

    def links(self, monkeypatch):
        """The addresses that the package is published with."""
        given = {}
        monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
        runpy.run_path(self.root / "setup.py")
        return given["project_urls"]

    def tutorials(self):
        files = sorted((self.root / "nbs/tutorials").glob("*.ipynb"))
        return {f.relative_to(self.root).as_posix(): nbformat.read(f, as_version=4).cells for f in files}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy without an address."""
    copy = Project(tmp_path_factory.mktemp("copy") / "disback")
    copy.set("")
    copy.said = copy.checks()    # a notebook that is being worked on may have something wrong with it
    return copy


@pytest.fixture
def addressed(project):
    """The copy with an address, which is taken out again."""
    before = project.contents()
    assert "tutorials" in project.set(URL)
    yield project
    assert project.set("") and project.contents() == before


def test_without_an_address_there_is_none_anywhere(project, monkeypatch):
    told = b"\n".join(project.contents().values())
    assert not [mark for mark in (b"colab", b"repository-code", b"git clone", b"badge.svg") if mark in told]
    assert project.links(monkeypatch) == {}


def test_the_address_appears_everywhere(addressed, monkeypatch):
    readme, citation = [(addressed.root / name).read_text() for name in ("README.md", "CITATION.cff")]
    assert readme.startswith(f"# disback\n\n[![tests]({URL}/actions/workflows/ci.yml/badge.svg)]")
    assert f"```sh\ngit clone {URL} && cd somewhere\npython3 -m venv" in readme
    assert f'\nrepository-code: "{URL}"\nlicense:' in citation
    links = URL, f"{URL}/issues", f"{URL}/blob/main/CHANGELOG.md"
    assert {*addressed.links(monkeypatch).values()} == {*links}
    for page, (title, badge, install, *_) in addressed.tutorials().items():
        assert title.source.startswith("# ")
        assert badge.source.endswith(f"(https://colab.research.google.com/github/{NAME}/blob/main/{page})")
        assert install.cell_type == "code" and CALLED in install.source


def test_with_an_address_notebooks_are_clean_and_their_outputs_still_theirs(addressed):
    assert addressed.checks() == addressed.said and addressed.said["readme"] is None


def test_the_site_shows_neither_badge_nor_cell(addressed):
    sys.path.insert(0, str(ROOT / "site"))
    prepare = importlib.import_module("prepare")
    sys.path.remove(str(ROOT / "site"))
    for page, cells in addressed.tutorials().items():
        shown, _ = prepare.page_cells(nbformat.v4.new_notebook(cells=cells), page, URL)
        assert not [cell for cell in shown if "colab" in cell.source]


@pytest.mark.parametrize("on_colab", [True, False])
def test_the_cell_installs_on_colab_alone(addressed, monkeypatch, on_colab):
    (cell,) = [c for c in [*addressed.tutorials().values()][0] if c.id == "colab-install"]
    calls, shell = [], SimpleNamespace(run_line_magic=lambda *args: calls.append(args))
    if on_colab: monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    exec(TransformerManager().transform_cell(cell.source), {"get_ipython": lambda: shell})
    assert calls == [("pip", f"install {CALLED}")] * on_colab


def test_another_host_has_no_badge(project):
    project.set("https://example.org/disback")
    assert {cells[1].id for cells in project.tutorials().values()} == {"colab-install"}
    assert "badge" not in (project.root / "README.md").read_text()
    assert project.set("")
