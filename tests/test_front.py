"""What somebody meets first: one import, a name that is misspelt, help at the cursor."""
import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

import disback

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
# What stands behind an argument in the source: of a class, a dataclass, a function and a method
MEANINGS = {
    "Backtracking": "path: one that holds the teacher alone makes this plain Diff-Instruct",
    "Ramp": "share: reach the teacher after this share of the run at the latest; 0: at once",
    "ring_mixture": "radius: distance of their means from the origin, data units",
    "DegradationPath.denoiser": "i: which node; between two of them, say 1.5, their weights are mixed",
}


def python(code):
    """What a fresh interpreter prints when it runs `code`."""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_torch_alone_until_a_name_is_asked_for():
    assert python("import sys, disback; print([*{'torch', 'numpy'} & {*sys.modules}], dir(disback))") == (
        f"[] {sorted([*disback.__all__, '__version__'])}\n"
    )


def test_names_are_those_of_their_modules():
    for name in disback.__all__:
        home = sys.modules[getattr(disback, name).__module__]
        assert getattr(home, name) is getattr(disback, name)
    assert disback.plots is sys.modules["disback.plots"]


def test_a_misspelt_name_is_answered_with_the_nearest_one():
    for wrong, right in {"Backtraking": "Backtracking", "plot": "plots"}.items():
        with pytest.raises(AttributeError, match=f"no attribute '{wrong}'; the nearest is '{right}'"):
            getattr(disback, wrong)
    with pytest.raises(AttributeError, match="other names are in its modules, such as disback.plots"):
        disback.qqq


def test_what_type_checkers_read_is_what_is_imported():
    """The stub has no `__getattr__`, so that no misspelt name passes."""
    tree = ast.parse((ROOT / "disback" / "__init__.pyi").read_text())
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert all(a.asname == a.name for n in imports for a in n.names)    # else it is not handed on
    homes = {a.name: n.module for n in imports for a in n.names if n.module}
    assert homes == {n: home for home, names in disback._HOMES.items() for n in names.split()}
    assert sorted(homes) == sorted(disback.__all__)
    (names,) = [n.value for n in tree.body if isinstance(n, ast.Assign)]
    assert ast.literal_eval(names) == disback.__all__
    modules = {m.name for m in pkgutil.iter_modules(disback.__path__) if not m.name.startswith("_")}
    assert {a.name for n in imports if not n.module for a in n.names} == modules
    assert not modules & {*disback.__all__} and not [n for n in tree.body if isinstance(n, ast.FunctionDef)]


def test_help_says_what_each_argument_means():
    names = ", ".join(f"db.{name}" for name in MEANINGS)
    said = python(f"import disback as db\nfor f in ({names}): help(f)")
    assert not [text for text in MEANINGS.values() if text not in said]


def test_help_at_the_cursor_says_what_each_argument_means():
    manager, client = start_new_kernel(env=ENV, kernel_name="python3")
    try:
        client.execute_interactive("import disback as db", timeout=60)
        for name, meaning in MEANINGS.items():
            code = f"db.{name}("
            content = client.inspect(code, len(code), detail_level=0, reply=True, timeout=60)["content"]
            assert content["found"] and meaning in content["data"]["text/plain"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
