"""The particle θ: a NeRF of a hash grid and one hidden layer, colour without view dependence or shading."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from redream.scene.encoding import HashGrid
from redream.settings import Settings


class Field(nn.Module):
    """Colour and density at points of the world, inside the box [−bound, bound]³. Made on the generator's device.

        rgb = sigmoid(a),    density = softplus(b + λ (1 − ‖μ‖ / r)),    (a, b) = MLP(HashGrid(μ))

    λ = `density_scale` and r = `density_radius` make a soft ball to start from (PD 4.2). Density counts per world
    unit of length and is zero outside the box.
    """

    def __init__(self, settings: Settings, generator: torch.Generator) -> None:
        super().__init__()
        self.bound = settings.field.bound
        self.density_scale, self.density_radius = settings.field.density_scale, settings.field.density_radius
        self.grid = HashGrid(
            settings.field.levels,
            settings.field.features,
            settings.field.log2_table,
            settings.field.base_resolution,
            settings.field.max_resolution,
            generator,
        )
        self.network = nn.Sequential(
            _linear(self.grid.width, settings.field.hidden, generator),
            nn.ReLU(),
            _linear(settings.field.hidden, 4, generator),
        )

    def forward(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n"]]:
        """RGB in [0, 1] and density ≥ 0 at points in world units."""
        raw = self.network(self.grid(points / (2 * self.bound) + 0.5))  # (n, 4)
        blob = self.density_scale * (1 - points.norm(dim=-1) / self.density_radius)  # (n,)
        inside = (points.abs() <= self.bound).all(dim=-1)  # (n,)
        return raw[:, :3].sigmoid(), functional.softplus(raw[:, 3] + blob) * inside

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """Density alone."""
        return self(points)[1]

    def parameter_groups(self, settings: Settings) -> list[dict]:
        """What AdamW is given: each table and the network, with their own learning rates."""
        return [
            *({"params": [level.table], "lr": settings.distillation.learning_rate_grid} for level in self.grid.levels),
            {"params": list(self.network.parameters()), "lr": settings.distillation.learning_rate_network},
        ]


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer drawn from the generator (He et al. 2015), with no bias at the start."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=generator.device)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
