"""Corrections against those of peft within diffusers: LoRA files go both ways, in every spelling."""

import pytest
import torch
from safetensors.torch import save_file

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from disback.adapters import Adapted, fuse, read_lora, write_lora  # noqa: E402
from disback.networks import clone  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers


class Latents(torch.nn.Module):
    """A text-to-image U-Net as a denoiser, its text always the same."""

    shape, n_classes = (4, 8, 8), None

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, sigma, cond=None):
        return self.net(x, torch.full((len(x),), float(sigma)), TEXT[: len(x)], return_dict=False)[0]

    def checkpointing(self, on):
        (self.net.enable_gradient_checkpointing if on else self.net.disable_gradient_checkpointing)()


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT, X = random(2, 7, 32), random(2, 4, 8, 8, seed=1)


def unet(linear=False):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        use_linear_projection=linear,
    ).eval()


def pipeline(net):
    """A pipeline of this U-Net; what loads a LoRA needs nothing of the rest."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.DDIMScheduler()
    return diffusers.StableDiffusionPipeline(
        unet=net, scheduler=scheduler, requires_safety_checker=False, **parts
    )


def trained(base, rank=4, **options):
    """An adapter that corrects something, as if it were trained."""
    adapted = Adapted(base, rank, **options)
    for i, p in enumerate(adapted.parameters()):
        p.data = 0.2 * random(*p.shape, seed=i)
    return adapted


def loaded(file, net):
    """What the real pipeline computes with a LoRA file."""
    pipe = pipeline(net)
    pipe.load_lora_weights(str(file))
    with torch.no_grad():
        return Latents(pipe.unet)(X, 100.0)


def kohya(adapted, alpha):
    """The file of LCM-LoRA's spelling, with `alpha` as its scale."""
    tensors = {}
    for name, low in adapted.corrections.items():
        name = "lora_unet_" + name.removeprefix("net.").replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = low.lora_A.weight.detach()
        tensors[f"{name}.lora_up.weight"] = low.lora_B.weight.detach()
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_a_written_file_is_loaded_by_the_pipeline(tmp_path, linear):
    adapted = trained(Latents(unet(linear)), alpha=2.0)
    write_lora(adapted, tmp_path / "lora.safetensors")
    with torch.no_grad():
        ours, plain = adapted(X, 100.0), adapted.base(X, 100.0)
    assert (ours - plain).abs().max() > 0.01
    close(loaded(tmp_path / "lora.safetensors", unet(linear)), ours)
    with torch.no_grad():
        close(fuse(adapted)(X, 100.0), ours)


def test_a_file_of_kohyas_names_is_read_as_the_pipeline_reads_it(tmp_path):
    file, base = tmp_path / "lcm.safetensors", Latents(unet())
    save_file(kohya(trained(base), 2.0), file)
    adapted = Adapted(base, 4, alpha=8.0)
    read_lora(file, adapted)
    with torch.no_grad():
        close(loaded(file, unet()), adapted(X, 100.0))


@pytest.mark.parametrize("how", ["header", "beside"])
def test_pefts_own_files_are_read(tmp_path, how):
    adapted = Adapted(Latents(unet()), 4)
    names = [name.removeprefix("net.") for name in adapted.corrections]
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, init_lora_weights=False)
    net = unet()
    if how == "header":
        net.add_adapter(settings)
        layers = peft.get_peft_model_state_dict(net)
        more = dict(unet_lora_adapter_metadata=net.peft_config["default"].to_dict())
        diffusers.StableDiffusionPipeline.save_lora_weights(str(tmp_path), unet_lora_layers=layers, **more)
        file = tmp_path / "pytorch_lora_weights.safetensors"
    else:
        peft.get_peft_model(net, settings).save_pretrained(str(tmp_path))
        file = tmp_path / "adapter_model.safetensors"
    read_lora(file, adapted)
    with torch.no_grad():
        expected = Latents(net)(X, 100.0)
        assert (expected - adapted.base(X, 100.0)).abs().max() > 0.01
        close(adapted(X, 100.0), expected)


def test_the_layers_are_those_of_lcm_lora():
    layers = [name for name in Adapted(Latents(unet()), 2).corrections]
    assert all(name.startswith("net.") for name in layers)
    ends = {name.rpartition(".")[2] for name in layers}
    assert {"to_q", "proj_in", "conv1", "time_emb_proj", "conv_shortcut"} <= ends
    assert not {"net.conv_in", "net.conv_out", "net.time_embedding.linear_1"} & {*layers}


def test_stable_diffusion_has_as_many_numbers_as_its_published_lora():
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        adapted = Adapted(Latents(net), 64)
    assert len(adapted.corrections) == 278
    assert sum(p.numel() for p in adapted.parameters()) == 67_252_224


def gradients(student, fake):
    """A student's gradient with the fake score's forward and backward in between."""
    for network in (student, fake):
        network.zero_grad()
    out = student(X, 400.0)
    fake(out.detach(), 100.0).square().sum().backward()
    fake(out.detach(), 200.0)
    out.square().sum().backward()
    return [p.grad for network in (student, fake) for p in network.parameters()]


@pytest.mark.parametrize("anew", [False, True])
def test_every_gradient_is_that_of_networks_apart(anew):
    base = Latents(unet())
    student, fake = trained(base), trained(base, alpha=2.0)
    apart = [Adapted(clone(base), 4, adapted.alpha) for adapted in (student, fake)]
    for own, adapted in zip(apart, (student, fake)):
        own.load_state_dict(adapted.state_dict())
    expected = gradients(*apart)
    for network in (student, fake):
        network.checkpointing(anew)
    assert student.view.net.is_gradient_checkpointing == anew
    assert not base.net.is_gradient_checkpointing
    for a, b in zip(gradients(student, fake), expected, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_a_copy_shares_a_base_of_diffusers():
    base = Latents(unet())
    adapted = trained(base)
    copied = clone(adapted)
    assert copied.base is base and copied.view.net.conv_in.weight is base.net.conv_in.weight
    with torch.no_grad():
        assert torch.equal(copied(X, 100.0), adapted(X, 100.0))


@pytest.mark.slow
def test_an_adapter_of_diffusers_compiles():
    adapted = trained(Latents(unet()))
    compiled = torch.compile(clone(adapted), backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(X, 100.0), adapted(X, 100.0))
