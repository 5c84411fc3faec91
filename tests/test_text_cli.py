"""The command line from a pipeline to a pipeline: import, degrade, backtrack, sample, export, on a tiny
random Stable Diffusion and, with the same option, on a network of points; nothing is downloaded."""

import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from matplotlib.figure import Figure
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent))
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
tiny_pipelines = importlib.import_module("tiny_pipelines")

from disback import recipes, stages  # noqa: E402
from disback.adapters import name_of  # noqa: E402
from disback.cli import main  # noqa: E402
from disback.evaluation import Draw, load_clip  # noqa: E402
from disback.files import file_digest, load_state  # noqa: E402
from disback.folders import RunFolder, load_path, load_teacher  # noqa: E402
from disback.widgets import Gallery, PathStepper  # noqa: E402

RECORDED = ["--batch", 2, "--none", 0.1, "--noise", "steps"]
RECORD = ["--n-steps", 4, "--nodes", 3, *RECORDED]
RECORD_FEW = ["--n-steps", 1, "--nodes", 2, *RECORDED]
WALKED = ["--batch", 2, "--eval-n", 2, "--guidance", 7.5, "--none", 0.1]
WALKED += ["--clip", 10, "--warm-up", 2, "--noise", "steps"]
WALK = ["--n-steps", 6, "--eval-every", 3, *WALKED]
WALK_FEW = ["--n-steps", 2, "--eval-every", 2, *WALKED]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Figures are not drawn, and nodes not sampled for them, which would take most of the time."""
    diffusers.utils.logging.set_verbosity_error()
    with pytest.MonkeyPatch.context() as patch:
        write = lambda self, file, **options: Path(file).write_bytes(b"figure")  # noqa: E731
        patch.setattr(matplotlib.figure.Figure, "savefig", write)
        patch.setattr(stages, "path_figure", lambda *_: None)
        yield


def disback(*args):
    main([str(a) for a in args])


def refused(capfd, *args):
    """The sentence with which a command ends."""
    with pytest.raises(SystemExit):
        disback(*args)
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("disback: ")
    return said


def killed(file, *args):
    """Do a command in a process of its own, killed when a file is there."""
    if (pid := os.fork()) == 0:
        disback(*args)
        os._exit(0)
    while not file.exists() and not os.waitpid(pid, os.WNOHANG)[0]:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder of a pipeline, and those of its import and both stages, the second killed and resumed."""
    tmp = tmp_path_factory.mktemp("text")
    tiny_pipelines.sd().save_pretrained(tmp / "sd")
    (tmp / "prompts.txt").write_text("a dog\na cat on a mat\n")
    disback("import", tmp / "sd", "--prompts", tmp / "prompts.txt", "--out", tmp / "T")
    disback(
        "degrade",
        "--teacher",
        tmp / "T",
        "--lora",
        4,
        "--timestep",
        399,
        "--unit",
        *RECORD,
        "--out",
        tmp / "P",
    )
    walk = ["backtrack", "--path", tmp / "P", *WALK, "--checkpoint"]
    killed(tmp / "S" / "checkpoint.safetensors", *walk, "--out", tmp / "S")
    assert not (tmp / "S" / "result.json").exists()
    disback(*walk, "--out", tmp / "S", "--resume")
    disback(*walk, "--out", tmp / "whole")
    return tmp


def keys(file):
    with safe_open(file, "pt") as f:
        return [*f.keys()]


def test_killed_and_resumed_is_the_same(chain):
    ours, theirs = [file_digest(chain / name / "student.safetensors") for name in ("S", "whole")]
    assert ours == theirs


def test_files_hold_corrections_and_the_base_stays(chain):
    base = load_teacher(chain / "T")
    original = diffusers.UNet2DConditionModel.from_pretrained(chain / "sd" / "unet").state_dict()
    for name, weight in base.net.state_dict().items():
        assert torch.equal(weight, original[name])
    assert (chain / "T" / "teacher.safetensors").stat().st_size < 10_000
    for i in range(3):
        assert all("lora" in key for key in keys(chain / "P" / f"node-{i:03d}.safetensors"))
    student = RunFolder(chain / "S").network("student")
    assert all("lora" in key for key in student.state_dict())
    assert name_of(student.denoiser.base) == name_of(base)
    assert any(low.lora_B.weight.any() for low in student.denoiser.corrections.values())
    assert load_path(chain / "P").network.base is student.denoiser.base
    assert student.unit and student.n_classes.names == ("a dog", "a cat on a mat")


def test_a_dry_run_plans_corrections_of_a_text_to_image_teacher(chain, capsys):
    said = {}
    for name, args in dict(
        degrade=["--teacher", chain / "T", "--lora", 4, "--timestep", 399, "--unit", *RECORD],
        backtrack=["--path", chain / "P", *WALK],
        sample=["--run", chain / "S", "--prompts", "a dog", "--n", 4],
    ).items():
        capsys.readouterr()
        disback(name, *args, "--out", chain / "dry", "--dry-run")
        said[name] = capsys.readouterr().out
    recorded = RunFolder(chain / "P").result["passes"]
    row = next(line.split() for line in said["degrade"].splitlines() if line.startswith("degrade "))
    assert abs(int(row[3].replace(",", "")) / recorded - 1) < 0.3    # of the network, corrections count
    size = RunFolder(chain / "S").network("student").denoiser
    n = sum(p.numel() for p in size.parameters())
    assert f"{n:,} parameters" in said["degrade"] and f"{n:,} parameters" in said["backtrack"]
    assert "sample " in said["sample"] and not (chain / "dry").exists()


def test_new_prompts_are_drawn_as_pictures(chain):
    disback("sample", "--run", chain / "S", "--prompts", "a dog", "a house", "--n", 4, "--out", chain / "X")
    state = load_state(chain / "X" / "samples.safetensors")
    assert state["samples"].shape == (4, 3, 16, 16)
    assert state["prompts"] == ["a dog", "a house"]
    assert state["labels"].tolist() == [0, 0, 1, 1]
    draw = ["--n-steps", 2, "--guidance", 3, "--n", 2]
    disback("sample", "--run", chain / "T", *draw, "--out", chain / "Y")
    assert load_state(chain / "Y" / "samples.safetensors")["prompts"] == ["a dog", "a cat on a mat"]


def test_a_teacher_in_bf16(chain, tmp_path, capfd):
    """Half the memory, for adapters; what it is called stays when it is read again."""
    prompts = chain / "prompts.txt"
    disback("import", chain / "sd", "--prompts", prompts, "--bf16", "--out", tmp_path / "T")
    teacher = load_teacher(tmp_path / "T")
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    record = ["degrade", "--teacher", tmp_path / "T", *RECORD_FEW]
    assert "of half precision" in refused(capfd, *record, "--out", tmp_path / "P")
    disback(*record, "--lora", 4, "--out", tmp_path / "P")
    disback("backtrack", "--path", tmp_path / "P", *WALK_FEW, "--out", tmp_path / "S")
    student = RunFolder(tmp_path / "S").network("student")
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert name_of(student.denoiser.base) == name_of(teacher)


def test_pictures_are_measured(chain, tmp_path, capfd):
    """By CLIP, and, decoded, against the statistics of pictures."""
    tiny_pipelines.clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("a house\n")
    by = ["--n", 4, "--seeds", 0, 1, "--clip", tmp_path / "clip"]
    disback("evaluate", "--run", chain / "S", *by)
    result = json.loads((chain / "S" / "evaluation.json").read_text())["result"]
    folder = RunFolder(chain / "S")
    draw = Draw(folder.network("student"), show=folder.viewer())
    clip, texts = load_clip(tmp_path / "clip"), ["a dog", "a cat on a mat"] * 2
    seen = [clip(draw(4, seed), texts).double().mean().item() for seed in (0, 1)]
    torch.testing.assert_close(result["clip_score"]["per_seed"], seen, rtol=1e-4, atol=1e-4)
    assert result["protocol"]["clip_sha256"] == file_digest(tmp_path / "clip" / "model.safetensors")

    disback("evaluate", "--run", chain / "S", *by, "--prompts", tmp_path / "prompts.txt")
    other = json.loads((chain / "S" / "evaluation.json").read_text())["result"]["clip_score"]
    assert other != result["clip_score"]
    guided = ["evaluate", "--run", chain / "T", "--n-steps", 2, *by]
    disback(*guided, "--guidance", 3)
    assert "a student has learnt" in refused(capfd, "evaluate", "--run", chain / "S", *by, "--guidance", 3)
    assert "does not say what data" in refused(capfd, "evaluate", "--run", chain / "S", "--n", 4)


def test_nodes_are_looked_at_as_pictures(chain):
    gallery = Gallery(chain / "P")
    assert gallery.words.value == ""
    stepper = PathStepper(chain / "P", n=2, n_steps=2, viewer=RunFolder(chain / "P").viewer())
    fig = Figure()
    stepper.plot(fig, 2, 3)
    shown = [ax.images[0].get_array().shape for ax in fig.axes if ax.images]
    assert len(shown) == 3 and all(shape[2] == 3 for shape in shown)


@pytest.mark.parametrize("form", ["pipeline", "unet", "lora"])
def test_an_exported_student_draws_the_same(chain, form):
    out = chain / "exported" / form
    disback("export", "--run", chain / "S", "--form", form, "--out", out)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out if form == "pipeline" else chain / "sd")
    if form == "unet":
        pipeline.unet = diffusers.UNet2DConditionModel.from_pretrained(out / "unet")
    if form == "lora":
        pipeline.load_lora_weights(out)
    pipeline.scheduler = diffusers.LCMScheduler.from_pretrained(out / "scheduler")
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = dict(timesteps=[399], guidance_scale=0, output_type="latent")
    theirs = pipeline("a cat on a mat", latents=z, **call).images
    with torch.no_grad():
        ours = RunFolder(chain / "S").network("student")(z, torch.tensor([1]))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()  # single precision


def test_a_student_starts_as_a_lora(chain):
    disback("export", "--run", chain / "S", "--form", "lora", "--out", chain / "lcm")
    start = chain / "lcm" / "pytorch_lora_weights.safetensors"
    take = ["--teacher", chain / "T", "--lora", 4, "--timestep", 399, *RECORD_FEW]
    disback("degrade", *take, "--start", start, "--out", chain / "P2")
    ours, theirs = [RunFolder(chain / name).network("student").state_dict() for name in ("P2", "S")]
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


SMALL = """
title = "A small painter"
[network]
name = "LatentNetwork"
[network.args]
sample_size = 8
block_out_channels = [32, 64]
layers_per_block = 1
cross_attention_dim = 32
attention_head_dim = 8
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
[compute]
checkpoint = true
[degrade]
nodes = 2
n_steps = 2
batch = 2
lora = 4
timestep = 399
none = 0.1
[backtrack]
n_steps = 2
batch = 2
guidance = 7.5
eval_every = 2
eval_n = 2
[sample]
n = 2
"""


def test_a_recipe_from_its_plan_to_a_student(chain, capfd, monkeypatch):
    (chain / "small.toml").write_text(SMALL)
    recipe = ["--recipe", chain / "small.toml"]
    disback("backtrack", *recipe, "--dry-run")
    said = capfd.readouterr().out
    assert "network      72,832 parameters" in said and "Too little memory" not in said
    monkeypatch.setattr(recipes, "memory_of", lambda device: 10**6)
    disback("run", *recipe, "--dry-run")
    assert "this device has 1 MB: lower --batch" in capfd.readouterr().out
    disback("run", *recipe, "--teacher", chain / "T", "--out", chain / "R")
    assert load_state(chain / "R" / "student-samples" / "samples.safetensors")["prompts"] == [
        "a dog",
        "a cat on a mat",
    ]
    assert json.loads((chain / "R" / "result.json").read_text()) == {}
    assert "name a file" in refused(capfd, "run", *recipe, "--teacher", chain / "sd", "--out", "x")


def test_all_moved_at_once(chain, tmp_path, capfd):
    for name in ("sd", "T", "P", "S"):
        shutil.copytree(chain / name, tmp_path / "all" / name)
    disback("sample", "--run", tmp_path / "all" / "S", "--n", 2)
    named = json.loads((tmp_path / "all" / "P" / "config.json").read_text())["teacher"]
    assert named == "../T"
    (tmp_path / "all" / "sd").rename(tmp_path / "elsewhere")
    assert "is not there any more" in refused(
        capfd, "degrade", "--teacher", tmp_path / "all" / "T", "--out", "x"
    )


def test_what_is_refused(chain, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bring, record = (
        ["import", chain / "sd", "--out", "x"],
        ["degrade", "--teacher", chain / "T", "--out", "x"],
    )
    assert "by --prompts" in refused(capfd, *bring)
    (tmp_path / "none.txt").write_text("\n")
    assert "holds no prompts" in refused(capfd, *bring, "--prompts", "none.txt")
    assert "--lora must be" in refused(capfd, *record, "--lora", 0)
    assert "rank" in refused(capfd, *record, "--lora", 9000)
    assert "give one" in refused(capfd, *record, "--timestep", 399, "--sigma-init", 1)
    assert "step must be" in refused(capfd, *record, "--timestep", 1000)
    lora = chain / "S" / "student.safetensors"
    assert "is of other layers" in refused(capfd, *record, "--lora", 4, "--start", lora)
    assert "say their rank" in refused(capfd, *record, "--start", lora)
    assert "holds a run of `degrade`" in refused(capfd, "export", "--run", chain / "P", "--out", "x")
    assert "a student has learnt" in refused(capfd, "sample", "--run", chain / "S", "--guidance", 2)
    assert not (tmp_path / "x").exists()


def test_points_take_the_same_options(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    disback("pretrain", "--data", "ring", "--n-steps", 3, "--batch", 8, "--out", "T")
    before = file_digest("T/teacher.safetensors")
    disback(
        "degrade", "--teacher", "T", "--lora", 4, "--n-steps", 4, "--nodes", 3, "--batch", 8, "--out", "P"
    )
    walk = ["backtrack", "--path", "P", "--n-steps", 6, "--batch", 8, "--eval-n", 64]
    disback(*walk, "--clip", 1, "--warm-up", 2, "--out", "S")
    disback("sample", "--run", "S", "--n", 8)
    disback("evaluate", "--run", "S", "--n", 64)
    assert file_digest("T/teacher.safetensors") == before
    assert all("lora" in key for key in keys("P/node-002.safetensors"))
    assert load_state("S/samples-0/samples.safetensors")["samples"].shape == (8, 2)
    assert "without one" in refused(capfd, *walk, "--guidance", 2, "--out", "x")
    assert "--none above 0" in refused(capfd, *walk, "--none", 0.1, "--out", "x")
    assert "without prompts" in refused(capfd, "sample", "--run", "S", "--prompts", "a dog")
    assert "time steps" in refused(capfd, "degrade", "--teacher", "T", "--timestep", 3, "--out", "x")
    assert "time steps" in refused(capfd, "degrade", "--teacher", "T", "--noise", "steps", "--out", "x")
    assert "text-to-image" in refused(capfd, "export", "--run", "S", "--out", "x")
    assert "--clip is for text" in refused(capfd, "evaluate", "--run", "S", "--clip", "T")
    said = ["import", "T/teacher.safetensors", "--prompts", "T/config.json", "--out", "x"]
    assert "--prompts, --sigma-data and --bf16 are for" in refused(capfd, *said)
    assert not Path("x").exists()
    Path("T").rename("elsewhere")
    assert "where it was: S/../P/../T holds no run" in refused(capfd, "sample", "--run", "S", "--out", "y")
