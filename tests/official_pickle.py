"""Checkpoints in the official form of EDM, written by the real pickle module from real networks.

No test: tests and notebooks use it."""
import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn


def canary(file):
    "The file that appears if the source text in the checkpoint `file` is ever run."
    return Path(f"{file}.canary")


class EasyDict(dict):
    "Stands in for dnnlib.util.EasyDict."


def _reconstruct_persistent_obj(meta):
    "Stands in for torch_utils.persistence._reconstruct_persistent_obj, and does what is dangerous about it."
    exec(meta["module_src"], {})


@contextlib.contextmanager
def official_modules():
    "The official names can be imported within this block, as pickle demands of whoever writes them."
    names = "dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence"
    fakes = {name: types.ModuleType(name) for name in names}
    for thing, home in [(EasyDict, "dnnlib.util"), (_reconstruct_persistent_obj, "torch_utils.persistence")]:
        thing.__module__ = home
        setattr(fakes[home], thing.__name__, thing)
    before = {name: sys.modules.get(name) for name in fakes}
    sys.modules.update(fakes)
    try: yield
    finally:
        for name, module in before.items():
            if module is None: del sys.modules[name]
            else: sys.modules[name] = module


class Persistent:
    "An object as NVIDIA's persistence pickles it."
    def __init__(self, class_name, state, source):
        self.meta = dict(type="class", version=6, module_src=source, class_name=class_name, state=state)

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def official(module, source, class_name=None, **attributes):
    "`module` as the official code pickles it: its own classes as persistent objects, torch's as they are."
    own = not type(module).__module__.startswith("torch.nn.modules.")
    state = {k: v for k, v in vars(module).items()
             if k[0] == "_" or k == "training" or type(v) in (bool, int, str, tuple)}
    state |= {k: np.float64(v) for k, v in vars(module).items() if type(v) is float}    # of np.sqrt there
    makes = dict(_parameters=lambda v: nn.Parameter(v.detach().clone()),
                 _buffers=lambda v: v.detach().clone(), _modules=lambda v: official(v, source))
    for k, make in makes.items():
        state[k] = OrderedDict((n, None if v is None else make(v)) for n, v in vars(module)[k].items())
    if own or class_name:
        state |= dict(_init_args=(), _init_kwargs=EasyDict()) | attributes
        return Persistent(class_name or type(module).__name__, state, source)
    copy = type(module).__new__(type(module))    # a layer of torch pickles itself
    vars(copy).update(vars(module) | {k: state[k] for k in ("_parameters", "_buffers", "_modules")})
    return copy


def write_official(file, module, class_name, init_kwargs, extra=None, protocol=4):
    "Write `module` as the network of an official checkpoint; `extra` are further entries of its dictionary."
    source = f"from pathlib import Path\nPath({str(canary(file))!r}).write_text('ran')\n"
    augment = nn.Module()
    augment.register_buffer("Hz_geom", torch.ones(3))
    data = dict(ema=official(module, source, class_name, _init_kwargs=EasyDict(init_kwargs)),
                loss_fn=Persistent("EDMLoss", dict(P_mean=-1.2, P_std=1.2, sigma_data=0.5), source),
                augment_pipe=official(augment, source, "AugmentPipe", p=0.12, wavelets=np.arange(4.0)),
                dataset_kwargs=EasyDict(class_name="training.dataset.ImageFolderDataset", path="data.zip",
                                        use_labels=False, xflip=False))
    with official_modules(), open(file, "wb") as f: pickle.dump(data | (extra or {}), f, protocol)
