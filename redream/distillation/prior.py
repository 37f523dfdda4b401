"""The prior: a frozen diffusers text-to-image pipeline that encodes, decodes, embeds text and predicts noise.

One U-Net ε_φ carries several LoRA adapters (peft): "prior" (ω) and "variational" (ζ). `using` switches to one of them,
or to none, and restores what was before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from redream.distillation.guidance import guided
from redream.errors import RedreamError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "time_emb_proj")
LOSS_SCALE = 2.0**12  # a power of two: in single precision the scaled gradients are exactly the same


class PriorError(RedreamError):
    """A prior folder that cannot be used; the message says why and what to do."""


def optimizer_step(loss: Float[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer down a loss whose gradients come through the U-Net.

    The loss is scaled on the way back: a mean over latents has gradients near the smallest numbers of half precision.
    Gradients that are not finite (half precision overflowed) make no step: one such step would destroy the weights.
    """
    optimizer.zero_grad(set_to_none=True)
    (LOSS_SCALE * loss).backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for gradient in gradients:
        gradient /= LOSS_SCALE
    if all(bool(gradient.isfinite().all()) for gradient in gradients):
        optimizer.step()


class Prior:
    """Stable Diffusion behind the five operations that distillation needs; SD-1.x/2.x pipelines, ε or v prediction."""

    def __init__(self, pipeline: StableDiffusionPipeline):
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.text_encoder, self.tokenizer = pipeline.text_encoder, pipeline.tokenizer
        # Asked for once, as nothing is moved or cast from here on: diffusers looks through all modules of the U-Net, which
        # takes a tenth of a forward pass for each of the two.
        self.device: torch.device = self.unet.device
        self._dtype: torch.dtype = self.unet.dtype
        self.scheduler_config = dict(pipeline.scheduler.config)
        self.prediction_type = self.scheduler_config.get("prediction_type", "epsilon")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise PriorError(f"This prior predicts {self.prediction_type!r}; only epsilon and v_prediction are known.")
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.to(self.device)  # (T,)
        for module in (self.unet, self.vae, self.text_encoder):
            module.eval().requires_grad_(False)
        self.latent_size: int = self.unet.config.sample_size
        self.size: int = self.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels
        self._layers: dict[str, list[BaseTunerLayer]] = {}  # of each adapter
        self._parameters: dict[str, list[nn.Parameter]] = {}  # likewise
        self._active: tuple[str | None, float] = None, 1.0  # the adapter in use and its scale

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> "Prior":
        """A pipeline folder, safetensors only; half precision on CUDA, single elsewhere."""
        dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise PriorError(
                "The prior's folder is not a complete Stable Diffusion pipeline with safetensors weights. "
                "Download it again or choose another stack."
            ) from error
        pipeline.vae.to(torch.float32)  # the encoder is differentiated; half precision overflows there
        return Prior(pipeline.to(device))

    @property
    def timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    # Pictures and latents

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hl wl"]:
        """Pictures in [0, 1] of any size → latents of about unit spread; gradients flow through the encoder."""
        image = image.to(self.device)
        if image.shape[-1] != self.size or image.shape[-2] != self.size:
            image = nn.functional.interpolate(image, size=(self.size, self.size), mode="bilinear", antialias=True)
        encoded = self.vae.encode(image * 2 - 1)
        # AutoencoderKL gives a distribution, AutoencoderTiny the latents themselves.
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents * self.vae.config.scaling_factor

    def latent_weights(self) -> Float[Tensor, "c"]:
        """One over the squared gain of the encoder in each channel, with mean 1.

        A step of the picture down a gradient g of its latents z moves them by J Jᵀ g, with J = ∂z/∂x, where g was asked
        for. If the rows of J are about orthogonal and those of a channel equally long, as in an encoder that whitens in
        part, then J Jᵀ (w g) is about g with w_c ∝ 1/‖J_c‖². J is taken in the middle of a grey picture.
        """
        with torch.enable_grad():
            image = torch.full((1, 3, self.size, self.size), 0.5, device=self.device, requires_grad=True)
            latents = self.encode(image)  # (1, c, hl, wl)
            middle = latents[0, :, latents.shape[2] // 2, latents.shape[3] // 2]  # (c,)
            rows = [torch.autograd.grad(value, image, retain_graph=True)[0] for value in middle]
        weights = 1 / torch.stack([row.square().sum() for row in rows])  # (c,)
        return weights / weights.mean()

    def decode(self, latents: Float[Tensor, "b c hl wl"]) -> Float[Tensor, "b 3 h w"]:
        """Latents → pictures in [0, 1] at the prior's own size."""
        image = self.vae.decode(latents.float() / self.vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1)

    # Text

    def token_embeddings(self, text: str) -> Float[Tensor, "n d"]:
        """Input embeddings of a text's own tokens: where the view prefixes start from."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0].to(self.device)
        return self.text_encoder.get_input_embeddings()(ids).detach().float().clone()

    def embed(
        self, prompts: Sequence[str], prefix: Float[Tensor, "b n d"] | Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "b l d2"]:
        """Text features for cross-attention. `prefix` holds input embeddings put before each prompt's own tokens:
        cat(e_ψ, c) of Eq. 5; gradients flow to it."""
        length = self.tokenizer.model_max_length
        count = 0 if prefix is None else prefix.shape[-2]
        ids = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length - count, return_tensors="pt"
        ).input_ids.to(self.device)
        if prefix is None:
            return self.text_encoder(ids)[0]
        # The start token, room for the prefix, then the prompt; a hook writes the prefix into the room.
        room = ids[:, :1].expand(-1, count)
        ids = torch.cat([ids[:, :1], room, ids[:, 1:]], dim=1)  # (b, l)

        def write(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            filling = prefix.to(output.dtype).expand(len(ids), -1, -1)
            return torch.cat([output[:, :1], filling, output[:, 1 + count :]], dim=1)

        hook = self.text_encoder.get_input_embeddings().register_forward_hook(write)
        try:
            return self.text_encoder(ids)[0]
        finally:
            hook.remove()

    # Noise

    def alpha_sigma(self, t: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """α_t and σ_t with α_t² + σ_t² = 1."""
        product = self.alphas_cumprod[t.to(self.alphas_cumprod.device)].float()
        return product.sqrt(), (1 - product).sqrt()

    def add_noise(
        self, latents: Float[Tensor, "b c hl wl"], t: Int[Tensor, "b"], noise: Float[Tensor, "b c hl wl"]
    ) -> Float[Tensor, "b c hl wl"]:
        """x_t = α_t z + σ_t ε."""
        alpha, sigma = (a[:, None, None, None] for a in self.alpha_sigma(t))
        return alpha * latents + sigma * noise

    def predict_noise(
        self,
        noised: Float[Tensor, "b c hl wl"],
        t: Int[Tensor, "b"],
        embedding: Float[Tensor, "b l d"],
        camera: Float[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b c hl wl"]:
        """ε(x_t, t, y) by the adapter in use; `camera` is added to the timestep embedding. v bases: ε = α_t v + σ_t x_t."""
        hook = None
        if camera is not None:
            hook = self.unet.time_embedding.register_forward_hook(lambda m, i, out: out + camera.to(out.dtype))
        try:
            out = self.unet(noised.to(self._dtype), t.to(self.device), embedding.to(self._dtype)).sample.float()
        finally:
            if hook is not None:
                hook.remove()
        if self.prediction_type == "v_prediction":
            alpha, sigma = (a[:, None, None, None] for a in self.alpha_sigma(t))
            out = alpha * out + sigma * noised
        return out

    def guided_noise(
        self,
        noised: Float[Tensor, "b c hl wl"],
        t: Int[Tensor, "b"],
        embedding: Float[Tensor, "b l d"],
        empty: Float[Tensor, "b l d"],
        scale: float,
    ) -> Float[Tensor, "b c hl wl"]:
        """ε̂ = ε(∅) + s (ε(c) − ε(∅)), both branches in one pass of the U-Net."""
        both = self.predict_noise(torch.cat([noised, noised]), torch.cat([t, t]), torch.cat([empty, embedding]))
        return guided(*both.chunk(2), scale)

    # Adapters

    def add_adapter(self, name: str, rank: int, seed: int, targets: Sequence[str] = ATTENTION) -> list[nn.Parameter]:
        """A fresh LoRA of this name on the U-Net's `targets`, float32; its up matrices are zero: it changes nothing yet."""
        self.remove_adapter(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # peft draws from the global generator
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
            self.unet.add_adapter(config, adapter_name=name)
        layers = [m for m in self.unet.modules() if isinstance(m, BaseTunerLayer)]
        self._layers = {n: [m for m in layers if n in m.lora_A] for n in (*self._layers, name)}
        self.unet.requires_grad_(False)
        self._switch(None)
        self._parameters[name] = [p for n, p in self.unet.named_parameters() if f".{name}." in n]
        for parameter in self._parameters[name]:
            parameter.data = parameter.data.float()
        return self._parameters[name]

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter, if there is one of this name."""
        if name in self._layers:
            self.unet.delete_adapters(name)
            del self._layers[name], self._parameters[name]

    @contextmanager
    def using(self, adapter: str | None, train: bool = False, scale: float = 1.0) -> Iterator[None]:
        """Within it the U-Net is ε_φ with `scale` times this adapter's change of each weight (None: φ alone); only with
        `train` has the adapter gradients.

        What was before is restored at the end.
        """
        if adapter is not None and adapter not in self._layers:
            raise PriorError(f"The prior has no adapter named {adapter!r}.")
        before = self._active
        self._switch(adapter, scale)
        trained = self._parameters[adapter] if train and adapter is not None else []
        try:
            for parameter in trained:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(False)
            self._switch(*before)

    def _switch(self, adapter: str | None, scale: float = 1.0) -> None:
        # peft's own switch walks the whole U-Net and flips requires_grad: 10 ms, as long as half a forward pass.
        self._active = adapter, scale
        for layer in {layer for layers in self._layers.values() for layer in layers}:
            layer._disable_adapters = True
        for layer in self._layers.get(adapter, ()):
            layer._disable_adapters = False
            layer._active_adapter = [adapter]
            layer.scaling[adapter] = scale  # alpha / rank is 1 (`add_adapter`)

    # Samples

    @torch.no_grad()
    def sample(
        self,
        embedding: Float[Tensor, "b l d"],
        generator: torch.Generator,
        steps: int = 25,
        guidance: float = 7.5,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures by DPM-Solver++ with the adapter in use; `embedding` comes from `embed`."""
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler_config)
        scheduler.register_to_config(prediction_type="epsilon")  # `predict_noise` always gives ε
        scheduler.set_timesteps(steps, device=self.device)
        count = len(embedding)
        shape = (count, self.unet.config.in_channels, self.latent_size, self.latent_size)
        latents = torch.randn(shape, generator=generator, device=generator.device).to(self.device)
        empty = self.embed([""] * count)
        for t in scheduler.timesteps:
            noise = self.guided_noise(latents, t.expand(count), embedding, empty, guidance)
            latents = scheduler.step(noise, t, latents).prev_sample
        return self.decode(latents)
