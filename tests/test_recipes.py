"""The digits recipe as a user runs it: a teacher of the EDM family, imported from a file in the official form, taken through both stages.

Its fast sibling, with a recipe of a few steps, is in nbs/46_cli."""
import json
import os
import subprocess
import sys

import pytest
from official_pickle import canary, write_official

ENV = os.environ | {"MPLBACKEND": "Agg", "DISBACK_PROGRESS": "0"}


def disback(*args):
    done = subprocess.run([sys.executable, "-c", "from disback.cli import main; main()", *map(str, args)], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_digits_recipe_draws_the_class_it_is_asked_for(tmp_path):
    from disback.folders import load_teacher
    from disback.recipes import read_toml, shipped
    (file,) = [f for f in shipped("recipes", ".toml") if f.stem == "digits"]
    recipe, checkpoint = read_toml(file), tmp_path / "digits.pkl"
    disback("pretrain", "--recipe", "digits", "--out", tmp_path / "trained")
    teacher = load_teacher(tmp_path / "trained")
    write_official(checkpoint, teacher, "EDMPrecond", recipe["network"])
    disback("run", "--recipe", "digits", "--teacher", checkpoint, "--data", recipe["pretrain"]["data"], "--out", tmp_path / "run")
    assert not canary(checkpoint).exists()
    student = json.loads((tmp_path / "run" / "result.json").read_text())["student"]
    assert student["class_accuracy"] >= .9 * student["class_accuracy_real"], student
    assert student["frechet"] < 2, student      # an untrained student has about 30, the teacher about 0.5
