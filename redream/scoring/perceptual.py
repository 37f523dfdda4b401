"""Perceptual distances between pictures: small nets of this project's own, and LPIPS on torchvision's backbones."""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redream.errors import RedreamError
from redream.files import replacing, sha256

BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}  # torchvision's; 8 digits of SHA-256
BACKBONE_MEGABYTES = {"vgg": 553, "alex": 244}  # rounded
BACKBONE_ADDRESS = "https://download.pytorch.org/models/"
FORMAT = 1  # of a net's config.json


class PerceptualError(RedreamError):
    """A perceptual net that cannot be loaded; the message says why."""


@dataclass(frozen=True)
class Block:
    """`convs` convolutions with ReLU, the first one with `stride`; then the features are looked at, then max-pooled."""

    channels: int
    kernel: int = 3
    stride: int = 1
    convs: int = 1
    pool: int = 1  # 1: none

    def __post_init__(self) -> None:
        limits = {"channels": 1024, "kernel": 31, "stride": 8, "convs": 8, "pool": 8}
        if not all(isinstance(v, int) and 1 <= v <= limits[name] for name, v in asdict(self).items()):
            raise PerceptualError(
                "A block of this perceptual net has a number out of its range; restore its config.json."
            )


class PerceptualNet(nn.Module):
    """An LPIPS-like distance (Zhang et al. 2018) on the features of a small classifier, all channels weighted alike.

    Its shape is data: a list of blocks, kept in config.json beside half-precision weights.
    """

    def __init__(self, blocks: Sequence[Block], mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` standardise the three colours; the weights are random (He et al. 2015)."""
        super().__init__()
        self.blocks, self.mean, self.std = tuple(blocks), tuple(mean), tuple(std)
        inputs = [3, *(block.channels for block in self.blocks[:-1])]
        self.stages = nn.ModuleList(_stage(n, block) for n, block in zip(inputs, self.blocks, strict=True))

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """What each block sees in pictures in [0, 1], coarser and coarser."""
        x = images.to(self.stages[0][0].weight.device)
        x = (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]  # (b, 3, h, w)
        for block, stage in zip(self.blocks, self.stages, strict=True):
            x = stage(x)  # (b, channels, h', w')
            yield x
            x = nn.functional.max_pool2d(x, block.pool) if block.pool > 1 else x

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """Distances of pictures in [0, 1] to their partners, in [0, 2].

        d(a, b) = mean over blocks and places of ‖f(a)/‖f(a)‖ − f(b)/‖f(b)‖‖²
        """
        layers = zip(self.features(a), self.features(b), strict=True)
        # Each (b,): squared norms over channels, averaged over space.
        return torch.stack([(_unit(x) - _unit(y)).square().sum(dim=1).mean(dim=(1, 2)) for x, y in layers]).mean(dim=0)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (half precision) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().half().contiguous() for name, value in self.state_dict().items()}
        config = {"format": FORMAT, "blocks": [asdict(b) for b in self.blocks], "mean": self.mean, "std": self.std}
        with replacing(folder / "model.safetensors") as file:
            save_file(weights, file)
        with replacing(folder / "config.json") as file:
            file.write_text(json.dumps(config, indent=1))

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> "PerceptualNet":
        """Read what `save` wrote, for use: float32, without gradients. Raises `PerceptualError`."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config["format"] != FORMAT:
                raise PerceptualError(
                    f"The perceptual net {folder.name} has format {config['format']!r}; {FORMAT} is known."
                )
            blocks = [Block(**block) for block in config["blocks"]]
            with torch.random.fork_rng(devices=[]):  # the random weights are replaced at once
                net = PerceptualNet(blocks, config["mean"], config["std"])
            weights = load_file(folder / "model.safetensors")
            net.load_state_dict({name: value.float() for name, value in weights.items()})
        except PerceptualError:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as error:
            raise PerceptualError(f"The perceptual net {folder.name} cannot be read; restore its files.") from error
        return net.to(device).eval().requires_grad_(False)


class Lpips(nn.Module):
    """The LPIPS package's distance, on backbone weights that are here already."""

    def __init__(self, network: str, backbone: Path) -> None:
        """`network` is "vgg" or "alex"; `backbone` is torchvision's file for it, checked by `cached_backbone`."""
        super().__init__()
        import lpips  # only stacks that name it need it

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision: "pretrained" will be called otherwise
            self.lpips = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        weights = torch.load(backbone, map_location="cpu", weights_only=True)  # features.N.weight and so on
        net_state = self.lpips.net.state_dict()  # sliceK.N.weight and so on
        self.lpips.net.load_state_dict({name: weights["features." + name.partition(".")[2]] for name in net_state})

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """Distances ≥ 0 of pictures in [0, 1] to their partners."""
        device = self.lpips.lin0.model[-1].weight.device
        return self.lpips(a.to(device), b.to(device), normalize=True).flatten()  # (b,)


def backbone_file(network: str, cache: Path | None = None) -> Path:
    """Where torchvision's weights for an LPIPS network are looked for: in torch hub's cache."""
    return (cache or Path(torch.hub.get_dir()) / "checkpoints") / BACKBONES[network]


def is_backbone(network: str, file: Path) -> bool:
    """Whether a file's SHA-256 begins with the 8 hexadecimal digits in the name of torchvision's weights. torchvision
    publishes no more of it: that finds a damaged file, not a forged one."""
    return sha256(file).startswith(Path(BACKBONES[network]).stem.rpartition("-")[2])


def cached_backbone(network: str, cache: Path | None = None) -> Path | None:
    """torchvision's weights for an LPIPS network, if they are in the cache and right. They are pickles, of which only
    tensors are loaded; only `redream.stack.setup` fetches them."""
    file = backbone_file(network, cache)
    return file if file.is_file() and is_backbone(network, file) else None


def load_lpips(network: str, device: torch.device | str = "cpu") -> Lpips | None:
    """LPIPS on "vgg" or "alex", for use; None where torchvision's weights for it are not in the cache."""
    backbone = cached_backbone(network)
    return Lpips(network, backbone).to(device).eval().requires_grad_(False) if backbone else None


def _stage(inputs: int, block: Block) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(block.convs):
        stride = block.stride if i == 0 else 1
        convolution = nn.Conv2d(inputs, block.channels, block.kernel, stride, padding=block.kernel // 2)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.ReLU()]
        inputs = block.channels
    return nn.Sequential(*layers)


def _unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    # as nn.functional.normalize with eps 1e-6, whose norm over channels takes the CPU several times as long
    return features / features.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
