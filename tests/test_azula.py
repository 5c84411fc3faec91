"""Denoisers of azula as ours and the other way: the same answers, samples and gradients."""
import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

azula = pytest.importorskip("azula")

from azula.denoise import GaussianDenoiser, KarrasDenoiser, SimpleDenoiser  # noqa: E402
from azula.guidance.cfg import CFGDenoiser  # noqa: E402
from azula.linalg.covariance import FullCovariance  # noqa: E402
from azula.noise import (  # noqa: E402
    CosineSchedule,
    DecaySchedule,
    RectifiedSchedule,
    VESchedule,
    VPSchedule,
)
from azula.sample import DDIMSampler  # noqa: E402

from disback.backtracking import Backtracking  # noqa: E402
from disback.degradation import Degradation, Every  # noqa: E402
from disback.edges import from_azula, to_azula  # noqa: E402
from disback.networks import OneStep, ResMLP, seeded  # noqa: E402
from disback.samplers import euler_step  # noqa: E402

SCHEDULES = dict(
    ve=VESchedule(),
    vp=VPSchedule(),
    cosine=CosineSchedule(),
    rectified=RectifiedSchedule(),
    flow=RectifiedSchedule(alpha_min=0.0, sigma_min=0.0),
    decay=DecaySchedule(),
)
LEVELS = torch.tensor([0.002, 0.05, 0.5, 2.0, 10.0, 80.0])


class Small(nn.Module):
    """A network that sees a time and, if it is told, a class."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.inp, self.out, self.label = nn.Linear(3, 16), nn.Linear(16, 2), nn.Embedding(n_classes, 16)

    def forward(self, x, t, label=None):
        h = self.inp(torch.cat([x, t.expand(len(x))[:, None] / 4], 1))
        if label is not None: h = h + self.label(label)
        return self.out(torch.tanh(h))


def small(cls=KarrasDenoiser, schedule="rectified"):
    with seeded(0): return cls(Small(), SCHEDULES[schedule])


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def time_of(schedule, levels):
    """The times of noise levels, by a fine table: nothing of ours."""
    t = torch.linspace(0, 1, 2_000_001, dtype=torch.double)[:-1]
    alpha, sigma = schedule(t)
    return t[(sigma / alpha)[None].sub(levels[:, None]).abs().argmin(1)]


@pytest.mark.parametrize("cls", [KarrasDenoiser, SimpleDenoiser])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_answer_is_azulas_mean(name, cls):
    theirs, schedule = small(cls, name), SCHEDULES[name]
    t = time_of(schedule, LEVELS.double())
    alpha, sigma = schedule(t)
    x = (1 + (sigma / alpha)[:, None]) * randn(6, 2).double()
    level = sigma / alpha
    want = copy.deepcopy(theirs).double()(alpha[:, None] * x, t).mean
    assert_close(from_azula(copy.deepcopy(theirs), (2,)).double()(x, level), want, rtol=1e-9, atol=1e-9)
    single = from_azula(theirs, (2,))(x.float(), level.float())
    assert single.dtype == torch.float32
    # at .002 a time of single precision says 1 - alpha**2 to a few percent only, with azula as with us
    assert_close(single[1:], want[1:].float(), rtol=1e-5, atol=1e-5)
    assert_close(single, want.float(), rtol=1e-3, atol=1e-3)
    alone = torch.cat([from_azula(theirs, (2,))(x[i : i + 1].float(), level[i].float()) for i in range(6)])
    assert_close(single, alone)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "flow"])  # there noise at time 1 has no level
def test_ddim_takes_the_steps_of_euler(name, steps):
    theirs, schedule, z = small(schedule=name), SCHEDULES[name], randn(5, 2)
    alpha, sigma = schedule(torch.linspace(1, 0, steps + 1, dtype=torch.double))
    level = (sigma / alpha).float()
    x = z * level[0]
    start = (alpha[0] * level[0] * z).float()
    want = DDIMSampler(theirs, steps=steps, silent=True)(start)
    with torch.no_grad():
        for s, s_next in zip(level, level[1:]): x = euler_step(from_azula(theirs, (2,)), x, s, s_next)
    assert_close(alpha[-1].float() * x, want, rtol=1e-4, atol=1e-4)


def test_a_level_that_pure_noise_is_near_is_answered():
    for name in ("flow", "rectified"):
        out = from_azula(small(schedule=name), (2,))(1e8 * randn(2, 2), 1e8)
        assert out.isfinite().all(), name
    assert from_azula(small(schedule="flow"), (2,)).sigma_max == math.inf


def test_a_gaussian_with_dependent_dimensions():
    x, schedule = randn(1000, 3) @ randn(3, 3, seed=1), RectifiedSchedule()
    C, mean = FullCovariance.from_data(x), x.mean(0).double()
    ours = from_azula(GaussianDenoiser(x.mean(0), C, schedule), (3,)).to(torch.double)
    C = (C.Q * C.L) @ C.Q.T
    for n in (3, 5):  # as many samples as dimensions, too
        level, at = torch.linspace(0.1, 3, n).double(), randn(n, 3).double()
        gain = [C.double() @ (C.double() + s**2 * torch.eye(3)).inverse() for s in level]
        want = torch.stack([mean + g @ (y - mean) for g, y in zip(gain, at)])
        assert_close(ours(at, level), want, rtol=1e-4, atol=1e-4)


def test_labels_go_by_keyword_or_by_function():
    theirs, x, y = small(), randn(3, 2), torch.tensor([2, 0, 1])
    ours = from_azula(theirs, (2,), n_classes=3)
    assert_close(ours(x, 1.0, y)[:1], ours(x[:1], 1.0, y[:1]))
    assert not torch.allclose(ours(x, 1.0, y), ours(x, 1.0))

    class Named(KarrasDenoiser):
        def forward(self, x_t, t, kind=None):
            return super().forward(x_t, t, label=kind)

    named = Named(theirs.backbone, theirs.schedule)
    assert_close(from_azula(named, (2,), label="kind", n_classes=3)(x, 1.0, y), ours(x, 1.0, y))
    guided = from_azula(
        CFGDenoiser(theirs), (2,), lambda y: dict(positive=dict(label=y), guidance=1.5), n_classes=3
    )
    assert_close(guided(x, 1.0, y), 2.5 * ours(x, 1.0, y) - 1.5 * ours(x, 1.0))
    back = to_azula(ours, VESchedule())
    t = time_of(VESchedule(), torch.ones(1).double())[0].float()
    assert_close(back(x, t, label=y).mean, ours(x, 1.0, y), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="lable"): back(x, t, lable=y)


def test_gradients_pass_to_samples_and_weights():
    theirs, x = small(), randn(4, 2).requires_grad_()
    from_azula(theirs, (2,))(x, torch.tensor([0.1, 1.0, 3.0, 9.0])).square().sum().backward()
    assert x.grad.abs().min() > 0 and theirs.backbone.inp.weight.grad.abs().max() > 0
    g = x.detach().double().requires_grad_()
    ours = from_azula(theirs, (2,)).double()
    assert torch.autograd.gradcheck(lambda g: ours(g, 1.0), g)


def test_a_backbone_of_half_precision():
    theirs = small()
    theirs.backbone.bfloat16()
    out, exact = from_azula(theirs, (2,))(randn(4, 2), 1.0), from_azula(small(), (2,))(randn(4, 2), 1.0)
    assert out.dtype == torch.float32
    assert_close(out, exact, rtol=0.05, atol=0.05)


def test_the_loss_has_azulas_weight():
    theirs, x, n = small(), randn(1, 2), 40_000
    ours, t = from_azula(theirs, (2,)), torch.full((n,), 0.6)
    alpha, sigma = theirs.schedule(t[:1])
    level = sigma / alpha
    with torch.no_grad():
        torch.manual_seed(0)
        want = theirs.loss(x.expand(n, 2), t)
        torch.manual_seed(0)
        off = ours(x + level * torch.randn(n, 2), level.expand(n)) - x
    assert_close(ours.weight(level)[0] * off.square().mean(), want, rtol=1e-5, atol=0)


def test_ours_are_drawn_from_by_azula():
    ours, z = ResMLP(2, 16, 1, sigma_data=1.0), randn(5, 2)
    nn.init.normal_(ours.out.weight, generator=torch.Generator().manual_seed(0))  # it is zero at first
    for schedule in (VESchedule(0.002, 80.0), VPSchedule(0.02, 1e-3)):
        alpha, sigma = schedule(torch.linspace(1, 0, 5, dtype=torch.double))
        level = (sigma / alpha).float()
        x, there = z * level[0], to_azula(ours, schedule)
        want = DDIMSampler(there, steps=4, silent=True)((alpha[0] * level[0] * z).float())
        with torch.no_grad():
            for s, s_next in zip(level, level[1:]): x = euler_step(ours, x, s, s_next)
        assert_close(alpha[-1].float() * x, want, rtol=1e-4, atol=1e-4)
        back = from_azula(there, (2,))
        assert_close(back(x, LEVELS[:5]), ours(x, LEVELS[:5]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [KarrasDenoiser, SimpleDenoiser])
def test_both_stages_with_a_teacher_of_azula(cls):
    teacher = from_azula(small(cls, "vp"), (2,), n_classes=3)
    before = copy.deepcopy(teacher.state_dict())
    recording = Degradation(teacher, OneStep(teacher), Every(1), 3, 4, pool=8, n_probe=4)
    [*recording]
    run = Backtracking(OneStep(teacher), recording.path, n_steps=4, batch=4)
    records = [*run]
    assert len(records) == 4 and len(recording.path) == 4
    student = run.student.state_dict()
    assert all(v.isfinite().all() for v in student.values())
    moved = [k for k in student if not torch.equal(student[k], OneStep(teacher).state_dict()[k])]
    assert any("backbone" in k for k in moved)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
