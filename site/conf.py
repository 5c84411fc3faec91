"""Sphinx's settings. Nothing is executed, nothing imported but Sphinx, nothing loaded from another host."""
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))
from prepare import meant, settings, suffixes  # noqa: E402

cfg = settings()
project = html_title = cfg["title"]
author, release, copyright = cfg["author"], cfg["version"], cfg["copyright"]
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Source", "Hide the source"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
smartquotes = add_module_names = toc_object_entries = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "sphinx_book_theme"
html_static_path, html_css_files = [str(Path(__file__).parent / "static")], ["custom.css"]
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = False
html_theme_options = dict(home_page_in_toc=True, show_toc_level=2,
                          navbar_persistent=[],        # else there are two fields to search in
                          use_download_button=False)   # it leads to sources, which are not there
if cfg["git_url"]:
    html_theme_options |= dict(repository_url=cfg["git_url"], repository_branch=cfg["branch"],
                               path_to_docs="nbs", use_repository_button=True, use_issues_button=True,
                               launch_buttons=dict(colab_url="https://colab.research.google.com"))
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = dict(options=dict(enableMenu=False))    # some of its entries need files that are left out


def copy_maths(app, error):
    """MathJax and its fonts, 1.6 MB of the 24 MB of the package that brings them."""
    if error: return
    package = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0]) / "static" / "mathjax"
    for part in (mathjax_path.partition("/")[2], "output/chtml/fonts/woff-v2"):
        target = Path(app.outdir) / "_static" / "mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (package / part).is_dir() else shutil.copy)(package / part, target)


@cache
def short_names(env):
    """The names that prose uses, for `meant`."""
    objects = env.get_domain("py").objects
    return suffixes((full, o.docname, o.node_id, o.objtype) for full, o in objects.items())


def link_words(app, tree, page):
    """Let names of notebooks and of what they export, in backticks, lead there."""
    for word in list(tree.findall(nodes.literal)):
        above = [word.parent]
        while above[-1].parent: above.append(above[-1].parent)
        if any(isinstance(p, (nodes.reference, nodes.title)) for p in above): continue
        where = meant(word.astext(), page, app.env.found_docs, short_names(app.env))
        if where is None or where == (page, ""): continue
        word.replace_self(make_refnode(app.builder, page, *where, [word.deepcopy()]))


def setup(app):
    app.connect("doctree-resolved", link_words)
    app.connect("build-finished", copy_maths)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
