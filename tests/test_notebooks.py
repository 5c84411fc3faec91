"""Every notebook as a test of its own, in a process of its own.

`nbdev_test` runs the same cells faster but gives no count, has no timeout and does not survive a crash, so
this is for when one of those is wanted: `DISBACK_NOTEBOOKS=1 pytest tests/test_notebooks.py`.
`DISBACK_FLAGS="slow gpu"` runs flagged cells too."""
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

if os.environ.get("DISBACK_NOTEBOOKS") != "1":
    pytest.skip("nbdev_test runs the notebooks; DISBACK_NOTEBOOKS=1 runs them here as well",
                allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb")
                   if not any(part[0] in "._" for part in p.relative_to(ROOT / "nbs").parts))
TIMEOUT = int(os.environ.get("DISBACK_TIMEOUT", 300))  # s a notebook
RUN = """import sys
from pathlib import Path
from nbdev.test import test_nb
path, skip, force, root = sys.argv[1:]
ok, seconds = test_nb(Path(path), skip_flags=skip.split(), force_flags=force.split(), basepath=root)
sys.exit(not ok)"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook(path):
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    flags = ini["DEFAULT"]["tst_flags"], os.environ.get("DISBACK_FLAGS", "")
    command = [sys.executable, "-c", RUN, str(path), *flags, str(ROOT)]
    try: done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired: pytest.fail(f"{path.name} took more than {TIMEOUT} s", pytrace=False)
    if done.returncode: pytest.fail((done.stdout + done.stderr)[-6000:], pytrace=False)
