"""Runs that are killed, interrupted or out of space, as processes of their own: they resume to the same bits and lose nothing."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENV = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "DISBACK_PROGRESS": "0"}
QUICK = ["demo", "--data", "ring", "--pretrain-steps", "60", "--degrade-steps", "40", "--steps", "60"]
WEIGHTS = ["teacher/teacher.safetensors", "path/path.json", "student/student.safetensors"]


def start(*args):
    command = [sys.executable, "-c", "from disback.cli import main; main()", *map(str, args)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "demo"
    status, _, err = finish(start(*QUICK, "--out", folder))
    assert status == 0, err
    return folder


def wait_for(file, process):
    """Wait until a file is there, or the process is over."""
    while not Path(file).exists() and process.poll() is None: time.sleep(.002)


def same_as(folder, whole):
    """Weights bit for bit, and metrics line for line (but for the seconds)."""
    for name in WEIGHTS: assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    rows, expected = [[json.loads(line) | {"seconds": 0} for line in (f / "student/metrics.jsonl").read_text().splitlines()] for f in (folder, whole)]
    assert rows == expected


def test_killed_in_every_stage_resumes_to_the_same_bits(uninterrupted, tmp_path):
    folder, resume = tmp_path / "demo", []
    for stage in ("teacher", "path", "student"):
        process = start(*QUICK, "--out", folder, *resume)
        wait_for(folder / stage / "checkpoint.safetensors", process)
        time.sleep(.03)
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL, "the run ended before it could be killed"
        assert not (folder / stage / "result.json").exists()
        resume = ["--resume"]
    status, _, err = finish(start(*QUICK, "--out", folder, *resume))
    assert status == 0, err
    same_as(folder, uninterrupted)


def test_interrupted_politely(uninterrupted, tmp_path):
    folder, resume = tmp_path / "demo", []
    for stage, number in [("teacher", signal.SIGINT), ("student", signal.SIGTERM)]:
        process = start(*QUICK, "--out", folder, *resume)
        wait_for(folder / stage / "checkpoint.safetensors", process)
        process.send_signal(number)
        status, _, err = finish(process)
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
        status, _, err = finish(start(*QUICK, "--out", folder))
        assert status == 1 and "space" in err and err.count("\n") == 1 and "Traceback" not in err, err
        assert not [*small.rglob("*.part")]          # nothing half written is left
        subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
        status, _, err = finish(start(*QUICK, "--out", folder, "--resume"))
        assert status == 0, err
        same_as(folder, uninterrupted)
    finally: subprocess.run(["umount", small], check=True)
