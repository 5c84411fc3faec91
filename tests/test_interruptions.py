"""Runs that are killed, interrupted or out of space, as processes of their own: they resume to the same bits and lose nothing."""
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENV = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "DISBACK_PROGRESS": "0"}
QUICK = ["demo", "--data", "ring", "--pretrain-steps", "60", "--degrade-steps", "40", "--steps", "60"]
WEIGHTS = ["teacher/teacher.safetensors", "path/path.json", "student/student.safetensors"]


# A process that has imported everything and forks for each command line that it reads: a start takes milliseconds, and the fork is as mortal as any process.
SERVER = """
import json, os, sys
import matplotlib.pyplot, numpy, scipy.spatial, sklearn.datasets, torch, tyro
import torch._dynamo, disback.cli, disback.backtracking, disback.degradation, disback.metrics, disback.plots, disback.pretraining, disback.samplers
for line in sys.stdin:
    args, err = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, name in ((1, os.devnull), (2, err)): os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        try: disback.cli.main(args); status = 0
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
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield
    server.stdin.close()
    server.wait()


def start(*args):
    """Start `disback` with these arguments; return the process number."""
    server.stdin.write(json.dumps([[*map(str, args)], str(errors)]) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def finish(pid):
    """Wait for it; return exit status (negative: the signal) and standard error."""
    return int(server.stdout.readline()), errors.read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "demo"
    status, err = finish(start(*QUICK, "--out", folder))
    assert status == 0, err
    return folder


def wait_for(file, pid):
    """Wait until a file is there, or the process is over."""
    while not Path(file).exists() and Path(f"/proc/{pid}/exe").exists(): time.sleep(.002)


def same_as(folder, whole):
    """Weights bit for bit, and metrics line for line (but for the seconds)."""
    for name in WEIGHTS: assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    rows, expected = [[json.loads(line) | {"seconds": 0} for line in (f / "student/metrics.jsonl").read_text().splitlines()] for f in (folder, whole)]
    assert rows == expected


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


def test_no_space_left(uninterrupted, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        folder = small / "demo"
        status, err = finish(start(*QUICK, "--out", folder))
        assert status == 1 and "space" in err and err.count("\n") == 1 and "Traceback" not in err, err
        assert not [*small.rglob("*.part")]          # nothing half written is left
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        for command in ([*QUICK, "--out", folder, "--resume"], [*QUICK, "--out", small / "other"]):
            status, err = finish(start(*command))
            assert status == 1 and "ead-only" in err and err.count("\n") == 1 and "Traceback" not in err, err
        subprocess.run(["mount", "-o", "remount,rw,size=200m", small], check=True)
        status, err = finish(start(*QUICK, "--out", folder, "--resume"))
        assert status == 0, err
        same_as(folder, uninterrupted)
    finally: subprocess.run(["umount", small], check=True)


def test_fifty_kills(uninterrupted, tmp_path):
    """SIGKILL at random moments, every fifth one while a file is being written: each run is resumed until it is killed again, and in the end has the same bits."""
    dice, kills, runs = random.Random(0), dict(teacher=0, path=0, student=0, report=0), 0
    while sum(kills.values()) < 50:
        folder, status, before, patience = tmp_path / f"demo-{runs}", None, None, 1.
        while status != 0:
            resume, n = ["--resume"] * (folder / "config.json").exists(), sum(kills.values())
            pid = start(*QUICK, "--out", folder, *resume)
            if n < 50:
                time.sleep(patience * dice.uniform(.1, 1.))
                while n % 5 == 0 and Path(f"/proc/{pid}/exe").exists() and not [*folder.rglob(".*.part")]: time.sleep(.0005)
                with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)      # it may have just ended
            status, err = finish(pid)
            assert status in (0, -signal.SIGKILL), err
            if status:
                stage = next((k for k in kills if not (folder / k / "result.json").exists()), "report")
                kills[stage] += 1
                before, patience = stage, patience + .3 if stage == before else 1.      # what happens between two checkpoints must fit in
        same_as(folder, uninterrupted)
        assert not [*folder.rglob("*.part")]
        runs += 1
    print(kills)
    assert min(kills[k] for k in ("teacher", "path", "student")) >= 3, kills


def test_a_flipped_bit_is_noticed(uninterrupted, tmp_path):
    """200 random flips, over every file that a run reads back, and 40 cuts: an error in one sentence, or contents that are the same."""
    from disback.paths import DegradationPath
    from disback.runs import load_state
    process = start(*QUICK[:-1], "2000", "--out", tmp_path / "demo")     # stopped while there are checkpoints
    wait_for(tmp_path / "demo/student/checkpoint-before.safetensors", process)
    os.kill(process, signal.SIGKILL)
    finish(process)
    def path(folder): return [[n.step, n.drift, n.gap, n.weights()] for n in DegradationPath.open(folder)]
    readers = {name: load_state for name in ("student/checkpoint.safetensors", "student/checkpoint-before.safetensors", "teacher/teacher.safetensors", "path/student.safetensors")}
    nodes = sorted(p.name for p in (tmp_path / "demo/path").glob("node-*"))
    readers |= {f"path/{name}": lambda file: path(file.parent) for name in ["path.json", *nodes]}
    def digest(value):
        import hashlib

        import torch
        if isinstance(value, torch.Tensor): return hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy()).hexdigest()
        if isinstance(value, dict): return {k: digest(v) for k, v in value.items()}
        return [digest(v) for v in value] if isinstance(value, list) else value
    dice, noticed = random.Random(1), 0
    for i in range(240):
        name = [*readers][i % len(readers)]
        file = tmp_path / "demo" / name
        if i < len(readers): shutil.copy(file, f"{file}.good")
        raw = bytearray(Path(f"{file}.good").read_bytes())
        expected = digest(readers[name](file)) if i < len(readers) or raw[:1] == b"{" else None
        at = dice.randrange(min(len(raw), 4000) if i % 3 == 0 else len(raw))         # headers are short: aim at them more often
        if i < 200: raw[at] ^= 1 << dice.randrange(8)
        else: del raw[at:]
        file.write_bytes(raw)
        try: assert digest(readers[name](file)) == expected, f"{name}: bit {at} changed what is read"
        except ValueError as e:
            noticed += 1
            assert str(file.parent) in str(e) and "\n" not in str(e), e
        finally: shutil.copy(f"{file}.good", file)
    assert noticed > 230, noticed


def test_goes_on_from_the_checkpoint_before(uninterrupted, tmp_path):
    folder = tmp_path / "demo"
    process = start(*QUICK, "--out", folder)
    wait_for(folder / "student/checkpoint-before.safetensors", process)
    os.kill(process, signal.SIGKILL)
    finish(process)
    last = folder / "student/checkpoint.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    status, err = finish(start(*QUICK, "--out", folder, "--resume"))
    assert status == 0 and err.count("\n") == 1 and "truncated or altered" in err and "checkpoint-before" in err, err
    same_as(folder, uninterrupted)
