"""What comes with the library: small, whole, and remade by the tool that is named for it."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from disback.widgets import EXAMPLES, example, read_recording

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "examples"


def test_the_example_is_under_a_megabyte():
    assert sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file()) < 1e6


def test_nothing_of_it_needs_training():
    shown = example()
    assert len(shown.path) == 5 and shown.student(shown.data).shape == shown.data.shape
    assert shown.recorder.steps[0] == 0 and len(shown.recorder.samples) == len(shown.recorder.records)
    for race in shown.races.values():
        assert all(len(moments) > 40 for moments in race.moments.values())


@pytest.mark.slow
def test_the_tool_makes_it_again(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "example.py", tmp_path], check=True)
    for name in EXAMPLES.values():
        ours, again = [read_recording(folder / f"{name}.safetensors") for folder in (SHIPPED, tmp_path)]
        for arm in ours.moments:    # on another machine sums are taken in another order, and races part
            assert torch.allclose(ours.moments[arm][0].samples, again.moments[arm][0].samples, atol=1e-2)
            assert abs(ours.arrival(arm) / again.arrival(arm) - 1) < .5
