"""Change the library one line at a time, and see whether a test notices.

    python tools/mutants.py                          # every change of tools/mutants.toml
    python tools/mutants.py --only loss SiD --jobs 2 # those whose module or words hold one of these
    python tools/mutants.py --check                  # only whether each fragment stands where it should, once

Each change is made in a copy of the package and in the notebook that it comes from; then the test that the
table names runs on the copy and must fail: tests/test_loops.py or the notebook, as `nbdev_test` runs it.
First each must pass on a copy without a change. A change that survives is a test that is missing."""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nbformat

try: import tomllib
except ImportError: import tomli as tomllib    # Python 3.10

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
LIMIT = 900    # s a test
NOTEBOOK = """import sys
from pathlib import Path
from nbdev.test import test_nb
path, skip, root = sys.argv[1:]
ok, seconds = test_nb(Path(path), skip_flags=skip.split(), basepath=root)
sys.exit(not ok)"""


class Mutant(NamedTuple):
    """A change, and the test that must notice it."""
    module: str
    what: str
    old: str
    new: str
    killer: str


def notebook_of(module):
    """The notebook that exports a module."""
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        if re.search(rf"#\| default_exp {module}\b", path.read_text(encoding="utf-8")): return path
    sys.exit(f"no notebook exports {module}: mend tools/mutants.toml")


def exported(path):
    """The notebook, and its exported cells."""
    notebook = nbformat.read(path, as_version=4)
    return notebook, [c for c in notebook.cells if c.cell_type == "code" and c.source.startswith("#| export")]


def places(mutant):
    """How often a fragment stands in module and notebook."""
    module = (ROOT / "disback" / f"{mutant.module}.py").read_text(encoding="utf-8")
    cells = "\n".join(c.source for c in exported(notebook_of(mutant.module))[1])
    return module.count(mutant.old), cells.count(mutant.old)


def checked(mutants):
    """The changes; the program ends if one does not say exactly where it belongs."""
    lost = [f"{m.module}: {m.what}: {m.old!r} stands {a} times in the module, {b} times in its notebook"
            for m in mutants for a, b in [places(m)] if (a, b) != (1, 1) or m.old == m.new]
    if lost: sys.exit("\n".join([*lost, f"{len(lost)} fragments are to be renewed in {TABLE.name}"]))
    return mutants


def copy_of(folder, mutant):
    """A copy of the checkout in which one line is changed; what stays is linked."""
    for path in ROOT.iterdir():
        if path.name not in ("disback", "nbs", ".git"): (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "disback", folder / "disback", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "nbs").mkdir()
    for path in (ROOT / "nbs").iterdir(): (folder / "nbs" / path.name).symlink_to(path)
    if mutant.old == mutant.new: return
    module, source = folder / "disback" / f"{mutant.module}.py", notebook_of(mutant.module)
    module.write_text(module.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
    notebook, cells = exported(source)
    for cell in cells: cell.source = cell.source.replace(mutant.old, mutant.new)
    (folder / "nbs" / source.name).unlink()
    nbformat.write(notebook, folder / "nbs" / source.name)


def command(mutant, folder):
    """What runs the test in a copy."""
    if mutant.killer == "loops":
        own = ["-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers", "--tb=line"]
        return [sys.executable, "-m", "pytest", *own, "tests/test_loops.py"]
    path = folder / "nbs" / notebook_of(mutant.module).name
    return [sys.executable, "-c", NOTEBOOK, str(path), "notest slow gpu", str(folder)]


def judged(mutant):
    """Whether a test failed on the changed copy, how, and how long it took."""
    began = time.monotonic()
    env = os.environ | dict(OMP_NUM_THREADS="1", MPLBACKEND="Agg", DISBACK_PROGRESS="0", IN_TEST="1",
                            PYTHONDONTWRITEBYTECODE="1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_of(folder, mutant)
        env["PYTHONPATH"] = str(folder)
        try:
            done = subprocess.run(command(mutant, folder), cwd=folder, env=env, capture_output=True,
                                  text=True, timeout=LIMIT)
            failed, said = done.returncode != 0, done.stdout + done.stderr
        except subprocess.TimeoutExpired: failed, said = True, f"more than {LIMIT} s"
    lines = [line for line in said.splitlines() if "Error" in line or "FAILED" in line] or said.splitlines()
    return failed, (lines or [""])[-1].strip()[:90] if failed else "", time.monotonic() - began


def main():
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--only", nargs="+", help="those whose module or words hold one of these")
    args.add_argument("--jobs", type=int, default=1, help="tests at a time")
    args.add_argument("--check", action="store_true", help="only look for the fragments")
    args = args.parse_args()
    mutants = [Mutant(*row) for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["mutants"]]
    wanted = lambda m: not args.only or any(w in f"{m.module} {m.what}" for w in args.only)
    mutants = checked([m for m in mutants if wanted(m)])
    if args.check: return print(f"{len(mutants)} changes, each fragment stands where it should")
    sound = {m.killer if m.killer == "loops" else m.module: m._replace(old="", new="") for m in mutants}
    with ThreadPoolExecutor(args.jobs) as pool:
        for name, (failed, said, _) in zip(sound, pool.map(judged, sound.values())):
            if failed: sys.exit(f"the test of {name} fails without any change: {said}")
        survived = []
        for m, (failed, said, seconds) in zip(mutants, pool.map(judged, mutants)):
            verdict = "killed" if failed else "SURVIVED"
            print(f"{verdict:8} {seconds:4.0f} s  {m.module:12} {m.what:48} {said}", flush=True)
            if not failed: survived.append(m)
    print(f"{len(mutants) - len(survived)} of {len(mutants)} changes were noticed")
    if survived: sys.exit(1)


if __name__ == "__main__": main()
