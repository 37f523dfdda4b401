"""A whole stack with random weights that is made in seconds; with a U-Net of 4 levels, Stable Diffusion 2.1's structure."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import trimesh
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny_models import WORDS, make_tiny_clip
from transformers import CLIPTextConfig, CLIPTextModel

from assets_index.recipes.tokenizer import make_tokenizer
from redream.files import sha256
from redream.retrieval.build import AssetRow, build, ring_pictures
from redream.retrieval.clip import Clip
from redream.scene.assets import load
from redream.scoring.perceptual import Block, PerceptualNet
from redream.settings import Settings

TOKENS = 16
KINDS = ("owl", "cat", "dog", "car", "mug", "vase")
COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 200)}

# A run that takes seconds: for tests of what a run does, not of how good it looks.
TINY = Settings(
    iterations=4,
    retrieval={"candidates": 4},
    adaptation={"views": 4, "steps": 2, "batch": 2, "rank": 2},
    field={"levels": 2, "features": 2, "log2_table": 10, "base_resolution": 8, "max_resolution": 16, "hidden": 8},
    rendering={"occupancy_resolution": 8, "samples_per_ray": 8, "resolutions": ((0.0, 16),)},
    initialisation={"asset_steps": 2, "warmup": 0.5},
    distillation={"opaque": 0.0},
    variational={"rank": 2, "shared_noise": False},
    output={
        "turntable_frames": 8,
        "turntable_size": 32,
        "turntable_rays": 24,
        "mesh_resolution": 16,
        "mesh_faces": 500,
        "preview_every": 2,
        "checkpoint_every": 2,
    },
)


def make_outputs_small(set_attribute=setattr) -> None:
    """Small textures and pictures, and scores of few views: at full size they would be two thirds of a tiny run's time."""
    from redream.evaluation import scorer
    from redream.runs import outputs
    from redream.scoring import metrics

    for module, name, value in (
        (outputs, "MESH_TEXTURE", 64),
        (outputs, "STRIP_SIZE", 32),
        (outputs, "PREVIEW_SIZE", 48),
        (metrics, "AZIMUTHS", 24),
        (scorer, "SILHOUETTE_VIEWS", 8),
        (scorer, "SILHOUETTE_SIZE", 32),
    ):
        set_attribute(module, name, value)


def start_small_worker(*arguments) -> None:
    """Begin a worker process whose outputs are small."""
    from redream.evaluation import workers

    make_outputs_small()
    workers._start_worker(*arguments)


def make_tiny_stack(folder: Path, prediction_type: str = "epsilon", vocabulary: bool = True, levels: int = 2) -> Path:
    """Write stack.json and everything it names into `folder`."""
    make_tiny_prior(folder / "prior", prediction_type, levels=levels)
    names = {"retrieval": "clip-retrieval", "a": "clip-score-a", "b": "clip-score-b"}
    for seed, name in enumerate(names.values()):
        make_tiny_clip(folder / name, seed)
    make_tiny_index(folder, Clip.load(folder / names["retrieval"]))
    make_tiny_perceptual(folder / "perceptual-a", [Block(4, convs=2, pool=2), Block(8)], seed=3)
    make_tiny_perceptual(folder / "perceptual-b", [Block(4, kernel=5, stride=2), Block(6)], seed=4)
    values = {
        "format": 1,
        "name": "tiny",
        "preset": "mini",
        "prior": {"source": "prior"},
        "index": {"source": "index"},
        "clips": {key: {"source": name} for key, name in names.items()},
        "perceptual": {key: {"source": f"perceptual-{key}"} for key in ("a", "b")},
    }
    if vocabulary:
        values["vocabulary"] = "vocabulary.json"
        (folder / "vocabulary.json").write_text(json.dumps(make_vocabulary(), indent=2))
    (folder / "stack.json").write_text(json.dumps(values, indent=2))
    return folder


def add_truth(stack: Path, folder: Path) -> Path:
    """Write into `folder` a stack that is another one with two variants of purple owls as its truth."""
    values = json.loads((stack / "stack.json").read_text())
    for entry in (values["prior"], values["index"], *values["clips"].values(), *values["perceptual"].values()):
        entry["source"] = str(stack / entry["source"])
    shutil.copy(stack / "vocabulary.json", folder)
    (folder / "truth").mkdir()
    rows = []
    for variant in range(2):
        file = folder / "truth" / f"{variant}.glb"
        file.write_bytes(tiny_glb((120, 30, 160), round_one=variant == 0))
        rows.append({"kind": "owl", "colour": "purple", "variant": variant, "file": file.name, "sha256": sha256(file)})
    with (folder / "truth/truth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "stack.json").write_text(json.dumps(values | {"truth": {"source": "truth"}}))
    return folder


def make_stack_with_licences(stack: Path, folder: Path, licences: list[str]) -> None:
    """Write into `folder` another stack whose six assets have these licences."""
    shutil.copytree(stack, folder)
    table = pq.read_table(folder / "index/assets.parquet")
    place = table.column_names.index("license")
    by_kind = dict(zip(KINDS, licences, strict=True))
    column = pa.array([by_kind[uid.removeprefix("tiny-")] for uid in table["uid"].to_pylist()])
    pq.write_table(table.set_column(place, "license", column), folder / "index/assets.parquet")
    manifest = json.loads((folder / "index/index.json").read_text())
    manifest["files"]["assets.parquet"] = sha256(folder / "index/assets.parquet")
    (folder / "index/index.json").write_text(json.dumps(manifest))


def make_vocabulary() -> dict:
    words = ["a", "an", "the", "of", "photo", "front", "side", "back", "view"]
    kinds = {kind: [kind, f"{kind}s"] for kind in KINDS}
    colours = {colour: [colour] for colour in (*COLOURS, "purple")}
    return {"name": "the tiny model", "kinds": kinds, "symmetric": ["vase"], "colours": colours, "words": words}


def make_tiny_prior(folder: Path, prediction_type: str = "epsilon", seed: int = 0, levels: int = 2) -> None:
    """A StableDiffusionPipeline folder: 64 px, 8 × 8 latents of 4 channels, a U-Net of 4 levels, or of 2 for speed."""
    tokenizer = make_tokenizer(WORDS, TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            block_out_channels=(16,) * (levels // 2) + (32,) * (levels // 2),
            layers_per_block=1,
            attention_head_dim=(1, 2, 4, 4)[:levels],  # read as numbers of heads, as in Stable Diffusion 2.1
            cross_attention_dim=32,
            norm_num_groups=8,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    schedule |= {"set_alpha_to_one": False, "prediction_type": prediction_type}
    scheduler = (
        DDIMScheduler(clip_sample=False, **schedule)
        if prediction_type == "v_prediction"
        else PNDMScheduler(skip_prk_steps=True, **schedule)
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def make_tiny_perceptual(folder: Path, blocks: list[Block], seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        PerceptualNet(blocks, (0.5,) * 3, (0.25,) * 3).save(folder)


def make_tiny_index(folder: Path, clip: Clip) -> None:
    """An index of six assets in `folder`/index, with their GLBs in `folder`/assets."""
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, kind in enumerate(KINDS):
        colour = list(COLOURS)[number % len(COLOURS)]
        (folder / "assets" / f"{kind}.glb").write_bytes(tiny_glb(COLOURS[colour], round_one=number % 2 == 0))
        captions = [f"a {colour} {kind}", f"photo of a {kind}"]
        rows.append(AssetRow(f"tiny-{kind}", captions, "Redream", "CC0", f"{kind}.glb", f"{kind}.glb"))

    def views(row: AssetRow) -> torch.Tensor:
        return ring_pictures(load(folder / "assets" / row.file), clip.size)  # (8, 3, s, s)

    build(rows, views, clip, folder / "index", root="../assets")


def tiny_glb(colour: tuple[int, int, int], round_one: bool = True) -> bytes:
    """A ball or a box of this colour, and in a darker tone the side that glTF calls the front (+z)."""
    mesh = trimesh.creation.icosphere(subdivisions=2) if round_one else trimesh.creation.box((1, 1.4, 0.7)).subdivide()
    front = mesh.vertices[:, 2] > 0.25  # (v,)
    shade = np.where(front[:, None], 0.5, 1.0) * np.array(colour)  # (v, 3)
    mesh.visual.vertex_colors = np.column_stack([shade, np.full(len(shade), 255)]).astype(np.uint8)
    return mesh.export(file_type="glb")
