"""Two processes on the CPU (gloo) evaluate as one does: moments, rows, distance, precision and recall.

`work` is what both processes do."""
import os
import subprocess
import sys
from pathlib import Path

import torch

ENV = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "DISBACK_PROGRESS": "0"}
BOTH = [sys.executable, Path(__file__).with_name("both.py")]
N = 301    # odd: the shares differ


def rows():
    return 7 + torch.randn(N, 40, generator=torch.Generator().manual_seed(0)).double()


def look(x):
    """Features and logits of digits."""
    from disback.metrics import image_features
    f = image_features(x)
    return f, f[:, :10]


def results(processes):
    from disback.data import digits, load_data
    from disback.evaluation import Draw, RunningMoments, embed, joined_moments
    from disback.evaluation import measure_samples, noise_rows, own_rows
    from disback.networks import OneStep, UNet
    start, stop = own_rows(N, processes)
    moments = joined_moments(RunningMoments().update(rows()[start:stop]), processes)
    torch.manual_seed(0)
    net = UNet(channels=(8, 16), n_classes=10, sigma_data=.5)
    for p in net.parameters(): p.data += .05 * torch.randn_like(p)
    draw = Draw(OneStep(net), n_classes=10)
    numbered = lambda n, start: draw(n, 0, start)
    _, features, classes = embed(numbered, N, look, batch=64, keep=True, processes=processes)
    train = digits("train")[0]
    def noisy(n, seed, start): return train[start:start + n] + .15 * noise_rows(n, (1, 8, 8), seed, start)
    result = measure_samples(noisy, load_data("digits"), N, (0, 1), batch=50, processes=processes,
                             progress=False)
    numbers = [v for k in ("frechet", "precision", "recall") for v in result[k]["per_seed"]]
    return dict(n=torch.tensor(moments.n), mean=moments.mean, covariance=moments.covariance,
                features=features, classes=classes, numbers=torch.tensor(numbers, dtype=torch.float64))


def work(folder):
    from disback.engine import join
    from disback.files import save_state
    processes = join()
    assert processes.world == 2
    save_state(folder / f"{processes.rank}.safetensors", results(processes))
    processes.end()


def test_two_processes_evaluate_as_one_does(tmp_path):
    from disback.files import load_state
    from disback.runs import OneProcess
    done = subprocess.run([*BOTH, Path(__file__).stem, tmp_path, "work"], env=ENV, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = results(OneProcess()), [load_state(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(two[0][k], two[1][k]) for k in one)    # every process has the whole result
    exact = dict(rtol=0, atol=1e-10)
    torch.testing.assert_close(one["covariance"], torch.cov(rows().T), **exact)
    for k in ("n", "mean", "covariance"): torch.testing.assert_close(two[0][k], one[k], **exact)
    for k in ("features", "classes"):    # other batches, other rounding
        torch.testing.assert_close(two[0][k], one[k], rtol=1e-4, atol=1e-4)
    (distances, shares), (theirs, their_shares) = [x["numbers"].split([2, 4]) for x in (one, two[0])]
    torch.testing.assert_close(theirs, distances, rtol=1e-4, atol=0)
    torch.testing.assert_close(their_shares, shares, rtol=0, atol=2.5 / N)    # one or two at a ball's rim
    assert 0 < distances.min() and 0 < shares.min() and shares.max() < 1
