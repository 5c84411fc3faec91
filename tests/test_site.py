"""The documentation site: how its pages are made, and what a built one is like in a browser.

The second part runs on a site that `tools/docs` has built, in Chromium, with every other host blocked:

    tools/docs --check && DISBACK_SITE=_docs/html pytest -n0 tests/test_site.py

Screenshots go to DISBACK_SCREENSHOTS, if it is set."""
import functools
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "site"))
import check     # noqa: E402
import entries   # noqa: E402
import prepare   # noqa: E402
sys.path.remove(str(ROOT / "site"))

DEFINED = '''\
def nearest(x:Tensor,          # points, `(n, 2)`
            to, *, k:int|None=3, # how many;
                                 # None: all
            **more
           )->Tensor:          # of *every* point
    "The nearest `k` points, by d_2."
    return x  # not a parameter

@dataclass
class Keep(Rule):
    "What is kept."
    every: int = 5 # steps
    _own: int = 0

    def wants(self, step:int)->bool: return True # whether it is kept
    def quiet(self): pass

@patch
def move(self:Keep, p)->None: # a position
    "Move there."

@patch_property
def size(self:Keep)->int: # bytes
    "How large it is."

def _own(): pass

SIZES = {}
'''


def entry(name):
    """The entry of one of the definitions above."""
    return {n: text for n, _, text in entries.entries(DEFINED)}[name]


def test_names_that_get_an_entry():
    found = entries.entries(DEFINED)
    assert [n for n, *_ in found] == ["nearest", "Keep", "Keep.move", "Keep.size", "SIZES"]
    assert [doc for _, doc, _ in found][:2] == ["The nearest `k` points, by d_2.", "What is kept."]


def test_a_function_has_signature_docstring_and_table():
    assert entry("nearest").splitlines() == [
        ":::{py:function} nearest(x, to, *, k=3, **more)", "",
        r"The nearest `k` points, by d\_2.", "",
        "| parameter | meaning |", "|---|---|",
        "| `x: Tensor` | points, `(n, 2)` |",
        r"| `to` `k: int \| None = 3` | how many; None: all |",
        "| `**more` |  |",
        r"| `-> Tensor` | of \*every\* point |", "", ":::"]


def test_a_class_has_its_fields_its_base_and_the_methods_that_say_something():
    text = entry("Keep")
    assert text.startswith("::::{py:class} Keep(every=5)\n\nWhat is kept.")
    assert "| `every: int = 5` | steps |" in text and "Extends `Rule`." in text and "_own" not in text
    assert ":::{py:method} wants(step)" in text and "| `step: int` `-> bool` | whether it is kept |" in text
    assert "quiet" not in text and text.endswith("\n::::")


def test_methods_added_by_patch_belong_to_their_class():
    assert entry("Keep.move").startswith(":::{py:method} Keep.move(p)\n\nMove there.")
    assert "| `p` | a position |" in entry("Keep.move")
    assert entry("Keep.size").startswith(":::{py:property} Keep.size\n")
    assert entry("SIZES") == ":::{py:data} SIZES\n\n:::"


@pytest.mark.parametrize("source, head", [
    ("def f(a, b=2, /, c=3, *d, e, g=4): pass", "f(a, b=2, /, c=3, *d, e, g=4)"),
    ("@patch\ndef f(self:A, b=2): pass", "A.f(b=2)"),
    ("@patch\ndef f(self:A, b=2, *, c): pass", "A.f(b=2, *, c)"),
    ("@patch\ndef f(self:'A'): pass", "A.f()"),
    ("class A:\n def __init__(self, b=1): pass", "A(b=1)"),
    ("class A(NamedTuple):\n b: int\n c: str = ''", "A(b, c='')")])
def test_signatures(source, head):
    assert head in entries.entries(source)[0][2].splitlines()[0]


def test_every_default_stays_with_its_parameter():
    source = "def f(a, # one\n b=2, # two\n *, c, # three\n d=4, # four\n ): pass"
    rows = entries.entries(source)[0][2].splitlines()[4:8]
    assert rows == ["| `a` | one |", "| `b = 2` | two |", "| `c` | three |", "| `d = 4` | four |"]


def page(*sources):
    """The cells of a page, and what it exports, from cells of a notebook: code, or text behind `>`."""
    cells = [new_markdown_cell(s[1:]) if s[0] == ">" else new_code_cell(s) for s in sources]
    return prepare.page_cells(new_notebook(cells=cells), "21_paths", "")


def test_a_page():
    cells, (module, names) = page("># paths", "#| default_exp paths", "#| export\nimport math",
                                  "#| hide\nimport nbdev", "#| export\ndef f(): 'Do.'", "#| slow\nf()",
                                  "#| echo: false\nf()", "#| export\nSIZES = {}")
    assert [c.source for c in cells if c.cell_type == "code"] == [
        "import math", "def f(): 'Do.'", "f()", "f()", "SIZES = {}"]
    tags = [c.metadata.tags for c in cells if c.cell_type == "code"]
    assert tags == [["hide-input"], ["hide-input"], ["slow"], ["remove-input"], []]
    texts = [c.source for c in cells if c.cell_type == "markdown"]
    assert texts[:2] == ["# paths", ":::{py:module} disback.paths\n:::"]
    assert texts[2] == ":::{py:function} f()\n\nDo.\n\n:::"
    assert module == "paths" and [n for n, *_ in names] == ["f", "SIZES"]


@pytest.mark.parametrize("text, page, expected", [
    ("![a](../docs/images/path_stepper.png)", "index", "![a](images/path_stepper.png)"),
    ("![a](../../docs/images/path_stepper.png)", "tutorials/x", "![a](../images/path_stepper.png)"),
    ("[s](../../benchmarks/speed.py)", "experiments/x", "[s](https://h/r/benchmarks/speed.py)"),
    ("[l](LICENSE)", "", "[l](https://h/r/LICENSE)"),
    ("[a](21_paths.ipynb), [b](https://x.y/LICENSE), [c](#d)", "index",
     "[a](21_paths.ipynb), [b](https://x.y/LICENSE), [c](#d)")])
def test_links_to_files(text, page, expected):
    assert prepare.links(text, page, "https://h/r") == expected


def test_links_are_plain_text_while_there_is_no_address():
    text = "see [the script](../../benchmarks/speed.py)"
    assert prepare.links(text, "experiments/x", "") == "see the script"


@pytest.mark.parametrize("word, expected", [
    ("EqualDrift", ("22_degradation", "d")), ("db.EqualDrift(4)", ("22_degradation", "d")),
    ("degradation.EqualDrift", ("22_degradation", "d")), ("size", None), ("size()", ("42_recipes", "s")),
    ("move()", None), ("Walk.move", ("24_backtracking", "m")), ("unknown_name", None), ("sample()", None),
    ("21_paths", ("21_paths", "")), ("03_score_mismatch", ("tutorials/03_score_mismatch", "")),
    ("experiments/02_convergence", ("experiments/02_convergence", "")), ("paper", None)])
def test_words_that_are_links(word, expected):
    pages = ["21_paths", "paper", "tutorials/03_score_mismatch", "experiments/02_convergence"]
    short = prepare.suffixes([
        ("disback.degradation.EqualDrift", "22_degradation", "d", "class"),
        ("disback.recipes.size", "42_recipes", "s", "function"),
        ("disback.backtracking.Walk.move", "24_backtracking", "m", "method"),
        ("disback.samplers.sample", "06_samplers", "1", "function"),
        ("disback.stages.sample", "43_stages", "2", "function")])
    assert prepare.meant(word, "index", pages, short) == expected
    assert prepare.meant("sample()", "43_stages", pages, short) == ("43_stages", "2")    # its own comes first


def test_every_notebook_becomes_a_page_with_a_chapter():
    files = sorted((ROOT / "nbs").rglob("*.ipynb"))
    pages = [f.relative_to(ROOT / "nbs").with_suffix("").as_posix() for f in files]
    trees = prepare.trees(pages)
    assert [p for p in pages if trees.split().count(p) != 1] == ["index"]
    exports = {p: prepare.page_cells(nbformat.read(f, as_version=4), p, "")[1] for f, p in zip(files, pages)}
    assert "- {py:obj}`EqualDrift <disback.degradation.EqualDrift>` " in prepare.api(exports)


@pytest.mark.parametrize("body, sentence", [
    ('<a href="b.html#here">', None), ('<a href="https://other.host/">', None), ('<a href="folder/">', None),
    ('<a href="c.html">', "a.html links to c.html, which is not there"),
    ('<a href="b.html#nowhere">', "a.html links to b.html#nowhere, which is not there"),
    ('<img src="c.png">', "a.html links to c.png, which is not there"),
    ('<script src="https://other.host/x.js">', "a.html loads https://other.host/x.js"),
    ('<link rel="stylesheet" href="//other.host/x.css">', "a.html loads //other.host/x.css"),
    ('<link rel="canonical" href="https://other.host/">', None)])
def test_the_check_of_a_site(tmp_path, body, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").touch()
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "a.html").write_text(body)
    assert check.problems(tmp_path)[0] == [sentence] * (sentence is not None)


def test_the_check_reads_styles(tmp_path):
    (tmp_path / "a.css").write_text("@import 'https://other.host/b.css'; p { background: url(c.png) }")
    assert check.problems(tmp_path)[0] == ["a.css loads https://other.host/b.css"]


# ---- a built site in a browser

SITE = os.environ.get("DISBACK_SITE")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
built = pytest.mark.skipif(not (SITE and CHROMIUM), reason="needs Chromium, and a built site in DISBACK_SITE")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
PHONE = dict(width=360, height=740)
LAPTOP = dict(width=1366, height=768)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""
    def log_message(self, *args): pass


@pytest.fixture(scope="module")
def site():
    """The address of the built site, and a browser."""
    from playwright.sync_api import sync_playwright
    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", browser=browser)
        browser.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(site):
    """A function that opens a page of the site; in the end no other host was asked and nothing went wrong."""
    opened, wrong = [], []

    def look(request):
        if not request.url.startswith((site.address, "data:")): wrong.append(request.url)

    def open_page(name, size=LAPTOP, scheme="light"):
        page = site.browser.new_page(viewport=size, color_scheme=scheme)
        page.set_default_timeout(90_000)
        page.on("request", look)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        opened.append(page)
        page.goto(f"{site.address}/{name}")
        return page

    yield open_page
    for page in opened: page.close()
    assert not wrong, wrong


def shoot(page, name):
    """Keep a picture of the page."""
    if "DISBACK_SCREENSHOTS" not in os.environ: return
    where = Path(os.environ["DISBACK_SCREENSHOTS"])
    where.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=where / f"site_{name}.png")


@built
def test_a_search_for_a_name_lands_on_its_entry(visit):
    page = visit("index.html")
    page.keyboard.press("Control+K")
    page.keyboard.type("EqualDrift")
    page.keyboard.press("Enter")
    first = page.locator("#search-results li a").first
    first.wait_for()
    shoot(page, "search")
    first.click()
    page.wait_for_url("**/22_degradation.html*#disback.degradation.EqualDrift")
    entry = page.locator(r"#disback\.degradation\.EqualDrift")
    assert entry.is_visible() and "EqualDrift(" in entry.inner_text()
    box = entry.bounding_box()
    assert 0 <= box["y"] <= LAPTOP["height"]
    shoot(page, "entry")


@built
def test_a_name_in_prose_leads_to_its_entry_and_the_source_unfolds(visit):
    page = visit("22_degradation.html")
    source = page.locator("details", has_text="class EqualDrift").first
    code = source.locator("pre").first
    assert not code.is_visible()
    source.locator("summary").click()
    assert code.is_visible()
    page.goto(page.url.replace("22_degradation", "measured"))
    page.locator("article a code", has_text="02_convergence").first.click()
    page.wait_for_url("**/experiments/02_convergence.html")


@built
def test_formulas_are_set_without_another_host(visit):
    page = visit("18_edges.html")
    page.locator("mjx-container mjx-math").first.wait_for()
    page.wait_for_function("MathJax.startup.promise.then(() => true)")
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate("document.fonts.check('16px MJXTEX-I')")
    shoot(page, "formulas")


@built
def test_figures_have_a_white_ground_in_the_dark(visit):
    page = visit("tutorials/03_score_mismatch.html", scheme="dark")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    figure = page.locator(".cell_output img").first
    figure.scroll_into_view_if_needed()
    style = "e => getComputedStyle(e).backgroundColor"
    assert figure.evaluate(style) == "rgb(255, 255, 255)"
    assert max(map(int, page.locator("body").evaluate(style)[4:-1].split(","))) < 60
    shoot(page, "dark")


@built
def test_no_page_is_wider_than_a_phone(visit):
    page, wide = visit("index.html", size=PHONE), []
    home = page.url.rpartition("/")[0]
    for file in sorted(Path(SITE).rglob("*.html")):
        name = file.relative_to(SITE).as_posix()
        page.goto(f"{home}/{name}")
        if page.locator("script[src*=mathjax]").count():
            page.wait_for_function("window.MathJax?.startup?.promise?.then(() => true)")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]: wide.append((name, width))
        if name in ("index.html", "22_degradation.html"): shoot(page, f"phone_{file.stem}")
    assert not wide, wide
