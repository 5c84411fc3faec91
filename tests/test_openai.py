"""OpenAI's checkpoints: their networks a second time, full size, files of strangers, and the command line."""

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import openai_reference as theirs  # noqa: E402

from disback import stages  # noqa: E402
from disback.cli import main  # noqa: E402
from disback.edm import EDMNetwork  # noqa: E402
from disback.files import check_weights  # noqa: E402
from disback.folders import RunFolder, load_path  # noqa: E402
from disback.openai import SETTINGS, OpenAIUNet, by_channel, load_openai  # noqa: E402
from disback.openai import our_weights, their_names  # noqa: E402

SIDE = dict(side=8, channels=128, mult=(1, 2), blocks=1, attention=(4,))
TINY = dict(img_resolution=8, model_channels=128, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
FULL = json.loads((Path(__file__).parent / "edm_reference/state_shapes.json").read_text())
# a file's name, what of its network differs from `SIDE`, and how it is asked
DEEP = dict(scale_shift=False, mult=(1, 1, 2), blocks=2, side=16, attention=(8, 4))
KINDS = dict(
    edm=("edm_imagenet64_ema", dict(classes=5), theirs.edm),
    added=("edm_bedroom256_ema", dict(scale_shift=False), theirs.edm),
    deep=("edm_cat256_ema", DEEP, theirs.edm),
    consistency=("cd_imagenet64_lpips", dict(classes=5), theirs.consistency),
    adm=("64x64_diffusion", dict(classes=5, out=6, flat=True), None),
    legacy=("lsun_bedroom", dict(out=6, flat=True, legacy=True), None),
)


def written(folder, name, dtype=torch.float, **facts):
    """A file with random weights -> it, the second writing, its weights, and what is to be said of it."""
    made = theirs.Reference(**SIDE | facts)
    w, facts = made.weights(dtype=dtype), SIDE | facts
    torch.save(w, folder / f"{name}.pt")
    said = TINY | dict(
        img_resolution=facts["side"], channel_mult=[*facts["mult"]], num_blocks=facts["blocks"]
    )
    said |= dict(attn_resolutions=[*facts["attention"]], n_classes=made.classes, adaptive=made.scale_shift)
    return folder / f"{name}.pt", made, w, said | dict(legacy=made.legacy)


@pytest.mark.parametrize("which", KINDS)
@torch.no_grad()
def test_the_same_answers(which, tmp_path):
    name, facts, ask = KINDS[which]
    file, made, w, said = written(tmp_path, name, **facts)
    net, f = load_openai(file, **said), lambda *x: made(w, *x)
    assert not net.training
    x = torch.randn(4, *net.shape, generator=torch.Generator().manual_seed(1))
    y, sigma = torch.tensor([0, 4, 2, 2]) if made.classes else None, torch.tensor([0.002, 0.1, 1.0, 80.0])
    if ask is None:
        steps = torch.tensor([0, 10, 500, 990])
        bar = theirs.alphas_bar(name == "64x64_diffusion")[steps]
        sigma = ((1 - bar) / bar).sqrt().float()
        torch.testing.assert_close(net.coefficients(sigma)[3], steps.float(), rtol=0, atol=2e-3)  # rounding
        sigma = net.log_sigmas[steps].exp()
    v = (1 + sigma**2).sqrt()[:, None, None, None]
    wanted = ask(f, v * x, sigma, y) if ask else theirs.adm(f, x, steps, name == "64x64_diffusion", y)
    assert ((net(v * x, sigma, y) - wanted) / v).abs().max() < 1e-5
    if which == "consistency":
        assert torch.equal(net(x, 0.002, y), x)


def test_half_precision_becomes_single(tmp_path):
    file, _, w, said = written(tmp_path, "edm_imagenet64_ema", torch.half, classes=5)
    net = load_openai(file, **said)
    assert {v.dtype for v in net.state_dict().values()} == {torch.float32}
    assert torch.equal(net.unet.out_conv.weight, w["out.2.weight"].float())


@pytest.mark.parametrize("name", SETTINGS)
def test_published_sizes(name):
    """Every tensor of the full-size file has its place, and no other has; nothing takes memory."""
    made, settings = theirs.Reference(**theirs.PUBLISHED[name]), dict(SETTINGS[name])
    legacy, kind = settings.pop("legacy", False), settings.pop("kind", "edm")
    assert legacy == made.legacy
    with torch.device("meta"):
        net = OpenAIUNet(kind, **settings)
        weights = {k: torch.empty(s, dtype=torch.half) for k, s in made.shapes.items()}
        side = theirs.PUBLISHED[name]["side"]
        assert made(
            {k: v.float() for k, v in weights.items()},
            torch.empty(1, 3, side, side),
            torch.ones(1),
            torch.zeros(1).long(),
        ).shape == (1, 6 if settings.get("learned_variance") else 3, side, side)
        found = our_weights(net.unet, weights, legacy)
    own = {k: v for k, v in net.unet.state_dict().items() if "resample_filter" not in k}
    check_weights(own, found)
    assert len(found) == len(weights) == len({*their_names(net.unet).values()})
    n = sum(v.numel() for v in weights.values())
    if name == "imagenet64":
        assert n == FULL["imagenet-64x64-cond-adm"]["parameters"]
    assert n == sum(p.numel() for p in net.parameters())


def test_orders_of_attention_differ():
    rows = torch.arange(384)
    assert not torch.equal(by_channel(rows), by_channel(rows, legacy=True))
    assert by_channel(rows)[:3].tolist() == [0, 128, 256]
    assert by_channel(rows, legacy=True)[:3].tolist() == [0, 64, 128]


# Files of strangers


class Evil:
    def __reduce__(self):
        return exec, (f"open({str(self.trace)!r}, 'w')",)


def evil(file, trace):
    """A zip as `torch.save` writes it, whose pickle is a program."""
    Evil.trace, saved = trace, io.BytesIO()
    torch.save({"input_blocks.0.0.weight": torch.zeros(1)}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, pickle.dumps(Evil()) if entry.endswith("data.pkl") else old.read(entry))


def refusal(file, *args, **options):
    with pytest.raises(ValueError) as caught:
        load_openai(file, *args, **options)
    said = str(caught.value)
    assert "\n" not in said and said.isprintable() and len(said) < 500 and file.name in said
    return said


def test_other_files_get_a_sentence(tmp_path):
    file, _, w, said = written(tmp_path, "edm_imagenet64_ema", classes=5)

    def changed(**odd):
        torch.save({k: v for k, v in (w | odd).items() if v is not None}, file)

    for odd, words in [
        ({"out.2.bias": None}, "out.2.bias is absent there and (3,) in the network"),
        ({"out.9.bias": torch.zeros(3)}, "out.9.bias is (3,) there and absent"),
        ({"label_emb.weight": torch.zeros(7, 512)}, "label_emb.weight is (7, 512) there and (5, 512)"),
        ({"out.2.bias": torch.zeros(3).char()}, "(3,) of torch.int8 there"),
        ({"middle_block.1.qkv.weight": torch.zeros(768, 256)}, "middle_block.1.qkv.weight is (768, 256)"),
    ]:
        changed(**odd)
        assert words in refusal(file, **said)
    changed()
    assert "do not fit the network" in refusal(file, **said | dict(num_blocks=2))
    assert "unknown argument 'channels'" in refusal(file, **said | dict(channels=3))
    assert "do not describe a network" in refusal(file, **said | dict(img_resolution=9))
    whole = file.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:100], b"", b"text"):
        file.write_bytes(part)
        assert "does not hold weights by name" in refusal(file, **said)
    evil(file, tmp_path / "trace")
    assert "nothing in it was run" in refusal(file, **said)
    assert not (tmp_path / "trace").exists()
    net = EDMNetwork(img_resolution=8, img_channels=3, model_channels=128, channel_mult=[1], num_blocks=1)
    torch.save(net.state_dict(), file)
    assert "do not fit the network" in refusal(file, **said)


# The command line


@pytest.fixture
def quick(monkeypatch):
    """No node is sampled for a figure, which would take most of the time."""
    monkeypatch.setattr(stages, "path_figure", lambda *_: None)


def disback(*args):
    main([str(a) for a in args])


def refused(capfd, *args):
    with pytest.raises(SystemExit):
        disback(*args)
    return capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("which", ["edm", "consistency", pytest.param("legacy", marks=pytest.mark.slow)])
def test_from_a_file_to_samples(which, tmp_path, capfd, quick):
    name, facts, _ = KINDS[which]
    file, _, _, said = written(tmp_path, name, **facts)
    network = dict(edm="imagenet64", consistency="imagenet64", legacy="lsun256_adm")[which]
    said = json.dumps(dict(openai=network) | said)
    disback("import", file, "--network", said, "--out", tmp_path / "teacher")
    words = capfd.readouterr().out
    assert ("as its name says" in words) == (which != "legacy") and "OpenAIUNet" in words
    teacher = RunFolder(tmp_path / "teacher").network("teacher")
    assert teacher.config["kind"] == dict(edm="edm", consistency="consistency", legacy="vp")[which]
    if which == "consistency":
        return
    levels = ["--noise", "steps"] if which == "legacy" else []
    short = ["--batch", 2, *levels]
    disback(
        "degrade",
        "--teacher",
        tmp_path / "teacher",
        "--out",
        tmp_path / "path",
        "--n-steps",
        2,
        "--nodes",
        2,
        *short,
    )
    assert len(load_path(tmp_path / "path")) == 2
    disback(
        "backtrack",
        "--path",
        tmp_path / "path",
        "--out",
        tmp_path / "student",
        "--n-steps",
        2,
        "--eval-n",
        2,
        *short,
    )
    disback("sample", "--run", tmp_path / "student", "--n", 5, "--out", tmp_path / "samples")
    assert [*(tmp_path / "samples").iterdir()]
    if levels:
        return
    bad = (
        "degrade",
        "--teacher",
        tmp_path / "teacher",
        "--out",
        tmp_path / "x",
        "--n-steps",
        2,
        "--noise",
        "steps",
    )
    assert "OpenAIUNet has none: leave it out" in refused(capfd, *bad)


def test_the_command_says_what_is_wrong(tmp_path, capfd):
    file, _, _, said = written(tmp_path, "mine", classes=5)
    bring = lambda *more: refused(capfd, "import", file, "--out", tmp_path / "x", *more)
    assert "say which it is" in bring("--network", "openai:imagenet64")
    assert "unknown network of OpenAI 'imagenet32'" in bring("--network", "openai:imagenet32")
    assert "there and" in bring("--network", "openai:imagenet64", "--kind", "edm")
    assert "multiple values" in bring("--network", '{"openai": "imagenet64", "kind": "edm"}')
    assert "expected one of vp" in bring("--network", "openai:imagenet64_adm", "--kind", "edm")
    file = file.rename(tmp_path / "lsun_cat.pt")
    assert "input_blocks.0.0.bias is (128,) there and (256,) in the network" in bring()
    assert "input_blocks.0.0.bias is (128,) there" in bring("--network", '{"model_channels": 8}')
    assert not (tmp_path / "x").exists()


def test_networks_of_kinds_answer_outside_their_notebook():
    diffusers = pytest.importorskip("diffusers")
    from disback.pipelines import DiffusersUNet

    tiny = dict(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1)
    tiny |= dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    x = torch.zeros(1, 3, 8, 8)
    for kind in ("vp", "edm", "consistency"):
        net = DiffusersUNet(kind, unet=diffusers.UNet2DModel(**tiny))
        assert net(x, 1.0).shape == x.shape and net.weight(torch.ones(1)) > 0
