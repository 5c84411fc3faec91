"""The benchmarks measure what they say, and refuse what they do not know."""
import importlib.util
import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(capsys, monkeypatch):
    """A function that runs a benchmark by its command line: what it printed, or how it was ended."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)    # of the process of the tests

    def run(name, *args):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        with torch.random.fork_rng(): module.main([*args])
        return json.loads(capsys.readouterr().out)

    return run


def test_memory_does_not_depend_on_the_number_of_nodes_nor_grow(benchmark):
    memory = benchmark("speed", "--quick", "--json", "--only", "memory")["memory"]
    assert abs(memory["path in a folder"]["long : short"]["peak_mib"] - 1) < .02
    assert memory["long run"]["growth"]["mib"] < 2
    # the library's own bytes at the peak; the rest is the caller's
    for stage, most in (("degradation", 16), ("backtracking", 36)):
        rows = next(v for k, v in memory.items() if k.startswith(stage))
        others = sum(v["expected"] for k, v in rows.items() if k.startswith(("caller", "rest")))
        assert abs(rows["peak"]["bytes_per_parameter"] - others - most) < 3, rows


@pytest.mark.parametrize("args, said", [(["--only", "speed"], "unknown part"),
                                        (["--threads", "0"], "at least 1"),
                                        (["--work"], "expected one argument")])
def test_bad_arguments(benchmark, capsys, args, said):
    with pytest.raises(SystemExit) as ended: benchmark("speed", *args)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and said in err and err.count("\n") == 1 and not out


def test_a_recipe_trains_in_both_precisions(benchmark):
    common = ["--recipe", "digits", "--batch", "16", "--device", "cpu", "--json", "--steps", "2"]
    rows = benchmark("recipe", *common, "--precision", "fp32", "bf16")["rows"]    # bf16 is slow on processors
    assert [r["precision"] for r in rows] == ["fp32", "bf16"]
    fp32, bf16 = [[r["fake_loss_first"], r["fake_loss_last"]] for r in rows]
    assert bf16 == pytest.approx(fp32, rel=.05), rows    # of eight bits: right to a percent or so


@pytest.mark.parametrize("args, said", [(["--recipe", "none"], "unknown recipe"),
                                        (["--steps", "1"], "at least 2")])
def test_a_recipe_is_refused_in_a_sentence(benchmark, capsys, args, said):
    with pytest.raises(SystemExit) as ended: benchmark("recipe", *args)
    # Python prints the sentence and ends with 1
    assert said in ended.value.code and "\n" not in ended.value.code and not capsys.readouterr().out
