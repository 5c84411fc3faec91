"""A step of a recipe's stage 2 on this machine: time, memory, and whether the fake score learns.

    python benchmarks/recipe.py [--recipe imagenet64] [--batch 8 32] [--precision fp32 bf16] [--steps 300]
                                [--device cuda] [--json]

The network is the recipe's, with random weights, and the target is that network itself: time and memory are
those of the recipe, what is learnt is not. The loss of the fake score, over the first and the last tenth of
the steps, says only that training works. Times are medians over the steps after the first ten, or over the
second half of fewer; on CUDA every step is synchronised."""
import argparse
import datetime
import json
import sys
import time
from statistics import median

try:
    import torch
    from disback.backtracking import Backtracking
    from disback.edm import edm_network
    from disback.engine import Engine
    from disback.networks import OneStep, build
    from disback.paths import DegradationPath
    from disback.recipes import load_recipe, n_parameters
    from disback.stages import optimizer_of
except ImportError as e:
    sys.exit(f"recipe.py: {e}: install the library first, with `pip install -e .` in the project's folder")


def network_of(table):
    """A recipe's network with random weights: those that start at zero would leave gradients zero."""
    torch.manual_seed(0)
    net = (build(table) if "name" in table else edm_network(**table)).eval()
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.02 * torch.randn_like(p))
    return net


def run_of(recipe, net, batch, precision, steps, device):
    """Stage 2 of the recipe, with the network as its own target."""
    degrade, options = recipe.stages["degrade"], recipe.stages["backtrack"].filled("images")
    engine = Engine(device=device, precision=precision, channels_last=device == "cuda")
    return Backtracking(OneStep(net, degrade.sigma_init), DegradationPath.of(net), n_steps=steps, batch=batch,
                        lr=options.lr, fake_lr=options.fake_lr, decay=options.decay, loss=options.loss,
                        optimizer=optimizer_of(options.betas), engine=engine)


def measure(recipe, batch, precision, steps, device):
    """One run of a few steps; its row of the table."""
    net, cuda = network_of(recipe.network), device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run, seconds, losses = run_of(recipe, net, batch, precision, steps, device), [], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(next(run).fake_loss)
        if cuda: torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    losses, tenth = torch.stack(losses).float().cpu(), max(1, steps // 10)
    return dict(batch=batch, precision=precision, seconds_a_step=median(seconds[min(10, steps // 2):]),
                fake_loss_first=losses[:tenth].mean().item(), fake_loss_last=losses[-tenth:].mean().item(),
                peak_gb=torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
                parameters=n_parameters(net))


def show(title, rows):
    """Print the rows as a table, under a title."""
    print(title + "\n")
    print(f"{'batch':>5}  {'precision':>9}  {'s a step':>9}  {'peak GB':>8}  {'loss of the fake score':>22}")
    for r in rows:
        peak = "" if r["peak_gb"] is None else f"{r['peak_gb']:.1f}"
        print(f"{r['batch']:>5}  {r['precision']:>9}  {r['seconds_a_step']:>9.3f}  {peak:>8}  "
              f"{r['fake_loss_first']:>10.3f} to {r['fake_loss_last']:.3f}")


def main(argv=None):
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--recipe", default="imagenet64")
    args.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    args.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "tf32", "bf16"))
    args.add_argument("--steps", type=int, default=300)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    args.add_argument("--device", default=here, choices=("cpu", "cuda"))
    args.add_argument("--json", action="store_true")
    args = args.parse_args(argv)
    if args.steps < 2 or min(args.batch) < 1:
        sys.exit("recipe.py: --steps must be at least 2 and every --batch at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("recipe.py: there is no CUDA device here: leave --device out, or give cpu")
    try: recipe = load_recipe(args.recipe)
    except ValueError as e: sys.exit(f"recipe.py: {e}")
    if recipe.network is None:
        sys.exit(f"recipe.py: recipe {args.recipe} does not describe its network, [network]")
    rows = [measure(recipe, batch, precision, args.steps, args.device)
            for batch in args.batch for precision in args.precision]
    device = f"cpu, {torch.get_num_threads()} threads"
    if args.device == "cuda": device = torch.cuda.get_device_name()
    date, version = str(datetime.date.today()), torch.__version__
    if args.json:
        about = dict(recipe=args.recipe, device=device, date=date, torch=version, steps=args.steps)
        print(json.dumps(about | dict(rows=rows)))
    else:
        show(f"{recipe.title}: {rows[0]['parameters']:,} parameters, {args.steps} steps, {device}, "
             f"torch {version}, {date}", rows)


if __name__ == "__main__": main()
