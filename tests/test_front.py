"""What somebody meets first: one import, a name that is misspelt, help at the cursor."""
import ast
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

import disback
from disback.cli import main, parse
from disback.options import CHAIN, COMMANDS, EXAMPLES, Compute

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
# What stands behind an argument in the source: of a class, a dataclass, a function and a method
MEANINGS = {
    "Backtracking": "path: one that holds the teacher alone makes this plain Diff-Instruct",
    "Ramp": "share: reach the teacher after this share of the run at the latest; 0: at once",
    "ring_mixture": "radius: distance of their means from the origin, data units",
    "DegradationPath.denoiser": "i: which node; between two of them, say 1.5, their weights are mixed",
}


def python(code):
    """What a fresh interpreter prints when it runs `code`."""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_torch_alone_until_a_name_is_asked_for():
    assert python("import sys, disback; print([*{'torch', 'numpy'} & {*sys.modules}], dir(disback))") == (
        f"[] {sorted([*disback.__all__, '__version__'])}\n"
    )


def test_names_are_those_of_their_modules():
    for name in disback.__all__:
        home = sys.modules[getattr(disback, name).__module__]
        assert getattr(home, name) is getattr(disback, name)
    assert disback.plots is sys.modules["disback.plots"]


def test_a_misspelt_name_is_answered_with_the_nearest_one():
    for wrong, right in {"Backtraking": "Backtracking", "plot": "plots"}.items():
        with pytest.raises(AttributeError, match=f"no attribute '{wrong}'; the nearest is '{right}'"):
            getattr(disback, wrong)
    with pytest.raises(AttributeError, match="other names are in its modules, such as disback.plots"):
        disback.qqq
    with pytest.raises(AttributeError, match="say `from disback.samplers import heun_step`"):
        disback.heun_step


def test_what_type_checkers_read_is_what_is_imported():
    """The stub has no `__getattr__`, so that no misspelt name passes."""
    tree = ast.parse((ROOT / "disback" / "__init__.pyi").read_text())
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert all(a.asname == a.name for n in imports for a in n.names)    # else it is not handed on
    homes = {a.name: n.module for n in imports for a in n.names if n.module}
    assert homes == {n: home for home, names in disback._HOMES.items() for n in names.split()}
    assert sorted(homes) == sorted(disback.__all__)
    (names,) = [n.value for n in tree.body if isinstance(n, ast.Assign)]
    assert ast.literal_eval(names) == disback.__all__
    modules = {m.name for m in pkgutil.iter_modules(disback.__path__) if not m.name.startswith("_")}
    assert {a.name for n in imports if not n.module for a in n.names} == modules
    assert not modules & {*disback.__all__} and not [n for n in tree.body if isinstance(n, ast.FunctionDef)]


def test_help_says_what_each_argument_means():
    names = ", ".join(f"db.{name}" for name in MEANINGS)
    said = python(f"import disback as db\nfor f in ({names}): help(f)")
    assert not [text for text in MEANINGS.values() if text not in said]


def test_help_at_the_cursor_says_what_each_argument_means():
    manager, client = start_new_kernel(env=ENV, kernel_name="python3")
    try:
        client.execute_interactive("import disback as db", timeout=60)
        for name, meaning in MEANINGS.items():
            code = f"db.{name}("
            content = client.inspect(code, len(code), detail_level=0, reply=True, timeout=60)["content"]
            assert content["found"] and meaning in content["data"]["text/plain"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def said_by(capsys, *args):
    """What a command prints that ends well."""
    try:
        main([*args])
    except SystemExit as end:
        assert not end.code, capsys.readouterr().err
    return capsys.readouterr().out


def test_help_names_each_command_in_a_group_and_the_chain(capsys):
    said = said_by(capsys, "--help")
    assert [*dict.fromkeys(re.findall("^  ([a-z]+)  ", said, re.M))][: len(COMMANDS)] == [*COMMANDS]
    assert "\n  ".join(CHAIN) in said and len(said.splitlines()) < 60
    assert said == said_by(capsys, "-h")


def test_help_of_a_command_shows_every_option_and_no_none(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for command, cls in COMMANDS.items():
        said = said_by(capsys, command, "--help")
        names = {f.name for f in fields(cls) if f.name != "compute" and "Positional" not in str(f.type)}
        names |= {f.name for f in fields(Compute)} if "compute" in {f.name for f in fields(cls)} else set()
        shown = {name.replace("-", "_") for name in re.findall("^  --([a-z0-9-]+)", said, re.M)}
        assert shown == names, command
        assert "None" not in said and max(map(len, said.splitlines())) <= 100, command
        assert said.endswith("\n  ".join(["examples:", *EXAMPLES[command]]) + "\n")


def test_help_is_soon_there():
    code = "import sys; from disback.cli import main\ntry: main(sys.argv[1:])\nfinally: print([*sys.modules])"
    for typed in (["--help"], ["backtrack", "--help"]):
        call = [sys.executable, "-c", code, *typed]
        done = subprocess.run(call, env=ENV, capture_output=True, text=True, timeout=60)
        loaded = done.stdout.splitlines()[-1]
        assert "'disback.cli'" in loaded and "'torch'" not in loaded


def test_every_example_of_help_is_understood():
    for command, lines in EXAMPLES.items():
        for line in lines:
            program, first, *typed = shlex.split(line)
            assert (program, first, parse(command, typed)[0].name) == ("disback", command, command)


def test_the_chain_of_help_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in CHAIN:
        typed = shlex.split(line)[1:]
        said_by(capsys, *typed, *(["--n-steps", "4"] if "--out" in typed else ["--n", "20"]))
    assert (tmp_path / "runs/student/evaluation.json").exists()
    said = said_by(capsys, *shlex.split(EXAMPLES["backtrack"][1])[1:])
    assert "dry run" in said and not (tmp_path / "runs/dmd").exists()


def test_the_shell_completes_commands(capsys, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "completion").write_text(said_by(capsys, "--tyro-print-completion", "bash"))
    code = "source completion; COMP_WORDS=(disback degr); COMP_CWORD=1; _tyro_disback; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["degrade"], done.stderr


def test_progress_in_a_file_is_whole_lines_that_go_on_where_a_run_stands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("disback.runs.PAUSE", 0)

    def said(*more, shown="1"):
        monkeypatch.setenv("DISBACK_PROGRESS", shown)
        main(["pretrain", "--data", "ring", "--n-steps", "40", "--out", "teacher", *more])
        return capsys.readouterr().err

    whole = said()
    assert "\r" not in whole and len(whole.splitlines()) == 10
    assert whole.splitlines()[0].startswith("teacher: 4 of 40 (10 %), ")
    assert said("--out", "silent", shown="0") == ""
    with monkeypatch.context() as broken:
        broken.setattr("disback.runs.Run.changes", lambda run: 1 / (run.step < 21))
        with pytest.raises(ZeroDivisionError): said("--out", "resumed")
    assert "teacher: 20 of 40" in capsys.readouterr().err
    assert said("--out", "resumed", "--resume").startswith("teacher: 24 of 40 (60 %), ")