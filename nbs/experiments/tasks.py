"""A task of the experiments' own: points in three classes, whose teacher is distilled under guidance."""
from functools import partial

import torch
from disback.comparisons import Task, file_for, random_mixture
from disback.core import stream
from disback.files import load_state, save_state
from disback.networks import Guided, ResMLP, seeded
from disback.pretraining import Pretraining
from disback.samplers import generate

CLASSES = 3


def labelled(mixture,         # any
             n,               # points
             generator=None,  # of all draws
             ):               # points `(n, 2)`, and the class of each, by the mode next to it
    """Points of a mixture; every third mode is of one class."""
    x = mixture.sample(n, generator=generator)
    return x, torch.cdist(x, mixture.means).argmin(1) % CLASSES


def teacher_with_classes(seed,      # of the mixture
                         protocol,  # how it is trained
                         cache,     # as for `comparisons.teacher_of`
                         ):         # the averaged teacher
    """Train a teacher that can also be asked without a class, or read it."""
    with seeded(stream(0, 'first weights of the teacher')):
        teacher = ResMLP(2, width=protocol.width, depth=protocol.depth, n_classes=CLASSES)
    data = partial(labelled, random_mixture(seed))
    run = Pretraining(teacher, data, n_steps=protocol.teacher_steps, batch=256, none=.1)
    about = [seed, teacher.config, run.n_steps, run.settings]
    file = file_for(cache, f'teacher-classes-{seed}', about, '.safetensors')
    if file and file.exists():
        run.ema.load_state_dict(load_state(file))
    else:
        for _ in run: pass
        if file: save_state(file, run.ema.state_dict())
    return run.ema


def load_guided(seed, scale, protocol, cache=None):
    """The teacher, and samples of it under guidance in place of held-out data: what a student should draw."""
    teacher = teacher_with_classes(seed, protocol, cache)

    def held_out(n, generator=None):
        drawn = dict(generator=generator)
        noise, labels = torch.randn(n, 2, **drawn), torch.randint(CLASSES, (n,), **drawn)
        return generate(Guided(teacher, scale), noise, labels)
    return teacher, held_out


def guided_task(seed,   # of the mixture
                start,  # as in `comparisons.start`
                scale,  # of the guidance
                ):
    """A task whose student should draw as its guided teacher does."""
    about = f'mixture-{seed} with {CLASSES} classes, guided by {scale:g}'
    return Task(f'classes-{seed}-{start}', start, (2,), partial(load_guided, seed, scale), about)
