"""`disback compare` on a teacher of one's own: its starts, its data, what it says, and going on."""
import csv
import json
import shutil

import pytest

from disback import comparisons
from disback.cli import main

TINY = dict(looks=3, n=60, pool=64, batch=32)
ARMS = ["--arms", "disback:record=4:nodes=2", "diff-instruct", "--seeds", 0, 1]


def disback(*args):
    main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Run folders of points, of digits with classes, and of a network of whose data nothing is known."""
    from disback.edm import edm_network
    from disback.files import save_tensors
    folder = tmp_path_factory.mktemp("teachers")
    disback("pretrain", "--data", "ring", "--n-steps", 200, "--batch", 64, "--out", folder / "ring")
    config = dict(model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1,
                  attn_resolutions=[])
    disback("pretrain", "--data", "digits", "--labels", "--n-steps", 2, "--batch", 16, "--network",
            json.dumps(config), "--out", folder / "digits")
    sizes = dict(img_resolution=8, img_channels=1)
    save_tensors(folder / "weights.safetensors", edm_network(**config, **sizes).state_dict())
    disback("import", folder / "weights.safetensors", "--network", json.dumps(config | sizes), "--out",
            folder / "brought")
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    protocols = {kind: comparisons.Protocol(**TINY) for kind in ("points", "images")}
    monkeypatch.setattr(comparisons, "PROTOCOLS", protocols)


def table(folder):
    with open(folder / "summary.csv", newline="") as f:
        return [*csv.DictReader(f)]


def test_points_from_a_clone_and_from_a_noise_level(teachers, tmp_path, capsys):
    args = ["compare", "--teacher", teachers / "ring", "--starts", "near", 2.5, *ARMS, "--budget", 60,
            "--out", tmp_path / "c"]
    disback(*args, "--jobs", 2)
    said = capsys.readouterr().out
    tasks = ["ring-near", "ring-2.5"]
    assert [row["task"] for row in table(tmp_path / "c")] == [task for task in tasks for _ in range(2)]
    assert {row["baseline"] for row in table(tmp_path / "c")} == {"", "diff-instruct"}
    assert (tmp_path / "c" / "figures" / "comparison.png").is_file()
    result = json.loads((tmp_path / "c" / "result.json").read_text())
    assert result["threshold"] in said and result["threshold"].startswith("threshold ")
    assert "95% of the way from one call of the teacher to its own sampler" in said
    for task in tasks:
        line = next(line for line in result["said"].splitlines() if line.startswith(f"{task}: disback"))
        assert "with 2 seeds there is no interval at 95 %" in line and "at least 6 are needed" in line
        assert line in said
    curves = (tmp_path / "c" / "curves.csv").read_text()
    disback(*args, "--resume")    # every pair is read, under a path that has moved
    assert (capsys.readouterr().out, (tmp_path / "c" / "curves.csv").read_text()) == (said, curves)


def test_a_comparison_goes_on_with_the_same_teacher_wherever_it_lies(teachers, tmp_path, monkeypatch):
    moved = shutil.copytree(teachers / "ring", tmp_path / "moved")
    args = ["--starts", "near", *ARMS[:4], 0, "--budget", 60, "--threshold", 1, "--out", tmp_path / "c"]
    disback("compare", "--teacher", teachers / "ring", *args)
    monkeypatch.setattr(comparisons, "run_arm", lambda *job: pytest.fail("what was kept is not used"))
    disback("compare", "--teacher", moved, *args, "--resume")
    assert {row["task"] for row in table(tmp_path / "c")} == {"moved-near"}


def test_another_teacher_is_another_comparison(teachers, tmp_path, capsys):
    args = ["--starts", "near", *ARMS[:3], "--seeds", 0, "--budget", 60, "--threshold", 1]
    first, second = tmp_path / "a", tmp_path / "b"
    for seed, folder in enumerate((first, second)):
        disback("pretrain", "--data", "ring", "--n-steps", 2, "--batch", 8, "--seed", seed, "--out", folder)
    disback("compare", "--teacher", first, *args, "--out", tmp_path / "c")
    fails(capsys, "started with other options (teacher", "compare", "--teacher", second, *args, "--out",
          tmp_path / "c", "--resume")


def test_images_with_classes(teachers, tmp_path, capsys):
    disback("compare", "--teacher", teachers / "digits", "--starts", "near", "far", "mlp", *ARMS,
            "--budget", 60, "--threshold", 1e6, "--out", tmp_path / "c")
    said = capsys.readouterr().out
    assert "rates of arms that name none: record_lr 0.0001, lr 0.0002, fake_lr 0.0005" in said
    rows = table(tmp_path / "c")
    assert [row["reached"] for row in rows] == ["2"] * 6    # the first look is enough


def test_data_named_again(teachers, tmp_path):
    disback("compare", "--teacher", teachers / "brought", "--data", "digits", "--starts", 2.5, *ARMS[:3],
            "--seeds", 0, "--budget", 60, "--threshold", 5, "--out", tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["source"]["name"] == "digits" and config["source"]["fingerprint"]


def fails(capsys, sentence, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        disback(*args)
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1, err


def test_what_cannot_be_compared_is_said_before_there_is_a_folder(teachers, tmp_path, capsys):
    ring, out = ["--teacher", teachers / "ring"], ["--out", tmp_path / "c"]
    for sentence, args in {
        "give one of them": [*ring, "--tasks", "ring-far"],
        "unknown start: 'fra'": [*ring, "--starts", "fra"],
        "unknown start for data of shape (2,): 'mlp'": [*ring, "--starts", "mlp"],
        "a noise level to start from must be a finite number, above 0": [*ring, "--starts", 0],
        "--starts names at least one": [*ring, "--starts"],
        "--starts is about one's own teacher": ["--starts", "near"],
        "--data is about one's own teacher": ["--data", "ring"],
        "holds no run": ["--teacher", tmp_path],
        "does not say what its data are": ["--teacher", teachers / "brought"],
        "the data have shape (1, 8, 8)": [*ring, "--data", "digits"],
        "unknown arm": [*ring, "--arms", "dizback"],
    }.items():
        fails(capsys, sentence, "compare", *args, *out)
    assert not (tmp_path / "c").exists()
