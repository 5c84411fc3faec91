"""Two processes on the CPU (gloo) do what one does: the same weights, with copied and with shared weights;
and a process that dies takes the run down, which then resumes.

`work` and `work_recipe` are what both processes do."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import matplotlib.figure
import pytest
import torch

ENV = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "DISBACK_PROGRESS": "0"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
QUICK = ["--n-steps", "40", "--batch", "16"]
NETWORKS = "denoiser", "degraded", "student", "fake", "ema"

# Two processes add up a gradient in another order than one does, so it differs by float32's rounding, about
# 1e-7 of the summands. Adam divides by the gradient's size: where the summands cancel, their rounding is made
# as large as any step, so single weights may differ by more. What is compared is the distance of all weights,
# relative to the way that they went: below 1e-6 where this was tried. A process that trains on half of the
# batch is off by 0.3 to 0.4.
ORDER = 1e-4


def apart(one, two, start):
    """How far two sets of weights are from each other, in lengths of the way that the first went."""
    assert one.keys() == two.keys() == start.keys()
    def length(a, b): return sum((a[k] - b[k]).double().square().sum() for k in a).sqrt().item()
    assert length(one, start) > 0
    return length(one, two) / length(one, start)


def arms():
    """Runs of 12 steps by name, made anew: `name -> (function of an engine, options of the engine)`."""
    from disback.backtracking import Backtracking, Ramp
    from disback.degradation import Degradation, Every
    from disback.diffusion import edm_noise
    from disback.mixtures import ring_mixture
    from disback.networks import MultiStep, OneStep, ResMLP
    from disback.paths import DegradationPath, Node
    from disback.pretraining import Pretraining

    def net(seed):
        torch.manual_seed(seed)
        net = ResMLP(width=32, depth=1, sigma_data=2.)
        for p in net.parameters(): p.data += .1 * torch.randn_like(p)
        return net

    def pretraining(engine):
        return Pretraining(net(0), ring_mixture().sample, n_steps=12, batch=32, engine=engine)

    def degradation(pool):
        options = dict(keep=Every(6), n_steps=12, batch=32, pool=pool, n_probe=16)
        return lambda engine: Degradation(net(0), OneStep(net(1)), engine=engine, **options)

    def back(**more):
        options = dict(n_steps=12, batch=32) | more
        path = DegradationPath.of(net(0))
        return lambda engine: Backtracking(OneStep(net(1)), path, engine=engine, **options)
    def steps(**more):
        student, path = MultiStep(net(1), (4., 1.)), DegradationPath.of(net(0))
        options = dict(n_steps=12, batch=32)
        return lambda engine: Backtracking(student, path, engine=engine, **options | more)
    def ramp(engine):
        nodes = [Node(i, i, float(i), float(i), net(i).state_dict) for i in range(2)]
        line = Ramp(.8, lead=.5, every=2)
        return Backtracking(OneStep(net(1)), DegradationPath(net(0), nodes), itinerary=line, n_steps=12,
                            batch=32, engine=engine)
    own_noise = dict(ratio=2, fake_noise=edm_noise(1.))
    plain, shard = {}, dict(shard=True)
    return dict(
        pretraining=(pretraining, plain), degradation=(degradation(64), plain),
        live=(degradation(None), plain), shared=(back(), plain), pieces=(back(), dict(pieces=2)),
        ratio=(back(**own_noise), plain),
        steps=(steps(ratio=2), plain), steps_sharded=(steps(ratio=2), shard), sid=(back(loss="sid"), plain),
        ramp=(ramp, plain), ramp_sharded=(ramp, shard), pretraining_sharded=(pretraining, shard),
        degradation_sharded=(degradation(64), shard), shared_sharded=(back(), shard),
        pieces_sharded=(back(), shard | dict(pieces=2)), ratio_sharded=(back(**own_noise), shard),
        resumed=(back(), dict(shard=True, sharded_checkpoints=True)))


def weights_of(run):
    """Every weight of a run, by network and name."""
    from disback.paths import snapshot
    networks = {k: getattr(run, k) for k in NETWORKS if isinstance(getattr(run, k, None), torch.nn.Module)}
    return {f"{k}.{name}": v for k, network in networks.items() for name, v in snapshot(network).items()}


def through_a_checkpoint(run, folder):
    """Take all steps, the second half of them from a checkpoint, which gives the same bits as without."""
    from disback.runs import Checkpoints
    checkpoints = Checkpoints(folder / "checkpoint.safetensors", run.processes)
    for _ in range(6): next(run)
    checkpoints.save(run)
    for _ in range(6): next(run)
    after = weights_of(run)
    assert checkpoints.resume(run) and run.step == 6
    for _ in run: pass
    for name, v in weights_of(run).items(): assert torch.equal(v, after[name]), f"{name} is not what it was"


def work(folder):
    from disback.engine import Engine
    from disback.runs import save_state
    for name, (make, options) in arms().items():
        engine = Engine(**options)
        assert engine.processes.world == 2
        run = make(engine)
        if "shard" in options: through_a_checkpoint(run, folder / name)
        else:
            for _ in run: pass
        weights = weights_of(run)
        if engine.processes.rank == 0: save_state(folder / f"{name}.safetensors", weights)
    engine.processes.end()


def work_recipe(folder): alone("run", "--recipe", folder / "small.toml", "--out", folder / "two")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of what two processes have done."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "small.toml").write_text(RECIPE)
    program = [sys.executable, Path(__file__).with_name("both.py")]
    done = subprocess.run([*program, Path(__file__).stem, folder, "work", "work_recipe"], env=ENV,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_do_what_one_does(together):
    from disback.runs import load_state
    for name, (make, _) in arms().items():
        run = make(None)
        start = weights_of(run)
        for _ in run: pass
        distance = apart(weights_of(run), load_state(together / f"{name}.safetensors"), start)
        assert distance < ORDER, (name, distance)


def disback(*args):
    """Start the command line on two processes."""
    program = ["--no-python", sys.executable, "-c", "from disback.cli import main; main()"]
    return subprocess.Popen([*TORCHRUN, *program, *map(str, args)], env=ENV, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def alone(*args):
    """The same in this process alone; figures are written without being drawn, nothing here looks at them."""
    from disback.cli import main
    write = lambda self, file, **options: open(file, "wb").close()
    with patch.object(matplotlib.figure.Figure, "savefig", write): main([*map(str, args)])


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, err


def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(p) for task in tasks for p in (task / "children").read_text().split()]


def student(folder):
    from disback.folders import RunFolder
    return RunFolder(folder).network("student").state_dict()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found through /proc")
def test_a_process_that_dies_takes_the_run_down_and_it_resumes(tmp_path):
    alone("pretrain", "--data", "ring", "--out", tmp_path / "teacher", *QUICK)
    alone("degrade", "--teacher", tmp_path / "teacher", "--out", tmp_path / "path", *QUICK)
    alone("backtrack", "--path", tmp_path / "path", "--out", tmp_path / "alone", *QUICK)
    command = ["backtrack", "--path", tmp_path / "path", "--out", tmp_path / "two", *QUICK]
    process = disback(*command)
    checkpoint = tmp_path / "two" / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None: time.sleep(.002)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    status, err = finish(process)
    assert status != 0 and "SIGKILL" in err, err       # torchrun says which process died, and of what
    assert not (tmp_path / "two" / "result.json").exists()
    status, err = finish(disback(*command, "--resume"))
    assert status == 0, err
    assert apart(*[student(tmp_path / k) for k in ("alone", "two", "path")]) < ORDER


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


def test_a_recipe_runs_on_two_processes(together):
    alone("run", "--recipe", together / "small.toml", "--out", together / "alone")
    # After so few steps of Adam, rounding turns the whole way of a weight whose gradient is nearly zero
    distance = apart(*[student(together / name) for name in ("alone/student", "two/student", "alone/path")])
    assert distance < .1, distance
    one, two = [json.loads((together / k / "result.json").read_text())["student"] for k in ("alone", "two")]
    assert one.keys() == two.keys() and abs(one["frechet"] / two["frechet"] - 1) < 1e-2


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them: what two machines see of one another."""
    names = [f"disback-{os.getpid()}-{i}" for i in range(2)]
    def ip(*args): subprocess.run(["ip", *args], check=True, capture_output=True)
    try:
        for name in names: ip("netns", "add", name)
        ends = [["cable", "netns", name] for name in names]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "cable")
            for device in ("cable", "lo"): ip("-n", name, "link", "set", device, "up")
        yield names
    except (OSError, subprocess.CalledProcessError): pytest.skip("network namespaces cannot be made here")
    finally:
        for name in names: subprocess.run(["ip", "netns", "del", name], capture_output=True)


def on_both(machines, *args):
    """Start the command line on two machines, as the README says; two processes in all."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
           "--rdzv_backend", "c10d", "--rdzv_endpoint", "10.77.0.1:29500", "--no-python"]
    program = [sys.executable, "-c", "from disback.cli import main; main()", *map(str, args)]
    def on(i, name):    # both have this machine's name, by which torchrun would know who leads, and where
        who = ["--local_addr", f"10.77.0.{i + 1}", "--rdzv_conf", f"is_host={1 - i}"]
        call = ["ip", "netns", "exec", name, *run[:-1], *who, run[-1], *program]
        return subprocess.Popen(call, env=ENV | {"GLOO_SOCKET_IFNAME": "cable"}, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)
    return [on(i, name) for i, name in enumerate(machines)]


def kill_all(machine):
    """End every process of a machine at once."""
    found = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True, check=True)
    for pid in map(int, found.stdout.split()): os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_machines_one_of_which_dies(machines, tmp_path):
    """What is left stops, and both go on from the checkpoint, to what one machine comes to."""
    alone("pretrain", "--data", "ring", "--out", tmp_path / "teacher", *QUICK)
    alone("degrade", "--teacher", tmp_path / "teacher", "--out", tmp_path / "path", *QUICK)
    command = ["backtrack", "--path", tmp_path / "path", "--out"]
    alone(*command, tmp_path / "alone", *QUICK)
    first, second = on_both(machines, *command, tmp_path / "two", *QUICK)
    checkpoint = tmp_path / "two" / "checkpoint.safetensors"
    while not checkpoint.exists() and first.poll() is None: time.sleep(.002)
    kill_all(machines[1])
    assert finish(second)[0] == -signal.SIGKILL
    first.terminate()    # as its user would, who sees the other one gone
    assert finish(first)[0] != 0 and not (tmp_path / "two" / "result.json").exists()
    kill_all(machines[0])
    for status, err in map(finish, on_both(machines, *command, tmp_path / "two", *QUICK, "--resume")):
        assert status == 0, err[-3000:]
    assert apart(*[student(tmp_path / k) for k in ("alone", "two", "path")]) < ORDER
