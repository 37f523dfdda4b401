"""The papers' experiments with pictures of the prior."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.distances import compared
from examples.experiments.lab import Lab, Outcome, Row, labelled, mean, say, under
from examples.experiments.objects import found_for, from_library
from examples.experiments.samples import COUNT, adapted, conditioned, prior_samples, sampled, view_loss
from redream.distillation.guidance import gradient_loss, sds_gradient, vsd_gradient
from redream.distillation.prior import Prior
from redream.distillation.variational import Variational
from redream.scene.cameras import VIEWS, Camera
from redream.scoring.metrics import view_accuracy

AZIMUTH_DEG = {"front": 0.0, "side": 90.0, "back": 180.0}
FIXED = Camera(0.0, 0.0, 1.0, 40.0)  # where a camera is asked for and nothing is seen from one


def views(lab: Lab) -> Outcome:
    """Does the prior show the view it is asked for, before and after adaptation? (ReDream fig. 4 and 14)

    Text features are mixed from back through side to front, the noise stays; shares are counted at the three views.
    """
    rows, shares = [], {}
    for prompt in lab.prompts:
        say(prompt)
        text, known = lab.understood(prompt), found_for(lab, prompt)
        rows.append(Row(prompt))
        for name, learned in (("before", None), ("after", True), ("after, prefixes frozen", False)):
            learning = None if learned is None else adapted(lab, known, prefix_learned=learned)
            ends = {view: conditioned(lab.prior, text, view, learning) for view in VIEWS}
            pictures = []
            for share in (0.0, 0.5, 1.0, 1.5, 2.0):
                first, second = ("back", "side") if share < 1 else ("side", "front")
                embedding = torch.lerp(ends[first], ends[second], share % 1 if share < 2 else 1.0)  # (1, l, d)
                pictures.append(sampled(lab.prior, embedding, COUNT, lab.settings.seed, learning))
            rows.append(Row(name, torch.cat([p[:2] for p in pictures])))
            for view, images in zip(("back", "side", "front"), pictures[::2]):
                cameras = [Camera(AZIMUTH_DEG[view], 0.0, 1.0, 40.0)] * len(images)
                for clip in ("a", "b"):
                    share = view_accuracy(lab.models.clip(clip), images, cameras, text)
                    shares.setdefault(f"{name}: {view} by CLIP {clip}", []).append(share)
    figures = {key: mean(values) for key, values in shares.items()}
    for name, clip in itertools.product(("before", "after", "after, prefixes frozen"), ("a", "b")):
        figures[f"{name}: all views by CLIP {clip}"] = mean(figures[f"{name}: {v} by CLIP {clip}"] for v in VIEWS)
    return Outcome(rows, figures, ("back", "between", "side", "between", "front"))


def overfit(lab: Lab) -> Outcome:
    """Does adaptation to one asset show in samples of other prompts? (ReDream fig. 15)

    The likeness is the mean cosine between samples and the asset's views. Losses are those of Eq. 5 on fresh renders,
    of the asset and of others that the prior was not adapted to.
    """
    known = [from_library(lab, words) for words in lab.assets]
    asset, features = known[0], lab.clip.embed_images(known[0].seen.images)  # (8, d)
    under_heads = [7, 0, 1, 1, 2, 3, 3, 4, 5]  # of the eight views: front, side and back with their neighbours
    rows, figures = [Row(f"the asset:\n{asset.caption}", asset.seen.images[under_heads])], {}
    say(f"adaptation to: {asset.caption}")
    learning = adapted(lab, [asset.reference])
    for name, state in (("before", None), ("after", learning)):
        for number, other in enumerate(known):
            what = "the asset" if number == 0 else f"unseen {number}, {other.caption}"
            figures[f"loss on renders of {what}: {name}"] = view_loss(lab, other.reference, state)
    for prompt in lab.prompts:
        for name, state in (("before", None), ("after", learning)):
            embeddings = [conditioned(lab.prior, lab.understood(prompt), view, state) for view in VIEWS]
            pictures = [sampled(lab.prior, e, COUNT, lab.settings.seed, state) for e in embeddings]
            images = torch.cat(pictures)  # (24, 3, h, w)
            own = lab.clips(images, prompt)
            own["likeness"] = float((lab.clip.embed_images(images) @ features.T).mean())
            rows.append(Row(labelled(f"{prompt}: {name}", own), torch.cat([p[:3] for p in pictures])))
            figures |= under(f"{prompt}, {name}", own)
    return Outcome(rows, figures, VIEWS)


LEARNING_RATE_2D = 0.03  # PD G
T_2D = (0.02, 0.98)  # PD G: not annealed
VARIATIONAL_RATE_2D = 1e-3  # PD G: 1e-4 over 6,000 steps; ours over a tenth of them


def distil2d(lab: Lab) -> Outcome:
    """SDS and VSD where nothing is 3D: g(θ) = θ, eight latents a prompt (PD fig. 3, table 6)."""
    methods = {"SDS, 100": (100.0, False), "SDS, 7.5": (7.5, False), "VSD, 7.5": (7.5, True)}
    reference = [prior_samples(lab, prompt, lab.samples, lab.settings.seed) for prompt in lab.prompts]
    sets = {"samples, another seed": [prior_samples(lab, p, COUNT, lab.settings.seed + 1) for p in lab.prompts]}
    for name, (guidance, varied) in methods.items():
        for prompt in lab.prompts:
            say(f"{prompt}, {name}")
            text, generator = lab.understood(prompt), torch.Generator().manual_seed(lab.settings.seed)
            shape = (COUNT, lab.prior.unet.config.in_channels, lab.prior.latent_size, lab.prior.latent_size)
            start = torch.randn(shape, generator=generator).to(lab.prior.device)
            settings = lab.settings.with_(variational={"learning_rate": VARIATIONAL_RATE_2D})
            score = Variational(lab.prior, settings, text, generator) if varied else None
            latents = distil(lab.prior, text, start, lab.settings.iterations, guidance, generator, score)
            with torch.no_grad():
                sets.setdefault(name, []).append(lab.prior.decode(latents).cpu())
    return compared(lab, lab.prompts, reference, sets)


def distil(
    prior: Prior,
    prompt: str,
    start: Float[Tensor, "b c h w"],
    steps: int,
    guidance: float,
    generator: torch.Generator,
    variational: Variational | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents after `steps` of Adam from `start`: VSD with a variational score, which learns beside them, else SDS.

    θ ← θ − η w(t) (ε̂ − ε_q),    ε_q = ε_{φ,ζ}(x_t, t, y) or ε,    t ~ U(0.02, 0.98) for each latent
    """
    latents = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=LEARNING_RATE_2D)
    words, empty = (prior.embed([text] * len(start)) for text in (prompt, ""))
    for _ in range(steps):
        share = T_2D[0] + (T_2D[1] - T_2D[0]) * torch.rand(len(start), generator=generator)
        t = (share * (prior.timesteps - 1)).long().to(start.device)  # (b,)
        noise = torch.randn(start.shape, generator=generator).to(start)
        noised, sigma = prior.add_noise(latents.detach(), t, noise), prior.alpha_sigma(t)[1]
        with torch.no_grad():
            prior_noise = prior.guided_noise(noised, t, words, empty, guidance)
        if variational is None:
            gradient = sds_gradient(prior_noise, noise, sigma)
        else:
            gradient = vsd_gradient(prior_noise, variational.predict(noised, t, FIXED), sigma)
        optimizer.zero_grad(set_to_none=True)
        gradient_loss(latents, gradient).backward()
        optimizer.step()
        if variational is not None:
            variational.step(latents.detach(), FIXED)
    return latents.detach()
