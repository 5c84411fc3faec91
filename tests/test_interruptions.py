"""Runs that are killed, interrupted or out of space, as processes of their own: they resume to the same bits
and lose nothing."""
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENV = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "DISBACK_PROGRESS": "0"}
QUICK = ["demo", "--data", "ring", "--pretrain-steps", "20", "--degrade-steps", "20", "--steps", "20"]
WEIGHTS = ["teacher/teacher.safetensors", "path/path.json", "student/student.safetensors"]
STAGES = ["teacher", "path", "student"]


# A process that has imported everything and forks for each command line that it reads: a start takes
# milliseconds, and the fork is as mortal as any process. Figures are written without being drawn, which would
# take most of the time; nothing here looks at them.
SERVER = """
import json, os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)    # `nohup pytest` would have it ignored
import matplotlib.figure, numpy, scipy.spatial, sklearn.datasets, torch, tyro
import torch._dynamo, disback.cli, disback.comparisons, disback.recipes, disback.stages
tiny = dict(looks=3, n=100, teacher_steps=20, width=16, depth=1, pool=64)
disback.comparisons.PROTOCOLS["points"] = disback.comparisons.Protocol(**tiny)
matplotlib.figure.Figure.savefig = lambda self, file, **options: open(file, "wb").write(b"figure")
for line in sys.stdin:
    said = json.loads(line)
    if isinstance(said, int):    # wait for that one
        print(os.waitstatus_to_exitcode(os.waitpid(said, 0)[1]), flush=True)
        continue
    args, err = said
    pid = os.fork()
    if pid == 0:
        for number, name in ((1, os.devnull), (2, err)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        try:
            disback.cli.main(args)
            status = 0
        except SystemExit as e: status = e.code
        os._exit(status)
    print(pid, flush=True)
"""
server, files = None, {}    # files: of standard error, by process


@pytest.fixture(scope="module", autouse=True)
def serve(tmp_path_factory):
    global server, errors
    errors = tmp_path_factory.mktemp("server")
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=ENV, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    with server: yield    # closes its standard input, which ends it


def ask(what):
    """Write a line to the server; return the number that it answers."""
    server.stdin.write(json.dumps(what) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def start(*args):
    """Start `disback` with these arguments; return the process number."""
    file = errors / f"{len([*errors.iterdir()])}"
    file.touch()
    files[pid := ask([[*map(str, args)], str(file)])] = file
    return pid


def finish(pid):
    """Wait for it; return exit status (negative: the signal) and standard error."""
    return ask(pid), files.pop(pid).read_text()


def alive(pid):
    return Path(f"/proc/{pid}/exe").exists()


def wait_for(file, pid):
    """Wait until a file is there, or the process is over."""
    while not Path(file).exists() and alive(pid): time.sleep(.002)


def killed(file, *args):
    """Start `disback`, and kill it when a file is there."""
    pid = start(*args)
    wait_for(file, pid)
    os.kill(pid, signal.SIGKILL)
    finish(pid)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "demo"
    status, err = finish(start(*QUICK, "--out", folder))
    assert status == 0, err
    return folder


def metrics(folder):
    lines = (folder / "student/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


def same_as(folder, whole):
    """Weights bit for bit, and metrics line for line (but for the seconds): the same code on one machine."""
    for name in WEIGHTS: assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(folder) == metrics(whole)


def test_interrupted_politely(uninterrupted, tmp_path):
    folder, resume = tmp_path / "demo", []
    for stage, number in [("teacher", signal.SIGINT), ("path", signal.SIGHUP), ("student", signal.SIGTERM)]:
        process = start(*QUICK, "--out", folder, *resume)
        wait_for(folder / stage / "checkpoint.safetensors", process)
        os.kill(process, number)
        status, err = finish(process)
        assert status == 130 and "--resume" in err and "Traceback" not in err, err
        resume = ["--resume"]
    assert finish(start(*QUICK, "--out", folder, *resume))[0] == 0
    same_as(folder, uninterrupted)


def mount(folder, *options):
    """(Re)mount a file system in memory; return whether that worked."""
    command = ["mount", *options, *([] if "remount" in options[-1] else ["-t", "tmpfs", "tmpfs"]), folder]
    return not subprocess.run(command, capture_output=True).returncode


def test_no_space_left(uninterrupted, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or not mount(small, "-o", "size=4m"):
        pytest.skip("a small file system cannot be mounted here")
    try:
        folder = small / "demo"
        status, err = finish(start(*QUICK, "--out", folder))
        assert status == 1 and "space" in err and err.count("\n") == 1 and "Traceback" not in err, err
        assert not [*small.rglob("*.part")]          # nothing half written is left
        assert mount(small, "-o", "remount,ro")
        for command in ([*QUICK, "--out", folder, "--resume"], [*QUICK, "--out", small / "other"]):
            status, err = finish(start(*command))
            assert status == 1 and "ead-only" in err and err.count("\n") == 1 and "Traceback" not in err, err
        assert mount(small, "-o", "remount,rw,size=200m")
        status, err = finish(start(*QUICK, "--out", folder, "--resume"))
        assert status == 0, err
        same_as(folder, uninterrupted)
    finally: subprocess.run(["umount", small], check=True)


RECIPE = """[pretrain]
data = "ring"
n_steps = 20
batch = 16
[degrade]
n_steps = 20
[backtrack]
n_steps = 20
batch = 16
eval_n = 50
[evaluate]
n = 50
[sample]
n = 20
"""
NETWORK = dict(img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=8, channel_mult=[1],
               num_blocks=1, attn_resolutions=[])


@pytest.fixture(scope="module")
def commands(uninterrupted, tmp_path_factory):
    """What each command reads, and its arguments without the folder that it writes: `{name: arguments}`."""
    from disback.edm import edm_network
    from disback.files import save_tensors
    inputs = tmp_path_factory.mktemp("inputs")
    (inputs / "small.toml").write_text(RECIPE)
    save_tensors(inputs / "weights.safetensors", edm_network(**NETWORK).state_dict())
    compare = ["compare", "--tasks", "ring-near", "--arms", "disback:record=5:nodes=2", "diff-instruct"]
    return {name: [name, *map(str, args)] for name, args in dict(
        pretrain=["--data", "ring", "--n-steps", 40],
        degrade=["--teacher", uninterrupted / "teacher", "--n-steps", 30],
        backtrack=["--path", uninterrupted / "path", "--n-steps", 40, "--eval-every", 8, "--eval-n", 50],
        sample=["--run", uninterrupted / "student", "--n", 4000],
        evaluate=["--n", 400], compare=[*compare[1:], "--seeds", 0, 1, "--budget", 100],
        run=["--recipe", inputs / "small.toml"],
        **{"import": [inputs / "weights.safetensors", "--network", json.dumps(NETWORK)]}).items()}


def line(args, folder, student):
    """The command line that writes a folder, or goes on with it."""
    resume = ["--resume"] * (folder / "config.json").exists()
    if args[0] != "evaluate": return [*args, "--out", folder, *resume]
    if not folder.exists(): shutil.copytree(student, folder)    # what it measures, and where it writes
    return [*args, "--run", folder]


def contents(folder):
    """Every file by name, whatever it is called; times of computing are left out, and what the README says of
    date and place."""
    plain = lambda data: re.sub(rb'"seconds": *[0-9.]+', b"", data)
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): plain(p.read_bytes()) * (p.name != "README.md") for p in files}


def kill(pid, folder, seconds, writing):
    """SIGKILL after some time, or the next time after it that a file is being written."""
    time.sleep(seconds)
    while writing and alive(pid) and not [*folder.rglob(".*.part")]: time.sleep(.0005)
    with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)    # it may have just ended


def check_kills(name, args, student, folder, n):
    """Kill a command at random moments until it was killed so often; each time it goes on, and in the end its
    folder holds what it would hold, to the bit, and no file besides."""
    whole, dice, killed, trial, patience = folder / name / "whole", random.Random(name), 0, 0, .1
    begun = time.monotonic()
    status, err = finish(start(*line(args, whole, student)))
    assert status == 0, err
    seconds, wanted = time.monotonic() - begun, contents(whole)
    while killed < n:
        here, status, trial = folder / name / f"trial-{trial}", None, trial + 1
        while status != 0:
            pid = start(*line(args, here, student))
            if killed < n: kill(pid, here, seconds * dice.uniform(0, patience), writing=killed % 5 == 0)
            status, err = finish(pid)
            assert status in (0, -signal.SIGKILL), (name, err)
            if status: killed, patience = killed + 1, min(1., 1.3 * patience)    # to the next checkpoint
        found = contents(here)
        assert found.keys() == wanted.keys(), (name, found.keys() ^ wanted.keys())
        assert not (different := [k for k in wanted if found[k] != wanted[k]]), (name, different)
        patience = .1


@pytest.mark.parametrize("n", [2, pytest.param(13, marks=pytest.mark.slow)])
def test_kills_of_every_command(n, commands, uninterrupted, tmp_path):
    for name, args in commands.items(): check_kills(name, args, uninterrupted / "student", tmp_path, n)


@pytest.mark.parametrize("n", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_pairs_of_processes_on_one_folder(n, uninterrupted, tmp_path):
    """The second is refused in one sentence, the first ends as if it had been alone."""
    args = "degrade", "--teacher", uninterrupted / "teacher", "--n-steps", "40", "--out"
    for i in range(n):
        first = start(*args, tmp_path / f"{i}")
        wait_for(tmp_path / f"{i}" / "config.json", first)
        os.kill(first, signal.SIGSTOP)    # as slow as the second one needs
        refused, sentence = finish(start(*args, tmp_path / f"{i}", "--resume"))
        os.kill(first, signal.SIGCONT)
        status, err = finish(first)
        assert status == 0, err
        assert refused == 1 and "by another process" in sentence, sentence
        assert sentence.count("\n") == 1
        weights = [(tmp_path / k / "path.json").read_bytes() for k in ("0", f"{i}")]
        assert weights[0] == weights[1]


def digest(value):
    """The same for the same contents."""
    import torch
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy()).hexdigest()
    if isinstance(value, dict): return {k: digest(v) for k, v in value.items()}
    return [digest(v) for v in value] if isinstance(value, list) else value


def test_a_flipped_bit_is_noticed(uninterrupted, tmp_path):
    """200 random flips, over every file that a run reads back, and 40 cuts: an error in one sentence, or
    contents that are the same."""
    from disback.paths import DegradationPath
    from disback.runs import load_state
    demo = tmp_path / "demo"    # of a run that was stopped while there were checkpoints
    killed(demo / "student/checkpoint-before.safetensors", *QUICK[:-1], "100", "--out", demo)

    def nodes(file): return [[n.step, n.drift, n.gap, n.weights()] for n in DegradationPath.open(file.parent)]
    states = ["student/checkpoint", "student/checkpoint-before", "teacher/teacher", "path/student"]
    readers = {f"{name}.safetensors": load_state for name in states} | {"path/path.json": nodes}
    readers |= {f"path/{file.name}": nodes for file in sorted((demo / "path").glob("node-*"))}
    good = {name: (demo / name).read_bytes() for name in readers}
    known = {name: digest(read(demo / name)) for name, read in readers.items()}
    dice, noticed = random.Random(1), 0
    for i in range(240):
        name = [*readers][i % len(readers)]
        file, raw = demo / name, bytearray(good[name])
        at = dice.randrange(min(len(raw), 4000) if i % 3 == 0 else len(raw))    # headers are short: aim there
        if i < 200: raw[at] ^= 1 << dice.randrange(8)
        else: del raw[at:]
        file.write_bytes(raw)
        try: assert digest(readers[name](file)) == known[name], f"{name}: bit {at} changed what is read"
        except ValueError as e:
            noticed += 1
            assert str(file.parent) in str(e) and "\n" not in str(e), e
        finally: file.write_bytes(good[name])
    assert noticed > 230, noticed


def test_goes_on_from_the_checkpoint_before(uninterrupted, tmp_path):
    folder = tmp_path / "demo"
    killed(folder / "student/checkpoint-before.safetensors", *QUICK, "--out", folder)
    last = folder / "student/checkpoint.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    status, err = finish(start(*QUICK, "--out", folder, "--resume"))
    assert status == 0 and err.count("\n") == 1 and "truncated or altered" in err and "-before" in err, err
    same_as(folder, uninterrupted)
