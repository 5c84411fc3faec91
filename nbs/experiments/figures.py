"""Figures and tables that only the experiments draw: many tasks or many arms in one picture."""
import math

import matplotlib.pyplot as plt
import torch
from disback.comparisons import by_task, compute_to, ratio
from disback.core import Table
from disback.plots import COLORS


def share_of(row,     # of a summary, with passes
             base,    # the baseline's row of the same task
             budget,  # of both
             ):       # `share, kind`: kind is 'both', 'bound', 'lost' or None
    """Passes to the threshold as a share of the baseline's.

    The kind says who reached it: 'both'; 'bound' if the baseline did not (then at most this); 'lost' if only
    the baseline did; None if nobody did. Nothing of nothing is a tie."""
    ours, theirs = row['passes'], base['passes']
    if math.isinf(ours): return (math.nan, None) if math.isinf(theirs) else (math.inf, 'lost')
    if math.isinf(theirs): return ours / budget, 'bound'
    return ratio(ours, theirs), 'both'


def show_shares(table, ax, budget, limit):
    """Draw the shares of one summary."""
    tasks = [*dict.fromkeys(row['task'] for row in table)]
    base = {row['task']: row for row in table if row['arm'].startswith('diff-instruct')}
    for row in table:
        if row['task'] not in base or row['arm'].startswith('diff-instruct'): continue
        share, kind = share_of(row, base[row['task']], budget)
        if not kind: continue
        look = dict(mfc='none') if kind == 'bound' else {}
        ax.plot(min(share, limit), tasks.index(row['task']), 'x' if kind == 'lost' else 'o', ms=5,
                color=COLORS[row['arm'].split(':')[0]], clip_on=False, **look)
    ax.axvline(1, color='.5', lw=.8)
    ax.axvline(.5, color='.5', lw=.8, ls=':')
    shares = {'1/8': .125, '1/4': .25, '1/2': .5, '1': 1, '2': 2, '4': 4, '8': 8}
    ax.set(xscale='log', xlim=(.1, limit), yticks=range(len(tasks)), xticks=[*shares.values()],
           xticklabels=[*shares])
    ax.set_yticklabels(tasks, fontsize=7)
    ax.minorticks_off()
    ax.tick_params(axis='x', labelsize=8)


def show_ratios(tables,      # list of `(title, summary)`
                budget,      # of every arm
                limit=8.,    # right edge
                ):
    """Draw each task's passes to the threshold as a share of the baseline's, a panel for each table."""
    first = tables[0][1]
    size = 3.9 * len(tables), max(1.8, .75 + .16 * len({row['task'] for row in first}))
    fig, axes = plt.subplots(1, len(tables), figsize=size, sharey=True, layout='constrained', squeeze=False)
    for ax, (title, table) in zip(axes[0], tables):
        show_shares(table, ax, budget, limit)
        ax.set_title(title)
    axes[0][0].invert_yaxis()
    names = [*dict.fromkeys(row['arm'].split(':')[0] for row in first)]
    names = [name for name in names if name != 'diff-instruct']
    dots = [plt.Line2D([], [], marker='o', ls='', color=COLORS[name]) for name in names]
    fig.legend(dots, names, loc='outside upper center', ncols=len(names), fontsize=8, frameon=False)
    fig.supxlabel(f"passes to {first[0]['threshold']:g}, as a share of plain Diff-Instruct's "
                  f"(of medians of {first[0]['seeds']} seeds)", fontsize=8)
    return fig


def over_tasks(table,   # what `summary` returned
               budget,  # of every arm
               ):       # `{arm: dict(passes=, reached=, runs=, end=)}`
    """Each arm over all its tasks.

    The geometric mean of the median passes (a task whose median run never reached the threshold counts as
    twice the budget), the runs that reached it, and the mean of the medians at the end."""
    over = {}
    for arm in dict.fromkeys(row['arm'] for row in table):
        mine = [row for row in table if row['arm'] == arm]
        logs = [math.log(max(1., min(row['passes'], 2 * budget))) for row in mine]
        total = lambda key: sum(row[key] for row in mine)
        over[arm] = dict(passes=math.exp(sum(logs) / len(logs)), reached=total('reached'),
                         runs=total('seeds'), end=total('end') / len(mine))
    return over


def text_by_arm(table, budget, names=()):  # names: `{heading: [arms]}`, for variants
    """A summary over tasks as text."""
    headings = {arm: heading for heading, arms in dict(names).items() for arm in arms}
    rows = [{'': headings.get(arm, ''), 'arm': arm, 'reached': f"{v['reached']}/{v['runs']}",
             f"passes to {table[0]['threshold']:g}": f"{v['passes']:.0f}", 'at the end': f"{v['end']:.3f}"}
            for arm, v in over_tasks(table, budget).items()]
    return str(Table(rows, left=2))


def common(names):  # `{heading: [arms]}`
    """The options that all arms have."""
    return set.intersection(*[{*arm.split(':')[1:]} for arms in names.values() for arm in arms])


def show_by_arm(table, budget, names):  # names: `{heading: [arms]}`
    """Draw the passes to the threshold of many arms: a bar for the mean over tasks, a line for each task."""
    over = over_tasks(table, budget)
    rows = [(heading, arm) for heading, arms in names.items() for arm in arms]
    size = 8, 1.3 + .2 * len(rows) + .12 * len(names)
    fig, ax = plt.subplots(figsize=size, layout='constrained')
    y, ticks, before = 0., {}, rows[0][0]
    for heading, arm in rows:
        y += 1. if heading == before else 1.6
        name, *options = arm.split(':')
        passes = [min(row['passes'], 2 * budget) for row in table if row['arm'] == arm]
        ax.barh(y, over[arm]['passes'], color=COLORS[name], alpha=.35, height=.8)
        ax.plot(passes, [y] * len(passes), '|', ms=7, mew=1.4, color=COLORS[name])
        ticks[y] = f"{heading}: {name} {' '.join(o for o in options if o not in common(names))}"
        before = heading
    ax.axvline(2 * budget, color='.4', ls=':', lw=1)
    ax.set(yticks=[*ticks], xlim=(0, 2.05 * budget))
    ax.set_yticklabels([*ticks.values()], fontsize=8)
    ax.set_xlabel(f"forward passes to {table[0]['threshold']:g}, stage 1 included. Lines: a task's median of "
                  f"{table[0]['seeds']} seeds;\nbars: their geometric mean; dotted: never, counted as twice "
                  "the budget", fontsize=8)
    ax.invert_yaxis()
    ax.margins(y=.01)
    return fig


def arrivals(rows,       # what `compare` returned
             threshold,  # value to be reached
             ):          # `{arm: {seed: [whether it arrived, a task each]}}`
    """Which runs reached a threshold."""
    found = {}
    for runs in by_task(rows).values():
        for arm, own in runs.items():
            for seed, run in own.items():
                arrived = math.isfinite(compute_to(run, threshold))
                found.setdefault(arm, {}).setdefault(seed, []).append(arrived)
    return found


def gain_interval(ours,        # of `arrivals`: `{seed: [whether it arrived]}`
                  theirs,      # the same of the arm to compare with
                  n=10_000,    # resamples
                  seed=0,      # of them
                  ):           # `low, middle, high` of the ratio of arrivals
    """How many times as many runs arrive, with a 95 % percentile interval over resampled seeds."""
    g, seeds = torch.Generator().manual_seed(seed), sorted(ours)
    a, b = [torch.tensor([float(sum(arm[s])) for s in seeds]) for arm in (ours, theirs)]
    drawn = torch.randint(len(seeds), (n, len(seeds)), generator=g)
    ratios = a[drawn].sum(1) / b[drawn].sum(1)    # of nothing: infinite
    low, high = torch.quantile(ratios.nan_to_num(1., posinf=1e6), torch.tensor([.025, .975])).tolist()
    return low, ratio(a.sum().item(), b.sum().item()), high
