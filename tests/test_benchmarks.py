"""The benchmark measures what it says, and refuses what it does not know."""
import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark(name, *args):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, FOLDER / name, *args], env=env, capture_output=True, text=True, timeout=300)


def speed(*args): return benchmark("speed.py", *args)


def test_memory_does_not_depend_on_the_number_of_nodes_nor_grow():
    done = speed("--quick", "--json", "--only", "memory")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert abs(memory["path in a folder"]["long : short"]["peak_mib"] - 1) < .02
    assert memory["long run"]["growth"]["mib"] < 2
    for stage, most in (("degradation", 16), ("backtracking", 36)):     # the library's own share at the peak; the rest is the caller's
        rows = next(v for k, v in memory.items() if k.startswith(stage))
        others = sum(v["expected"] for k, v in rows.items() if k.startswith(("caller", "rest")))
        assert abs(rows["peak"]["bytes_per_parameter"] - others - most) < 3, rows


def test_bad_arguments():
    for args, said in ((["--only", "speed"], "unknown part"), (["--threads", "0"], "at least 1"), (["--work"], "expected one argument")):
        done = speed(*args)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_a_recipe_trains_in_both_precisions():
    rows = []
    for precision, steps in (("fp32", "40"), ("bf16", "2")):      # bf16 is slow on processors
        done = benchmark("recipe.py", "--recipe", "digits", "--batch", "16", "--precision", precision, "--steps", steps, "--device", "cpu", "--json")
        assert done.returncode == 0, done.stderr
        rows += json.loads(done.stdout)["rows"]
    assert [r["precision"] for r in rows] == ["fp32", "bf16"] and rows[0]["fake_loss_last"] < .95 * rows[0]["fake_loss_first"], rows
    for args, said in ((["--recipe", "none"], "there is no recipe"), (["--steps", "1"], "at least 2")):
        done = benchmark("recipe.py", *args)
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
