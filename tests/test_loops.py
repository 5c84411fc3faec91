"""Pretraining and both stages against loops written from the formulas, in double precision.

The library's runs compute in float32. What they draw is drawn again from a copy of the run's generator, in
the documented order: the student's noise, labels, noise levels, unit noise, whose class is not told. The
loops share the networks' weights with the library, and nothing else."""
import copy
import math

import pytest
import torch

from disback.adapters import Adapted
from disback.backtracking import Adaptive, Backtracking, Fixed, Ramp
from disback.degradation import Degradation, Every
from disback.engine import Engine
from disback.networks import MultiStep, OneStep, ResMLP
from disback.paths import DegradationPath, Node
from disback.pretraining import Pretraining
from disback.runs import EMA

BATCH, STEPS, EMA_STD, K = 16, 6, .1, 3
# Weights of order 1 are rounded to 6e-8 of themselves at each of a few steps that move them by .01, and sums
# on the way to a gradient round as much: 1e-5 of the movement. Ten times the worst that was seen, 2e-5.
OF_MOVEMENT = 2e-4
NUMBERS = dict(rtol=1e-4, atol=1e-6)    # what a record says, of order 1, from the same weights
LOSSES = "diff_instruct", "dmd", "sid", "sim"


class Levels:
    """Noise levels with a normal logarithm."""
    def __init__(self, mean, std): self.mean, self.std = mean, std
    def __call__(self, n, generator):
        return (self.mean + self.std * torch.randn(n, generator=generator)).exp()


def edm_levels(sigma_data):
    """EDM table 1 has ln(sigma) of mean -1.2 for data of .5; at another scale levels grow in proportion."""
    return Levels(-1.2 + math.log(sigma_data / .5), 1.2)


def evenly(n, generator): return torch.randint(K, (n,), generator=generator)


def network(sigma_data, seed=0, n_classes=None, spread=.3):
    """A network whose weights are all random: at the start of training the last layer would be zero."""
    net, generator = ResMLP(2, 16, 1, n_classes, sigma_data), torch.Generator().manual_seed(seed)
    for p in net.parameters(): p.data = spread * torch.randn(p.shape, generator=generator)
    return net


def moved(module, seed, by=.1):
    """A copy with other weights."""
    module, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    for p in module.parameters(): p.data += by * torch.randn(p.shape, generator=generator)
    return module


def double(module): return copy.deepcopy(module).double().requires_grad_()


def sgd(parameters, lr): return torch.optim.SGD(parameters, lr)


class Draws:
    """What the next step of a run will draw, in double precision."""
    def __init__(self, run):
        self.run, self.generator = run, torch.Generator()
        self.generator.set_state(run.generator.get_state())
    def normal(self): return torch.randn(BATCH, 2, generator=self.generator).double()
    def noise(self, student):
        """Unit noise for a student, of each of its steps."""
        steps = len(getattr(student, "sigmas", (1,)))
        return torch.randn(BATCH, steps * 2, generator=self.generator).double().reshape(BATCH, steps, 2)
    def levels(self, noise): return noise(BATCH, self.generator).double()
    def labels(self, wanted): return evenly(BATCH, self.generator) if wanted else None
    def told(self, cond, none):
        """Labels, and -1 for a share of the rows."""
        if not none: return cond
        return torch.where(torch.rand(BATCH, generator=self.generator) < none, -1, cond)
    def check(self):
        """The step drew this and nothing else."""
        assert torch.equal(self.generator.get_state(), self.run.generator.get_state())


def raw(net, x, c_noise, cond):
    """The raw network, whose table of classes gets a row of zeros for label -1."""
    e = torch.cat([f(c_noise[:, None] * net.embed.freqs) for f in (torch.cos, torch.sin)], 1)
    if cond is not None: e = e + torch.cat([net.embed.label.weight, 0 * e[:1]])[cond]
    e, h = net.embed.mlp(e), net.inp(x)
    for block in net.blocks: h = block(h, e)
    return net.out(torch.nn.functional.silu(h))


def D(net, x, sigma, cond=None):
    """EDM eq. 7."""
    data, s = float(net.sigma_data), sigma[:, None]
    norm = (s**2 + data**2).sqrt()
    return (data / norm)**2 * x + s * data / norm * raw(net, x / norm, sigma.log() / 4, cond)


def guided(net, x, sigma, cond, scale):
    """Ho and Salimans 2022, for denoisers."""
    if scale == 1: return D(net, x, sigma, cond)
    return scale * D(net, x, sigma, cond) + (1 - scale) * D(net, x, sigma, torch.full_like(cond, -1))


def G(student, z, cond=None):
    """DisBack section 4, or with unit noise into the raw network; of several steps, each ends after one."""
    if hasattr(student, "sigmas"): return torch.cat([ended(student, z, cond, i) for i in range(len(z))])
    z = z.reshape(len(z), 2)
    start, data = student.sigma_init, float(student.denoiser.sigma_data)
    x = z * (math.sqrt(start**2 + data**2) if student.unit else start)
    return D(student.denoiser, x, z.new_full((len(z),), start), cond)


def ended(student, z, cond, i):
    """What sample `i` of a student of several steps is in training (DMD2 section 4.5)."""
    x, n, c = torch.zeros(1, 2).double(), len(student.sigmas), None if cond is None else cond[i:i + 1]
    for sigma, eps in list(zip(student.sigmas, z[i]))[:i % n + 1]:
        x = D(student.denoiser, x.detach() + sigma * eps, torch.tensor([sigma]).double(), c)
    return x


def denoising(net, x0, sigma, denoised):
    """EDM eq. 2 with the weight of table 1: one over the square of what multiplies the raw network."""
    s, data = sigma[:, None], float(net.sigma_data)
    return ((s**2 + data**2) / (s * data)**2 * (denoised - x0)**2).mean()


class Sgd:
    def __init__(self, module): self.parameters = [*module.parameters()]
    def step(self, grads, lr):
        for p, g in zip(self.parameters, grads): p.data -= lr * g


class Adam(Sgd):
    """Kingma and Ba, Algorithm 1."""
    def __init__(self, module, betas):
        super().__init__(module)
        self.betas, self.t, self.m, self.v = betas, 0, [0] * 99, [0] * 99
    def step(self, grads, lr):
        self.t += 1
        (a, b), t = self.betas, self.t
        for i, (p, g) in enumerate(zip(self.parameters, grads)):
            self.m[i], self.v[i] = a * self.m[i] + (1 - a) * g, b * self.v[i] + (1 - b) * g**2
            p.data -= lr * self.m[i] / (1 - a**t) / ((self.v[i] / (1 - b**t)).sqrt() + 1e-8)


def descend(rule, loss, lr, clip=None):
    """One step down a loss."""
    rule.step(shortened(torch.autograd.grad(loss, rule.parameters, retain_graph=True), clip), lr)


def rate(lr, step, n_steps, decay, warm_up=0):
    """Straight up, constant, then straight down to zero over the last part."""
    up = (step + 1) / warm_up if step < warm_up else 1.
    return lr * up * (min(1., (n_steps - step) / (decay * n_steps)) if decay else 1.)


def shortened(grads, clip):
    """All of a network's gradients as one vector, no longer than `clip`."""
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return [g * clip / norm for g in grads] if clip and norm > clip else grads


class Average:
    """Average of profile t**gamma, whose relative width has a closed form (Karras et al. 2024)."""
    def __init__(self, module, std):
        low, high = 0., 1e6
        while high - low > 1e-9 * high:
            gamma = (low + high) / 2
            wide = (gamma + 1)**.5 / (gamma + 2) / (gamma + 3)**.5 > std
            low, high = (gamma, high) if wide else (low, gamma)
        self.module, self.gamma, self.t = copy.deepcopy(module), low, 0
    def update(self, module):
        self.t += 1
        beta = (1 - 1 / self.t)**(self.gamma + 1)
        for a, p in zip(self.module.parameters(), module.parameters()):
            a.data = beta * a + (1 - beta) * p.data


def distance(a, b, sigma):
    """Mean square of a difference in units of the noise, (E ||a - b||^2 / sigma^2)."""
    return ((a - b)**2).sum(1).div(sigma**2).mean()


def agree(run, hand, start):
    """Two modules agree, measured by how far they went."""
    start, hand = [[p.detach().double() for p in m.parameters()] for m in (start, hand)]
    went = max(float((a - b).abs().max()) for a, b in zip(hand, start))
    assert went > 1e-3
    for p, q in zip(run.parameters(), hand):
        torch.testing.assert_close(p.detach().double(), q, rtol=0, atol=OF_MOVEMENT * went)


def same(value, wanted):
    """Two numbers agree."""
    torch.testing.assert_close(torch.as_tensor(value).double(), wanted.detach(), **NUMBERS)


# Pretraining

def pretrain(net, sigma_data, noise, lr, decay, rule, pieces=1, classes=False, none=0., warm_up=0, clip=None,
             **options):
    """A run of the library and the loop, side by side."""
    batches, cloud = [], 1.5 + torch.randn(50, 2, generator=torch.Generator().manual_seed(9))
    def data(n, generator):
        i = torch.randint(50, (n,), generator=generator)
        batches.append((cloud[i].double(), i % K if classes else None))
        return (cloud[i], i % K) if classes else cloud[i]
    start = copy.deepcopy(net)
    run = Pretraining(net, data, n_steps=STEPS, batch=BATCH, lr=lr, decay=decay, noise=noise, ema=EMA_STD,
                      engine=Engine(pieces=pieces, clip=clip), seed=4, none=none, warm_up=warm_up, **options)
    hand, noise = double(start), noise or edm_levels(sigma_data)
    hand.sigma_data.fill_(sigma_data)
    rule, average = rule(hand), Average(hand, EMA_STD)
    for step in range(STEPS):
        draws = Draws(run)
        record = next(run)
        (x0, cond), sigma, eps = batches[-1], draws.levels(noise), draws.normal()
        cond = draws.told(cond, none)
        draws.check()
        loss = denoising(hand, x0, sigma, D(hand, x0 + sigma[:, None] * eps, sigma, cond))
        same(record.loss, loss)
        descend(rule, loss, rate(lr, step, STEPS, decay, warm_up), clip)
        average.update(hand)
    agree(net, hand, start)
    agree(run.ema, average.module, start)


@pytest.mark.parametrize("pieces", (1, 4))
@pytest.mark.parametrize("sigma_data", (1., 2.))
@pytest.mark.parametrize("noise", (None, Levels(.3, .7)))
def test_pretraining(sigma_data, noise, pieces):
    pretrain(network(sigma_data), sigma_data, noise, .02, .5, Sgd, pieces, optimizer=sgd)


def test_pretraining_with_classes():
    pretrain(network(2., n_classes=K), 2., None, .02, 0., Sgd, classes=True, optimizer=sgd)


@pytest.mark.parametrize("more", (dict(none=.5, classes=True), dict(warm_up=4, decay=.5), dict(clip=.5)))
def test_pretraining_with_a_share_without_a_class_a_warm_up_or_clipping(more):
    decay = more.pop("decay", 0.)
    pretrain(network(2., n_classes=K if "none" in more else None), 2., None, .02, decay, Sgd, pieces=4,
             optimizer=sgd, **more)


def test_pretraining_as_it_is_by_default_uses_adam():
    pretrain(network(1.), 1., None, .01, .7, lambda module: Adam(module, (.9, .999)))


def test_an_unknown_scale_is_the_root_mean_square_of_the_data():
    cloud = 3 + torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    for net in ResMLP(2, 8, 1), network(.7):
        Pretraining(net, cloud, n_steps=1, batch=4)
        wanted = float(net.config["sigma_data"] or cloud.square().mean().sqrt())    # 3.2; the deviation is 1
        assert abs(float(net.sigma_data) - wanted) < .05 * wanted                   # of a few thousand draws


def test_an_average_has_the_networks_own_buffers():
    net = torch.nn.BatchNorm1d(2)
    average = EMA(net, EMA_STD)
    for _ in range(3):
        net(torch.rand(4, 2))
        average.update(net)
    for name, value in net.named_buffers(): assert torch.equal(value, average.module.get_buffer(name))


# Stage 1

@pytest.mark.parametrize("pieces", (1, 4))
@pytest.mark.parametrize("pool", (40, None))
@pytest.mark.parametrize("sigma_data, noise, classes, none, unit", (
    (1., None, True, 0., False), (2., None, False, 0., True), (2., Levels(.3, .7), False, 0., False),
    (2., None, True, .4, True)))
def test_degradation(sigma_data, noise, classes, none, unit, pool, pieces):
    teacher, lr = network(sigma_data, n_classes=K if classes else None), .02
    student = moved(OneStep(teacher, unit=unit), 1)
    run = Degradation(teacher, student, keep=Every(2), n_steps=STEPS, batch=BATCH, lr=lr, pool=pool,
                      n_probe=8, noise=noise, cond=evenly if classes else None, optimizer=sgd, seed=3,
                      none=none, engine=Engine(pieces=pieces))
    hand, frozen, noise = double(teacher), double(student), noise or edm_levels(sigma_data)
    rule, (x, sigma, cond) = Sgd(hand), run.probe
    ask = lambda: D(hand, x.double(), sigma.double(), cond).detach()
    answers = [ask()]
    for step in range(STEPS):
        draws = Draws(run)
        record = next(run)
        if pool:
            kept, labels = run.pool
            i = torch.randint(pool, (BATCH,), generator=draws.generator)
            x0, c = kept[i].double(), labels[i] if classes else None
        else:
            z, c = draws.normal(), draws.labels(classes)
            x0 = G(frozen, z, c).detach()
        s, eps = draws.levels(noise), draws.normal()
        c = draws.told(c, none)
        draws.check()
        loss = denoising(hand, x0, s, D(hand, x0 + s[:, None] * eps, s, c))
        same(record.loss, loss)
        descend(rule, loss, lr)
        if step % 2: answers.append(ask())
    agree(run.degraded, hand, teacher)
    assert [node.step for node in run.path] == [0, 2, 4, 6]
    for node, now, before in zip(run.path, answers, answers[:1] + answers):
        same(node.drift, distance(now, answers[0], sigma).sqrt())
        same(node.gap, distance(now, before, sigma).sqrt())


def test_pool_and_probe_are_the_students_samples():
    teacher, seen = network(2.), []
    class Watched(OneStep):
        def forward(self, z, cond=None):
            seen.append(super().forward(z, cond))
            return seen[-1]
    run = Degradation(teacher, moved(Watched(teacher), 1), Every(1), n_steps=1, batch=BATCH, pool=40,
                      n_probe=8, noise=Levels(-20., 0.))    # all but no noise, so the probe is the samples
    drawn = torch.cat(seen)
    assert len(drawn) == 48 and run.pool[0].unique(dim=0).shape == (40, 2)
    for part in (run.pool[0], run.probe.x):
        assert all(((drawn - x).abs().amax(1) < 1e-6).any() for x in part)    # noise of e^-20
    assert not torch.cdist(run.pool[0], run.probe.x).min() < 1e-6             # and no sample is in both


# Stage 2

def lag_error(x, s, clean, cond, fake, target):
    """Means of <D_f - x0, D_f - D_o> / sigma^2 and of ||D_f - D_r||^2 / sigma^2.

    D_o is the denoiser of the other samples of the class; a sample that has none is left out of both."""
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and (cond is None or cond[j] == cond[i])]
        if not others: continue
        far = [((x[i] - clean[j])**2).sum().item() / (2 * s[i].item()**2) for j in others]
        density = [math.exp(min(far) - d) for d in far]
        guess = sum(w * clean[j] for w, j in zip(density, others)) / sum(density)
        products = (fake[i] - clean[i]) * (fake[i] - guess), (fake[i] - target[i])**2
        found.append([p.sum().item() / s[i].item()**2 for p in products])
    return [sum(values) / len(found) for values in zip(*found)]


class Hand:
    """Stage 2 by hand: DisBack Algorithm 2 for one target after another."""
    def __init__(self, student, fake, loss, lr, fake_lr, decay, ratio, noise, fake_noise, classes, rule=Sgd,
                 none=0., warm_up=0, clip=None, pull=0.):
        self.pull = pull
        self.student, self.fake, self.target, self.loss = double(student), double(fake), double(fake), loss
        self.lr, self.fake_lr, self.decay, self.ratio = lr, fake_lr, decay, ratio
        self.noise, self.fake_noise, self.classes = noise, fake_noise or (noise if none else None), classes
        self.none, self.warm_up, self.clip, self.scale, self.lag = none, warm_up, clip, 1., []
        self.rules, self.average = [rule(self.student), rule(self.fake)], Average(self.student, EMA_STD)

    def aim(self, weights): self.target.load_state_dict({k: v.double() for k, v in weights.items()})

    def gradient(self, x0, fake, target):
        """What the student follows: Diff-Instruct eq. 3.4 with weight sigma^2, or DMD eq. 8."""
        v = fake - target
        if self.loss == "dmd": v = v / (x0 - target).abs().mean(1, keepdim=True)
        return v.detach()

    def student_loss(self, x0, fake, target):
        """A loss with that gradient for each of the batch's numbers; or SiD eq. 23 with its weight; SIM."""
        if self.loss == "sim":
            weight = 1 / (1 + ((target - fake)**2).sum(1, keepdim=True)).sqrt()
            return (weight * (target - fake) * (fake - x0)).mean()
        if self.loss != "sid": return (x0 * self.gradient(x0, fake, target)).mean()
        weight = 1 / (x0 - target).abs().mean(1, keepdim=True).detach()
        return (weight * (target - fake) * ((target - x0) - 1.2 * (target - fake))).mean()

    def step(self, step, n_steps, draws):
        """The losses and the mean square of the mismatch of one step; `lag` keeps what its lag comes from."""
        lr, fake_lr = [rate(v, step, n_steps, self.decay, self.warm_up) for v in (self.lr, self.fake_lr)]
        for _ in range(self.ratio - 1):
            z, c = draws.noise(self.student), draws.labels(self.classes)
            s, eps = draws.levels(self.fake_noise or self.noise), draws.normal()
            x0, told = G(self.student, z, c).detach(), draws.told(c, self.none)
            descend(self.rules[1], denoising(self.fake, x0, s, D(self.fake, x0 + s[:, None] * eps, s, told)),
                    fake_lr, self.clip)
        z, c = draws.noise(self.student), draws.labels(self.classes)
        s, eps = draws.levels(self.noise), draws.normal()
        own, own_eps = (draws.levels(self.fake_noise), draws.normal()) if self.fake_noise else (s, eps)
        x0, told = G(self.student, z, c), draws.told(c, self.none)
        x = x0 + s[:, None] * eps
        fake, target = D(self.fake, x, s, c), guided(self.target, x, s, c, self.scale)
        loss, clean = self.student_loss(x0, fake, target), x0.detach()
        seen = D(self.fake, clean + own[:, None] * own_eps, own, told)
        goal = (clean + self.pull * target.detach()) / (1 + self.pull)
        fake_loss = denoising(self.fake, goal, own, seen)
        grads = [torch.autograd.grad(l, r.parameters, retain_graph=True)
                 for l, r in zip((loss, fake_loss), self.rules)]
        for rule, grad, by in zip(self.rules, grads, (lr, fake_lr)): rule.step(shortened(grad, self.clip), by)
        self.average.update(self.student)
        if step % 5 == 0: self.lag.append(lag_error(x.detach(), s, clean, c, fake.detach(), target.detach()))
        return loss, fake_loss, distance(fake, target, s)


def backtrack(path, student, fake, sigma_data, loss="diff_instruct", lr=.01, fake_lr=.03, decay=0., ratio=1,
              noise=None, fake_noise=None, classes=False, pieces=1, n_steps=STEPS, rule=Sgd, none=0.,
              warm_up=0, clip=None, guidance=lambda node: 1., pull=0., **options):
    """A run of the library and the loop, side by side: the run, its record, the loop's mean square."""
    start, fake_start = copy.deepcopy(student), fake or path.denoiser(-1)
    run = Backtracking(student, path, loss=loss, n_steps=n_steps, batch=BATCH, lr=lr, fake_lr=fake_lr,
                       decay=decay, ratio=ratio, noise=noise, fake_noise=fake_noise, fake=fake, ema=EMA_STD,
                       cond=evenly if classes else None, engine=Engine(pieces=pieces, clip=clip), seed=7,
                       none=none, warm_up=warm_up, guidance=guidance, moment_matching=pull, **options)
    if not callable(guidance): at_teacher, guidance = guidance, lambda node: 1. if node else at_teacher
    hand = Hand(start, fake_start, loss, lr, fake_lr, decay, ratio, noise or edm_levels(sigma_data),
                fake_noise, classes, rule, none, warm_up, clip, pull)
    for step in range(n_steps):
        draws = Draws(run)
        record = next(run)
        part = 1 - record.position if isinstance(run.walk.itinerary, Ramp) else 1.
        far, near = path[record.node].weights(), path[0].weights()
        hand.aim({k: part * far[k] + (1 - part) * near[k] for k in far})
        hand.scale = part * guidance(record.node) + (1 - part) * guidance(0)
        loss_, fake_loss, square = hand.step(step, n_steps, draws)
        draws.check()
        same(record.fake_loss, fake_loss)
        same(record.mismatch, square.sqrt())
        ages = [.9**age for age in range(len(hand.lag))][::-1]
        error, of = [sum(w * v for w, v in zip(ages, values)) for values in zip(*hand.lag)]
        lag = torch.tensor(max(0, error) / of).sqrt()    # the error is what is left of larger numbers
        if pieces == 1: torch.testing.assert_close(record.lag, lag, rtol=1e-3, atol=1e-3)
        if loss in ("sid", "sim"): same(record.loss, loss_)
        yield run, record, square.item()
    agree(run.student, hand.student, start)
    agree(run.ema, hand.average.module, start)
    agree(run.fake, hand.fake, fake_start)


@pytest.mark.parametrize("pieces", (1, 4))
@pytest.mark.parametrize("own", (None, Levels(.5, .5)))
@pytest.mark.parametrize("ratio", (1, 3))
@pytest.mark.parametrize("loss", LOSSES)
def test_backtracking(loss, ratio, own, pieces):
    sigma_data = 2. if own else 1.
    teacher = network(sigma_data)
    student, fake = moved(OneStep(teacher), 1), moved(teacher, 2)
    noise = Levels(-.5, 1.) if ratio > 1 else None
    [*backtrack(DegradationPath.of(teacher), student, fake, sigma_data, loss, ratio=ratio, noise=noise,
                fake_noise=own, pieces=pieces, decay=.5, optimizer=sgd)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("more", (dict(ratio=2), dict(pull=.7), dict(pull=2., pieces=4)))
def test_students_of_several_steps_and_the_pull_on_the_fake_score(loss, more):
    teacher = network(2., n_classes=K)
    student, fake = moved(MultiStep(teacher, (3., .8)), 1), moved(teacher, 2)
    [*backtrack(DegradationPath.of(teacher), student, fake, 2., loss, classes=True, optimizer=sgd, **more)]


@pytest.mark.parametrize("loss", LOSSES)
def test_backtracking_with_classes(loss):
    teacher = network(2., n_classes=K)
    student, fake = moved(OneStep(teacher), 1), moved(teacher, 2)
    [*backtrack(DegradationPath.of(teacher), student, fake, 2., loss, ratio=2, classes=True, optimizer=sgd)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("more", (
    dict(guidance=3.), dict(guidance=lambda node: 1.5 + node), dict(none=.4, ratio=2),
    dict(warm_up=4, decay=.5), dict(clip=.1, ratio=2, lr=.1, fake_lr=.3),
    dict(none=.4, fake_noise=Levels(.5, .5), guidance=2., clip=.3, warm_up=2, lr=.1, fake_lr=.3)))
def test_guidance_a_share_without_a_class_clipping_and_warm_up(loss, more):
    """From a node to the teacher, by a student that starts with unit noise."""
    path = road(2., (0., 1., 1.), K)
    student, fake = moved(OneStep(path.denoiser(0), unit=True), 1), moved(path.denoiser(0), 2)
    steps = backtrack(path, student, fake, 2., loss, classes=True, pieces=2, optimizer=sgd,
                      itinerary=Fixed((3,)), **more)
    assert [record.node for _, record, _ in steps] == [1] * 3 + [0] * 3


def test_backtracking_as_it_is_by_default_uses_adam_without_momentum():
    teacher = network(1.)
    student, fake = moved(OneStep(teacher), 1), moved(teacher, 2)
    [*backtrack(DegradationPath.of(teacher), student, fake, 1., decay=.5,
                rule=lambda module: Adam(module, (0., .99)))]


def road(sigma_data, gaps, n_classes=None):
    """A path with nodes far from one another, and what it says about their gaps."""
    nets = [network(sigma_data, seed, n_classes) for seed in range(len(gaps))]
    nodes = [Node(i, 5 * i, sum(gaps[:i + 1]), gap, net.state_dict)
             for i, (net, gap) in enumerate(zip(nets, gaps))]
    return DegradationPath(nets[0], nodes)


def recent(squares):
    """Root of the average with weights .8**age, which add up to one."""
    weights = [.8**age for age in range(len(squares))][::-1]
    return math.sqrt(sum(w * s for w, s in zip(weights, squares)) / sum(weights))


def test_a_walk_keeps_fake_score_and_optimisers_and_forgets_the_mismatch():
    path, stays = road(1., (0., 1., 1., 1.)), [2] * 4 + [1] * 3 + [0] * 3
    student, seen = moved(OneStep(path.denoiser(0)), 1), []
    steps = backtrack(path, student, None, 1., "dmd", fake_lr=.01, itinerary=Fixed((4, 3)), n_steps=10,
                      rule=lambda module: Adam(module, (0., .99)))
    for (run, record, square), node in zip(steps, stays, strict=True):
        if seen and seen[-1][0] != node: seen = []
        seen.append((node, square))
        assert record.node == node
        same(run.walk.mismatch, torch.tensor(recent([s for _, s in seen])).double())


@pytest.mark.parametrize("nearest", (1, 2))
def test_adaptive_compares_with_the_gap_to_the_next_target(nearest):
    """Gaps of 1e-6 are never reached, those of 1e6 at once: no doubt about which is used."""
    path = road(1., [0.] + [1e6 if i == nearest else 1e-6 for i in (1, 2, 3)])
    student = moved(OneStep(path.denoiser(0)), 1)
    run = Backtracking(student, path, itinerary=Adaptive(every=2, share=.8), n_steps=20, batch=BATCH)
    nodes = [record.node for record in run]
    # 8 steps a target at the latest, 2 where it is caught up with at the first look
    assert nodes == ([2] * 2 + [1] * 8 + [0] * 10 if nearest == 2 else [2] * 8 + [1] * 2 + [0] * 10)


@pytest.mark.parametrize("tolerance", (1e-12, 1e12))
def test_adaptive_takes_the_gap_as_many_times_as_its_tolerance_says(tolerance):
    """Gaps that are reached at once with a tolerance of 1, and here never; and the other way."""
    path = road(1., [0.] + [tolerance**-.5] * 3)
    student = moved(OneStep(path.denoiser(0)), 1)
    itinerary = Adaptive(tolerance, share=.8, every=2)
    run = Backtracking(student, path, itinerary=itinerary, n_steps=20, batch=BATCH)
    nodes = [record.node for record in run]
    assert nodes == ([2] * 8 + [1] * 8 + [0] * 4 if tolerance < 1 else [2] * 2 + [1] * 2 + [0] * 16)


def test_adaptive_moves_on_when_the_recent_mismatch_is_below_the_gap():
    tolerance, path = .5, road(1., (0., 3., 3., 1.))
    student, here, node, moves = moved(OneStep(path.denoiser(0)), 1), [], 2, 0
    steps = backtrack(path, student, None, 1., fake_lr=.05, n_steps=40, optimizer=sgd,
                      itinerary=Adaptive(tolerance, share=.9, every=3))
    for run, record, square in steps:
        near = here and len(here) % 3 == 0 and recent(here) < tolerance * path[node].gap
        if node and (near or len(here) >= .9 * 40 / 2): node, here, moves = node - 1, [], moves + bool(near)
        assert record.node == node
        here.append(square)
    assert moves


def test_a_ramp_mixes_the_ends_of_the_path():
    """Guidance too; the target is at the teacher after half of the run."""
    path = road(2., (0., 1., 1., 1.), K)
    student, fake = moved(OneStep(path.denoiser(0)), 1), moved(path.denoiser(0), 2)
    steps = backtrack(path, student, fake, 2., classes=True, optimizer=sgd, guidance=3., n_steps=12,
                      itinerary=Ramp(.5))
    seen = [(record.node, round(6 * record.position, 6)) for _, record, _ in steps]
    assert seen == [(3, i) for i in range(6)] + [(0, 6)] * 6


@pytest.mark.parametrize("drift", (1., 1e6))
def test_a_ramp_with_a_lead_is_over_at_once_on_a_short_path(drift):
    path = road(1., (0., drift))
    student = moved(OneStep(path.denoiser(0)), 1)
    run = Backtracking(student, path, itinerary=Ramp(.8, lead=2., every=1), n_steps=10, batch=BATCH)
    positions = [record.position for record in run]
    if drift == 1.: assert positions == [1.] * 10
    else: assert [round(p, 4) for p in positions] == [min(1., i / 8) for i in range(10)]


def test_a_ramp_of_low_rank_corrections_resumes():
    """Their factors are mixed; a run goes on with the same bits."""
    base, nodes = network(1.), []
    for i in range(2):
        torch.manual_seed(i)
        adapted = Adapted(base, 2)
        for p in adapted.parameters(): torch.nn.init.normal_(p, std=.1)
        nodes.append(Node(i, i, float(i), float(i), adapted.state_dict))
    path, student = DegradationPath(adapted, nodes), OneStep(adapted)
    def make(): return Backtracking(student, path, itinerary=Ramp(.5), n_steps=10, batch=BATCH)
    whole, first, second = make(), make(), make()
    for _ in whole: pass
    for _ in range(3): next(first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for name, v in first.target.state_dict().items():    # of the third step, at two fifths
        torch.testing.assert_close(v, .6 * nodes[1].weights()[name] + .4 * nodes[0].weights()[name])
    for _ in second: pass
    for name in ("student", "fake", "target", "ema"):
        a, b = [getattr(run, name).state_dict() for run in (whole, second)]
        assert all(torch.equal(a[k], b[k]) for k in a), name


# Random streams

def test_no_two_streams_share_their_draws():
    """Data, noise, labels, of several seeds, each told by the first numbers that it gets."""
    seen, teacher = {}, network(1., n_classes=K)
    student = OneStep(teacher)
    def told(purpose, make):
        def draw(n, generator):
            copied = torch.Generator()
            copied.set_state(generator.get_state())
            seen.setdefault((purpose, seed), []).append(tuple(torch.rand(4, generator=copied).tolist()))
            return make(n, generator)
        return draw
    def data(n, generator): return torch.randn(n, 2, generator=generator), evenly(n, generator)
    for seed in range(3):
        next(Pretraining(teacher, told("data", data), n_steps=1, batch=4, seed=seed,
                         noise=told("levels", Levels(0., 1.))))
        kind = dict(cond=told("labels", evenly), noise=told("levels", Levels(0., 1.)), batch=4, seed=seed)
        next(Degradation(teacher, student, Every(1), n_steps=1, pool=8, n_probe=4, **kind))
        next(Backtracking(student, DegradationPath.of(teacher), n_steps=1, **kind))
    for (purpose, seed), draws in seen.items():
        others = [d for key, more in seen.items() if key != (purpose, seed) for d in more]
        assert not set(draws) & set(others), (purpose, seed)
