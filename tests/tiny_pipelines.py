"""Text-to-image pipelines with small random networks, in the form of the large ones; nothing is downloaded.

    sd()                  like Stable Diffusion 1.5
    sd("v_prediction")    like Stable Diffusion 2.1
    sdxl()                like Stable Diffusion XL

Latents are (4, 8, 8), pictures (3, 16, 16); every character of a prompt is a token."""

import json
import tempfile
from pathlib import Path

import diffusers
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from disback.networks import seeded

LADDER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
BLOCKS = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1)


def tokenizer():
    """CLIP's, with a vocabulary of single bytes, inside a word and at its end."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("vocab.json", "merges.txt")]
        files[0].write_text(json.dumps({word: i for i, word in enumerate(words)}))
        files[1].write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer(*map(str, files), model_max_length=77)


def text_encoder(projected=False):
    """CLIP's; `projected`: the second one of Stable Diffusion XL."""
    n = len(tokenizer())
    config = transformers.CLIPTextConfig(
        vocab_size=n,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=n - 2,
        eos_token_id=n - 1,
        pad_token_id=n - 1,
        hidden_act="gelu" if projected else "quick_gelu",
    )
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    with seeded(1 + projected):
        return getattr(transformers, name)(config).eval()


def clip(folder):
    """Write a CLIP of pictures and texts, as `Clip` reads it."""
    text = text_encoder().config.to_dict()
    vision = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
    vision |= dict(image_size=30, patch_size=10)
    with seeded(7):
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
        transformers.CLIPModel(config).save_pretrained(folder)
    sizes = dict(size=dict(shortest_edge=30), crop_size=dict(height=30, width=30))
    transformers.CLIPImageProcessor(**sizes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def vae(scaling_factor):
    with seeded(3):
        return diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=scaling_factor,
        ).eval()


def unet(**more):
    with seeded(4):
        return diffusers.UNet2DConditionModel(**BLOCKS | more).eval()


def scheduler(**more):
    return diffusers.DDIMScheduler(**LADDER, clip_sample=False, set_alpha_to_one=False, **more)


def sd(prediction_type="epsilon"):
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(0.18215),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(
            cross_attention_dim=32,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=scheduler(prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sdxl(force_zeros_for_empty_prompt=True):
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(0.13025),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(
            cross_attention_dim=64,
            attention_head_dim=(2, 4),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def dit():
    """A pipeline of another family, whose transformer wants ImageNet's labels."""
    sizes = dict(HEADS, sample_size=8, out_channels=8, num_embeds_ada_norm=1000)
    network = transformer("DiTTransformer2DModel", **sizes)
    return quiet(diffusers.DiTPipeline(transformer=network, vae=vae(0.18215), scheduler=scheduler()))


def unconditional():
    """A pipeline of pixels, without prompts."""
    with seeded(6):
        blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        network = diffusers.UNet2DModel(**BLOCKS, **blocks)
    return diffusers.DDPMPipeline(unet=network, scheduler=diffusers.DDPMScheduler())


# Transformers


def t5_tokenizer():
    """T5's, with a vocabulary of single letters."""
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -9.0),
        ("▁", -2.0),
        *((c, -1.0) for c in map(chr, range(33, 127))),
    ]
    return transformers.T5Tokenizer(vocab=letters, extra_ids=0)


def t5_encoder():
    sizes = dict(d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=len(t5_tokenizer()))
    with seeded(8):
        return transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def transformer(name, **sizes):
    """One whose output is not zero, as it is at first in some classes."""
    with seeded(9):
        made = getattr(diffusers, name)(**sizes).eval()
        for p in made.parameters():
            if not p.any():
                p.data.normal_(std=0.2)
        return made


HEADS = dict(num_attention_heads=2, attention_head_dim=8, num_layers=1)


def pixart(**more):
    sizes = HEADS | dict(sample_size=8, out_channels=8, cross_attention_dim=16, caption_channels=32) | more
    return quiet(
        diffusers.PixArtAlphaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_encoder(),
            vae=vae(0.18215),
            transformer=transformer("PixArtTransformer2DModel", **sizes),
            scheduler=diffusers.DDIMScheduler(
                clip_sample=False, timestep_spacing="trailing"
            ),  # its last step is D
        )
    )


def sd3():
    sizes = HEADS | dict(sample_size=8, in_channels=4, out_channels=4, joint_attention_dim=64)
    sizes |= dict(caption_projection_dim=16, pooled_projection_dim=64, pos_embed_max_size=8)
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer("SD3Transformer2DModel", **sizes),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(1.5305),
            text_encoder=text_encoder(projected=True),
            tokenizer=tokenizer(),
            text_encoder_2=text_encoder(projected=True),
            tokenizer_2=tokenizer(),
            text_encoder_3=wide_t5_encoder(),
            tokenizer_3=t5_tokenizer(),
        )
    )


def wide_t5_encoder():
    sizes = dict(d_model=64, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=len(t5_tokenizer()))
    with seeded(8):
        return transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()


def flux(guidance_embeds=True):
    sizes = dict(patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16)
    sizes |= dict(
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8)
    )
    return quiet(
        diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=vae(0.3611),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            text_encoder_2=t5_encoder(),
            tokenizer_2=t5_tokenizer(),
            transformer=transformer("FluxTransformer2DModel", guidance_embeds=guidance_embeds, **sizes),
        )
    )


def sana():
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *map(chr, range(33, 127))]
    tokens = transformers.GemmaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    sizes = dict(head_dim=8, hidden_size=16, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    config = transformers.Gemma2Config(num_key_value_heads=2, vocab_size=len(words), **sizes)
    with seeded(10):
        encoder = transformers.Gemma2Model(config).eval()
        dc = diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ).eval()
    sizes = HEADS | dict(sample_size=8, in_channels=4, out_channels=4, num_cross_attention_heads=2)
    sizes |= dict(cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16)
    return quiet(
        diffusers.SanaPipeline(
            tokenizer=tokens,
            text_encoder=encoder,
            vae=dc,
            transformer=transformer("SanaTransformer2DModel", **sizes),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )
