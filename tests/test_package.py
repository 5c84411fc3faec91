"""What is installed when someone installs this project: the built wheel, without the tools that made it."""
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import nbformat
import pytest

from disback.lab import PAGES

ROOT = Path(__file__).resolve().parents[1]
# Stands in for an installation without the development tools: importing one of them fails.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'nbdev', 'fastcore', 'execnb'}:
            raise ModuleNotFoundError(f'{name} is a development tool and must not be imported', name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy: a build folder in the checkout would keep modules that are long gone."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in "settings.ini", "setup.py", "pyproject.toml", "LICENSE", "README.md":
        if (ROOT / file).exists(): shutil.copy(ROOT / file, source)
    for folder in "disback", "nbs", "recipes", "examples", "tests", "tools":
        left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / folder, source / folder, ignore=left_out)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    "A folder that holds what the wheel installs."
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def modules_of(names):
    "The module names of those of `names` that are Python files."
    return {re.sub(r"(/__init__)?\.py$", "", n).replace("/", ".") for n in names if n.endswith(".py")}


def run(unpacked, *args):
    "Run Python on `args` where only the unpacked wheel provides this package."
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, *args], cwd=unpacked, env=env, capture_output=True, text=True,
                          timeout=120)


def test_wheel_holds_every_module_of_the_package(wheel):
    in_checkout = modules_of(p.relative_to(ROOT).as_posix() for p in (ROOT / "disback").rglob("*.py"))
    assert modules_of(wheel.namelist()) == in_checkout
    assert "disback/__init__.pyi" in wheel.namelist()


def test_wheel_holds_a_module_for_every_exporting_notebook(wheel):
    exported = set()
    for path in (ROOT / "nbs").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            found = re.match(r"#\|\s*default_exp\s+(\S+)", cell.source)
            if found: exported.add(f"disback.{found[1]}")
    assert exported and exported <= modules_of(wheel.namelist())


def test_wheel_holds_what_users_read_and_start_from_and_nothing_else(wheel):
    beside = [n for n in wheel.namelist() if not re.match(r"disback(-[^/]*\.dist-info)?/", n)]
    shared = {re.sub(r"^disback-[^/]*\.data/data/share/disback/", "", n) for n in beside}
    here = [*(ROOT / "nbs").glob("tutorials/*.ipynb"), *(ROOT / "nbs").glob("experiments/*.ipynb")]
    here += [ROOT / "nbs" / f"{name}.ipynb" for name in PAGES]
    names = {str(p.relative_to(ROOT / "nbs")) for p in here}
    names |= {f"recipes/{p.name}" for p in (ROOT / "recipes").glob("*.toml")}
    names |= {str(p.relative_to(ROOT)) for p in (ROOT / "examples").rglob("*") if p.is_file()}
    assert shared == names
    assert sum(i.compress_size for i in wheel.infolist() if "/examples/" in i.filename) < 1e6
    assert not [n for n in set(wheel.namelist()) - set(beside) if n.endswith(".ipynb")]


def metadata(wheel):
    "The wheel's METADATA file, parsed."
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_development_tools_are_required_by_the_dev_extra_alone(wheel):
    required = metadata(wheel).get_all("Requires-Dist")
    core = {re.match(r"[\w.-]+", r)[0].lower() for r in required if "extra ==" not in r}
    assert "torch" in core
    others = {"nbdev", "fastcore", "execnb", "ghapi", "jupyterlab", "pytest"}
    others |= {"diffusers", "torch-fidelity", "azula"}
    assert not core & others
    assert {"dev", "fid", "diffusers", "azula"} <= set(metadata(wheel).get_all("Provides-Extra"))


def test_every_module_imports_without_development_tools(wheel, unpacked):
    names = sorted(n for n in modules_of(wheel.namelist()) if not n.endswith("._modidx"))
    code = BLOCK + f"""
import importlib, disback
from pathlib import Path
assert Path(disback.__file__).is_relative_to({str(unpacked)!r}), disback.__file__
for name in {names!r}: importlib.import_module(name)
print(disback.__version__)
"""
    done = run(unpacked, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == metadata(wheel)["Version"]


def test_development_tools_are_blocked_in_these_tests(unpacked):
    done = run(unpacked, "-c", BLOCK + "import fastcore")
    assert done.returncode == 1 and "must not be imported" in done.stderr


def test_console_script_helps_without_development_tools(wheel, unpacked):
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt")]
    module, function = re.search(r"^disback\s*=\s*([\w.]+):(\w+)$", wheel.read(name).decode(), re.M).groups()
    code = f"{BLOCK}from {module} import {function}; sys.argv = ['disback', '--help']; sys.exit({function}())"
    done = run(unpacked, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_notebooks_are_tested_on_one_thread_whatever_the_caller_set():
    for code in "import disback, torch", "import torch, disback":
        env = os.environ | {"IN_TEST": "1", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", f"{code}; print(torch.get_num_threads())"], env=env,
                              capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == "1", done.stdout + done.stderr
