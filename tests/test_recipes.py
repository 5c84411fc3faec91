"""The digits recipe as a user runs it: an EDM teacher, imported from a file in the official form,
taken through both stages.

Its fast sibling, with a recipe of a few steps, is in nbs/46_cli."""
import json
import os
import subprocess
import sys

import pytest
from official_pickle import canary, write_official

ENV = os.environ | {"MPLBACKEND": "Agg", "DISBACK_PROGRESS": "0"}


def disback(*args):
    """Run a command line in a process of its own; it is to succeed."""
    call = [sys.executable, "-c", "from disback.cli import main; main()", *map(str, args)]
    done = subprocess.run(call, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_digits_recipe_draws_the_class_it_is_asked_for(tmp_path):
    """Nine in ten students' digits are what was asked for, as far as a classifier of real digits can tell."""
    from disback.folders import load_teacher
    from disback.recipes import load_recipe
    recipe, checkpoint, out = load_recipe("digits"), tmp_path / "digits.pkl", tmp_path / "run"
    disback("pretrain", "--recipe", "digits", "--out", tmp_path / "trained")
    write_official(checkpoint, load_teacher(tmp_path / "trained"), "EDMPrecond", recipe.network)
    data = recipe.stages["pretrain"].data
    disback("run", "--recipe", "digits", "--teacher", checkpoint, "--data", data, "--out", out)
    assert not canary(checkpoint).exists()
    student = json.loads((out / "result.json").read_text())["student"]
    assert student["class_accuracy"] >= .9 * student["class_accuracy_real"], student
    assert student["frechet"] < 2, student      # an untrained student has about 30, the teacher about 0.5
