"""Low-rank adapters (LoRA, Hu et al. 2022) of linear layers and convolutions, several by name on one network.

    W x + s B A x        A: (r, in) He-uniform, B: (out, r) zero at the start, s: the adapter's scale in use

The parameters are those that peft makes, in its order; a pass costs what its arithmetic costs: peft's own wrappers take
as long in Python as a small U-Net's forward pass. A frozen adapter can be merged: a second weight W + s B A, with which
a pass costs what it costs without.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

LOSS_SCALE = 2.0**12  # a power of two: in single precision the scaled gradients are exactly the same


class _Adapted(nn.Module):
    """What adapted layers share; the adapter in use is a plain attribute, as passes read it often."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()  # A and B of each adapter
        self.merged: dict[str, Tensor] = {}  # W + s B A
        self._weight: Tensor | None = None  # what `forward` uses instead of `weight`
        self._lora: tuple[Tensor, Tensor, float] | None = None  # A, B, s

    def add(self, name: str, rank: int, generator: torch.Generator) -> None:
        """Add an adapter; it changes nothing yet."""
        outputs, *others = self.weight.shape  # (out, in), or (out, in, kh, kw) of a convolution
        down = torch.empty(rank, *others, device=generator.device)
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
        self.down[name] = nn.Parameter(down.to(self.weight.device))
        self.up[name] = nn.Parameter(torch.zeros(outputs, rank, *(1 for _ in others[1:]), device=self.weight.device))

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        del self.down[name], self.up[name]
        self.merged.pop(name, None)

    @torch.no_grad()
    def merge(self, name: str, scale: float) -> None:
        """Keep W + s B A, computed in single precision."""
        change = (self.up[name].flatten(1) @ self.down[name].flatten(1)).view(self.weight.shape)  # B A
        self.merged[name] = (self.weight.float() + scale * change).to(self.weight.dtype)

    def use(self, name: str | None, scale: float, merged: bool) -> None:
        """From now on passes are those of an adapter at this scale, of its merged weight, or of W alone (None)."""
        self._weight = self.merged[name] if merged else None
        self._lora = None if name is None or merged else (self.down[name], self.up[name], scale)


class AdaptedLinear(_Adapted):
    """A linear layer with adapters."""

    def forward(self, x: Tensor) -> Tensor:
        out = functional.linear(x, self.weight if self._weight is None else self._weight, self.bias)
        if self._lora is None:
            return out
        down, up, scale = self._lora
        change = functional.linear(functional.linear(x.to(down.dtype), down), up)
        return out + (change if scale == 1.0 else scale * change).to(out.dtype)


class AdaptedConv2d(_Adapted):
    """A convolution with adapters: A has its kernel, B is 1 × 1."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__(base)
        self._place = base.stride, base.padding, base.dilation

    def forward(self, x: Tensor) -> Tensor:
        out = functional.conv2d(x, self.weight if self._weight is None else self._weight, self.bias, *self._place)
        if self._lora is None:
            return out
        down, up, scale = self._lora
        change = functional.conv2d(functional.conv2d(x.to(down.dtype), down, None, *self._place), up)
        return out + (change if scale == 1.0 else scale * change).to(out.dtype)


class Adapters:
    """The adapters of a network. Layers become adapted ones, with the same parameters, when they are first named."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._layers: dict[str, list[_Adapted]] = {}  # by adapter
        self._merged: dict[str, float] = {}  # the scale at which an adapter is merged
        self.active: tuple[str | None, float, bool] = None, 1.0, False  # the adapter in use, its scale, is it trained

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def add(self, name: str, rank: int, targets: Sequence[str], generator: torch.Generator) -> None:
        """Add an adapter, float32, to all layers whose name is or ends with one of the targets, as peft reads them."""
        layers = [
            self._adapted(path)
            for path, module in list(self.network.named_modules())
            if isinstance(module, (nn.Linear, nn.Conv2d, _Adapted)) and _is_target(path, targets)
        ]
        for layer in layers:
            layer.add(name, rank, generator)
        self._layers[name] = layers
        for parameter in self.parameters(name):
            parameter.requires_grad_(False)

    def remove(self, name: str) -> None:
        """Forget an adapter that is not in use."""
        for layer in self._layers.pop(name):
            layer.remove(name)
        self._merged.pop(name, None)

    def merge(self, name: str, scale: float) -> None:
        """Merge an adapter whose parameters are final, for passes at this scale."""
        for layer in self._layers[name]:
            layer.merge(name, scale)
        self._merged[name] = scale

    def parameters(self, name: str) -> list[nn.Parameter]:
        """A and B of each layer, in the network's order."""
        return [matrix for layer in self._layers[name] for matrix in (layer.down[name], layer.up[name])]

    def use(self, name: str | None, scale: float = 1.0, train: bool = False) -> None:
        """Switch to an adapter at a scale, or to none; merged if it is merged at this scale and not trained."""
        for layer in self._layers.get(self.active[0], ()):
            layer.use(None, 1.0, False)
        for layer in self._layers.get(name, ()):
            layer.use(name, scale, not train and self._merged.get(name) == scale)
        self.active = name, scale, train

    def _adapted(self, path: str) -> _Adapted:
        """The adapted layer at a path of the network."""
        parent, _, child = path.rpartition(".")
        parent, layer = self.network.get_submodule(parent), self.network.get_submodule(path)
        if not isinstance(layer, _Adapted):
            layer = (AdaptedLinear if isinstance(layer, nn.Linear) else AdaptedConv2d)(layer)
            setattr(parent, child, layer)
        return layer


def _is_target(path: str, targets: Sequence[str]) -> bool:
    return any(path == target or path.endswith(f".{target}") for target in targets)


def optimizer_step(loss: Float[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer down a loss whose gradients come through the U-Net.

    The loss is scaled on the way back: a mean over latents has gradients near the smallest numbers of half precision.
    Gradients that are not finite (half precision overflowed) count as zero: one such step would destroy the weights.
    Nothing waits for the device.
    """
    optimizer.zero_grad(set_to_none=True)
    (LOSS_SCALE * loss).backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = nn.utils.get_total_norm(gradients).isfinite()
    torch._foreach_mul_(gradients, 1 / LOSS_SCALE)
    for gradient in gradients:
        gradient.masked_fill_(~finite, 0.0)
    optimizer.step()


def lora_optimizer(groups: list[dict], device: torch.device) -> torch.optim.AdamW:
    """AdamW (betas .9 and .99, decay .01) in one launch; learning rates are tensors, so that a captured step reads them."""
    for group in groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
    on_device = device.type == "cuda"
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=on_device)
