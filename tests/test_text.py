"""Text-to-image pipelines against their own arithmetic: whole runs with guidance, empty prompts, and students
that leave as what `diffusers` reads. On tiny random networks; nothing is downloaded."""

import copy
import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
tiny_pipelines = importlib.import_module("tiny_pipelines")

from disback.adapters import Adapted  # noqa: E402
from disback.networks import Guided, OneStep, clone  # noqa: E402
from disback.samplers import euler_step  # noqa: E402
from disback.text import LatentNetwork, decode, encode_prompts, export, load_text_pipeline, start_of  # noqa: E402

TEXTS = ["a dog", "a cat on a mat", ""]
MAKE = dict(eps=tiny_pipelines.sd, v=lambda: tiny_pipelines.sd("v_prediction"), sdxl=tiny_pipelines.sdxl)


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="module", params=MAKE)
def made(request, tmp_path_factory):
    """A pipeline, its folder, and the denoiser read from there."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = MAKE[request.param]()
    pipeline.save_pretrained(folder)
    return pipeline, folder, load_text_pipeline(folder, TEXTS).requires_grad_(False)


def noise(n=1):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def drawn(network, scheduler, z, label, scale):
    """What the pipeline draws: Euler's method in sigma, at the noise levels of the scheduler."""
    levels = [*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod]
    sigmas = [((1 - a) / a).sqrt() for a in levels]
    x = z * (1 + sigmas[0] ** 2).sqrt()
    for here, there in zip(sigmas, sigmas[1:]):
        x = euler_step(Guided(network, scale), x, here, there, torch.full((len(z),), label))
    return x / (1 + sigmas[-1] ** 2).sqrt()


def off(ours, theirs):
    """Largest difference, relative to the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("n_steps", [1, 4, 10])
def test_a_whole_run_is_that_of_the_pipeline(made, n_steps):
    pipeline, _, network = made
    for label, text in enumerate(TEXTS):
        theirs = pipeline(
            text, latents=noise(), num_inference_steps=n_steps, guidance_scale=7.5, output_type="latent"
        ).images
        assert off(drawn(network, pipeline.scheduler, noise(), label, 7.5), theirs) < 1e-4  # single precision


def test_the_empty_prompt_is_the_pipelines_own(made):
    pipeline, _, network = made
    told = pipeline.encode_prompt(
        "a dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    rows = network.prompts([0, -1])
    for name, i in (("text", 0), ("pooled", 2)):
        if name in rows:
            torch.testing.assert_close(rows[name], torch.cat(told[i : i + 2]))
    zeros = "pooled" in rows  # of Stable Diffusion XL
    assert rows["text"][1].any() != zeros
    same = torch.equal(network.prompts([2])["text"], network.prompts([-1])["text"])
    assert same != zeros


def test_an_empty_prompt_of_sdxl_that_is_no_zeros(tmp_path):
    pipeline = tiny_pipelines.sdxl(force_zeros_for_empty_prompt=False)
    pipeline.save_pretrained(tmp_path)
    network = load_text_pipeline(tmp_path, TEXTS)
    theirs = pipeline(
        "a dog", latents=noise(), num_inference_steps=4, guidance_scale=5.0, output_type="latent"
    )
    assert off(drawn(network, pipeline.scheduler, noise(), 0, 5.0), theirs.images) < 1e-4


def test_long_prompts_are_warned_of(made):
    long = "word " * 60
    with pytest.warns(UserWarning, match=r"2 of 3 prompts are cut at 77 tokens.*\(242 tokens\)"):
        encode_prompts(made[1], [long, "short", long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompts(made[1], TEXTS)


def test_copies_share_the_prompts_and_nothing_else(made):
    network = made[2]
    other = clone(network)
    assert other.prompts is network.prompts is copy.deepcopy(network).prompts
    assert not any("prompt" in key for key in network.state_dict())
    assert other.net.conv_in.weight.data_ptr() != network.net.conv_in.weight.data_ptr()
    assert OneStep(network).n_classes.names == tuple(TEXTS)


def test_half_precision_files_alone(made, tmp_path):
    pipeline, folder, network = made
    copy.deepcopy(pipeline).to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert not [*tmp_path.rglob("diffusion_pytorch_model.safetensors"), *tmp_path.rglob("model.safetensors")]
    for dtype, bound in ((torch.float32, 0.01), (torch.bfloat16, 0.1)):  # numbers of 11 and 8 bits
        read = load_text_pipeline(tmp_path, TEXTS, dtype=dtype).requires_grad_(False)
        out = read(noise(3), 2.0, [0, 1, 2])
        assert out.dtype == torch.float32
        assert off(out, network(noise(3), 2.0, [0, 1, 2])) < bound
    assert decode(noise(), tmp_path).shape == (1, 3, 16, 16)
    student = OneStep(read.float(), network.sigma_of_step(399))
    exported = export(student, tmp_path / "out", tmp_path)
    diffusers.DiffusionPipeline.from_pretrained(exported)


def student_of(network, adapter, unit):
    """A student that starts at step 399; of an adapter, with corrections that do something."""
    if adapter:
        network = Adapted(network, 4, alpha=2.0)
        dice = torch.Generator().manual_seed(5)
        for low in network.corrections.values():
            low.lora_B.weight.data = 0.05 * torch.randn(low.lora_B.weight.shape, generator=dice)
    return OneStep(network, network.sigma_of_step(399), unit=unit)


def pipeline_of(out, form, folder):
    """The pipeline in which an exported student draws."""
    source = out if form == "pipeline" else folder
    pipeline = diffusers.DiffusionPipeline.from_pretrained(source, local_files_only=True)
    if form == "unet":
        pipeline.unet = diffusers.UNet2DConditionModel.from_pretrained(out / "unet", local_files_only=True)
    if form == "lora":
        pipeline.load_lora_weights(out, local_files_only=True)
    pipeline.scheduler = diffusers.LCMScheduler.from_pretrained(out / "scheduler", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_an_exported_student_draws_what_it_drew_here(made, adapter, unit, tmp_path):
    _, folder, network = made
    student = student_of(network, adapter, unit)
    with torch.no_grad():
        ours = student(noise(), torch.tensor([1]))
        plain = student_of(network, False, unit)(noise(), torch.tensor([1]))
    assert adapter == (off(plain, ours) > 1e-3)
    _, step, scale = start_of(student)
    assert (step, abs(scale - 1) < 1e-6) == (399, unit)
    for form in ("pipeline", "unet", "lora")[: 2 + adapter]:
        pipeline = pipeline_of(export(student, tmp_path / form, folder, form), form, folder)
        call = dict(timesteps=[399], guidance_scale=0, output_type="latent")
        assert off(pipeline(TEXTS[1], latents=scale * noise(), **call).images, ours) < 1e-5, form


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("form", ["pipeline", "unet", "lora"])
def test_the_call_in_the_readme_runs_as_it_stands(made, unit, form, tmp_path, monkeypatch):
    _, folder, network = made
    student = student_of(network, form == "lora", unit)
    out = export(student, tmp_path / "out", folder, form)
    code = re.search("```python\n(.*)```", (out / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(out)
    torch.manual_seed(3)
    z = torch.randn(1, 4, 8, 8)
    said = {}
    torch.manual_seed(3)
    exec(code.replace("'PIPELINE'", repr(str(folder))).replace("'a prompt'", repr(TEXTS[0])), said)
    with torch.no_grad():
        picture = decode(student(z, torch.tensor([0])), folder)[0]
    theirs = torch.tensor(np.asarray(said["image"])).movedim(2, 0) / 127.5 - 1
    assert (theirs - picture).abs().max() < 1.01 / 127.5  # a step of 8 bits


def test_a_refused_export_leaves_nothing(made, tmp_path):
    _, folder, network = made
    with pytest.raises(ValueError, match="a pipeline starts at a whole time step"):
        export(OneStep(network, 2.0), tmp_path / "out", folder)
    student = OneStep(network, network.sigma_of_step(399))
    with pytest.raises(ValueError, match="no model_index.json"):
        export(student, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


STRANGE = {
    "of DiT": (tiny_pipelines.dit, "a DiTPipeline, which knows no prompts: ask it by its labels"),
    "unconditional": (
        tiny_pipelines.unconditional,
        "unknown pipeline in .*expected one of StableDiffusionPip",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_pipelines_of_other_kinds_are_refused(name, tmp_path):
    make, said = STRANGE[name]
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        load_text_pipeline(tmp_path, TEXTS)


SD15 = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    attention_head_dim=8,
    block_out_channels=[320, 640, 1280, 1280],
    cross_attention_dim=768,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    layers_per_block=2,
)
SDXL = SD15 | dict(
    sample_size=128,
    attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280],
    cross_attention_dim=2048,
    down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    transformer_layers_per_block=[1, 2, 10],
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    use_linear_projection=True,
    upcast_attention=None,  # as its file has it
    num_attention_heads=None,
)


@pytest.mark.parametrize(
    "config, millions", [(SD15, 859.5), pytest.param(SDXL, 2567.5, marks=pytest.mark.slow)]
)
def test_networks_of_full_size_by_their_shapes(config, millions):
    with torch.device("meta"):
        network = LatentNetwork(**config)
    assert round(sum(p.numel() for p in network.net.parameters()) / 1e6, 1) == millions
    pooled = dict(pooled=(1280,), sizes=(6,)) if config is SDXL else {}
    assert network.needs == dict(text=(None, config["cross_attention_dim"])) | pooled


@pytest.mark.parametrize(
    "file",
    [
        dict(_class_name="PNDMScheduler", skip_prk_steps=True, clip_sample=False, set_alpha_to_one=False),
        dict(_class_name="EulerDiscreteScheduler", interpolation_type="linear", sample_max_value=1.0),
        dict(_class_name="LCMScheduler", original_inference_steps=50),
        dict(_class_name="EDMEulerScheduler"),
        dict(_class_name="FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_schedulers_of_large_pipelines(made, file, tmp_path):
    pipeline, folder, network = made
    pipeline.save_pretrained(tmp_path)
    name = file["_class_name"]
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | dict(scheduler=["diffusers", name])))
    kept = tiny_pipelines.LADDER | dict(prediction_type=network.config["prediction_type"])
    kept = {} if name.startswith(("EDM", "Flow")) else kept
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(kept | file))
    if name.startswith("Flow"):
        assert load_text_pipeline(tmp_path, network.prompts).config["prediction_type"] == "flow_prediction"
    elif not kept:
        with pytest.raises(ValueError, match="expected one of vp, flow"):
            load_text_pipeline(tmp_path, network.prompts)
    else:
        same = load_text_pipeline(tmp_path, network.prompts)
        assert torch.equal(same.log_sigmas, network.log_sigmas)
        assert same.config["prediction_type"] == network.config["prediction_type"]


def test_the_library_needs_none_of_it_until_it_is_asked():
    code = (
        "import sys; sys.modules |= dict(transformers=None, diffusers=None, peft=None)\n"
        "import disback.text as text\n"
        "try: text.build_net('UNet2DConditionModel', {})\n"
        "except ValueError as e: print(e)\n"
        "try: text.of_diffusers('CLIPTokenizer', 'transformers')\n"
        "except ValueError as e: print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = out.strip().split("\n")
    assert len(lines) == 2 and all("pip install 'disback[diffusers]'" in line for line in lines)
