"""Which pipelines can be a prior, decided before their weights are read or fetched."""

import json
import shutil

import pytest
import torch
from hub_server import COMMIT

from redream.distillation.prior import Prior
from redream.distillation.prior_files import NEEDED, PriorError, check, variant
from redream.stack.models import Models
from redream.stack.stack import Stack

PARTS = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
PARTS |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
INDEX = PARTS | {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"]}
SD = {
    "model_index.json": INDEX,
    "unet/config.json": {"in_channels": 4},
    "vae/config.json": {"latent_channels": 4},
    **{f"{part}/model.safetensors": None for part in ("unet", "vae", "text_encoder")},
}
WITHOUT_UNET = {part: INDEX[part] for part in INDEX if part != "unet"}
UNFIT = {
    "not diffusers": ({"model_index.json": None}, "no model_index.json"),
    "damaged": ({"unet/config.json": "no"}, "unet/config.json is not an object"),
    "inpainting": ({"unet/config.json": {"in_channels": 9}}, "takes 9 channels, not its latents' 4"),
    "upscaler": ({"unet/config.json": {"num_class_embeds": 1000}}, "takes class labels"),
    "unCLIP": ({"unet/config.json": {"class_embed_type": "projection"}}, "takes class labels"),
    "SDXL": ({"model_index.json": INDEX | {"text_encoder_2": ["transformers", "X"]}}, "two text encoders"),
    "FLUX": ({"model_index.json": WITHOUT_UNET | {"transformer": ["diffusers", "X"]}}, "flow or transformer model"),
    "flow": ({"model_index.json": INDEX | {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}}, "flow"),
    "no U-Net": ({"model_index.json": WITHOUT_UNET}, "This prior has no unet"),
    "pickles": ({"unet/model.safetensors": None, "unet/model.bin": b""}, "are pickles"),
    "incomplete": ({"vae/model.safetensors": None}, "lacks the weights of its vae"),
}


def repository(changes: dict) -> dict[str, bytes]:
    """The files of `SD` with some changed, None: removed; weights are a word."""
    weights = {name: b"weights" for name in SD if name.endswith(".safetensors")}
    files = {name: value for name, value in (SD | weights | changes).items() if value is not None}
    return {name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in files.items()}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_unfit_prior_is_refused_in_a_sentence_before_its_weights_are_fetched(tiny_stack, hub_server, kind):
    changes, sentence = UNFIT[kind]
    hub_server.add("someone/prior", repository(changes))
    models = Models.load(Stack.load(tiny_stack, {"REDREAM_PRIOR": f"someone/prior@{COMMIT}"}), "cpu")
    with pytest.raises(PriorError, match=sentence) as error:
        _ = models.prior
    assert NEEDED in str(error.value)
    assert not any(request.endswith((".safetensors", ".bin")) for request in hub_server.requests)


def test_a_fit_one_is_not(tmp_path):
    for name, content in repository({}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    check(tmp_path, list(repository({})))


def test_the_variant_is_the_devices_where_both_are_there():
    full = [f"{part}/model.safetensors" for part in ("unet", "vae", "text_encoder")]
    half = [f"{part}/model.fp16.safetensors" for part in ("unet", "vae", "text_encoder")]
    assert variant(full, prefer_half=True) is variant(full + half, prefer_half=False) is None
    assert variant(full + half, prefer_half=True) == variant(half, prefer_half=False) == "fp16"
    assert variant([*half[:1], *full[1:]], prefer_half=False) == "fp16"  # the U-Net has nothing else


def half_of(part, folder) -> None:
    """Keep a part's weights in half precision only."""
    from safetensors.torch import load_file, save_file

    (file,) = (folder / part).glob("*.safetensors")
    half = {name: value.half() for name, value in load_file(file).items()}
    save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"), metadata={"format": "pt"})
    file.unlink()


def test_a_prior_with_half_precision_only_loads_as_the_full_one_rounded(tiny_stack, tmp_path):
    folder = tmp_path / "prior"
    shutil.copytree(tiny_stack / "prior", folder)
    for part in ("unet", "text_encoder"):
        half_of(part, folder)
    full, half = Prior.load(tiny_stack / "prior"), Prior.load(folder)
    for part in ("unet", "text_encoder", "vae"):
        pairs = zip(getattr(full, part).parameters(), getattr(half, part).parameters(), strict=True)
        for expected, loaded in pairs:
            rounded = expected if part == "vae" else expected.half().float()
            assert loaded.dtype == torch.float32 and torch.equal(loaded, rounded)


def test_of_an_autoencoder_in_both_precisions_the_full_one_is_read(tiny_stack, tmp_path):
    folder = tmp_path / "prior"
    shutil.copytree(tiny_stack / "prior", folder)
    (file,) = (folder / "vae").glob("*.safetensors")
    kept = file.read_bytes()
    for part in ("unet", "text_encoder", "vae"):
        half_of(part, folder)
    file.write_bytes(kept)
    full, loaded = Prior.load(tiny_stack / "prior"), Prior.load(folder)
    assert torch.equal(next(full.vae.parameters()), next(loaded.vae.parameters()))


def test_a_prior_from_the_hub_makes_the_features_of_the_one_in_the_folder(tiny_stack, hub_server):
    files = {
        p.relative_to(tiny_stack / "prior").as_posix(): p for p in (tiny_stack / "prior").rglob("*") if p.is_file()
    }
    hub_server.add("someone/prior", {name: path.read_bytes() for name, path in files.items()})
    models = Models.load(Stack.load(tiny_stack, {"REDREAM_PRIOR": "someone/prior"}), "cpu")
    assert torch.equal(models.prior.embed(["a red owl"]), Prior.load(tiny_stack / "prior").embed(["a red owl"]))
    assert models.provenance()["prior"]["source"] == "someone/prior"
    assert models.provenance()["prior"]["revision"] == COMMIT
