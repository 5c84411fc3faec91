"""Distil diffusion models along a path: `import disback as db`, then `db.Backtracking` or `db.plots`.

A name is imported when it is asked for: this takes milliseconds and leaves torch alone. Type checkers and
editors read the same names in `__init__.pyi`."""

__version__ = "0.1.0"

import os
import sys

__all__ = ["Backtracking", "Degradation", "DegradationPath", "EqualDrift", "GaussianMixture", "OneStep",
           "Pretraining", "Ramp", "ResMLP", "UNet", "energy_distance", "filmstrip", "progress",
           "ring_mixture", "sample", "score_mismatch"]
_HOMES = {"backtracking": "Backtracking Ramp", "degradation": "Degradation EqualDrift",
          "metrics": "energy_distance", "mismatch": "score_mismatch",
          "mixtures": "GaussianMixture ring_mixture", "networks": "OneStep ResMLP UNet",
          "paths": "DegradationPath", "plots": "filmstrip", "pretraining": "Pretraining",
          "runs": "progress", "samplers": "sample"}

def __getattr__(name):
    from importlib import import_module
    for home, names in _HOMES.items():
        if name in names.split(): return getattr(import_module(f".{home}", __name__), name)
    try: return import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}": raise
    from difflib import get_close_matches
    from pathlib import Path
    from pkgutil import iter_modules
    files = [Path(__path__[0], f"{module.name}.py") for module in iter_modules(__path__)]
    rooms = [file.stem for file in files    # those that have it in their `__all__`
             if repr(name) in file.read_text(encoding="utf-8").partition("]")[0]]
    near = get_close_matches(name, [*__all__, *(m.name for m in iter_modules(__path__))], 1)
    other = f"the nearest is {near[0]!r}" if near else "other names are in its modules, such as disback.plots"
    if rooms: other = f"say `from {__name__}.{rooms[0]} import {name}`"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {other}")

def __dir__(): return [*__all__, "__version__"]

if os.environ.get("IN_TEST"):  # set by nbdev_test: one thread, whatever the caller set; workers share cores
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules: sys.modules["torch"].set_num_threads(1)
