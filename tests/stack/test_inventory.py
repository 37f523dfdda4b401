"""What a stack's entries need is looked at file by file, without a network."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from hub_server import COMMIT
from hub_stack import publish
from safetensors.torch import save_file

from redream.stack import environment, inventory
from redream.stack.inventory import NeededFile, in_bytes, missing_files, needed_files, total_size
from redream.stack.stack import STACKS, Stack


@pytest.fixture
def stack(tiny_stack, tmp_path) -> Stack:
    """A copy of the tiny stack, to be damaged."""
    shutil.copytree(tiny_stack, tmp_path / "tiny")
    return Stack.load(tmp_path / "tiny", environ={})


def faults(stack: Stack) -> dict[str, str]:
    return {f"{file.entry}: {file.name}": file.fault for file in missing_files(stack)}


def test_a_whole_stack_lacks_nothing_and_its_weights_and_tokenizers_are_among_what_it_needs(stack, mini):
    assert faults(stack) == faults(mini) == {}
    needed = {f"{file.entry}: {file.name}" for file in needed_files(stack)}
    assert {"prior: unet/diffusion_pytorch_model.safetensors", "clips.b: tokenizer.json"} <= needed
    assert {"index: texts.npy", "index: assets.parquet", "perceptual.a: model.safetensors"} <= needed


def test_a_folder_with_a_single_json_lacks_the_rest(stack):
    for path in (stack.base / "clip-score-a").iterdir():
        if path.name != "open_clip_config.json":
            path.unlink()
    assert faults(stack) == {"clips.a: open_clip_model.safetensors": "missing", "clips.a: tokenizer.json": "missing"}


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("unet/diffusion_pytorch_model.safetensors", lambda data: data[:-5], r"cut off, [\d,]+ of [\d,]+ bytes"),
        ("unet/diffusion_pytorch_model.safetensors", lambda data: data[:99], r"cut off, 99 of [\d,]+ bytes"),
        ("unet/diffusion_pytorch_model.safetensors", lambda data: data + b"more", r"[\d,]+ bytes, not [\d,]+"),
        ("unet/diffusion_pytorch_model.safetensors", lambda data: b"\xff" * len(data), "damaged"),
        ("unet/diffusion_pytorch_model.safetensors", lambda data: data[:8] + b"x" + data[9:], "damaged"),
        ("unet/diffusion_pytorch_model.safetensors", lambda data: b"", "empty"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:28ec\nsize 1731904736\n",
            "a git-lfs pointer, not the file itself",
        ),
        ("model_index.json", lambda data: data[:-9], "not JSON"),
    ],
)
def test_a_file_that_is_not_whole_is_named_with_its_fault(stack, name, change, fault):
    file = stack.base / "prior" / name
    file.write_bytes(change(file.read_bytes()))
    (found,) = missing_files(stack)
    assert (found.entry, found.name, found.on_hub) == ("prior", name, False)
    assert re.fullmatch(fault, found.fault)


def test_the_size_that_a_header_states_is_that_of_the_file_that_safetensors_writes(tmp_path):
    for number, tensors in enumerate([{}, {"a": torch.zeros(3)}, {"a": torch.zeros(0), "b": torch.ones(2, 5).half()}]):
        save_file(tensors, path := tmp_path / f"{number}.safetensors", metadata={"format": "pt"})
        assert inventory._safetensors_fault(path, path.stat().st_size) is None


def test_a_prior_in_several_files_or_half_precision_needs_those(stack):
    unet = stack.base / "prior/unet"
    weights = (unet / "diffusion_pytorch_model.safetensors").rename(unet / "model-00001-of-00002.safetensors")
    assert faults(stack) == {}
    weights.rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert faults(stack) == {}


def test_of_a_stack_on_the_hub_everything_is_missing_at_first_with_the_sizes_that_are_stated(
    hub_server, tiny_stack, tmp_path, monkeypatch
):
    stack = publish(hub_server, tiny_stack, tmp_path, monkeypatch)
    missing = missing_files(stack)
    assert not hub_server.requests and all(file.on_hub for file in missing)
    assert {file.entry for file in missing} == {
        "prior",
        "index",
        "clips.retrieval",
        "clips.a",
        "clips.b",
        "perceptual.b",
    }
    weights = next(file for file in missing if file.name.startswith("unet/diffusion"))
    assert weights.size == (tiny_stack / "prior" / weights.name).stat().st_size


def test_in_the_hub_s_cache_a_file_of_another_size_than_the_listing_says_is_a_fault(
    hub_server, tiny_stack, tmp_path, monkeypatch
):
    stack = publish(hub_server, tiny_stack, tmp_path, monkeypatch)
    folder = stack.folder(stack.index)
    assert not [file for file in missing_files(stack) if file.entry == "index"]
    file = (folder / "assets.parquet").resolve()
    file.write_bytes(file.read_bytes()[:-1])
    (found,) = (file for file in missing_files(stack) if file.entry == "index")
    assert found.fault.startswith("cut off") and found.size == (tiny_stack / "index/assets.parquet").stat().st_size
    (folder / "assets.parquet").unlink()
    (found,) = (file for file in missing_files(stack) if file.entry == "index")
    assert found.fault == "missing"


def test_the_files_of_a_fallback_count_where_the_source_is_gone(hub_server, tiny_stack, tmp_path, monkeypatch):
    stack = publish(hub_server, tiny_stack, tmp_path, monkeypatch)
    stack = replace(stack, prior=replace(stack.prior, source="gone/prior", fallback=f"owner/prior@{COMMIT}"))
    assert "prior" in {file.entry for file in missing_files(stack)}
    stack.folder(stack.prior)
    assert "prior" not in {file.entry for file in missing_files(stack)}


def test_the_sizes_of_the_shipped_stack_for_a_gpu_are_those_of_its_large_files():
    weights = [
        file for file in needed_files(Stack.load("sd21", environ={})) if file.name.endswith((".safetensors", ".pth"))
    ]
    assert len(weights) == 8 and all(file.size for file in weights)
    assert 8.6e9 < total_size(weights) < 8.8e9


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (1234, "1 kB"), (681_000_000, "681 MB"), (1_730_000_000, "1.7 GB")]
)
def test_bytes_are_said_in_three_digits(size, text):
    assert in_bytes(size) == text


# doctor


def test_the_doctor_names_what_is_missing_for_a_gpu_and_its_size(monkeypatch, tiny_stack, tmp_path):
    monkeypatch.setattr(environment, "device", lambda: "cuda")
    monkeypatch.setattr(environment, "device_name", lambda name: "a GPU")
    diagnosis = environment.doctor()
    assert diagnosis.stack == "mini" and "about 8.7 GB are missing (prior, index, clips.retrieval" in diagnosis.reason
    assert {file.entry for file in diagnosis.missing} >= {"prior", "index", "clips.b", "perceptual.a"}

    (tmp_path / "sd21").symlink_to(tiny_stack)
    monkeypatch.setattr("redream.stack.stack.STACKS", tmp_path)
    assert environment.doctor().stack == "sd21"
    lpips = NeededFile("perceptual.a", "vgg16-397923af.pth", "missing", 553_000_000, True)
    monkeypatch.setattr(environment, "missing_files", lambda stack: [lpips])
    diagnosis = environment.doctor()
    assert diagnosis.stack == "sd21" and diagnosis.missing == (lpips,)  # a score without it is left out


def test_without_cuda_the_doctor_looks_for_no_files(monkeypatch):
    monkeypatch.setattr(environment, "device", lambda: "cpu")
    monkeypatch.setattr(environment, "missing_files", None)
    assert environment.doctor().stack == "mini"


def test_an_index_that_was_built_here_takes_the_place_of_one_on_the_hub_alone(tiny_stack, tmp_path):
    built = tmp_path / "indexes/sd21"
    shutil.copytree(tiny_stack / "index", built)
    environ = {"REDREAM_DATA": str(tmp_path)}
    assert Stack.load("sd21", environ).index.source == str(built.resolve())
    assert Stack.load("sd21", environ | {"REDREAM_INDEX": "owner/index"}).index.source == "owner/index"
    shutil.copytree(built, tmp_path / "indexes/mini")
    assert (
        Stack.load("mini", environ).index.source
        == json.loads((STACKS / "mini/stack.json").read_text())["index"]["source"]
    )
