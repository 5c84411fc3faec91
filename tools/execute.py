"""Execute notebooks and keep their outputs, the same ones on every run as far as the code allows.

    python tools/execute.py [--check | --stale] [--flags "slow gpu"] [notebook or folder ...]

Without a name: all of nbs/. Each notebook runs in its own kernel: in its folder, this checkout first on the
path, one thread, no progress bars. Cells flagged with one of settings.ini's `tst_flags` (`#| slow` ...) are
left out and keep the outputs they have, unless `--flags` names their flag. A notebook is written, cleaned,
only if all its cells ran.

A fingerprint of the executed code goes into the notebook's metadata (`disback.executed`, and
`disback.flagged` for each flagged cell), so that `--check` can say without running anything which outputs no
longer belong to their code.
`--stale` executes only those notebooks."""
import argparse
import asyncio
import hashlib
import os
import sys
from queue import Empty
from time import monotonic

from clean import ROOT, as_text, clean, name, notebooks, read, refusals
from nbclient import NotebookClient
from nbdev.config import get_config
from nbdev.process import extract_directives

SLICE = 1.0  # s; the longest wait for one message, see `in_slices`


def sha(sources):
    """A fingerprint of the code `sources`."""
    return hashlib.sha256("\n# %%\n".join(s.strip() for s in sources).encode()).hexdigest()


def flags_of(cell):
    """The flags of `cell` that keep it from running by default."""
    directives = extract_directives(cell, remove=False)
    if directives.get("eval:", [""])[0].lower() == "false": return {"eval: false"}
    return set(get_config(path=ROOT).tst_flags.split()) & directives.keys()


def sort_cells(nb):
    """The code cells of `nb` that always run, and those that a flag holds back; not the export call."""
    code = [c for c in nb.cells
            if c.cell_type == "code" and c.source.strip() and "nbdev_export(" not in c.source]
    return [c for c in code if not flags_of(c)], [c for c in code if flags_of(c)]


def stale(nb):
    """Why the stored outputs of `nb` do not belong to its code; empty if they do."""
    record, (always, flagged) = nb.metadata.get("disback", {}), sort_cells(nb)
    said = []
    if always and "executed" not in record: said.append("it was never executed")
    elif always and record["executed"] != sha(c.source for c in always):
        said.append("its code changed since it was executed")
    for cell in flagged:
        if cell.outputs and record.get("flagged", {}).get(cell.id) != sha([cell.source]):
            flag = " ".join(sorted(flags_of(cell)))
            said.append(f"the code of cell {cell.id} (`{flag}`) is not that of its outputs; "
                        f"run with --flags \"{flag}\"")
    kept = [(c, o) for c in nb.cells for o in c.get("outputs", [])]
    return said + [f"cell {c.id} keeps an error" for c, o in kept if o.output_type == "error"]


def in_slices(channel):
    """Let `channel` wait for a message in short slices.

    A wait without end can sleep through its message when another coroutine sends on the same socket
    meanwhile, which nbclient does for every widget; a new wait looks at the socket again."""
    get_msg = channel.get_msg

    async def get(timeout=None):
        end = float("inf") if timeout is None else monotonic() + timeout
        while True:
            try: return await get_msg(timeout=max(0.0, min(SLICE, end - monotonic())))
            except Empty:
                if monotonic() >= end: raise

    channel.get_msg = get


def environment():
    """The environment of the kernels."""
    left_out = ("IN_TEST", "MPLBACKEND")  # Agg would keep figures out of outputs
    env = {k: v for k, v in os.environ.items() if k not in left_out}
    before = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
    path = os.pathsep.join([str(ROOT), *before])
    return env | dict(PYTHONPATH=path, PYTHONHASHSEED="0", DISBACK_PROGRESS="0", OMP_NUM_THREADS="1",
                      MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")


async def run_cells(client, cells):
    """Run `cells` in order in one fresh kernel."""
    index = {c.id: i for i, c in enumerate(client.nb.cells)}
    async with client.async_setup_kernel(env=environment()):
        in_slices(client.kc.shell_channel)
        in_slices(client.kc.iopub_channel)
        for cell in cells:
            try: await client.async_execute_cell(cell, index[cell.id])
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                raise RuntimeError(f"cell {index[cell.id]} ({cell.id}) failed.\n{said}") from error


def execute(path, flags=(), timeout=1800):
    """Execute the notebook at `path`, its flagged cells too where `flags` names their flag, and write it.

    Returns what it keeps of stderr."""
    nb = read(path)
    always, flagged = sort_cells(nb)
    forced = {c.id for c in flagged if flags_of(c) <= set(flags)}
    runs = {c.id for c in always} | forced
    cells = [c for c in nb.cells if c.id in runs]
    for cell in nb.cells:
        if "nbdev_export(" in cell.source and cell.cell_type == "code": cell.outputs = []
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3", extra_arguments=["--log-level=ERROR"],
                            resources={"metadata": {"path": str(path.parent)}}, coalesce_streams=True,
                            record_timing=False)
    asyncio.run(run_cells(client, cells))
    before = nb.metadata.get("disback", {}).get("flagged", {})
    kept = {c.id: sha([c.source]) if c.id in forced else before.get(c.id) for c in flagged if c.outputs}
    nb.metadata["disback"] = {"executed": sha(c.source for c in always)} | (
        {"flagged": {k: v for k, v in kept.items() if v}} if any(kept.values()) else {})
    clean(nb)
    if refused := refusals(nb): raise RuntimeError("it ran, but is not kept: " + "; ".join(refused) + ".")
    path.write_text(as_text(nb), encoding="utf-8")
    kept = [(i, o) for i, c in enumerate(nb.cells) for o in c.get("outputs", [])]
    return [(i, o.text) for i, o in kept if o.get("name") == "stderr"]


def main():
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("paths", nargs="*", help="notebooks or folders (default: nbs/)")
    add = args.add_argument
    add("--check", action="store_true", help="execute nothing; fail if stored outputs are stale")
    add("--stale", action="store_true", help="execute only the notebooks whose outputs are stale")
    args.add_argument("--flags", default="", help="flags whose cells run too, separated by spaces")
    args.add_argument("--timeout", type=int, default=1800, help="seconds that one cell may take")
    args, failed = args.parse_args(), []
    for path in notebooks(args.paths):
        why = stale(read(path))
        if args.check:
            failed += [f"{name(path)}: {said}." for said in why]
            continue
        if args.stale and not why: continue
        start = monotonic()
        try: complaints = execute(path, args.flags.split(), args.timeout)
        except RuntimeError as error:
            failed.append(f"{name(path)}: {error}")
            continue
        print(f"executed {name(path)} in {monotonic() - start:.0f} s", flush=True)
        for i, text in complaints:
            print(f"  cell {i} keeps what was written to stderr: {text.strip().splitlines()[0]}")
    if failed: sys.exit("\n".join(failed))


if __name__ == "__main__": main()
