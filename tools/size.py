"""How large the code is and how it reads, in figures, for the modules and the notebooks they come from.

    python tools/size.py            # print the tables
    python tools/size.py --check    # print them, and fail where a bound is broken

*Tokens* are Python's own, without comments, layout and annotations: lines can be packed, tokens cannot.
*Long* lines are wider than 110 columns; *joined* statements share a line by `;`. *Cells* are exported cells
that define something, in lines that are not blank. *Typed* is the share of parameters of public functions,
classes and methods that have an annotation, *said* the share of parameters of public functions and classes
that a comment behind them explains, *documented* the share of public definitions with a docstring."""
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
MOST = {"tokens": 123_650, "long": 0, "joined": 0, "median": 12, "p90": 25, "largest": 40}
LEAST = {"typed": .9, "said": 1., "documented": 1.}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENCODING, tokenize.ENDMARKER}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


def tokens(source):
    """The tokens of `source`."""
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def count(source):
    """How many tokens of `source` are neither layout nor comment nor annotation."""
    nodes = [*ast.walk(ast.parse(source))]
    parts = [getattr(n, name, None) for n in nodes for name in ("annotation", "returns")]
    exprs = [p for p in parts if isinstance(p, ast.expr)]
    spans = [((p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)) for p in exprs]
    inside = lambda token: any(start <= token.start < end for start, end in spans)
    kept = [t for t in tokens(source) if t.type not in LAYOUT and not inside(t)]
    return len(kept) - len(spans)  # the colon or arrow before each annotation


def joined(source):
    """How many statements follow another one behind a `;`."""
    return sum(t.type == tokenize.OP and t.string == ";" for t in tokens(source))


def too_long(source):
    """How many lines are wider than `WIDTH`, addresses and the `__all__` that nbdev writes apart."""
    source = re.sub(r"^__all__ = \[.*?\]", "", source, flags=re.M | re.S)
    return sum(len(line) > WIDTH and not re.search(r"https?://\S+$", line) for line in source.splitlines())


def is_patch(node):
    """Whether a function becomes a method by `patch`."""
    return any(ast.unparse(d).startswith("patch") for d in node.decorator_list)


def definitions(tree):
    """The public functions and classes of a module."""
    kinds = (*FUNCTIONS, ast.ClassDef)
    return [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_") and not is_patch(n)]


def methods(tree):
    """The public methods of public classes, constructors apart, in their class or added by `patch`."""
    classes = [d for d in definitions(tree) if isinstance(d, ast.ClassDef)]
    inside = [f for c in classes for f in c.body if isinstance(f, FUNCTIONS)]
    patched = [f for f in tree.body if isinstance(f, FUNCTIONS) and is_patch(f)]
    return [f for f in (*inside, *patched) if not f.name.startswith("_")]


def entries(tree):
    """The public functions, and the constructors of public classes."""
    every = definitions(tree)
    made = [f for c in every if isinstance(c, ast.ClassDef) for f in c.body
            if isinstance(f, FUNCTIONS) and f.name == "__init__"]
    return [d for d in every if isinstance(d, FUNCTIONS)] + made


def parameters(function):
    """The parameters of a function; those that stand for the object or its class apart."""
    a = function.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    owned = is_patch(function)
    return [p for p in named[owned:] if p.arg not in ("self", "cls")] + [p for p in (a.vararg, a.kwarg) if p]


def is_said(parameter, function, lines):
    """Whether a comment stands behind a parameter: on its line, or where its default ends."""
    body = function.body[0].lineno
    after = [lines[i - 1] for i in range(parameter.lineno, body)]
    first = next((line for line in after if "#" in line), "")
    return bool(first.partition("#")[2].strip())


def module_row(path):
    """The figures of one module."""
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    given = [(p, f) for f in entries(tree) for p in parameters(f)]
    every = [p for p, _ in given] + [p for f in methods(tree) for p in parameters(f)]
    documented = sum(bool(ast.get_docstring(d)) for d in definitions(tree))
    return dict(tokens=count(source), lines=len(lines), long=too_long(source), joined=joined(source),
                names=len(definitions(tree)), documented=documented,
                parameters=len(given), said=sum(is_said(p, f, lines) for p, f in given),
                with_methods=len(every), typed=sum(p.annotation is not None for p in every))


def is_definition(cell):
    """Whether a cell is exported and defines a function or a class."""
    found = re.match(r"#\|\s*export", cell.source) and re.search(r"^(def|class|@)", cell.source, re.M)
    return cell.cell_type == "code" and bool(found)


def notebook_row(path):
    """The figures of one notebook."""
    cells = nbformat.read(path, as_version=4).cells
    plain = lambda source: re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)
    code = "\n".join(plain(c.source) for c in cells if c.cell_type == "code")
    sizes = [sum(bool(line.strip()) for line in c.source.splitlines()) - 1 for c in cells if is_definition(c)]
    return dict(cells=len(cells), long=too_long(code), joined=joined(code), sizes=sorted(sizes))


def spread(sizes):
    """Median, 90 % and largest of sorted sizes, as text."""
    if not sizes: return ["", "", ""]
    return [f"{statistics.median(sizes):g}", sizes[int(.9 * len(sizes))], sizes[-1]]


def table(rows):
    """Rows as aligned columns."""
    rows = [[str(v) for v in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    pad = lambda i, text: text.rjust(widths[i]) if i else text.ljust(widths[i])
    return "\n".join("  ".join(pad(i, text) for i, text in enumerate(row)).rstrip() for row in rows) + "\n"


def summary(modules, notebooks):
    """The figures that have bounds."""
    total = lambda key, rows: sum(row[key] for row in rows.values())
    sizes = sorted(n for row in notebooks.values() for n in row["sizes"])
    share = lambda part, whole: round(total(part, modules) / total(whole, modules), 3)
    return dict(tokens=total("tokens", modules), long=total("long", modules) + total("long", notebooks),
                joined=total("joined", modules) + total("joined", notebooks), median=statistics.median(sizes),
                p90=sizes[int(.9 * len(sizes))], largest=sizes[-1], typed=share("typed", "with_methods"),
                said=share("said", "parameters"), documented=share("documented", "names"))


def main():
    """The command line."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true", help="fail where a bound is broken")
    args = args.parse_args()
    modules = {p.stem: module_row(p) for p in sorted((ROOT / "disback").glob("*.py")) if p.stem != "_modidx"}
    notebooks = {p.stem: notebook_row(p) for p in sorted((ROOT / "nbs").rglob("*.ipynb"))}
    print(table([["module", *modules["core"]], *([name, *row.values()] for name, row in modules.items())]))
    shown = [[name, row["cells"], row["long"], row["joined"], *spread(row["sizes"])]
             for name, row in notebooks.items()]
    print(table([["notebook", "cells", "long", "joined", "median", "90 %", "largest"], *shown]))
    now = summary(modules, notebooks)
    broken = [k for k in MOST if now[k] > MOST[k]] + [k for k in LEAST if now[k] < LEAST[k]]
    bounds = {k: f"at most {v:,}" for k, v in MOST.items()} | {k: f"at least {v:g}" for k, v in LEAST.items()}
    print(table([["", "now", "bound"], *([k, now[k], bound] for k, bound in bounds.items())]))
    if args.check and broken:
        sys.exit(f"Broken: {', '.join(broken)}. Mend it, or move the bound here and say why in CHANGELOG.md.")


if __name__ == "__main__": main()
