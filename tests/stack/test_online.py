"""Each fact of a stack.json is looked up at the Hub."""

import hashlib
from dataclasses import replace

import pytest
from hub_server import COMMIT
from hub_stack import publish
from objaverse_files import make_objaverse

from redream import hub
from redream.stack.inventory import in_bytes
from redream.stack.online import facts
from redream.stack.stack import Stack

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def stack(hub_server, tiny_stack, tmp_path, monkeypatch) -> Stack:
    return publish(hub_server, tiny_stack, tmp_path, monkeypatch)


def wrong(stack: Stack) -> list[str]:
    return [fact.text for fact in facts(stack) if not fact.right]


def test_every_fact_of_a_published_stack_is_right_and_files_are_not_fetched(stack, hub_server):
    texts = [fact.text for fact in facts(stack) if fact.right]
    assert wrong(stack) == [] and f"clips.a, owner/clip-score-a: the pinned commit {COMMIT} is there" in texts
    assert any(text.startswith(f"prior, owner/prior: {UNET} has ") and text.endswith(" stated") for text in texts)
    assert not any("resolve" in request for request in hub_server.requests)


def test_the_commit_of_a_branch_is_named_to_be_pinned(stack):
    stack = replace(stack, clips=stack.clips | {"b": replace(stack.clips["b"], revision="main")})
    assert f"clips.b, owner/clip-score-b: main is no commit; pin {COMMIT}" in [fact.text for fact in facts(stack)]


def test_pinned_hashes_are_compared_also_those_of_the_fallback(stack, hub_server, tiny_stack):
    digest = hashlib.sha256((tiny_stack / "prior" / UNET).read_bytes()).hexdigest()
    files = hub_server.repositories["models", "owner/prior"]
    hub_server.add("mirror/prior", files | {UNET: b"other weights of the same name"})
    prior = replace(stack.prior, fallback=f"mirror/prior@{COMMIT}", sha256={UNET: digest}, megabytes={})
    (text,) = wrong(replace(stack, prior=prior))
    assert text.startswith(f"prior, mirror/prior: {UNET} has SHA-256 ") and text.endswith(f"{digest} pinned")


def test_what_is_gone_or_of_another_size_is_wrong(stack, hub_server):
    del hub_server.repositories["models", "owner/clip-score-a"]
    del hub_server.repositories["models", "owner/clip-score-b"]["open_clip_model.safetensors"]
    prior = hub_server.repositories["models", "owner/prior"]
    stated, prior[UNET] = len(prior[UNET]), prior[UNET] * 2
    index = replace(stack.index, revision="v9", note="It was promised.")
    first, second, third, fourth = wrong(replace(stack, index=index))
    assert first == f"prior, owner/prior: {UNET} has {in_bytes(2 * stated)}, {in_bytes(stated)} stated"
    assert second.startswith("index, owner/index: The Hub's owner/index has no revision v9")
    assert second.endswith("It was promised.") and "no public repository owner/clip-score-a" in third
    assert fourth == "clips.b, owner/clip-score-b: open_clip_model.safetensors is not there"


def test_of_an_index_that_is_not_there_the_files_are_looked_up_that_it_is_built_of(stack, hub_server):
    del hub_server.repositories["models", "owner/index"]
    made = make_objaverse(9)
    made.publish(hub_server)
    captions = hub_server.repositories["datasets", "tiange/Cap3D"]
    size = in_bytes(len(captions["Cap3D_automated_Objaverse_full.csv"]))
    del captions["Objaverse_files/cap3d_captions.json.gz"]
    del hub_server.repositories["datasets", "cindyxl/ObjaversePlusPlus"]
    found = {fact.text: fact.right for fact in facts(stack) if fact.text.startswith("to build the index, ")}
    assert list(found.values()) == [True, True, False, True, False]
    paths, _, quality, first, second = found
    assert paths.startswith("to build the index, allenai/objaverse: object-paths.json.gz is there, ")
    assert "no public repository cindyxl/ObjaversePlusPlus" in quality
    assert first == f"to build the index, tiange/Cap3D: Cap3D_automated_Objaverse_full.csv is there, {size}"
    assert "Objaverse_files/cap3d_captions.json.gz: The Hub's tiange/Cap3D lacks a file" in second
    assert not any(request.startswith("GET /content") for request in hub_server.requests)


def test_what_lies_in_folders_needs_no_hub(tiny_stack):
    assert list(facts(Stack.load(tiny_stack, environ={}))) == []


def test_without_a_connection_nothing_is_called_wrong(stack, hub_server, monkeypatch):
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", ())
    hub_server.stop()
    with pytest.raises(hub.HubUnreachable):
        list(facts(stack))


def test_the_stack_for_a_gpu_states_sizes_and_hashes_of_files_that_are_needed():
    stack = Stack.load("sd21", environ={})
    assert set(stack.prior.sha256) <= set(stack.prior.megabytes)
