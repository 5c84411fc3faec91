"""Networks of diffusers that look at prompts or classes, against their own pipelines' arithmetic."""

import json
import warnings

import diffusers
import pytest
import tiny_pipelines
import torch
from torch.testing import assert_close

from disback.networks import Guided, build, describe
from disback.samplers import euler_step
from disback.text import FAMILIES, encode_prompts, load_text_pipeline, read_index

TEXTS = ["a dog", "a cat on a mat"]
NAMES = "dit pixart sd3 flux sana".split()
CALLS = dict(  # how each pipeline is called, guided if it guides
    pixart=dict(guidance_scale=4.5, use_resolution_binning=False, clean_caption=False, height=16, width=16),
    sd3=dict(guidance_scale=7.0, height=16, width=16),
    flux=dict(guidance_scale=3.5, height=16, width=16),
    sana=dict(guidance_scale=4.5, use_resolution_binning=False, height=32, width=32),
)


def latents(n=1):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    """Name, pipeline, folder and denoiser."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    pipeline = getattr(tiny_pipelines, name)()
    pipeline.save_pretrained(folder)
    network = load_text_pipeline(folder, None if name == "dit" else TEXTS, size=8)
    return name, pipeline, folder, network.requires_grad_(False)


def levels(scheduler):
    """Noise levels of a scheduler's steps, down to its end."""
    if hasattr(scheduler, "alphas_cumprod"):
        alphas = [*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod]
        return [((1 - a) / a).sqrt() for a in map(torch.Tensor.double, alphas)]
    t = scheduler.sigmas.double().clamp(max=1 - 1e-6)
    return [*(t / (1 - t))]


@torch.no_grad()
def walk(denoiser, scheduler, z, cond):
    """Euler's method along a scheduler's levels, in its own units at both ends."""
    flow = not hasattr(scheduler, "alphas_cumprod")
    size = lambda sigma: (1 + sigma if flow else (1 + sigma**2).sqrt()).float()
    sigmas = levels(scheduler)
    x = z * size(sigmas[0])
    for here, there in zip(sigmas, sigmas[1:]):
        x = euler_step(denoiser, x, here.float(), there.float(), cond)
    return x / size(sigmas[-1])


@torch.no_grad()
def drawn(name, pipeline, z, n):
    """What a pipeline itself draws from some noise, as latents."""
    if name != "dit":
        start = z if name != "flux" else pipeline._pack_latents(z, 1, 4, 8, 8)
        options = CALLS[name] | dict(num_inference_steps=n, output_type="latent", latents=start)
        made = pipeline(TEXTS[1], **options).images
        return made if name != "flux" else pipeline._unpack_latents(made, 16, 16, 2)
    seen, whole = [], pipeline.vae.decode
    with pytest.MonkeyPatch.context() as patch:  # it always decodes, and draws its noise itself
        patch.setattr(pipeline.vae, "decode", lambda x: (seen.append(x), whole(x))[1])
        patch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *_, **__: z)
        pipeline([1], guidance_scale=4.0, num_inference_steps=n, output_type="np")
    return seen[0] * pipeline.vae.config.scaling_factor


@pytest.mark.parametrize("n", [1, 4, 10])
def test_a_walk_is_the_pipelines_own(family, n):
    name, pipeline, _, network = family
    theirs = drawn(name, pipeline, z := latents(), n)
    scale = dict(CALLS[name]).get("guidance_scale") if name != "dit" else 4.0
    denoiser = network if name == "flux" else Guided(network, scale)
    ours = walk(denoiser, pipeline.scheduler, z, torch.tensor([1]))
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_prompts_matter_and_the_empty_one_is_there(family):
    *_, network = family
    x = latents(3)
    with torch.no_grad():
        told = network(x, 2.0, torch.tensor([1, 0, -1]))
        assert (told[1:] - network(x, 2.0, torch.tensor([1, 1, 1]))[1:]).abs().amax((1, 2, 3)).min() > 1e-5
        assert_close(told[2:], network(x, 2.0)[2:])


def test_a_description_makes_it_again(family, tmp_path):
    *_, network = family
    network.prompts.save(tmp_path / "prompts.safetensors")
    network.use_prompts(network.prompts)
    again = build(json.loads(json.dumps(describe(network)))).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        labels = torch.tensor([1, -1])
        assert torch.equal(again(latents(2), 2.0, labels), network(latents(2), 2.0, labels))


def test_training_leaves_no_labels_out(family):
    *_, network = family
    with torch.no_grad():
        network.train()
        many = torch.ones(64, dtype=torch.long)
        x = latents().expand(64, 4, 8, 8)
        assert_close(network(x, 2.0, many), network.eval()(x, 2.0, many))


def test_gradients_reach_every_parameter_that_matters(family):
    *_, network = family
    network.requires_grad_()
    network(latents(2), 2.0, torch.tensor([0, 1])).square().sum().backward()
    found = [p.grad is not None and bool(p.grad.any()) for p in network.parameters()]
    network.requires_grad_(False).zero_grad()
    assert sum(found) > 0.7 * len(found)


def test_the_old_class_is_read(tmp_path):
    """Official folders of DiT and PixArt name a class that is no more."""
    for name, norm in dict(dit="ada_norm_zero", pixart="ada_norm_single").items():
        folder = tmp_path / name
        getattr(tiny_pipelines, name)().save_pretrained(folder)
        file, index = folder / "transformer/config.json", folder / "model_index.json"
        config = json.loads(file.read_text()) | dict(_class_name="Transformer2DModel", norm_type=norm)
        new = load_text_pipeline(folder, None if name == "dit" else TEXTS)
        old = dict(num_vector_embeds=None, only_cross_attention=False, use_linear_projection=False)
        file.write_text(json.dumps(config | old))
        said = json.loads(index.read_text())
        said["transformer"][1] = "Transformer2DModel"
        index.write_text(json.dumps(said))
        again = load_text_pipeline(folder, new.prompts)
        assert torch.equal(again(latents(), 2.0), new(latents(), 2.0))
        file.write_text(json.dumps(config | old | dict(num_vector_embeds=8)))
        with pytest.raises(ValueError, match="num_vector_embeds is nothing that"):
            load_text_pipeline(folder, new.prompts)
        file.write_text(json.dumps(config | dict(norm_type="layer_norm")))
        with pytest.raises(ValueError, match="unknown norm_type 'layer_norm'"):
            load_text_pipeline(folder, new.prompts)


def test_what_pixart_is_told_at_its_full_size():
    """The size of its picture, as its pipeline tells it at 128 x 128 latents."""
    sizes = dict(sample_size=128, num_attention_heads=3, cross_attention_dim=24)
    net = tiny_pipelines.pixart(**sizes).transformer
    rows = dict(text=torch.randn(1, 3, 32), mask=torch.ones(1, 3, dtype=torch.long))
    told = dict(resolution=torch.tensor([[64.0, 48.0]]), aspect_ratio=torch.tensor([[64.0 / 48]]))
    x, time = torch.randn(1, 4, 8, 6), torch.tensor([300.0])
    ask = FAMILIES["PixArtTransformer2DModel"].ask
    with torch.no_grad():
        ours = ask(net, x, time, **rows)
        theirs = net(x, rows["text"], time, told, encoder_attention_mask=rows["mask"]).sample
        told["aspect_ratio"] += 1
        other = net(x, rows["text"], time, told, encoder_attention_mask=rows["mask"]).sample
    assert torch.equal(ours, theirs) and not torch.equal(ours, other)


def test_classes_are_called_as_the_folder_says(tmp_path):
    pipeline = tiny_pipelines.dit()
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    said = json.loads(index.read_text()) | dict(id2label={"0": "tench, Tinca tinca", "1": "gold\x1bfish"})
    index.write_text(json.dumps(said))
    names = load_text_pipeline(tmp_path).n_classes.names
    assert names[:3] == ("tench, Tinca tinca", "gold\\x1bfish", "2")
    with pytest.raises(ValueError, match="knows no prompts"):
        encode_prompts(tmp_path, TEXTS)


def test_prompts_are_wanted_and_cut_aloud(tmp_path):
    tiny_pipelines.pixart().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="wants prompts"):
        load_text_pipeline(tmp_path)
    with pytest.warns(UserWarning, match="1 of 2 prompts are cut at 120 tokens"):
        encode_prompts(tmp_path, ["a dog", "x" * 200])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompts(tmp_path, ["x" * 100])
    assert read_index(tmp_path)["_class_name"] == "PixArtAlphaPipeline"


def test_flows_need_not_say_more(tmp_path):
    """Steps of a flow are parts of its way: step 400 of 1000 is 40 % noise."""
    network = load_text_pipeline(save(tiny_pipelines.sd3(), tmp_path), TEXTS)
    assert network.sigma_of_step(400) == pytest.approx(2 / 3)
    for step in (0, 1000):
        with pytest.raises(ValueError, match="some noise"):
            network.sigma_of_step(step)
    assert_close(network.weight(torch.tensor(1.0)), torch.tensor(4.0))  # (1 + s)^2 / s^2


def save(pipeline, folder):
    pipeline.save_pretrained(folder)
    return folder


def test_sides_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="size must be multiples of 2"):
        load_text_pipeline(save(tiny_pipelines.flux(), tmp_path), TEXTS, size=7)


def test_schedulers_of_flows(tmp_path):
    """Sana comes with a solver that is told to walk along a flow."""
    pipeline = tiny_pipelines.sana()
    flow = dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler(**flow)
    network = load_text_pipeline(save(pipeline, tmp_path), TEXTS)
    assert network.config["prediction_type"] == "flow_prediction" and network.sigma_max == float("inf")


@pytest.mark.parametrize("name", ["dit", pytest.param("sd3", marks=pytest.mark.slow)])
def test_from_a_folder_to_pictures(name, tmp_path, capfd, monkeypatch):
    """By the command line, full weights and corrections."""
    from disback.cli import main
    from disback.files import load_state

    monkeypatch.chdir(tmp_path)

    def disback(*typed):
        return main(list(map(str, typed)))

    def refused(*typed):
        with pytest.raises(SystemExit):
            disback(*typed)
        return capfd.readouterr().err.splitlines()[-1]

    save(getattr(tiny_pipelines, name)(), tmp_path / "pipe")
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    prompts = ["--prompts", "prompts.txt"]
    given = prompts if name == "sd3" else []
    assert "is asked by" in refused("import", "pipe", *([] if given else prompts), "--out", "x")
    assert not (tmp_path / "x").exists()
    assert not disback("import", "pipe", *given, "--out", "T")
    assert not (tmp_path / "T" / "teacher.safetensors").stat().st_size > 10**6  # weights stay
    short = ["--n-steps", 4, "--batch", 2]
    for more in ([], ["--lora", 2]):
        ways = [f"{stage}{len(more)}" for stage in "PS"]
        assert not disback("degrade", "--teacher", "T", *short, *more, "--noise", "steps", "--out", ways[0])
        guided = ["--guidance", 2, "--eval-n", 2]
        assert not disback("backtrack", "--path", ways[0], *short, *guided, "--out", ways[1])
        assert not disback("sample", "--run", ways[1], "--classes", 0, 1, "--n", 2, "--out", f"{ways[1]}/s")
        assert load_state(f"{ways[1]}/s/samples.safetensors")["samples"].shape == (2, 3, 16, 16)
        assert "network of a student to be exported" in refused("export", "--run", ways[1], "--out", "out")


def test_a_flow_of_pixels_goes_all_the_way(tmp_path, monkeypatch):
    """A U-Net with the scheduler of a flow, through every stage, and measured."""
    from disback.cli import main
    from disback.folders import RunFolder
    from disback.pipelines import DiffusersUNet

    monkeypatch.chdir(tmp_path)
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    sizes = dict(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4)
    DiffusersUNet("flow", layers_per_block=1, **sizes, **blocks).unet.save_pretrained("pipe/unet")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained("pipe/scheduler")
    main(["import", "pipe", "--data", "digits", "--out", "T"])
    teacher = RunFolder("T").network("teacher")
    assert teacher.config["kind"] == "flow" and teacher.sigma_max == float("inf")
    short = ["--n-steps", "4", "--batch", "4"]
    main(["degrade", "--teacher", "T", *short, "--out", "P"])
    main(["backtrack", "--path", "P", *short, "--eval-n", "64", "--out", "S"])
    main(["evaluate", "--run", "S", "--n", "64"])
    assert RunFolder("S").network("student").denoiser.config["prediction_type"] == "flow_prediction"
