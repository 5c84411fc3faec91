"""How large the code is and how it reads, in figures, for the modules and the notebooks they come from.

    python tools/size.py            # print the tables
    python tools/size.py --check    # print them, and fail where a bound is broken

*Tokens* are Python's own, without comments, layout and annotations: lines can be packed, tokens cannot. *Joined* are statements
that share a line by `;`. *Cells* are exported cells that define something, in lines. *Typed*, *said* and *documented* are the
shares of public parameters with an annotation, of public parameters with a meaning (a comment behind them, or their class's), and
of public definitions with a docstring."""
import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 110
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
          tokenize.ENDMARKER}
BOUNDS = {"tokens": 66_500, "long": 0, "joined": 0, "median": 12, "p90": 25, "most": 60, "typed": .9, "said": 1.,
          "documented": 1.}


def tokens(source):
    """The tokens of `source`."""
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def annotations(tree):
    """The places `((line, column), (line, column))` of all annotations, with the colon or arrow before them."""
    spans = []
    for node in ast.walk(tree):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.expr): spans.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return spans


def count(source):
    """The number of tokens of `source` that are neither layout nor comment nor annotation."""
    spans = annotations(ast.parse(source))
    inside = lambda t: any(a <= t.start < b for a, b in spans)
    return sum(t.type not in LAYOUT and not inside(t) for t in tokens(source)) - len(spans)


def joined(source):
    """How many statements follow another one behind a `;`."""
    return sum(t.type == tokenize.OP and t.string == ";" for t in tokens(source))


def too_long(source):
    """How many lines are wider than `WIDTH`, addresses apart."""
    return sum(len(line) > WIDTH and not re.search(r"https?://\S+$", line) for line in source.splitlines())


def public(tree):
    """The public functions, classes and methods of a module, each with the class it belongs to, or None."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"): continue
        yield node, None
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"): yield inner, node


def constructors(tree):
    """The public functions and the constructors of public classes, whose parameters a user gives."""
    for node, owner in public(tree):
        if isinstance(node, ast.FunctionDef) and owner is None: yield node
        elif isinstance(node, ast.ClassDef):
            yield from (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")


def parameters(function):
    """The parameters of a function, `self` and the like apart."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    return [p for p in every if p.arg not in ("self", "cls")] + [p for p in (a.vararg, a.kwarg) if p]


def is_patch(function):
    """Whether the function becomes a method by `patch`."""
    return any(ast.unparse(d).startswith("patch") for d in function.decorator_list)


def said(function, lines):
    """The parameters of a function that a comment explains, on their line or in the function's first lines."""
    body = function.body[0].lineno
    comments = {i: lines[i - 1].partition("#")[2].strip() for i in range(function.lineno, body)}
    return [p for p in parameters(function) if comments.get(p.lineno) or comments.get(p.lineno + 1) and "," not in lines[p.lineno - 1]]


def module_row(path):
    """The figures of one module."""
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    functions = [f for f in constructors(tree) if not is_patch(f)]
    definitions = [d for d, owner in public(tree) if owner is None and not (isinstance(d, ast.FunctionDef) and is_patch(d))]
    given = [p for f in functions for p in parameters(f)]
    return dict(tokens=count(source), lines=len(lines), long=too_long(source), joined=joined(source), names=len(definitions),
                parameters=len(given), typed=sum(p.annotation is not None for p in given),
                said=sum(len(said(f, lines)) for f in functions), documented=sum(bool(ast.get_docstring(d)) for d in definitions))


def exported(cell):
    """Whether a cell is exported and defines a function or a class."""
    return cell.cell_type == "code" and re.match(r"#\|\s*export", cell.source) and re.search(r"^\s*(def|class) ", cell.source, re.M)


def notebook_row(path):
    """The figures of one notebook."""
    nb = nbformat.read(path, as_version=4)
    code = [c.source for c in nb.cells if c.cell_type == "code" and not re.match(r"\s*[%!]", c.source)]
    sizes = [len([line for line in c.source.splitlines() if line.strip()]) - 1 for c in nb.cells if exported(c)]
    plain = "\n".join(re.sub(r"^(\s*)[%!].*$", r"\1pass", s, flags=re.M) for s in code)
    return dict(cells=len(nb.cells), long=too_long(plain), joined=joined(plain), sizes=sizes)


def table(rows):
    """Rows of text as aligned columns."""
    rows = [[str(v) for v in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths))) for row in rows)


def measure():
    """All figures: a row a module, a row a notebook, and the sums."""
    modules = {p.stem: module_row(p) for p in sorted((ROOT / "disback").glob("*.py")) if p.stem != "_modidx"}
    notebooks = {p.stem: notebook_row(p) for p in sorted((ROOT / "nbs").rglob("*.ipynb"))}
    sizes = sorted(n for row in notebooks.values() for n in row["sizes"])
    total = {k: sum(row[k] for row in modules.values()) for k in next(iter(modules.values()))}
    share = lambda a, b: round(total[a] / max(1, total[b]), 3)
    summary = dict(tokens=total["tokens"], long=total["long"] + sum(r["long"] for r in notebooks.values()),
                   joined=total["joined"] + sum(r["joined"] for r in notebooks.values()),
                   median=statistics.median(sizes), p90=sizes[int(.9 * len(sizes))], most=sizes[-1], typed=share("typed", "parameters"),
                   said=share("said", "parameters"), documented=share("documented", "names"))
    return modules, notebooks, summary


def main():
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true", help="fail where a bound is broken")
    args = args.parse_args()
    modules, notebooks, summary = measure()
    head = ["tokens", "lines", "long", "joined", "names", "parameters", "typed", "said", "documented"]
    print(table([["module", *head], *([name, *(row[k] for k in head)] for name, row in modules.items())]), end="\n\n")
    middle = lambda sizes: [f"{statistics.median(sizes):g}", sorted(sizes)[int(.9 * len(sizes))], max(sizes)] if sizes else ["", "", ""]
    rows = [[name, row["cells"], row["long"], row["joined"], *middle(row["sizes"])] for name, row in notebooks.items()]
    print(table([["notebook", "cells", "long", "joined", "median", "90 %", "most"], *rows]), end="\n\n")
    least = {"typed", "said", "documented"}
    broken = [k for k, bound in BOUNDS.items() if (summary[k] < bound if k in least else summary[k] > bound)]
    print(table([["", "now", "at least" if False else "bound", ""],
                 *([k, summary[k], BOUNDS[k], "broken" if k in broken else ""] for k in BOUNDS)]))
    if args.check and broken:
        sys.exit(f"Bounds are broken: {', '.join(broken)}. Mend it, or say in CHANGELOG.md why the bound in tools/size.py moves.")


if __name__ == "__main__": main()
