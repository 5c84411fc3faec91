"""Wrong calls: every public name, each argument replaced by values that it was not made for.

    python tests/test_calls.py --report FILE     # the tables, and the calls that are to be mended
    python tests/test_calls.py losses metrics    # of some modules, printed

A call is *answered* by a `ValueError` or `FileNotFoundError` that this library raises itself, in one line; or
it is *accepted*: what comes back is as good as before. *Raw* is any other error, *nan* a value that is not
finite where the right call has none, *hang* more than five seconds or the end of the process."""

import argparse
import contextlib
import copy
import dataclasses
import dis
import importlib
import inspect
import io
import itertools
import json
import math
import os
import pickle
import pkgutil
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import openai_reference  # noqa: E402
from official_pickle import write_official  # noqa: E402

SECONDS, MEMORY = 5, 6 * 2**30
WORLD = Path(tempfile.gettempdir()) / "unset"  # where `make_world` puts files
FRESH = itertools.count()
randn = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
levels = lambda n=4: torch.linspace(0.5, 2.0, n)
module = lambda name: importlib.import_module(f"disback.{name}")


# What is right: networks and the like are made anew for each call, files lie in WORLD


def net(**options):
    return module("networks").ResMLP(2, 8, 1, sigma_data=1.0, **options)


def unet(**options):
    return module("networks").UNet((1, 8, 8), (8, 8), sigma_data=0.5, **options)


def student():
    return module("networks").OneStep(net())


def generator():
    return torch.Generator().manual_seed(0)


def options(name, **values):
    return getattr(module("options"), name)(**values)


def noise(n, generator=None):
    return torch.rand(n, generator=generator) + 0.1


def loss(x0, sigma, d_fake, d_target, x):
    return module("losses").follow(x0, d_fake - d_target)


def sampler(n, generator=None):
    return torch.randn(n, 2, generator=generator)


def features(x):
    return x.flatten(1)


def fresh(ending=""):
    return Path(f"fresh-{next(FRESH)}{ending}")


def processes():
    return module("runs").OneProcess()


def keep():
    return module("degradation").Every(1)


def recording():
    return module("degradation").Degradation(net(), student(), keep(), 2, 4, pool=8, n_probe=4)


def protocol():
    return module("comparisons").Protocol(
        budget=150, batch=8, looks=2, n=50, teacher_steps=5, width=8, depth=1, pool=32
    )


@cache
def recorded():
    run = recording()
    [*run]
    return run.path


@cache
def rows():
    compare = module("comparisons").compare
    return compare(["ring-far"], ["disback:nodes=2:record=2", "diff-instruct"], [0, 1], protocol())


def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


def path():
    nodes = recorded()
    return module("paths").DegradationPath(nodes.network, nodes.nodes)


def backtracking():
    return module("backtracking").Backtracking(student(), path(), n_steps=3, batch=4)


def run_folder(name):
    return module("folders").RunFolder(WORLD / name)


def recorder(**more):
    made = module("mismatch").MismatchRecorder(net(), [0.5, 1.0], every=1, n=8, **more)
    run = backtracking()
    for _ in made.follow(run):
        pass
    return made


def diffusers_unet():
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )


def openai_unet():
    return module("openai").OpenAIUNet("edm", **ADM)


def openai_weights():
    return openai_reference.Reference(side=8, channels=128, mult=(1,), blocks=1, attention=()).weights()


def azula_denoiser():
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule

    return KarrasDenoiser(torch.nn.Linear(2, 2), VPSchedule())


def text_unet():
    return importlib.import_module("tiny_pipelines").sd().unet


def text_config():
    return {k: v for k, v in text_unet().config.items() if not k.startswith("_")}


def transformer():
    return importlib.import_module("tiny_pipelines").dit().transformer


def old_config():
    return {k: v for k, v in transformer().config.items() if not k.startswith("_")}


def prompts():
    return module("text").Prompts(**{k: make() for k, make in PROMPTS.items()})


def latents():
    return module("text").LatentNetwork(net=text_unet(), prompts=prompts())


def text_student():
    return module("networks").OneStep(latents(), latents().sigma_of_step(399))


def clip():
    return module("evaluation").load_clip(WORLD / "clip")


def new_folder():
    (folder := fresh()).mkdir()
    return folder


def judged():
    return dict(frechet=dict(mean=1.0), n=4)


def weights():
    return net().state_dict()


def adapter():
    return module("adapters").Adapted(net(), 2)


def lora():
    """The corrections of one layer, by name."""
    return dict(lora_A=randn(2, 2), lora_B=randn(2, 2))


PROMPTS = dict(
    rows=lambda: dict(text=randn(2, 77, 32)),
    empty=lambda: dict(text=randn(1, 77, 32)),
    texts=lambda: ["a dog", "a cat"],
    file=lambda: None,
)
NUMBERS = dict(
    n=4,
    seed=0,
    k=2,
    c_in=8,
    c_out=8,
    width=8,
    n_steps=3,
    batch=4,
    step=1,
    kernel=3,
    eps=1e-5,
    lr=0.01,
    c_emb=8,
    img_resolution=8,
    in_channels=1,
    out_channels=1,
    img_channels=1,
    gamma=0.1,
    radius=1.0,
    index=0,
    drift=1.0,
    gap=1.0,
    decay=0.5,
    std=0.1,
    found=0.5,
    near=0.5,
    precision=0.5,
    recall=0.5,
    mean=1.0,
    deviation=0.1,
    node=0,
    passes=3.0,
    M=10,
    first=0,
    place=0,
    n_test=2,
    nfe=1,
    every=2,
    budget=100,
    parameters=10,
    spent=0.0,
    looks=2,
    teacher_calls=1,
    local_batch=4,
    weights_memory=1,
    step_memory=1,
    forward=1.0,
    back=2.0,
    path_disk=1,
    checkpoint_disk=1,
    processes=1,
    threshold=1.0,
    least=2,
    nodes=1,
    n_directions=4,
    splits=1,
    most=4,
    sigma_data=0.5,
    window=2,
    h=1.0,
    tolerance=1.0,
    sigma_init=2.0,
)
TENSORS = {
    **dict.fromkeys(
        "x denoised score eps v d_fake d_target gradient d noise points a b".split(), lambda: randn(4, 2)
    ),
    **dict.fromkeys(("x0", "y", "real", "fake"), lambda: randn(6, 2)[:4] + 0.1),
    "sigma": levels,
    "sigma_next": lambda: levels() / 2,
    "sigmas": levels,
    "loss": lambda: torch.ones(()),
    "fake_loss": lambda: torch.ones(()),
    "mismatch": lambda: torch.ones(()),
    "t": levels,
    "freqs": levels,
    "betas": lambda: torch.linspace(1e-4, 0.02, 10),
    "log_sigmas": lambda: torch.linspace(-3, 3, 10),
    "C": lambda: torch.eye(2),
    "C1": lambda: torch.eye(2),
    "C2": lambda: 2 * torch.eye(2),
    "mu1": lambda: torch.zeros(2),
    "mu2": lambda: torch.ones(2),
    "mu": lambda: torch.zeros(2),
    "means": lambda: randn(3, 2),
    "stds": lambda: torch.ones(3),
    "p": lambda: randn(6, 3).softmax(1),
    "values": lambda: randn(4).abs(),
    "labels": lambda: torch.arange(4) % 3,
    **dict.fromkeys(
        ("student_to_target", "target_to_teacher", "cross", "student_to_teacher", "fake_to_target"),
        lambda: torch.ones(4),
    ),
}
OBJECTS = dict(
    generator=generator,
    device=lambda: torch.device("cpu"),
    network=net,
    module=net,
    denoiser=net,
    teacher=net,
    student=student,
    path=path,
    engine=lambda: module("engine").Engine(),
    processes=processes,
    keep=keep,
    itinerary=lambda: module("backtracking").Proportional(),
    sampler=lambda: sampler,
    run=backtracking,
    folder=fresh,
    file=lambda: fresh(".json"),
    out=fresh,
    shape=lambda: (2,),
    params=lambda: [*net().parameters()],
    name=lambda: "a name",
    text=lambda: "text",
    title=lambda: "title",
    value=lambda: 1,
    ax=axes,
    target=net,
    draw=lambda: lambda n, seed=0, start=0: randn(n, 2),
    features=lambda: features,
    weights=weights,
    tensors=weights,
    weight=lambda: lambda sigma: sigma**2,
    f=lambda: module("mismatch").squares,
    state=weights,
    rows=rows,
    tasks=lambda: ["ring-far"],
    arms=lambda: ["disback:nodes=2:record=2"],
    seeds=lambda: [0],
    seconds=dict,
    label=lambda: "label",
    where=lambda: "where",
    protocol=protocol,
    task=lambda: "ring-far",
    arm=lambda: "disback:nodes=2:record=2",
    classifier=lambda: features,
    limits=lambda: (-3.0, 3.0),
    record=lambda: next(backtracking()),
    sample=lambda: sampler,
    held_out=lambda: sampler,
    data=lambda: "ring",
    compute=lambda: module("options").Compute(),
    words=lambda: "words",
    said=lambda: "words",
    training=lambda: True,
    what=lambda: "what",
    key=lambda: "ema",
    quantity=lambda: "student_to_teacher",
    recorder=recorder,
    scheduler=lambda: None,
    reference=lambda: randn(50, 2),
    look=lambda: features,
    known=lambda: [1, 2],
    url=lambda: "file:///not-there",
    answers=lambda: [randn(4, 2) + i for i in range(4)],
    names=lambda: ["a", "b"],
    cls=lambda: type(net()),
    layer=lambda: torch.nn.Linear(2, 2),
    description=lambda: module("networks").describe(net()),
    classes=lambda: [0],
    source=lambda: WORLD / "images",
    size=lambda: (3, 3),
    watch=tuple,
    metadata=lambda: {"a": "b"},
    base=net,
    adapted=adapter,
    texts=lambda: ["a dog", "a cat"],
)


# What a name says differently from the tables above
image = lambda *shape: randn(*shape).clamp(-1, 1)
vector = lambda: torch.linspace(1.0, 2.0, 4)


def command(name, **values):
    return lambda: options(name, **values)


@cache
def read_recipe():
    return module("recipes").load_recipe("digits")


def recipe():
    return copy.deepcopy(read_recipe())


def stage(name):
    return lambda: recipe().stages[name]


def costed():
    return {k: stage(k)().filled("images") for k in ("degrade", "backtrack", "evaluate")}


def compute():
    return module("options").Compute(device="cpu")


def dry_run():
    return module("options").DryRun(options("Sample", run=WORLD / "student", n=4), student())


def plan():
    return module("recipes").plan(unet(), **costed())


def table():
    return module("comparisons").summary(rows())


def undecided():
    """A row of a summary of six seeds."""
    runs = [("disback", 15.0), ("diff-instruct", 20.0)]
    looks = [(0.0, 9.0), (5.0, 8.0), (10.0, 7.0)]
    made = [
        dict(task="t", arm=arm, seed=seed, step=i, passes=p, value=v)
        for arm, end in runs
        for seed in range(6)
        for i, (p, v) in enumerate([*looks, (end + (seed % 2) * 10, 0.5)])
    ]
    return module("comparisons").summary(made, 1.0)[0]


def loaded(protocol, cache):
    return net(), sampler


def baseline():
    return module("comparisons").by_seed(rows(), "ring-far", "diff-instruct")


def by_seed():
    return [*baseline().values()]


def parsed_arm():
    return module("comparisons").parse_arm("disback:nodes=2:record=2")


def ring():
    return module("data").load_data("ring")


def digits():
    return module("data").load_data("digits")


def moments():
    return module("evaluation").RunningMoments().update(randn(6, 2))


def denoisers():
    return [net(), net()]


def image_data():
    return [(PIL_image(), 0)] * 3


def PIL_image():
    from PIL import Image

    return Image.fromarray(np.full((8, 8), 40, np.uint8))


def archive():
    import zipfile

    return zipfile.ZipFile(WORLD / "moments.npz")


def unet_config():
    return {k: v for k, v in diffusers_unet().config.items() if not k.startswith("_")}


def official():
    """A network as an official pickle holds it, read."""
    return module("edm").edm_network(**EDM_CONFIG)


def measured():
    return module("evaluation").measure_samples(
        lambda n, seed=0, start=0: randn(n, 2), randn(50, 2), 8, (0,), batch=8, progress=False
    )


def array_node():
    return module("pickles").read_pickle(pickle.dumps(np.ones(3)))


def tensor_node():
    return module("pickles").read_pickle(pickle.dumps(torch.ones(3)))


def lab():
    return module("widgets").Race(**RACE)


def figure():
    from matplotlib.figure import Figure

    return Figure()


EDM_CONFIG = dict(
    img_resolution=8,
    img_channels=1,
    model_type="SongUNet",
    model_channels=8,
    channel_mult=(1, 1),
    num_blocks=1,
    attn_resolutions=(),
)
ADM = dict(img_resolution=8, model_channels=128, channel_mult=(1,), num_blocks=1, attn_resolutions=())
RACE = dict(data="ring", arms=("disback",), budget=60, teacher_steps=3, record=2, batch=8)
SMALL = dict(n_steps=lambda: 3, batch=lambda: 4)
DENOISERS = dict(
    a=net,
    b=net,
    x0=lambda: randn(4, 2),
    sigma=lambda: 0.7,
    denoisers=denoisers,
    student=net,
    target=net,
    teacher=net,
    points=lambda: randn(4, 2),
    sigmas=lambda: [0.5, 1.0],
    weight=lambda: lambda s: s**2,
)
IMAGES = dict(x=lambda: image(4, 1, 8, 8))
FOLDERS = dict(folder=lambda: run_folder("student"), run=lambda: run_folder("student"))
DEMO = dict(data="ring", pretrain_steps=4, degrade_steps=4, steps=4)
SPECIAL = {
    "adapters.Adapted": dict(rank=lambda: 2),
    "adapters.LowRank": dict(rank=lambda: 2),
    "adapters.narrowed": dict(rank=lambda: 2),
    "adapters.plant": dict(root=torch.nn.Module),
    "adapters.by_layer": dict(tensors=lambda: {"a.lora_A.weight": randn(2, 2)}),
    "adapters.said_alpha": dict(header=dict),
    "adapters.fitted": dict(
        low=lambda: module("adapters").LowRank(torch.nn.Linear(2, 2), 2),
        parts=lora,
        alpha=lambda: None,
        layer=lambda: "mid.to_q",
    ),
    "adapters.read_lora": dict(file=lambda: WORLD / "lora.safetensors"),
    "backtracking.Fixed": dict(steps=lambda: (1,)),
    "backtracking.lag_in_words": dict(lag=lambda: 0.3),
    "backtracking.check_matching": dict(weight=lambda: 0.0, alone=lambda: [False]),
    "backtracking.BacktrackingStep": dict(position=lambda: 0.5, lag=lambda: torch.tensor(0.3)),
    "paths.Blend": dict(near=net, far=net),
    "paths.blended": dict(far=net),
    "backtracking.check_arguments": dict(fake=net, ratio=lambda: 1),
    "backtracking.guidance_of": dict(guidance=lambda: 1.0),
    "backtracking.check_arrival": dict(most=lambda: [1.0, 1.0], n_steps=lambda: 5),
    "backtracking.Backtracking": SMALL,
    "degradation.Degradation": dict(batch=lambda: 4, n_steps=lambda: 4, pool=lambda: 8, n_probe=lambda: 4),
    "degradation.Probe": dict(cond=lambda: None),
    "degradation.Every": dict(steps=lambda: 1),
    "pretraining.Pretraining": dict(**SMALL, data=lambda: randn(50, 2)),
    "pretraining.check_labels": dict(cond=lambda: torch.arange(4) % 3, network=lambda: net(n_classes=3)),
    "cli.parse": dict(command=lambda: "sample", typed=lambda: ["--run", "x"]),
    "cli.plan_of": dict(network=unet, stages=lambda: costed(), compute=compute, title=lambda: "a plan"),
    "cli.plan_of_recipe": dict(recipe=recipe, options=stage("degrade")),
    **dict.fromkeys(("cli.seconds_of", "cli.devices_of"), dict(network=unet, compute=compute)),
    **dict.fromkeys(("cli.what_would_be", "cli.drawing_of"), dict(end=dry_run, processes=lambda: 1)),
    "cli.demo_stages": dict(options=command("Demo", **DEMO)),
    **dict.fromkeys(
        ("cli.help_for", "cli.entries"),
        dict(command=lambda: "sample", said=lambda: "usage\n  --n INT  many"),
    ),
    "cli.in_plain_words": dict(typed=lambda: "--n INT", means=lambda: "many"),
    "cli.in_columns": dict(rows=lambda: [("--n INT", "many")]),
    "cli.helpful": dict(command=lambda: "sample", typed=lambda: ["-h"]),
    "cli.do_in": dict(
        folder=lambda: run_folder("new"), options=lambda: options("Sample", run=WORLD / "student", n=4)
    ),
    "cli.demo_data": dict(options=command("Demo", **DEMO)),
    "cli.demo_time": dict(options=command("Demo", **DEMO)),
    "cli.demo": dict(options=lambda: options("Demo", out=fresh(), **DEMO)),
    "cli.equal_compute": dict(folder=lambda: run_folder("")),
    "cli.demo_report": dict(folder=lambda: run_folder(""), data=ring, arms=lambda: ["student"]),
    "cli.comparison_figure": dict(
        folder=lambda: run_folder(""), arms=lambda: ["student"], teacher=lambda: 1.0
    ),
    "cli.check_teacher": dict(options=lambda: options("Run", recipe="digits", out=fresh()), recipe=recipe),
    "cli.check_files": dict(options=lambda: options("Run", recipe="digits", out=fresh())),
    "cli.run": dict(options=lambda: options("Run", recipe="digits", out=WORLD)),
    "cli.compare": dict(
        options=lambda: options("Compare", out=fresh(), arms=("diff-instruct",), seeds=(0,), budget=15)
    ),
    "cli.tasks_of": dict(options=lambda: options("Compare", out=fresh())),
    "cli.comparison_report": dict(
        folder=lambda: module("folders").RunFolder(fresh()), why=lambda: "why", kind=lambda: "points"
    ),
    "cli.do_command": dict(typed=lambda: ["sample", "--run", str(WORLD / "student"), "--out", str(fresh())]),
    "cli.main": dict(args=lambda: ["sample", "--run", str(WORLD / "student"), "--out", str(fresh())]),
    "cli.Shown": dict(file=io.StringIO),
    "cli.in_options": dict(said=lambda: "size must be 8", command=lambda: "pretrain"),
    "cli.mended_by": dict(error=lambda: ValueError("a sentence")),
    "comparisons.data_of": dict(name=lambda: "ring"),
    "comparisons.start": dict(kind=lambda: "far"),
    "comparisons.parse_arm": dict(text=lambda: "disback:nodes=2"),
    "comparisons.file_for": dict(about=lambda: [1], ending=lambda: ".json"),
    "comparisons.prepare": dict(kind=lambda: "far", arm=parsed_arm),
    "comparisons.follow": dict(distance=lambda: lambda s: 1.0, looks=lambda: 2),
    "comparisons.run_arm": dict(protocol=protocol),
    "comparisons.compare": dict(protocol=protocol),
    "comparisons.run_pair": dict(
        job=lambda: (
            module("comparisons").parse_task("ring-far"),
            "diff-instruct",
            [0],
            protocol(),
            None,
        )
    ),
    "comparisons.compute_to": dict(rows=lambda: by_seed()[0], threshold=lambda: 100.0),
    **dict.fromkeys(("comparisons.price_of", "comparisons.stage1"), dict(arm=parsed_arm)),
    "comparisons.parse_task": dict(text=lambda: "ring-far"),
    "comparisons.parse_start": dict(text=lambda: "far"),
    "comparisons.Task": dict(start=lambda: "far", load=lambda: loaded, about=lambda: "ring"),
    "comparisons.load_bundled": dict(data=lambda: "ring"),
    **dict.fromkeys(("comparisons.missing", "comparisons.verdict"), dict(row=undecided)),
    "comparisons.conclusions": dict(table=table),
    "comparisons.path_of": dict(run=recording),
    "comparisons.ratio": dict(a=lambda: 1.0, b=lambda: 2.0),
    "comparisons.median_interval": dict(low=lambda: [1.0, 2.0, 3.0]),
    "comparisons.compared": dict(ours=baseline, theirs=baseline),
    "comparisons.spread": dict(values=lambda: [1.0, 2.0, 3.0]),
    "comparisons.by_seed": dict(arm=lambda: "diff-instruct"),
    "comparisons.text": dict(table=table),
    "comparisons.in_brackets": dict(row=lambda: table()[0], name=lambda: "end", form=lambda: ".2f"),
    "comparisons.summary": dict(threshold=lambda: 100.0),
    "comparisons.show_task": dict(runs=by_seed, style=lambda: dict(color="k")),
    "core.asked_to_end": dict(handler=lambda: signal.default_int_handler),
    "core.check_that": dict(good=lambda: True, wanted=lambda: "a number"),
    "core.stream": dict(purpose=lambda: "noise"),
    "core.check_regular": dict(file=lambda: WORLD / "plain.json"),
    "core.check_schema": dict(schema=lambda: int),
    "core.kinds_of": dict(annotation=lambda: int),
    "core.check_calls": dict(module=lambda: dict(__name__="somewhere")),
    "core.defaults": dict(stage=lambda: "pretrain"),
    "core.Table": dict(rows=lambda: [dict(a=1)]),
    "core.check_choice": dict(value=lambda: 1),
    "core.patch": dict(f=lambda: patched),
    "core.patch_property": dict(f=lambda: patched),
    "data.as_sampler": dict(data=lambda: randn(4, 2)),
    "data.Classes": dict(counts=lambda: [3, 2]),
    "data.Labels": dict(n_classes=lambda: 3),
    "data.labels_of": dict(source=lambda: WORLD / "classes"),
    "data.classes_of": dict(source=lambda: WORLD / "classes"),
    **dict.fromkeys(("data.placed_means", "data.placed_modes"), dict(name=lambda: "modes:-2,0/2,0")),
    "data.load_data": dict(name=lambda: "ring"),
    "data.split_indices": dict(y=lambda: torch.arange(9) % 3),
    "data.full_name": dict(name=lambda: "ring"),
    "diffusion.denoising_loss": dict(weight=levels),
    "diffusion.generator_for": dict(purpose=lambda: "noise"),
    "diffusion.check_alike": dict(tensors=lambda: dict(a=randn(4, 2), b=randn(4, 2))),
    **dict.fromkeys(
        ("diffusion.as_labels", "diffusion.labels_beside"), dict(cond=lambda: torch.arange(4) % 3)
    ),
    "edges.Schedule": dict(
        alpha=lambda: torch.ones_like, sigma=lambda: torch.ones_like, first=lambda: 0.0, last=lambda: 1.0
    ),
    **dict.fromkeys(
        ("edges.Wrapped", "edges.as_denoiser"),
        dict(network=lambda: torch.nn.Bilinear(2, 1, 2), shape=lambda: (2,), prediction=lambda: "flow")
        | dict(schedule=lambda: module("edges").SCHEDULES["flow"]),
    ),
    "edges.from_azula": dict(denoiser=azula_denoiser),
    "edges.to_azula": dict(schedule=lambda: azula_denoiser().schedule),
    "edges.Checked": dict(levels=list, readings=dict, doubts=list, frames=dict),
    "edm.normalize": dict(x=lambda: torch.randn(4, 3), dims=lambda: [1]),
    **dict.fromkeys(("edm.mp_sum", "edm.mp_cat"), dict(t=lambda: 0.5)),
    "edm.MPUNet": dict(
        shape=lambda: [8, 1, 1],
        sizes=lambda: dict(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=()),
    ),
    "edm.MPBlock": dict(
        channels_per_head=lambda: 4, res_balance=lambda: 0.3, attn_balance=lambda: 0.3, clip_act=lambda: 256.0
    ),
    "edm.MPConv": dict(c_in=lambda: 3, c_out=lambda: 3, kernel=lambda: 3),
    "edm.resized": dict(
        x=lambda: image(2, 8, 4, 4), taps=lambda: torch.ones(8, 1, 2, 2) / 4, how=lambda: "up"
    ),
    "edm.group_norm": dict(c=lambda: 8, eps=lambda: 1e-5),
    "edm.SongUNet": dict(
        shape=lambda: [8, 1, 1],
        sizes=lambda: dict(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=()),
    ),
    "edm.DhariwalUNet": dict(
        shape=lambda: [8, 1, 1],
        sizes=lambda: dict(model_channels=32, channel_mult=(1,), num_blocks=1, attn_resolutions=()),
    ),
    "edm.EDMUNet": dict(
        model_channels=lambda: 8, channel_mult=lambda: (1, 1), num_blocks=lambda: 1, attn_resolutions=tuple
    ),
    "edm.vp_sigma": dict(t=lambda: 0.5),
    "edm.iddpm_coefficients": dict(u=levels),
    "edm.noise_range": dict(class_name=lambda: "EDMPrecond", schedule=dict),
    "edm.check_arguments": dict(config=lambda: dict(EDM_CONFIG)),
    "edm.EDMNetwork": {k: (lambda v: lambda: v)(v) for k, v in EDM_CONFIG.items()}
    | dict(
        more=lambda: {
            k: v
            for k, v in EDM_CONFIG.items()
            if k in ("model_channels", "channel_mult", "num_blocks", "attn_resolutions")
        }
    ),
    "edm.edm_network": dict(config=lambda: dict(EDM_CONFIG)),
    "edm.load_edm": dict(file=lambda: WORLD / "edm.safetensors", config=lambda: dict(EDM_CONFIG)),
    "engine.tolerated": dict(rule=lambda: "stop"),
    "evaluation.joined": dict(rows=lambda: randn(4, 2)),
    "evaluation.joined_moments": dict(own=moments),
    **dict.fromkeys(
        ("evaluation.check_statistics", "evaluation.save_statistics"), dict(sigma=lambda: torch.eye(2))
    ),
    "evaluation.read_array": dict(archive=archive, key=lambda: "mu"),
    "evaluation.load_statistics": dict(file=lambda: WORLD / "moments.npz"),
    "evaluation.Clip": dict(processor=lambda: print, sha256=lambda: "0" * 64),
    "evaluation.load_clip": dict(folder=lambda: WORLD / "clip"),
    "evaluation.clip_score": dict(
        draw=lambda: module("evaluation").Draw(text_student(), show=lambda x: image(len(x), 3, 30, 30)),
        clip=clip,
        n=lambda: 2,
    ),
    "evaluation.quantised": IMAGES,
    "evaluation.Inception": dict(sha256=lambda: "0" * 64, version=lambda: "1"),
    "evaluation.inception_file": dict(url=lambda: "http://127.0.0.1:9/plain.json"),
    "downloads.address_of": dict(name=lambda: "edm:ffhq-64x64-uncond-vp"),
    "downloads.check_address": dict(url=lambda: "https://somewhere.org/edm.pkl"),
    "downloads.fetched": dict(url=lambda: "http://127.0.0.1:9/plain.json", folder=lambda: WORLD),
    "downloads.at_hand": dict(file=lambda: WORLD / "edm.pkl"),
    "evaluation.inception_score": dict(splits=lambda: 2),
    "evaluation.over_seeds": dict(rows=lambda: [dict(a=1.0), dict(a=2.0)]),
    "evaluation.Yardstick": dict(n=lambda: 8, x=lambda: randn(1, 2)),
    "evaluation.measure_samples": dict(n=lambda: 8, batch=lambda: 8, seeds=lambda: (0,)),
    "evaluation.statement": dict(result=measured),
    "evaluation.class_accuracy": dict(classifier=lambda: lambda x: x[:, 0].long() % 3),
    "files.whole": dict(path=fresh),
    "files.save_state": dict(path=fresh),
    "files.load_state": dict(path=lambda: WORLD / "state.safetensors"),
    "files.read_json": dict(file=lambda: WORLD / "plain.json"),
    "files.file_digest": dict(file=lambda: WORLD / "plain.json"),
    "files.readable": dict(file=lambda: WORLD / "plain.json"),
    "files.filled": dict(make=lambda: net),
    "files.fingerprint": dict(skeleton=lambda: [1]),
    "files.flatten": dict(value=lambda: dict(a=torch.ones(2)), tensors=dict),
    "files.unflatten": dict(node=lambda: module("files").flatten(dict(a=1), {})),
    "files.read_weights": dict(file=lambda: WORLD / "weights.safetensors"),
    "folders.RunFolder": dict(path=fresh),
    "folders.Lock": dict(fd=lambda: os.open(".", os.O_RDONLY)),
    "folders.lock": dict(folder=lambda: WORLD / "images"),
    "folders.course": dict(config=lambda: dict(source=None, inputs={})),
    "folders.load_path": dict(folder=lambda: WORLD / "path"),
    "folders.load_teacher": dict(folder=lambda: WORLD / "teacher"),
    "core.shipped": dict(folder=lambda: "recipes", ending=lambda: ".toml"),
    "images.to_pixels": dict(image=PIL_image),
    "images.check_fit": dict(first_name=lambda: "first", first=lambda: (2,)),
    "images.label_table": dict(data=lambda: b'{"labels": [["a.png", 0]]}'),
    "images.official_splits": dict(files=lambda: module("images").Files(WORLD / "images")),
    "images.image_folder": dict(folder=lambda: WORLD / "images"),
    "images.from_dataset": dict(dataset=image_data),
    "images.collection": dict(name=lambda: "mnist"),
    "lab.copy_new": dict(files=lambda: [WORLD / "plain.json"]),
    "lab.server_command": dict(options=command("Lab")),
    "losses.get_loss": dict(loss=lambda: "dmd"),
    "losses.FDivergence": dict(divergence=lambda: "js", ratio=lambda: lambda x, sigma: torch.ones(len(x))),
    "mixtures.DensityRatio": dict.fromkeys("pq", lambda: module("mixtures").ring_mixture()),
    "networks.MultiStep": dict(denoiser=net, sigmas=lambda: (2.0, 0.5)),
    "metrics.image_features": IMAGES,
    "metrics.check_images": IMAGES,
    "metrics.digit_features": IMAGES,
    "metrics.check_features": dict(f=lambda: randn(4, 2)),
    "metrics.count_modes": dict(modes=lambda: (randn(3, 2), 1.0)),
    "metrics.Judge": dict(real=lambda: randn(9, 2)),
    "mismatch.at_rest": dict(networks=denoisers),
    "mismatch.row_mean": DENOISERS | dict(f=lambda: lambda x, a, b: (a - b).square().sum(1)),
    "mismatch.by_level": DENOISERS | dict(f=lambda: lambda x, a, b: (a - b).square().sum(1)),
    **dict.fromkeys(
        (
            "mismatch.score_mismatch",
            "mismatch.mismatch_field",
            "mismatch.show_field",
            "mismatch.mismatch_map",
            "mismatch.decompose",
        ),
        DENOISERS,
    ),
    "mismatch.with_colorbar": dict(image=lambda: importlib.import_module("matplotlib.cm").ScalarMappable()),
    "mismatch.show_map": dict(values=lambda: randn(4, 4).abs()),
    "mismatch.cell_edges": dict(centres=lambda: torch.arange(4.0)),
    "mismatch.show_heat": dict(record=recorder),
    **dict.fromkeys(
        ("networks.guided", "networks.Guided"),
        dict(ask=lambda: net(n_classes=3), denoiser=lambda: net(n_classes=3), scale=lambda: 2.0)
        | dict(x=lambda: randn(4, 2), cond=lambda: torch.arange(4) % 3),
    ),
    "networks.check_null": dict(network=lambda: net(n_classes=3)),
    "networks.check_list": dict(value=lambda: [1, 2]),
    "networks.Preconditioned": dict(config=lambda: dict(sigma_data=1.0)),
    **{
        f"options.{name}": {key: (lambda key: lambda: WORLD / key)(key) for key in ("teacher", "path", "run")}
        for name in ("Degrade", "Backtrack", "Sample", "Evaluate", "Export")
    },
    "options.Check": dict(teacher=lambda: WORLD / "teacher"),
    "openai.OpenAIUNet": {k: (lambda v: lambda: v)(v) for k, v in ADM.items()}
    | dict(kind=lambda: "edm", noise=dict),
    **dict.fromkeys(
        ("openai.places", "openai.their_names", "openai.our_weights"),
        dict(unet=lambda: openai_unet().unet, weights=openai_weights),
    ),
    "openai.by_channel": dict(t=lambda: torch.arange(384.0)),
    "openai.published": dict(file=lambda: WORLD / "edm_imagenet64_ema.pt"),
    "openai.chosen": dict(file=lambda: WORLD / "edm_imagenet64_ema.pt"),
    "openai.load_openai": dict(
        file=lambda: WORLD / "edm_imagenet64_ema.pt", changes=lambda: ADM | dict(n_classes=None)
    ),
    "options.DryRun": dict(options=stage("degrade"), stages=lambda: None),
    "options.group_of": dict(command=lambda: "sample", option=lambda: "n"),
    "options.in_words": dict(default=lambda: 1.0),
    "options.network_config": dict(text=lambda: "{}"),
    "paths.DegradationPath": dict(nodes=lambda: path().nodes),
    "paths.write_node": dict(file=fresh),
    "paths.read_node": dict(
        file=lambda: WORLD / "weights.safetensors",
        sha256=lambda: module("files").file_digest(WORLD / "weights.safetensors"),
    ),
    "paths.open_path": dict(folder=lambda: WORLD / "path"),
    "paths.check_base": dict(described=dict),
    "paths.seal": dict(manifest=lambda: dict(a=1)),
    "paths.check_node": dict(
        file=lambda: WORLD / "weights.safetensors",
        sha256=lambda: module("files").file_digest(WORLD / "weights.safetensors"),
    ),
    "paths.shapes_in": dict(file=lambda: WORLD / "weights.safetensors"),
    "paths.Node": dict(weights=lambda: weights),
    **dict.fromkeys(
        ("paths.read_nodes", "paths.check_nodes"),
        dict(
            folder=lambda: WORLD / "path",
            rows=lambda: json.loads((WORLD / "path/path.json").read_text())["nodes"],
        ),
    ),
    "paths.read_manifest": dict(file=lambda: WORLD / "path/path.json"),
    "pickles.Name": dict(module=lambda: "a"),
    "pickles.Call": dict(function=lambda: module("pickles").Name("a", "b"), args=tuple),
    "pickles.read_pickle": dict(source=lambda: pickle.dumps([1, 2])),
    "pickles.as_tensor": dict(node=tensor_node),
    "pickles.read_checkpoint": dict(source=lambda: WORLD / "edm.pkl"),
    "pickles.as_array": dict(node=array_node),
    "pickles.PickledModule": dict(class_name=lambda: "a", args=tuple, kwargs=dict),
    "pipelines.betas_of": dict(
        beta_schedule=lambda: "linear", beta_start=lambda: 1e-4, beta_end=lambda: 0.02, n_timesteps=lambda: 10
    ),
    "pipelines.as_vp": dict(prediction_type=lambda: "epsilon"),
    "pipelines.as_edm": dict(sigma_data=lambda: 0.5),
    "pipelines.as_consistency": dict(sigma_data=lambda: 0.5, sigma_min=lambda: 0.002),
    **dict.fromkeys(
        ("pipelines.unet2d", "pipelines.image_shape", "pipelines.check_sizes", "pipelines.check_channels"),
        dict(config=unet_config),
    ),
    "pipelines.OfKind": dict(
        shape=lambda: (3, 8, 8), kind=lambda: "vp", prediction_type=lambda: "epsilon", said=dict
    ),
    "pipelines.unet_labels": dict(n_classes=lambda: None, cond=lambda: None, **IMAGES),
    "pipelines.DiffusersUNet": dict(kind=lambda: "vp", unet=diffusers_unet),
    "pipelines.known_noise": dict(kind=lambda: "flow", said=dict),
    "pipelines.scheduler_facts": dict(scheduler=lambda: __import__("diffusers").DDPMScheduler()),
    "pipelines.from_unet": dict(unet=diffusers_unet, kind=lambda: "vp"),
    "pipelines.parts_in": dict(index=lambda: WORLD / "index.json"),
    "pipelines.read_parts": dict(file=lambda: WORLD / "weights.safetensors"),
    "pipelines.read_config": dict(file=lambda: WORLD / "pipe/unet/config.json", schema=lambda: dict),
    "pipelines.read_unet": dict(file=lambda: WORLD / "pipe/unet/config.json"),
    "pipelines.check_known": dict(name=lambda: "DDPMScheduler", config=dict),
    "pipelines.check_pixels": dict(unet=lambda: WORLD / "pipe/unet/config.json"),
    "pipelines.load_pipeline": dict(folder=lambda: WORLD / "pipe"),
    "pipelines.weights_in": dict(folder=lambda: WORLD / "pipe/unet"),
    "plots.limits": dict(sets=lambda: [randn(4, 2)]),
    "plots.image_grid": IMAGES,
    "plots.show_images": IMAGES,
    "plots.filmstrip": dict(frames=lambda: [randn(4, 2)] * 2, titles=lambda: ["a", "b"]),
    "plots.running_mean": dict(y=lambda: randn(9)),
    "plots.show_curve": dict(x=lambda: [1, 2], y=lambda: [1.0, 2.0]),
    "recipes.read_toml": dict(file=lambda: WORLD / "recipe.toml"),
    "recipes.load_recipe": dict(name=lambda: "digits"),
    "recipes.as_args": dict(table=lambda: dict(a=1)),
    "recipes.read_table": dict(
        table=lambda: dict(n=4), cls=lambda: module("options").Sample, name=lambda: "table sample"
    ),
    "recipes.first_sentence": dict(box=lambda: "title\nwords"),
    "recipes.Recipe": dict(stages=dict, network=lambda: None, processes=lambda: 1, trains=lambda: True),
    **dict.fromkeys(
        ("recipes.stage_costs", "recipes.plan"),
        {k: (lambda k: lambda: costed()[k])(k) for k in ("degrade", "backtrack", "evaluate")}
        | dict(network=unet, processes=lambda: 1),
    ),
    "recipes.drawing_costs": dict(options=lambda: costed()["evaluate"], calls=lambda: 1.0),
    "recipes.timed": dict(rows=lambda: [dict(sample_passes=1.0)], seconds=lambda: dict(cpu=1.0)),
    "recipes.plan_text": dict(p=plan, room=lambda: None),
    "recipes.step_of": dict(network=unet),
    "recipes.memory_of": dict(device=lambda: "cpu"),
    "recipes.Counted": dict(held=lambda: (net(),)),
    "recipes.adapted": dict(network=unet, degrade=lambda: costed()["degrade"]),
    "recipes.Plan": dict(rows=list, processes=lambda: 1),
    "runs.progress": dict(iterable=lambda: [1]),
    "runs.in_lines": dict(iterable=lambda: [1], total=lambda: 1, desc=lambda: "a", done=lambda: 0),
    "runs.set_random_states": dict(states=lambda: module("runs").random_states()),
    "samplers.in_parts": dict(call=lambda: lambda x: x, rows=lambda: [randn(4, 2)]),
    "stages.read_painter": dict(
        folder=lambda: WORLD / "text", prompts=lambda: WORLD / "plain.json", bf16=lambda: False
    ),
    **dict.fromkeys(
        ("stages.starting_level", "stages.noise_for", "stages.beginners"),
        dict(options=lambda: options("Degrade", out=fresh(), teacher=WORLD / "teacher")),
    ),
    "stages.check_prompts": FOLDERS,
    "stages.asked": dict(**FOLDERS, prompts=lambda: None, guidance=lambda: 1.0),
    "stages.sheet": dict(x=lambda: image(4, 3, 8, 8), texts=lambda: ["a dog", "a cat"]),
    "stages.measured": dict(
        draw=lambda: module("evaluation").Draw(student()),
        against=lambda: None,
        options=lambda: options("Evaluate", run=WORLD / "student", n=8),
    ),
    "stages.export_": dict(
        options=lambda: options("Export", run=WORLD / "painter", out=fresh(), form="lora")
    ),
    "stages.tracker": dict(log=lambda: "no", folder=lambda: run_folder("student")),
    "stages.train": dict(folder=lambda: module("folders").RunFolder(fresh())),
    "stages.row_of": dict(record=lambda: next(backtracking())),
    "stages.quality": dict(data=ring, x=lambda: randn(9, 2)),
    "stages.judge_for": dict(data=ring),
    "stages.judge_of": dict(source=lambda: dict(name="ring"), reference=lambda: None, weights=lambda: None),
    "stages.allowed": dict(folder=lambda: run_folder("student"), given=lambda: None),
    "stages.name_classes": dict(options=lambda: options("Import", file=fresh(), out=fresh(), data="ring")),
    "stages.teacher_and_data": dict(
        options=lambda: options("Check", teacher=WORLD / "teacher"),
        option=lambda: "--teacher",
        labels=lambda: False,
    ),
    "stages.load_own": dict(folder=lambda: WORLD / "teacher", source=lambda: dict(name="ring")),
    "stages.own_tasks": dict(options=lambda: options("Compare", out=fresh(), teacher=WORLD / "teacher")),
    "stages.data_to_meet": dict(
        folder=lambda: run_folder("student"), options=lambda: options("Evaluate", run=WORLD / "student")
    ),
    "stages.curves": dict(folder=lambda: run_folder("student"), names=lambda: ["loss"]),
    "stages.path_figure": dict(folder=lambda: run_folder("path")),
    "stages.new_network": dict(n_classes=lambda: None, config=lambda: None),
    "stages.source_of": dict(data=lambda: "ring"),
    "stages.named_again": dict(source=lambda: dict(name="ring")),
    "stages.warn_of_few": dict(data=ring),
    "stages.options_of": dict(folder=lambda: run_folder("path")),
    "stages.check_new": dict(out=fresh),
    "stages.check_batch": dict(student=lambda: student(), batch=lambda: 4),
    "stages.begun": dict(options=lambda: options("Pretrain", out=fresh(), batch=8), source=lambda: None),
    "stages.pretrain": dict(
        options=lambda: options("Pretrain", out=fresh(), data="ring", n_steps=3, batch=4)
    ),
    "stages.read_teacher": dict(
        file=lambda: WORLD / "edm.safetensors", network=lambda: json.dumps(EDM_CONFIG)
    ),
    "stages.import_": dict(
        options=lambda: options(
            "Import", file=WORLD / "edm.safetensors", out=fresh(), network=json.dumps(EDM_CONFIG)
        )
    ),
    "stages.read_file": dict(
        file=lambda: WORLD / "edm.safetensors", config=lambda: dict(EDM_CONFIG), kind=lambda: None
    ),
    "stages.read_edm": dict(
        file=lambda: WORLD / "edm.safetensors", config=lambda: dict(EDM_CONFIG)
    ),
    "stages.labels_like": dict(labels=lambda: str(WORLD / "classes"), network=lambda: net(n_classes=2)),
    "stages.degrade": dict(
        options=lambda: options("Degrade", out=fresh(), teacher=WORLD / "teacher", n_steps=4, batch=4)
    ),
    "stages.itinerary_of": dict(options=lambda: options("Backtrack", out=fresh(), path=WORLD / "path")),
    "stages.optimizer_of": dict(betas=lambda: (0.0, 0.9)),
    "stages.best_of": dict(folder=lambda: run_folder("student"), names=lambda: ["frechet"]),
    "stages.follow": dict(
        folder=lambda: module("folders").RunFolder(fresh()),
        judge=lambda: module("metrics").Judge(randn(9, 2)),
        options=lambda: options("Backtrack", out=fresh(), path=WORLD / "path", eval_n=8),
    ),
    "stages.backtrack": dict(
        options=lambda: options("Backtrack", out=fresh(), path=WORLD / "path", n_steps=6, batch=4, eval_n=8)
    ),
    "stages.trained": dict(run=lambda: WORLD / "student"),
    "stages.classes_of": dict(asked=lambda: None),
    "stages.sample": dict(options=lambda: options("Sample", run=WORLD / "student", n=4, out=fresh())),
    "stages.samples_figure": dict(folder=lambda: module("folders").RunFolder(fresh()), classes=lambda: None),
    "stages.more_of": dict(data=ring, draw=lambda: module("evaluation").Draw(student())),
    "stages.evaluate": dict(options=lambda: options("Evaluate", run=WORLD / "student", n=8)),
    "stages.statistics": dict(
        options=lambda: options("Statistics", out=fresh(), data=str(WORLD / "images"), weights=WORLD / "none")
    ),
    "stages.do": dict(options=lambda: options("Sample", run=WORLD / "student", n=4, out=fresh())),
    "text.read_whole": dict(where=lambda: WORLD / "text/tokenizer", name=lambda: "CLIPTokenizer"),
    "text.dtype_of": dict(net=net),
    "text.ask_by": dict(module=latents, prompts=prompts),
    "text.weight_files": dict(folder=lambda: WORLD / "pipe/unet", stem=lambda: "diffusion_pytorch_model"),
    "text.check_header": dict(file=lambda: WORLD / "weights.safetensors"),
    "text.check_config": dict(config=lambda: dict(a=[1, 2])),
    "text.Prompts": PROMPTS,
    "text.load_prompts": dict(file=lambda: WORLD / "prompts.safetensors"),
    "text.read_texts": dict(file=lambda: WORLD / "plain.json"),
    **dict.fromkeys(
        "text.read_index text.read_part text.text_parts text.picture_sizes".split(),
        dict(folder=lambda: WORLD / "text", part=lambda: "text_encoder"),
    ),
    "text.encode_prompts": dict(folder=lambda: WORLD / "text"),
    **dict.fromkeys(("text.takes_prompts", "text.network_part"), dict(folder=lambda: WORLD / "text")),
    "text.encoding_options": dict(encoder=lambda: importlib.import_module("tiny_pipelines").sd()),
    "text.class_prompts": dict(names=lambda: ["a", "b"]),
    "text.old_net": dict(config=old_config),
    "text.class_names": dict(index=lambda: dict(_class_name="DiTPipeline"), net=transformer),
    "text.Family": dict(needs=lambda: dict, ask=lambda: print, side=lambda: 1),
    "text.unet_needs": dict(config=lambda: dict(text_unet().config)),
    "text.build_net": dict(family=lambda: "UNet2DConditionModel", config=text_config),
    "text.latent_shape": dict(net=text_unet, size=lambda: 8),
    "text.LatentNetwork": dict(net=text_unet, n_classes=lambda: None, size=lambda: 8),
    "text.check_rows": dict(rows=lambda: dict(text=randn(4, 77, 32)), needs=lambda: dict(text=(None, 32))),
    "text.load_text_pipeline": dict(folder=lambda: WORLD / "text", prompts=lambda: prompts(), size=lambda: 8),
    "text.decode": dict(latents=lambda: randn(2, 4, 8, 8), vae=lambda: WORLD / "text"),
    "text.copy_parts": dict(source=lambda: WORLD / "text", folder=new_folder),
    "text.write_network": dict(network=latents, folder=new_folder),
    **dict.fromkeys(
        ("text.start_of", "text.how_to_call", "text.export"),
        dict(student=text_student, folder=fresh, source=lambda: WORLD / "text"),
    ),
    "widgets.player": dict(slider=lambda: module("widgets").slider("a", ["b", "c"])),
    "widgets.slider": dict(words=lambda: ["a", "b"]),
    "widgets.dropdown": dict(options=lambda: ["a", "b"], value=lambda: "a"),
    "widgets.button": dict(action=lambda: print),
    "widgets.MismatchExplorer": dict(recorder=lambda: recorder(keep_samples=True)),
    "widgets.row": dict(widgets=list),
    "widgets.levels": dict(sigmas=lambda: [0.5, 1.0]),
    "widgets.show_score": dict(color=lambda: "k", sigma=lambda: 1.0),
    "widgets.Racer": dict(options=lambda: options("Backtrack", out=fresh(), path=WORLD / "path")),
    "widgets.Race": {k: (lambda v: lambda: v)(v) for k, v in RACE.items()},
    "widgets.DistillationLab": dict(fixed=lambda: RACE, arms=lambda: ("disback",)),
    "widgets.facts": FOLDERS,
    "widgets.pages_of": FOLDERS,
    "widgets.book_of": dict(folder=lambda: WORLD / "student"),
    "widgets.Gallery": dict(folder=lambda: WORLD / "student"),
    "widgets.plot_moment": dict(
        **FOLDERS, fig=figure, step=lambda: next(iter(run_folder("student").samples))
    ),
}


def patched(self: Path):
    return self


SKIP = {
    "engine.Processes": "needs processes that torchrun started",
    "lab.lab": "starts a server",
    "engine.Training": "has no step of its own",
    "runs.Run": "has no step of its own",
    "evaluation.inception": "downloads weights",
    "stages.statistics": "downloads weights",
    "stages.check": "wants a teacher that took minutes",
    "cli.run": "takes minutes",
    "cli.run_report": "takes minutes",
    "images.collection": "downloads data",
    "cli.demo_report": "draws for seconds",
    "cli.comparison_figure": "draws for seconds",
}
# Infinite is a right answer of these ("never", pure noise), unless something is no number
INFINITE = set(
    "comparisons.ratio comparisons.follow comparisons.compute_to comparisons.summary diffusion.expand "
    "pipelines.log_sigmas_of".split()
)
FEW = "none minus nan large text no_list object callable nan_tensor odd_shape more_dims double path".split()


def make_world(folder):
    """Files of every kind that the library reads."""
    global WORLD
    WORLD = folder
    from PIL import Image

    (folder / "images").mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(folder / "images" / f"{i}.png")
    stages = module("stages")
    with contextlib.redirect_stdout(io.StringIO()):
        stages.pretrain(options("Pretrain", out=folder / "teacher", data="ring", n_steps=4, batch=8))
        stages.degrade(
            options("Degrade", out=folder / "path", teacher=folder / "teacher", n_steps=4, batch=8)
        )
        stages.backtrack(
            options("Backtrack", out=folder / "student", path=folder / "path", n_steps=6, batch=8, eval_n=8)
        )
    module("evaluation").save_statistics(folder / "moments.npz", np.zeros(2), np.eye(2))
    module("files").save_tensors(folder / "weights.safetensors", weights())
    module("adapters").write_lora(adapter(), folder / "lora.safetensors")
    module("files").save_state(folder / "state.safetensors", dict(a=torch.ones(2)))
    module("files").write_json(folder / "plain.json", dict(a=1))
    module("files").save_tensors(
        folder / "edm.safetensors", module("edm").edm_network(**EDM_CONFIG).state_dict()
    )
    write_official(folder / "edm.pkl", module("edm").edm_network(**EDM_CONFIG), "EDMPrecond", EDM_CONFIG)
    torch.save(openai_weights(), folder / "edm_imagenet64_ema.pt")
    (folder / "recipe.toml").write_text("title = 'a recipe'")
    for c in "ab":
        (folder / "classes" / c).mkdir(parents=True)
        shutil.copy(folder / "images" / "1.png", folder / "classes" / c)
    diffusers_unet().save_pretrained(folder / "pipe" / "unet")
    importlib.import_module("diffusers").DDPMScheduler().save_pretrained(folder / "pipe" / "scheduler")
    importlib.import_module("tiny_pipelines").sd().save_pretrained(folder / "text")
    prompts().save(folder / "prompts.safetensors")
    importlib.import_module("tiny_pipelines").clip(folder / "clip")
    (folder / "index.json").write_text('{"weight_map": {"a": "weights.safetensors"}}')
    (folder / "texts.txt").write_text("a dog\na cat\n")
    steps, teacher, way = dict(n_steps=4, batch=2), folder / "painted", folder / "way"
    with contextlib.redirect_stdout(io.StringIO()):
        stages.import_(options("Import", file=folder / "text", prompts=folder / "texts.txt", out=teacher))
        stages.degrade(options("Degrade", out=way, teacher=teacher, lora=2, timestep=399, **steps))
        stages.backtrack(options("Backtrack", out=folder / "painter", path=way, eval_n=2, **steps))


@contextlib.contextmanager
def world():
    """Within the block there is what right calls need."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_world(Path(folder))
        recorded(), rows(), read_recipe()
        yield


# What is wrong


class Opaque:
    def __repr__(self):
        return "an object"


def wrong_values(right):
    """`(name, value)` pairs; where the right value is a tensor, tensors like it."""
    nothing = lambda: 0
    plain = dict(
        none=None,
        true=True,
        minus=-1,
        zero=0,
        half=0.5,
        nan=math.nan,
        inf=math.inf,
        large=10**12,
        largest=1e12,
        empty_text="",
        text="x",
        no_list=[],
        list_of_text=["x"],
        no_dict={},
        no_tuple=(),
        nan_tuple=(math.nan,),
        object=Opaque(),
        callable=nothing,
        type=dict,
        bytes=b"x",
        set={1},
        path=Path("not-there"),
        complex=1j,
        module=torch.nn.Linear(3, 5),
        array=np.ones((3, 5)),
        numpy_number=np.float64(-1.0),
        generator=(i for i in range(3)),
    )
    r = right if isinstance(right, torch.Tensor) and right.is_floating_point() else randn(4, 2)
    tensors = dict(
        more_dims=r[None],
        no_rows=r[:0] if r.ndim else r.new_zeros(0),
        nan_tensor=r * math.nan,
        odd_shape=randn(5, 7, 3),
        whole=torch.ones(3, dtype=torch.long),
        double=r.double(),
        bf16=r.bfloat16(),
        complex_tensor=r.to(torch.cfloat),
        bool_tensor=r > 0,
        meta=r.to("meta"),
        column=r.reshape(-1, 1),
        sparse=r.to_sparse() if r.ndim else r[None].to_sparse(),
    )
    return {**plain, **tensors}


def parameters_of(f):
    """Names of the arguments of a public name, and their defaults."""
    try:
        given = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: p for p in given}


def right_value(name, p):
    """A right value of a parameter, or its default."""
    special = SPECIAL.get(name, {})
    if p.name in special:
        return special[p.name]()
    if p.default is not p.empty:
        return p.default
    for table in (TENSORS, OBJECTS):
        if p.name in table:
            return table[p.name]()
    if p.name in NUMBERS:
        return NUMBERS[p.name]
    raise LookupError(f"{name} has a parameter {p.name} that stands in no table here")


def right_call(f, name, wrong):
    """Arguments of a call in which only `wrong` is wrong."""
    args, kwargs, special = [], {}, SPECIAL.get(name, {})
    given = parameters_of(f)
    starred = any(p.kind is p.VAR_POSITIONAL for p in given.values())
    for key, p in given.items():
        value = wrong[key] if key in wrong else None
        if p.kind is p.VAR_KEYWORD:
            kwargs |= special.get(key, dict)()
        elif p.kind is p.VAR_POSITIONAL:
            args += [value] if key in wrong else special.get(key, list)()
        elif p.kind is p.POSITIONAL_OR_KEYWORD and starred:
            args.append(value if key in wrong else right_value(name, p))
        else:
            kwargs[key] = value if key in wrong else right_value(name, p)
    return args, kwargs


def used(result, f):
    """What comes back, put to its use: a run steps, a generator yields, noise is drawn."""
    if isinstance(result, module("runs").Run):
        return [result, next(result, None), next(result, None)]
    if isinstance(result, contextlib._GeneratorContextManager):
        with result as value:
            return value
    if inspect.isgenerator(result) or isinstance(result, (map, filter, zip)):
        return [*itertools.islice(result, 3)]
    if hasattr(result, "check") and dataclasses.is_dataclass(result) and hasattr(result, "filled"):
        result.check()
    if hasattr(result, "check") and type(result).__name__ == "Compute":
        result.check()
    name = type(result).__name__
    if name in ("LogNormal", "KarrasNoise", "Labels"):
        return [result, result(8, generator())]
    if name in ("Fixed", "Proportional", "Adaptive"):
        return [
            result,
            [*module("backtracking").Backtracking(student(), path(), itinerary=result, n_steps=3, batch=4)],
        ]
    if name in ("Every", "EqualDrift"):
        return [
            result,
            [*module("degradation").Degradation(net(), student(), result, 4, 4, pool=8, n_probe=4)],
        ]
    if name == "SiD":
        return result(randn(4, 2), levels(), randn(4, 2), randn(4, 2) + 1)
    return result


def has_nan(value):
    """Whether something says `nan` of itself."""
    return "nan" in repr(value).lower()


def bad_numbers(value, depth=0):
    """Whether something holds a value that is not finite."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or not (value.is_floating_point() or value.is_complex()):
            return False
        return not bool(value.detach().to_dense().isfinite().all())
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fc" and not np.isfinite(value).all()
    if isinstance(value, (float, complex, np.floating)):
        return not (math.isfinite(value.real) and math.isfinite(value.imag))
    if depth > 4:
        return False
    if isinstance(value, torch.nn.Module):
        return any(bad_numbers(t, depth) for t in value.state_dict().values())
    if isinstance(value, dict):
        value = [*value.values()]
    elif not isinstance(value, (list, tuple, set)) and type(value).__module__.startswith("disback"):
        value = [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, (list, tuple, set)):
        return any(bad_numbers(v, depth + 1) for v in value)
    return False


def is_ours(error):
    """Whether an error is a sentence that this library raised itself."""
    if isinstance(error, SystemExit):
        return True  # the command line has printed one
    if not isinstance(error, (ValueError, FileNotFoundError, FileExistsError)):
        return False
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    code, text = last.tb_frame.f_code, str(error)
    raised = dis.opname[code.co_code[last.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
    ours = Path(code.co_filename).parent.name == "disback"
    return ours and raised and 8 < len(text) < 700 and "\n" not in text


def passed_on(f, wrong, result):
    """Whether plain data or a record hold what was given, or a function of tensors answers nan with nan."""
    if isinstance(f, type):
        return hasattr(f, "_fields")
    if f.__name__ in ("plain", "flatten"):
        return True
    parts = result if isinstance(result, tuple) else (result,)
    given = any(isinstance(v, torch.Tensor) and bad_numbers(v) for v in wrong.values())
    return given and all(isinstance(v, torch.Tensor) for v in parts)


def one_call(f, name, finite=True, wrong=MappingProxyType({})):
    """What comes of a call: its kind, and what was said."""
    try:
        args, kwargs = right_call(f, name, wrong)
        result = used(f(*args, **kwargs), f)
        bad = bad_numbers(result) and not passed_on(f, wrong, result)
        if name in INFINITE and not any(has_nan(v) for v in (*wrong.values(), result)):
            bad = False
        return ("nan" if finite and bad else "accepted"), ("not finite" if bad else type(result).__name__)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".splitlines() or [""]
        if is_ours(error):
            return "answered", said[0][:200]
        frames = [x for x in traceback.extract_tb(error.__traceback__) if "/disback/" in x.filename]
        at = f" ({Path(frames[-1].filename).stem}:{frames[-1].lineno})" if frames else ""
        return "raw", said[0][:160] + at


# Many calls in one process of their own


def clean():
    """Undo what a call may have left behind."""
    for entry in os.scandir("."):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def worker(jobs, start, out, folder):
    """Do the calls from `start` on, and write a line for each."""
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDWR)
    os.environ |= dict(
        HOME=str(folder),
        TORCH_HOME=str(folder),
        DISBACK_CACHE=str(folder),
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
    )
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    sys.argv = ["disback"]
    torch.set_num_threads(1)
    for i, (name, key, kind, finite) in enumerate(jobs[start:], start):
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        f = getattr(module(name.split(".")[0]), name.split(".")[1])
        if kind is None:
            row = one_call(f, name)
        else:
            try:
                right = right_value(name, parameters_of(f)[key])
            except Exception:
                right = None
            row = one_call(f, name, finite, {key: wrong_values(right)[kind]})
        clean()
        os.write(out, json.dumps([i, *row]).encode() + b"\n")
    os._exit(0)


def spent(pid):
    """Seconds of computing that a process has used, and a share of those that it slept."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.inf
    alive = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + alive / 10


def all_calls(jobs, progress=None):
    """The outcome of every job, in order; a process that hangs or dies is replaced."""
    found, start = [], 0
    with tempfile.TemporaryDirectory() as folder:
        while start < len(jobs):
            into, out = os.pipe()
            sys.stdout.flush()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those here only wait
                pid = os.fork()
            if not pid:
                try:
                    worker(jobs, start, out, folder)
                finally:
                    os._exit(1)
            os.close(out)
            buffer = b""
            since = spent(pid)
            while True:
                ready, _, _ = select.select([into], [], [], 1)
                job = jobs[min(len(found), len(jobs) - 1)]
                if not ready and spent(pid) - since < (60 if job[2] is None else SECONDS):
                    continue
                more = os.read(into, 65536) if ready else b""
                if not more:
                    break
                since = spent(pid)
                *lines, buffer = (buffer + more).split(b"\n")
                for line in lines:
                    found.append(json.loads(line)[1:])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(into)
            if len(found) < len(jobs):
                found.append(["hang", "no answer" if not ready else "the process died"])
            start = len(found)
            if progress:
                progress(start, len(jobs))
    return found


def public_names(modules=()):
    """Every public name that can be called, with its module."""
    package = importlib.import_module("disback")
    every = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    names = [
        (m, name) for m in every if not modules or m in modules for name in getattr(module(m), "__all__", ())
    ]
    called = [f"{m}.{name}" for m, name in names if callable(getattr(module(m), name))]
    own = lambda name: getattr(module(name.split(".")[0]), name.split(".")[1]).__module__.startswith(
        "disback"
    )
    return [name for name in called if own(name) and name not in SKIP]


def fuzz(names, kinds=None, progress=None):
    """Rows `(name, argument, value, outcome, what was said)`, and the names whose right call failed."""
    firsts = all_calls([(name, None, None, True) for name in names])
    failed = {name: row for name, row in zip(names, firsts) if row[0] not in ("accepted", "nan")}
    jobs = []
    for name, row in zip(names, firsts):
        if name in failed:
            continue
        f = getattr(module(name.split(".")[0]), name.split(".")[1])
        for key, p in parameters_of(f).items():
            if p.kind is p.VAR_KEYWORD:
                continue
            # none is right where it is the default
            values = [k for k in kinds or wrong_values(None) if k != "none" or p.default is not None]
            jobs += [(name, key, kind, row[0] != "nan") for kind in values]
    rows = [(*job[:3], *row) for job, row in zip(jobs, all_calls(jobs, progress))]
    return rows, failed


def report(rows, failed):
    """Tables by module and by argument, and the calls that are to be mended."""
    kinds, lines = ("answered", "accepted", "raw", "nan", "hang"), []
    lines.append(f"{'module':14}{'calls':>7}" + "".join(f"{k:>10}" for k in kinds) + f"{'good':>8}")
    by = lambda rows, key: {k: [r for r in rows if key(r) == k] for k in dict.fromkeys(map(key, rows))}

    def line(name, part):
        n = Counter(r[3] for r in part)
        good = (n["answered"] + n["accepted"]) / len(part)
        return f"{name:14}{len(part):7}" + "".join(f"{n[k]:10}" for k in kinds) + f"{good:8.0%}"

    for name, part in by(rows, lambda r: r[0].split(".")[0]).items():
        lines.append(line(name, part))
    lines += [line("all", rows), "", "right calls that failed here, so that nothing was tried:"]
    lines += [f"  {name}: {row[1]}" for name, row in failed.items()]
    lines += ["", "to be mended: name(argument), raw / nan / hang, and for which values"]
    for m, part in by(rows, lambda r: r[0].split(".")[0]).items():
        bad = {k: v for k, v in by([r for r in part if r[3] in kinds[2:]], lambda r: (r[0], r[1])).items()}
        lines += ["", f"## {m}"]
        for (name, key), wrong in sorted(bad.items(), key=lambda x: -len(x[1])):
            n = Counter(r[3] for r in wrong)
            lines.append(f"{name}({key}): " + ", ".join(f"{n[k]} {k}" for k in kinds[2:] if n[k]))
            for said, same in by(wrong, lambda r: (r[3], r[4])).items():
                lines.append(f"    {said[0]:5}{' '.join(r[2] for r in same)}: {said[1]}")
    return "\n".join(lines)


# Tests

EVERYDAY = """core.stream core.check_number diffusion.LogNormal diffusion.KarrasNoise diffusion.karras_sigmas
degradation.Every degradation.EqualDrift degradation.Degradation backtracking.Proportional
backtracking.Adaptive backtracking.Backtracking pretraining.Pretraining networks.ResMLP networks.OneStep
metrics.energy_distance
losses.SiD mixtures.GaussianMixture""".split()


def check(rows, failed):
    """Nine calls of ten are answered or do no harm; none hangs, none returns nonsense without a word."""
    n, text = Counter(row[3] for row in rows), report(rows, failed)
    assert not failed, text
    assert not n["hang"] and not n["nan"] and n["answered"] + n["accepted"] >= 0.9 * len(rows), text


def test_everyday_names_answer_wrong_calls():
    recorded()
    check(*fuzz(EVERYDAY, FEW))


@pytest.mark.slow
def test_every_public_name_answers_wrong_calls():
    with world():
        check(*fuzz(public_names()))


def main():
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("modules", nargs="*", help="only these")
    args.add_argument("--few", action="store_true", help="a dozen wrong values an argument, not forty")
    args.add_argument("--report", type=Path, help="file to write")
    args = args.parse_args()
    os.environ |= dict(OMP_NUM_THREADS="1", MPLBACKEND="Agg", DISBACK_PROGRESS="0")
    torch.set_num_threads(1)
    names, done, failed = public_names(args.modules), [], {}
    with world():
        for m in dict.fromkeys(name.split(".")[0] for name in names):
            rows, more = fuzz([name for name in names if name.split(".")[0] == m], FEW if args.few else None)
            done, failed = done + rows, failed | more
            text = report(done, failed)
            print(text.split("\n")[len(Counter(r[0].split(".")[0] for r in done))], flush=True)
            if args.report:
                args.report.write_text(text + "\n")
    print(text if args.modules else text.partition("\nto be mended")[0])


if __name__ == "__main__":
    main()
