"""The changes of one line that tests must notice: each can still be made, and (slow) each is noticed."""
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "mutants.py"


def test_every_change_can_be_made():
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_change_is_noticed():
    done = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, timeout=4 * 3600)
    assert done.returncode == 0, done.stdout + done.stderr
