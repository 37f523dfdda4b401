"""Perceptual distances: the project's own nets and LPIPS."""

import hashlib
import json

import pytest
import torch
from torch import nn

from redream.scoring.perceptual import BACKBONES, Block, Lpips, PerceptualError, PerceptualNet, cached_backbone
from redream.stack.models import Models
from redream.stack.stack import Entry, Stack

# ---------------------------------------------------------------- perceptual distance


def test_a_picture_is_at_distance_zero_from_itself(net, pictures):
    assert torch.equal(net(pictures, pictures), torch.zeros(4))


def test_the_distance_is_symmetric_positive_and_bounded(net, pictures):
    other = pictures.flip(0)
    there, back = net(pictures, other), net(other, pictures)
    torch.testing.assert_close(there, back)
    assert (there > 0).all() and (there <= 2).all()  # two unit vectors with entries ≥ 0 are at most √2 apart


def test_each_picture_is_compared_with_its_own_partner_only(net, pictures):
    other = pictures.flip(0)
    one_by_one = torch.cat([net(a[None], b[None]) for a, b in zip(pictures, other, strict=True)])
    torch.testing.assert_close(net(pictures, other), one_by_one)


def blurred(pictures, amount):
    small = nn.functional.interpolate(pictures, scale_factor=1 / (1 + amount), mode="area")
    return nn.functional.interpolate(small, size=pictures.shape[-2:], mode="bilinear")


def noisy(pictures, amount):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    return pictures + 0.02 * amount * noise


def tinted(pictures, amount):
    return pictures + 0.06 * amount * torch.tensor([1.0, -0.5, -1.0])[:, None, None]


@pytest.mark.parametrize("change", [blurred, noisy, tinted])
def test_the_distance_grows_with_the_change(net, pictures, change):
    distances = [float(net(pictures, change(pictures, amount)).mean()) for amount in (1, 3, 7)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_distance_of_one_by_one_features_is_worked_out_by_hand():
    """One 1 × 1 kernel block that is the identity: a gray pixel (1, 1, 1) has the unit feature (1, 1, 1)/√3, a red one
    (1, 0, 0). Their squared distance is 2 − 2/√3; a quarter of the pixels differ."""
    net = PerceptualNet((Block(3, kernel=1),), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).requires_grad_(False)
    net.load_state_dict({"stages.0.0.weight": torch.eye(3)[:, :, None, None], "stages.0.0.bias": torch.zeros(3)})
    gray = torch.full((1, 3, 4, 4), 0.5)
    red = gray.clone()
    red[:, 1:, :2, :2] = 0
    assert float(net(gray, red)) == pytest.approx((2 - 2 / 3**0.5) / 4, rel=1e-5)


def test_a_net_comes_back_from_its_folder_in_half_precision(net, pictures, tmp_path):
    net.save(tmp_path / "net")
    loaded = PerceptualNet.load(tmp_path / "net")
    assert loaded.blocks == net.blocks and not loaded.training
    halved = {name: value.half().float() for name, value in net.state_dict().items()}
    assert all(torch.equal(value, halved[name]) for name, value in loaded.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(
        loaded(pictures, pictures.flip(0)), net(pictures, pictures.flip(0)), rtol=0.02, atol=1e-4
    )


def test_loading_leaves_the_global_randomness_alone(net, tmp_path):
    net.save(tmp_path)
    before = torch.random.get_rng_state()
    PerceptualNet.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"blocks": [{"channels": 8}]},  # not the weights' shape
        {"blocks": [{"channels": 10**9}]},
        {"blocks": [{"channels": 8, "kernel": "3"}]},
        {"blocks": [{"channels": 8, "run": 1}]},
        {"blocks": []},
        {"mean": None},
    ],
)
def test_a_net_whose_config_is_wrong_is_refused_in_words(net, change, tmp_path):
    net.save(tmp_path / "net")
    file = tmp_path / "net" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(PerceptualError) as error:
        PerceptualNet.load(tmp_path / "net")
    assert str(tmp_path) not in str(error.value)


def test_a_folder_without_weights_is_refused_in_words(tmp_path):
    with pytest.raises(PerceptualError, match="cannot be read"):
        PerceptualNet.load(tmp_path)


# ---------------------------------------------------------------- LPIPS


def test_lpips_is_not_available_when_its_backbone_is_not_cached(tmp_path):
    assert cached_backbone("vgg", tmp_path) is None


def test_a_backbone_whose_sha_256_does_not_begin_as_its_name_says_is_not_used(tmp_path):
    (tmp_path / BACKBONES["alex"]).write_bytes(b"something else")
    assert cached_backbone("alex", tmp_path) is None


def test_a_backbone_is_used_when_its_sha_256_begins_as_its_name_says(tmp_path, monkeypatch):
    name = f"net-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    monkeypatch.setitem(BACKBONES, "alex", name)
    (tmp_path / name).write_bytes(b"weights")
    assert cached_backbone("alex", tmp_path) == tmp_path / name


def test_lpips_runs_on_a_backbone_file_of_the_right_structure(tmp_path, pictures):
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = alexnet(weights=None).state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    net = Lpips("alex", tmp_path / "backbone.pth").eval()
    assert torch.equal(net.lpips.net.slice2[1].weight, weights["features.3.weight"])
    assert torch.equal(net(pictures, pictures), torch.zeros(4))
    assert (net(pictures, pictures.flip(0)) > 0).all()


def test_a_stack_s_entries_become_nets_or_none(net, tmp_path, monkeypatch):
    net.save(tmp_path / "net")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # an empty cache
    scores_of_net, lpips = Entry(source="net"), Entry(lpips="vgg")
    models = Models(
        Stack("test", "mini", tmp_path, scores_of_net, scores_of_net, {}, {"a": scores_of_net, "b": lpips}), "cpu"
    )
    assert models.perceptual("a").blocks == net.blocks
    assert models.perceptual("b") is None
