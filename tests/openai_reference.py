"""OpenAI's U-Net by its facts (guided-diffusion and consistency_models), independent of this library: the
names and shapes of the tensors in a checkpoint, and what a network with such tensors answers."""

import math

import torch
import torch.nn.functional as F

PUBLISHED = dict(  # what the networks of the published files were trained with
    imagenet64=dict(side=64, channels=192, mult=(1, 2, 3, 4), blocks=3, classes=1000),
    lsun256=dict(side=256, channels=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, scale_shift=False),
    imagenet64_adm=dict(side=64, channels=192, mult=(1, 2, 3, 4), blocks=3, classes=1000, out=6, flat=True),
    lsun256_adm=dict(
        side=256, channels=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, out=6, flat=True, legacy=True
    ),
    imagenet256_adm=dict(
        side=256, channels=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, classes=1000, out=6, flat=True, legacy=True
    ),
    imagenet256_uncond_adm=dict(
        side=256, channels=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, out=6, flat=True, legacy=True
    ),
)


class Reference:
    """A U-Net whose tensors are in a dictionary."""

    def __init__(
        self,
        side,
        channels,
        mult,
        blocks,
        attention=(32, 16, 8),
        classes=None,
        scale_shift=True,
        out=3,
        flat=False,
        legacy=False,
    ):  # flat: attention's maps are 1-d convolutions
        self.channels, self.classes, self.scale_shift, self.legacy = channels, classes, scale_shift, legacy
        self.emb, self.flat, self.shapes = 4 * channels, flat, {}
        self.linear("time_embed.0", channels, self.emb)
        self.linear("time_embed.2", self.emb, self.emb)
        if classes:
            self.shapes["label_emb.weight"] = classes, self.emb
        self.plan, self.left, c = {}, [], channels * mult[0]
        self.conv("input_blocks.0.0", 3, c, 3)
        self.plan["input_blocks.0"] = [("conv", "input_blocks.0.0")]
        self.left.append(c)
        for level, m in enumerate(mult):
            there = side >> level in attention
            for _ in range(blocks):
                c = self.stage("input_blocks", c, m * channels, there)
                self.left.append(c)
            if level < len(mult) - 1:
                self.left.append(self.stage("input_blocks", c, c, False, "down"))
        self.plan["middle_block"] = [
            self.res("middle_block.0", c, c),
            self.attention("middle_block.1", c),
            self.res("middle_block.2", c, c),
        ]
        for level, m in reversed([*enumerate(mult)]):
            there = side >> level in attention
            for i in range(blocks + 1):
                last = level > 0 and i == blocks
                c = self.stage("output_blocks", c + self.left.pop(), m * channels, there, "and up" * last)
        self.norm("out.0", c)
        self.conv("out.2", c, out, 3)

    def linear(self, name, c_in, c_out):
        self.shapes |= {f"{name}.weight": (c_out, c_in), f"{name}.bias": (c_out,)}

    def conv(self, name, c_in, c_out, kernel, dims=2):
        self.shapes |= {f"{name}.weight": (c_out, c_in, *[kernel] * dims), f"{name}.bias": (c_out,)}

    def norm(self, name, c):
        self.shapes |= {f"{name}.weight": (c,), f"{name}.bias": (c,)}

    def res(self, name, c_in, c_out, change=""):
        self.norm(f"{name}.in_layers.0", c_in)
        self.conv(f"{name}.in_layers.2", c_in, c_out, 3)
        self.linear(f"{name}.emb_layers.1", self.emb, c_out * (2 if self.scale_shift else 1))
        self.norm(f"{name}.out_layers.0", c_out)
        self.conv(f"{name}.out_layers.3", c_out, c_out, 3)
        if c_in != c_out:
            self.conv(f"{name}.skip_connection", c_in, c_out, 1)
        return "res", name, change

    def attention(self, name, c):
        self.norm(f"{name}.norm", c)
        self.conv(f"{name}.qkv", c, 3 * c, 1, 1 if self.flat else 2)
        self.conv(f"{name}.proj_out", c, c, 1, 1 if self.flat else 2)
        return "attention", name

    def stage(self, part, c_in, c_out, there, change=""):
        at = f"{part}.{sum(k.startswith(part) for k in self.plan)}"
        parts = self.plan[at] = [self.res(f"{at}.0", c_in, c_out, change if change == "down" else "")]
        if there:
            parts.append(self.attention(f"{at}.{len(parts)}", c_out))
        if change == "and up":
            parts.append(self.res(f"{at}.{len(parts)}", c_out, c_out, "up"))
        return c_out

    def weights(self, seed=0, dtype=torch.float):
        g, made = torch.Generator().manual_seed(seed), {}
        for name, shape in self.shapes.items():
            size = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.2
            made[name] = size * torch.randn(shape, generator=g)
            if len(shape) == 1 and name.endswith("weight"):
                made[name] += 1
        return {k: v.to(dtype) for k, v in made.items()}

    def __call__(self, w, x, t, y=None):  # tensors, pictures, times and labels -> prediction
        half = self.channels // 2
        freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float, device=x.device) / half)
        a = t[:, None].float() * freqs
        e = self.apply(w, "time_embed.0", torch.cat([a.cos(), a.sin()], 1).to(x.dtype))
        e = self.apply(w, "time_embed.2", F.silu(e))
        if self.classes:
            e = e + w["label_emb.weight"][y]
        seen, h = [], x
        for at, parts in self.plan.items():
            if at.startswith("output"):
                h = torch.cat([h, seen.pop()], 1)
            for kind, *about in parts:
                h = getattr(self, "do_" + kind)(w, h, e, *about)
            if at.startswith("input"):
                seen.append(h)
        return self.do_conv(w, F.silu(self.apply(w, "out.0", h)), e, "out.2")

    def apply(self, w, name, x):
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return F.group_norm(x, 32, weight, bias) if weight.ndim == 1 else x @ weight.T + bias

    def do_conv(self, w, h, e, name):
        weight = w[f"{name}.weight"]
        return F.conv2d(h, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def do_res(self, w, x, e, name, change):
        h = F.silu(self.apply(w, f"{name}.in_layers.0", x))
        if change == "down":
            x, h = [v.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) for v in (x, h)]
        if change == "up":
            x, h = [v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (x, h)]
        h = self.do_conv(w, h, e, f"{name}.in_layers.2")
        a = self.apply(w, f"{name}.emb_layers.1", F.silu(e))[..., None, None]
        if self.scale_shift:
            scale, shift = a.split(a.shape[1] // 2, 1)
            h = self.apply(w, f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.apply(w, f"{name}.out_layers.0", h + a)
        h = self.do_conv(w, F.silu(h), e, f"{name}.out_layers.3")
        return h + (
            self.do_conv(w, x, e, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in w else x
        )

    def do_attention(self, w, x, e, name):
        B, C, H, W = x.shape
        rows = self.apply(w, f"{name}.norm", x).flatten(2).mT  # pixel by pixel
        qkv, out = w[f"{name}.qkv.weight"].flatten(1), w[f"{name}.proj_out.weight"].flatten(1)
        qkv = (rows @ qkv.T + w[f"{name}.qkv.bias"]).mT
        answers = []
        for h in range(C // 64):  # where the three of a head lie
            starts = [192 * h + 64 * i if self.legacy else C * i + 64 * h for i in range(3)]
            q, k, v = [qkv[:, s : s + 64] for s in starts]
            answers.append(v @ (q.mT @ k / 8).softmax(-1).mT)
        y = torch.cat(answers, 1).mT @ out.T + w[f"{name}.proj_out.bias"]
        return x + y.mT.reshape(B, C, H, W)


def edm(f, x, sigma, y=None):  # a network as the releases use it -> denoised
    "EDM's preconditioning of consistency_models, with sigma_data 1/2."
    s = sigma[:, None, None, None]
    out = f((s**2 + 0.25) ** -0.5 * x, 250 * torch.log(sigma + 1e-44), y)
    return 0.25 / (s**2 + 0.25) * x + s * 0.5 * (s**2 + 0.25) ** -0.5 * out


def consistency(f, x, sigma, y=None):
    "Its preconditioning of consistency models, the identity at .002."
    s = sigma[:, None, None, None]
    out = f((s**2 + 0.25) ** -0.5 * x, 250 * torch.log(sigma + 1e-44), y)
    return 0.25 / ((s - 0.002) ** 2 + 0.25) * x + (s - 0.002) * 0.5 * (s**2 + 0.25) ** -0.5 * out


def alphas_bar(cosine):  # of guided-diffusion's schedules of 1000 steps, one by one
    at, bar, bars = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, 1.0, []
    for i in range(1000):
        beta = min(1 - at((i + 1) / 1000) / at(i / 1000), 0.999) if cosine else 1e-4 + i * (0.02 - 1e-4) / 999
        bar *= 1 - beta
        bars.append(bar)
    return torch.tensor(bars, dtype=torch.double)


def adm(f, x_t, step, cosine, y=None):  # noised samples as the network sees them, at whole time steps
    "What guided-diffusion takes for the clean samples: the first three channels are the noise."
    bar = alphas_bar(cosine)[step][:, None, None, None]
    return ((x_t - (1 - bar).sqrt() * f(x_t, step, y)[:, :3]) / bar.sqrt()).to(x_t)
