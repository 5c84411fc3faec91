"""Two processes that share their work, forked from one that has imported everything: `python both.py MODULE
FOLDER NAME...` calls `MODULE.NAME(FOLDER)` in both, name after name. They find each other as those of
torchrun do; what torchrun does itself is tested where a process dies (test_processes.py)."""
import importlib
import os
import socket
import sys
import traceback
from pathlib import Path


def environment():
    """What two processes are told."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")


def both(work, folder):
    """Call a function in two processes; return how they ended, 0 if well."""
    told, started = environment(), []
    for rank in "01":
        started.append(os.fork())
        if started[-1] == 0:
            status = 1
            try:
                os.environ |= told | dict(RANK=rank, LOCAL_RANK=rank)
                work(folder)
                status = 0
            except BaseException: traceback.print_exc()
            os._exit(status)    # at once: taking everything down takes a second
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in started)


if __name__ == "__main__":
    import accelerate, scipy.spatial, sklearn.datasets, torch, torch._dynamo  # noqa: E401, F401
    import disback.cli, disback.evaluation, disback.stages  # noqa: E401, F401
    module, folder, *names = sys.argv[1:]
    works = [getattr(importlib.import_module(module), name) for name in names]
    sys.exit(max(both(work, Path(folder)) for work in works))
