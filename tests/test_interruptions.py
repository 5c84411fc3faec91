"""Runs that are killed, interrupted or out of space, as processes of their own: they resume to the same bits
and lose nothing."""
import contextlib
import hashlib
import json
import os
import random
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
import json, os, sys
import matplotlib.figure, numpy, scipy.spatial, sklearn.datasets, torch, tyro
import torch._dynamo, disback.cli, disback.recipes, disback.stages
matplotlib.figure.Figure.savefig = lambda self, file, **options: open(file, "wb").write(b"figure")
for line in sys.stdin:
    args, err = json.loads(line)
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
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
server = None


@pytest.fixture(scope="module", autouse=True)
def serve(tmp_path_factory):
    global server, errors
    errors = tmp_path_factory.mktemp("server") / "stderr"
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=ENV, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    with server: yield    # closes its standard input, which ends it


def start(*args):
    """Start `disback` with these arguments; return the process number."""
    server.stdin.write(json.dumps([[*map(str, args)], str(errors)]) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def finish(pid):
    """Wait for it; return exit status (negative: the signal) and standard error."""
    return int(server.stdout.readline()), errors.read_text()


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
    """The folder of a run that nothing happens to; `SECONDS` is what it took."""
    global SECONDS
    folder = tmp_path_factory.mktemp("whole") / "demo"
    pid, before = start(*QUICK, "--out", folder), time.monotonic()
    status, err = finish(pid)
    assert status == 0, err
    SECONDS = time.monotonic() - before
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
    for stage, number in [("teacher", signal.SIGINT), ("student", signal.SIGTERM)]:
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


# Kills that a part of the demo gets before it is left alone. The report has no checkpoints: it begins anew.
ENOUGH = dict(teacher=15, path=15, student=17, report=3)


def to_be_killed(folder, kills, pid):
    """Wait until a run is in a part that has not been killed often enough; whether there is one ahead."""
    for part in STAGES:
        if kills[part] >= ENOUGH[part]: wait_for(folder / part / "result.json", pid)
        elif not (folder / part / "result.json").exists(): return True
    return kills["report"] < ENOUGH["report"]


def kill(pid, folder, seconds, writing):
    """SIGKILL after some time, or the next time after it that a file is being written."""
    time.sleep(seconds)
    while writing and alive(pid) and not [*folder.rglob(".*.part")]: time.sleep(.0005)
    with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)    # it may have just ended


def test_fifty_kills(uninterrupted, tmp_path):
    """SIGKILL at random moments, every fifth one while a file is being written: each run is resumed until it
    is killed again, and in the end has the same bits. Moments depend on what a run takes on this machine."""
    dice, kills, runs, patience = random.Random(0), dict.fromkeys(ENOUGH, 0), 0, 0
    while sum(kills.values()) < 50:
        folder, status, before = tmp_path / f"demo-{runs}", None, None
        while status != 0:
            resume, n = ["--resume"] * (folder / "config.json").exists(), sum(kills.values())
            pid = start(*QUICK, "--out", folder, *resume)
            if to_be_killed(folder, kills, pid):
                part = next((k for k in STAGES if not (folder / k / "result.json").exists()), "report")
                # what happens between two checkpoints must fit in
                patience = SECONDS / 20 if part != before else patience + SECONDS / 40
                kill(pid, folder, patience * dice.uniform(.1, 1.), writing=n % 5 == 0)
            status, err = finish(pid)
            assert status in (0, -signal.SIGKILL), err
            if status:
                before = next((k for k in STAGES if not (folder / k / "result.json").exists()), "report")
                kills[before] += 1
        same_as(folder, uninterrupted)
        assert not [*folder.rglob("*.part")]
        runs += 1
    print(kills, runs)
    assert min(kills[k] for k in STAGES) >= 3, kills


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
