"""What the plan says of text-to-image networks against what a run takes: operations and bytes,
counted by torch."""

import importlib
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
tiny_pipelines = importlib.import_module("tiny_pipelines")

from disback.adapters import Adapted  # noqa: E402
from disback.backtracking import Backtracking  # noqa: E402
from disback.engine import Engine  # noqa: E402
from disback.networks import OneStep  # noqa: E402
from disback.options import Backtrack, Compute, Degrade, Evaluate  # noqa: E402
from disback.paths import DegradationPath  # noqa: E402
from disback.recipes import OPEN, Counted, adapted, load_recipe, n_parameters, plan, plan_text, size  # noqa: E402
from disback.text import LatentNetwork, Prompts  # noqa: E402

N, RANK, GUIDANCE, NO_YES = 4, 4, 7.5, (False, True)


def painter(kind):
    """A network of latents that knows two prompts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LatentNetwork(net=getattr(tiny_pipelines, kind)().unet)
        rows = {k: torch.randn(3, *(n or 77 for n in shape)) for k, shape in network.needs.items()}
    network.use_prompts(
        Prompts({k: v[:2] for k, v in rows.items()}, {k: v[2:] for k, v in rows.items()}, ["a", "b"])
    )
    return network.eval()


def run_of(network, lora, guided, anew):
    """A run of stage 2 that has not begun."""
    learns = Adapted(network, RANK) if lora else network
    engine, guidance = Engine(checkpoint=anew), GUIDANCE if guided else 1.0
    return Backtracking(
        OneStep(learns),
        DegradationPath.of(learns),
        n_steps=9,
        batch=N,
        guidance=guidance,
        engine=engine,
    )


@lru_cache
def plan_of(kind, lora, guided, anew):
    """The plan of a thousand steps of that run."""
    first = Degrade(out=OPEN, teacher=OPEN, n_steps=20, batch=N, lora=RANK if lora else None)
    second = Backtrack(
        out=OPEN,
        path=OPEN,
        n_steps=1000,
        batch=N,
        ratio=1,
        guidance=GUIDANCE if guided else 1.0,
        compute=Compute(checkpoint=anew),
    )
    return plan(painter(kind), first, second, Evaluate(run=OPEN))


def operations(call):
    """Of a call, those of attention too, which torch counts in one way of computing it."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        call()
    return count.get_total_flops()


@lru_cache
@torch.no_grad()
def operations_forward():
    """Of one pass of the network of Stable Diffusion's kind."""
    network = painter("sd")
    x, labels = torch.zeros(N, *network.shape), torch.zeros(N, dtype=torch.long)
    return operations(lambda: network(x, 1.0, labels))


CASES = [(lora, guided, anew) for lora in NO_YES for guided in NO_YES for anew in NO_YES]


@pytest.mark.parametrize("lora, guided, anew", CASES)
def test_a_step_costs_what_the_plan_says(lora, guided, anew):
    most = {(0, 0): 8.0, (1, 0): 7.3, (1, 1): 9.3}.get((lora, anew), 10.0) - (not guided)
    run = run_of(painter("sd"), lora, guided, anew)
    counted = operations(lambda: next(run)) / operations_forward()
    planned = plan_of("sd", lora, guided, anew).rows[1]["passes"] / 1000
    print(f"{counted:.2f} passes a step, {planned:.2f} by plan, at most {most}")
    assert counted <= most
    assert abs(planned / counted - 1) < 0.05


# Each case on one of the two networks, in turn, and each pair of a choice and a network; the others on demand
HELD = [pytest.param(kind, *case, marks=[pytest.mark.slow] * ((sum(case) + i) % 2))
        for i, kind in enumerate(["sd", "sdxl"]) for case in CASES]


@pytest.mark.parametrize("kind, lora, guided, anew", HELD)
def test_a_step_holds_what_the_plan_says(kind, lora, guided, anew):
    """All tensors that are alive: weights and moments, and at the peak of a step gradients and activations;
    not what kernels use inside."""
    network = painter(kind)
    p, run = plan_of(kind, lora, guided, anew), run_of(network, lora, guided, anew)
    next(run)  # makes the moments
    networks = [run.student, run.fake, run.target, run.ema]
    weights = {w.data_ptr(): w.nbytes for m in networks for w in m.parameters()}
    weights |= {w.data_ptr(): w.nbytes for w in network.parameters()} if lora else {}
    moments = [m for x in run.learners for s in x.optimizer.state.values() for m in s.values() if m.dim()]
    held = sum(weights.values()) + sum(m.nbytes for m in moments)
    bases = [network] if lora else []
    with Counted(*networks, *bases) as counted:
        next(run)
    print(*map(size, (held, p.weights_memory, counted.most, p.step_memory)), sep=", ")
    assert p.weights_memory == held
    assert abs(p.step_memory / counted.most - 1) < 0.15


@pytest.mark.parametrize("kind", ["dit", "flux", "pixart", "sana", "sd3"])
def test_transformers_have_plans(kind):
    net = getattr(tiny_pipelines, kind)().transformer
    network = LatentNetwork(type(net).__name__, net=net)
    first, second = Degrade(out=OPEN, teacher=OPEN), Backtrack(out=OPEN, path=OPEN)
    p = plan(network, first, second, Evaluate(run=OPEN))
    assert p.parameters == n_parameters(net) and p.step_memory > 8 * p.parameters


RECIPES = dict(sd15_lora=67_252_224, sd15=859_520_964, sdxl_lora=196_751_360)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_describe_the_published_networks(name):
    recipe = load_recipe(name)
    assert n_parameters(adapted(recipe.build("meta"), recipe.stages["degrade"])) == RECIPES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_plans(name):
    recipe = load_recipe(name)
    stages = [recipe.stages[stage] for stage in ("degrade", "backtrack", "evaluate")]
    p = plan(recipe.build("meta"), *stages)
    print(plan_text(p, recipe.title))
    state = dict(sd15_lora=5.6e9, sd15=27.5e9, sdxl_lora=16.6e9)[name]
    assert p.weights_memory == pytest.approx(state, rel=0.01)
    assert p.nodes == 5 and p.step_memory < (10e9 if name != "sd15" else 20e9)
