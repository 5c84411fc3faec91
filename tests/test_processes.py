"""Two processes on the CPU (gloo) do what one does: the same weights, with copied and with shared weights; and a process that dies takes the run down, which then resumes.

This file is also the program that each process runs: `torchrun ... tests/test_processes.py FOLDER`."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ENV = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "DISBACK_PROGRESS": "0"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
QUICK = ["--n-steps", "40", "--batch", "16"]


def arms():
    """Runs of 20 steps by name, made anew: `name -> (function of an engine, options of the engine)`."""
    from disback.backtracking import Backtracking
    from disback.degradation import Degradation, Every
    from disback.diffusion import edm_noise
    from disback.mixtures import ring_mixture
    from disback.networks import OneStep, ResMLP
    from disback.paths import DegradationPath
    from disback.pretraining import Pretraining

    def net(seed):
        torch.manual_seed(seed)
        net = ResMLP(width=32, depth=1, sigma_data=2.)
        for p in net.parameters(): p.data += .1 * torch.randn_like(p)
        return net
    def back(**kw): return lambda engine: Backtracking(OneStep(net(1)), DegradationPath.of(net(0)), n_steps=20, batch=32, engine=engine, **kw)
    plain, shard = {}, dict(shard=True)
    return dict(
        pretraining=(lambda e: Pretraining(net(0), ring_mixture().sample, n_steps=20, batch=32, engine=e), plain),
        degradation=(lambda e: Degradation(net(0), OneStep(net(1)), keep=Every(10), n_steps=20, batch=32, pool=64, n_probe=16, engine=e), plain),
        live=(lambda e: Degradation(net(0), OneStep(net(1)), keep=Every(10), n_steps=20, batch=32, pool=None, n_probe=16, engine=e), plain),
        shared=(back(), plain), pieces=(back(), dict(pieces=2)), ratio=(back(ratio=2, fake_noise=edm_noise(1.)), plain), sid=(back(loss="sid"), plain),
        pretraining_sharded=(lambda e: Pretraining(net(0), ring_mixture().sample, n_steps=20, batch=32, engine=e), shard),
        degradation_sharded=(lambda e: Degradation(net(0), OneStep(net(1)), keep=Every(10), n_steps=20, batch=32, pool=64, n_probe=16, engine=e), shard),
        shared_sharded=(back(), shard), pieces_sharded=(back(), shard | dict(pieces=2)), ratio_sharded=(back(ratio=2, fake_noise=edm_noise(1.)), shard),
        resumed=(back(), dict(shard=True, sharded_checkpoints=True)))


def results(run, folder, sharded):
    """Take all steps, through a checkpoint half way for sharded runs; return every weight of the run."""
    from disback.paths import snapshot
    from disback.runs import Checkpoints
    names = [k for k in ("denoiser", "degraded", "student", "fake", "ema") if isinstance(getattr(run, k, None), torch.nn.Module)]
    if not sharded: [*run]
    else:
        for _ in range(10): next(run)
        checkpoints = Checkpoints(folder / "checkpoint.safetensors", run.processes)
        checkpoints.save(run)
        for _ in range(10): next(run)
        after = {k: snapshot(getattr(run, k)) for k in names}
        assert checkpoints.resume(run) and run.step == 10
        [*run]
        for k in names: assert all(torch.equal(v, after[k][name]) for name, v in snapshot(getattr(run, k)).items()), f"{k} is not what it was"
    return {f"{k}.{name}": v for k in names for name, v in snapshot(getattr(run, k)).items()}


def work(folder):
    from disback.engine import Engine
    from disback.runs import save_state
    for name, (make, options) in arms().items():
        engine = Engine(**options)
        assert engine.processes.world == 2
        weights = results(make(engine), folder / name, "sharded" in name or name == "resumed")
        if engine.processes.rank == 0: save_state(folder / f"{name}.safetensors", weights)
    engine.processes.end()


def test_two_processes_do_what_one_does(tmp_path):
    from disback.runs import load_state
    done = subprocess.run([*TORCHRUN, __file__, tmp_path], env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (make, options) in arms().items():
        alone, two = results(make(None), tmp_path, False), load_state(tmp_path / f"{name}.safetensors")
        assert alone.keys() == two.keys()
        worst = max((alone[k] - two[k]).abs().max().item() for k in alone)
        assert 0 < max(v.abs().max() for v in alone.values()) and worst < 1e-6, (name, worst)


def disback(*args, processes=1):
    launch = [sys.executable, "-c", "from disback.cli import main; main()"]
    if processes > 1: launch = [*TORCHRUN, "--no-python", *launch]
    return subprocess.Popen([*launch, *map(str, args)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, err


def children(pid):
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found through /proc")
def test_a_process_that_dies_takes_the_run_down_and_it_resumes(tmp_path):
    from disback.runs import load_state
    for command in (["pretrain", "--data", "ring", "--out", tmp_path / "teacher"], ["degrade", "--teacher", tmp_path / "teacher", "--out", tmp_path / "path"],
                    ["backtrack", "--path", tmp_path / "path", "--out", tmp_path / "alone"]):
        status, err = finish(disback(*command, *QUICK))
        assert status == 0, err
    command = ["backtrack", "--path", tmp_path / "path", "--out", tmp_path / "two", *QUICK]
    process = disback(*command, processes=2)
    while not (tmp_path / "two" / "checkpoint.safetensors").exists() and process.poll() is None: time.sleep(.002)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    status, err = finish(process)
    assert status != 0 and "SIGKILL" in err, err       # torchrun says which process died, and of what
    assert not (tmp_path / "two" / "result.json").exists()
    status, err = finish(disback(*command, "--resume", processes=2))
    assert status == 0, err
    a, b = [load_state(tmp_path / k / "student.safetensors")["weights"] for k in ("alone", "two")]
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-6

RECIPE = """[network]
img_resolution = 8
img_channels = 1
label_dim = 10
model_type = "SongUNet"
model_channels = 8
channel_mult = [1]
num_blocks = 1
attn_resolutions = []
dropout = 0.0
[pretrain]
labels = true
n_steps = 3
batch = 8
[degrade]
nodes = 2
n_steps = 2
batch = 8
[backtrack]
n_steps = 2
batch = 8
eval_every = 2
eval_n = 20
[evaluate]
n = 20
n_steps = 3
[sample]
n = 10
n_steps = 3
"""


def test_a_recipe_runs_on_two_processes(tmp_path):
    from disback.runs import load_state
    (tmp_path / "small.toml").write_text(RECIPE)
    for processes, name in ((1, "alone"), (2, "two")):
        status, err = finish(disback("run", "--recipe", tmp_path / "small.toml", "--out", tmp_path / name, processes=processes))
        assert status == 0, err
    a, b = [load_state(tmp_path / k / "student" / "student.safetensors")["weights"] for k in ("alone", "two")]
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-4      # Adam's first steps make much of a rounding where a gradient is nearly zero
    one, two = [json.loads((tmp_path / k / "result.json").read_text())["student"] for k in ("alone", "two")]
    assert one.keys() == two.keys() and abs(one["frechet"] / two["frechet"] - 1) < 1e-2


if __name__ == "__main__": work(Path(sys.argv[1]))
