"""The rendered letters, from data to the command line: size and channels stay with a run."""
import hashlib
import json
import re
from pathlib import Path

import matplotlib
import pytest
import torch

TINY = ["--n-steps", "4", "--batch", "8", "--device", "cpu"]


def test_fonts_are_those_of_matplotlib_and_no_others():
    """Bytes are handed to the renderer, never a name that it could look up elsewhere."""
    from disback.data import _GLYPHS, _fonts
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    there = {hashlib.sha256(file.read_bytes()).digest() for file in folder.glob("*.ttf")}
    used = {hashlib.sha256(font).digest() for font in _fonts()}
    assert len(used) == len(_GLYPHS["fonts"]) and used <= there


def test_a_font_that_is_missing_is_named(monkeypatch, tmp_path):
    from disback.data import _fonts
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"own font .*DejaVuSans\.ttf is not there: reinstall matplotlib"):
        _fonts.__wrapped__()


def test_the_fingerprint_is_that_of_fonts_and_drawing(monkeypatch):
    """The same for every size; another for other fonts, other numbers, another version."""
    from disback import data
    known = data.load_data("glyphs", size=8).fingerprint
    same = data.load_data("glyphs", labels=True, size=9, channels=3)
    assert same.fingerprint == known and len(known) == 64
    monkeypatch.setitem(data._GLYPHS, "version", 0)
    assert data.load_data("glyphs", size=8).fingerprint != known
    monkeypatch.undo()
    fonts = [*data._fonts()[:-1], b"another"]
    monkeypatch.setattr(data, "_fonts", lambda: fonts)
    with pytest.raises(ValueError, match="glyphs holds other data than before"):
        data.load_data("glyphs", size=8, fingerprint=known)


def test_no_letter_is_cut_off(monkeypatch):
    """At half the scale, each has a quarter of the ink: none of it lay beyond the edge."""
    from disback import data
    ink = lambda x: (x + 1).sum((1, 2, 3))
    whole = ink(data.glyphs("test", 32)[0])
    monkeypatch.setitem(data._GLYPHS, "scale", tuple(side / 2 for side in data._GLYPHS["scale"]))
    half = ink(data._letters.__wrapped__("test", 32, 1)[0])
    torch.testing.assert_close(4 * half / whole, torch.ones(2600), rtol=0, atol=0.04)    # of smoothing


def test_labels_and_names():
    from disback.data import load_data
    data = load_data("glyphs", labels=True, size=8)
    assert data.n_classes.names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert data.n_classes.counts == (200,) * 26
    x, y = data.sample(64, torch.Generator().manual_seed(0))
    assert x.shape == (64, 1, 8, 8) and y.shape == (64,)
    assert data.held_out(9999).shape == (2600, 1, 8, 8)


def test_a_run_keeps_its_size_and_channels(tmp_path, monkeypatch, capsys):
    """pretrain, resume, check, degrade, backtrack, evaluate and sample, of which only the first is told."""
    from disback.cli import main
    from disback.folders import RunFolder
    monkeypatch.chdir(tmp_path)
    chosen = ["--data", "glyphs", "--size", "8", "--channels", "3", "--labels"]
    first = ["pretrain", *chosen, *TINY, "--out", "T"]
    main(first)
    source = RunFolder("T").source
    assert (source["name"], source["size"], source["channels"]) == ("glyphs", 8, 3)
    teacher = RunFolder("T").network("teacher")
    assert teacher.shape == (3, 8, 8) and teacher.n_classes == 26
    main([*first, "--resume"])
    main(["check", "T", "--device", "cpu", "--n", "64"])
    assert "0: A (200), 1: B (200)" in capsys.readouterr().out
    main(["degrade", "--teacher", "T", *TINY, "--out", "P"])
    main(["backtrack", "--path", "P", *TINY, "--eval-n", "64", "--out", "S"])
    main(["evaluate", "--run", "S", "--n", "64", "--device", "cpu"])
    main(["sample", "--run", "S", "--n", "4", "--out", "D"])
    assert json.loads(Path("S/evaluation.json").read_text())["frechet"] > 0


def test_what_was_not_typed_is_written_down(tmp_path):
    from disback.folders import RunFolder
    from disback.options import Compute, Pretrain
    from disback.stages import pretrain
    pretrain(Pretrain(data="glyphs", out=tmp_path / "T", n_steps=1, batch=2, compute=Compute("cpu")))
    source = RunFolder(tmp_path / "T").source
    assert (source["size"], source["channels"]) == (16, 1)


@pytest.mark.parametrize("typed, said", [
    (["--size", "7"], "size must be a whole number, at least 8 and at most 64, got 7"),
    (["--size", "65"], "at most 64, got 65"),
    (["--channels", "2"], "unknown channels 2: expected one of 1, 3")])
def test_what_cannot_be_is_said_before_there_is_a_folder(tmp_path, capsys, typed, said):
    from disback.cli import main
    out = tmp_path / "x"
    with pytest.raises(SystemExit): main(["pretrain", "--data", "glyphs", *typed, "--out", str(out)])
    assert re.fullmatch(rf"disback: .*{re.escape(said)}.*\n", capsys.readouterr().err)
    assert not out.exists()


def test_which_data_take_the_size_of_a_network():
    from disback.stages import resizable
    taken = [resizable(name) for name in ("glyphs", "some/folder", "digits", "ring")]
    assert taken == [True, True, False, False]
