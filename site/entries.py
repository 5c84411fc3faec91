"""Entries for Sphinx from Python source: signatures, docstrings, and the comments behind parameters."""
import ast
import copy
import io
import re
import tokenize

FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


def comments(source):
    """`{line: comment}`; one that has a line for itself belongs to the line before it."""
    lines, said, owner = source.splitlines(), {}, 0
    for token in tokenize.generate_tokens(io.StringIO(source + "\n").readline):
        if token.type != tokenize.COMMENT: continue
        line = token.start[0]
        if lines[line - 1].strip() != token.string: owner = line
        text = token.string.lstrip("#").strip()
        said[owner] = f"{said[owner]} {text}" if owner in said else text
    return said


def has(node, name):
    """Whether a definition is decorated by `name`, called or not."""
    return any(re.split(r"[(.]", ast.unparse(d))[0] == name for d in node.decorator_list)


def is_public(name):
    """Whether what has this name gets an entry."""
    return name == "__call__" or not name.startswith("_")


def parameters(function, bound):
    """`(name, annotation, default, node)` of each parameter; without the first one where that is bound."""
    a = function.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    rows = [("", p, d) for p, d in zip(plain, defaults)][bound:]
    rows += [("*", a.vararg, None)] if a.vararg else []
    rows += [("", p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    rows += [("**", a.kwarg, None)] if a.kwarg else []
    return [(stars + p.arg, p.annotation, d, d or p) for stars, p, d in rows]


def fields(node):
    """The same of the fields of a dataclass or a named tuple."""
    found = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [(n.target.id, n.annotation, n.value, n) for n in found if is_public(n.target.id)]


def in_short(function, bound):
    """The parameters of a function with their defaults only."""
    a = copy.deepcopy(function.args)
    first = a.posonlyargs or a.args
    if bound and first: first.pop(0)
    for p in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]:
        if p: p.annotation = None
    a.defaults = a.defaults[-len(a.posonlyargs + a.args):] if a.posonlyargs + a.args else []
    return ast.unparse(a)


def escape(text):
    """Plain text with code in backticks, as markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else re.sub(r"([\\*_$<\[\]#~])", r"\\\1", p) for i, p in enumerate(parts))


def table(rows, returns, said):
    """The table *parameter | meaning*, one row a line of source; '' if no comment stands there."""
    lines = {}
    for name, annotation, default, node in rows:
        typed = f": {ast.unparse(annotation)}" if annotation else ""
        preset = f" = {ast.unparse(default)}" if default else ""
        lines.setdefault(node.end_lineno, []).append(f"`{name}{typed}{preset}`")
    if returns and not (lines and ast.unparse(returns) == "None"):
        lines.setdefault(returns.end_lineno, []).append(f"`-> {ast.unparse(returns)}`")
    if not any(line in said for line in lines): return ""
    cells = [(" ".join(names), escape(said.get(line, ""))) for line, names in sorted(lines.items())]
    body = [f"| {a} | {b} |" for a, b in ((x.replace("|", r"\|"), y.replace("|", r"\|")) for x, y in cells)]
    return "\n".join(["| parameter | meaning |", "|---|---|", *body])


def directive(kind, head, parts, colons):
    """A directive of Sphinx's Python domain."""
    return "\n\n".join([f"{colons}{{py:{kind}}} {head}", *filter(None, parts), colons])


def function_entry(node, said, inside=False):
    """The entry of a function or a method, added by `patch` or not; '' if there is nothing to say."""
    patched = has(node, "patch") or has(node, "patch_property")
    bound = patched or inside and not has(node, "staticmethod")
    doc = escape(ast.get_docstring(node) or "")
    meanings = table(parameters(node, bound), node.returns, said)
    if inside and not doc and not meanings: return ""
    owner = ast.unparse(node.args.args[0].annotation).strip("'\"") + "." if patched else ""
    if has(node, "property") or has(node, "patch_property"):
        return directive("property", owner + node.name, [doc, meanings], ":::")
    kind = "method" if patched or inside else "function"
    return directive(kind, f"{owner}{node.name}({in_short(node, bound)})", [doc, meanings], ":::")


def class_entry(node, said):
    """The entry of a class, with those of its methods."""
    methods = [n for n in node.body if isinstance(n, FUNCTIONS)]
    init = next((m for m in methods if m.name == "__init__"), None)
    rows = parameters(init, True) if init else fields(node)
    inits = [name + (f"={ast.unparse(default)}" if default else "") for name, _, default, _ in rows]
    bases = ", ".join(f"`{ast.unparse(b)}`" for b in node.bases)
    parts = [escape(ast.get_docstring(node) or ""), table(rows, None, said), bases and f"Extends {bases}."]
    parts += [function_entry(m, said, inside=True) for m in methods if is_public(m.name)]
    head = f"{node.name}({in_short(init, True) if init else ', '.join(inits)})"
    return directive("class", head, parts, "::::")


def constants(node):
    """The names in capitals that a statement gives values to."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [t.id for t in targets if isinstance(t, ast.Name) and re.fullmatch("[A-Z][A-Z_]*", t.id)]


def entries(source):
    """`(name, first line of the docstring, entry)` of each public definition of an exported cell."""
    said, found = comments(source), []
    for node in ast.parse(source).body:
        found += [(name, "", directive("data", name, [], ":::")) for name in constants(node)]
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or not is_public(node.name): continue
        entry = class_entry(node, said) if isinstance(node, ast.ClassDef) else function_entry(node, said)
        head = re.match(r":+\{py:\w+\} ([\w.]+)", entry)[1]
        found.append((head, (ast.get_docstring(node) or "").partition("\n")[0], entry))
    return found
