"""The prior: a frozen diffusers text-to-image pipeline that encodes, decodes, embeds text and predicts noise.

One U-Net ε_φ carries several LoRA adapters: "prior" (ω) and "variational" (ζ). `using` switches to one of them, or to
none, and restores what was before. On CUDA its passes are captured as graphs (`redream.distillation.captured`).
"""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
import torch._dynamo
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from redream.distillation.captured import Capture, Captured, capture_for, captured_gradient
from redream.distillation.guidance import guided
from redream.distillation.lora import Adapters
from redream.distillation.prior_files import PriorError, check, is_there, variant

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "time_emb_proj")
COMPILED_KINDS = 64  # of passes, by adapter in use and shapes: a run has up to six, samples add theirs


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
        # A camera's embedding is added to the timestep's where diffusers adds a class's; every pass gives one.
        self.unet.class_embedding = nn.Identity()
        self._no_camera = torch.zeros(1, self.unet.time_embedding.linear_2.out_features, device=self.device)
        self.adapters = Adapters(self.unet)
        self.compile_error: str | None = None  # why the U-Net is not compiled, although asked for
        self._compiled: Callable | None = None  # the U-Net for passes without gradients, where it is compiled
        self.capture: Capture | None = capture_for(self.device)
        self._passes: dict[tuple, Captured] = {}  # by adapter in use and shapes
        self._captured_encoder: Callable[[Tensor], Tensor] | None = None

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> "Prior":
        """A pipeline folder, safetensors only; half precision on CUDA, single elsewhere.

        Where the weights are there in both precisions, those of the device are read, of the autoencoder the full ones.
        Raises `PriorError`.
        """
        is_cuda = torch.device(device).type == "cuda"
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        check(folder, names)
        options = {"use_safetensors": True, "local_files_only": True}
        options["variant"] = variant(names, prefer_half=is_cuda)
        try:
            parts = {}
            if options["variant"] and is_there(names, "vae"):
                kind = getattr(diffusers, StableDiffusionPipeline.load_config(folder)["vae"][1])
                parts["vae"] = kind.from_pretrained(folder / "vae", **options | {"variant": None})
            pipeline = StableDiffusionPipeline.from_pretrained(
                folder,
                dtype=torch.float16 if is_cuda else torch.float32,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                **options,
                **parts,
            )
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
            raise PriorError(
                "The prior's folder is not a complete Stable Diffusion pipeline with safetensors weights. "
                "Download it again or choose another stack."
            ) from error
        pipeline.vae.to(torch.float32)  # decoding overflows in half precision
        prior = Prior(pipeline.to(device))
        if prior.device.type == "cuda":
            prior.use_half_encoder()
        return prior

    @property
    def timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    # Pictures and latents

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hl wl"]:
        """Pictures in [0, 1] of any size → latents of about unit spread; gradients flow through the encoder."""
        image = image.to(self.device, non_blocking=True)
        if image.shape[-1] != self.size or image.shape[-2] != self.size:
            image = nn.functional.interpolate(image, size=(self.size, self.size), mode="bilinear", antialias=True)
        if self.capture is None or not image.requires_grad or len(image) != 1:
            return self._encode(image)
        if self._captured_encoder is None:
            self._captured_encoder = captured_gradient(self._encode, image, self.capture)
        return self._captured_encoder(image)

    def _encode(self, image: Tensor) -> Tensor:
        encoded = self.vae.encode((image * 2 - 1).to(next(self.vae.encoder.parameters()).dtype))
        # AutoencoderKL gives a distribution, AutoencoderTiny the latents themselves.
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents.to(image.dtype) * self.vae.config.scaling_factor

    def use_half_encoder(self) -> bool:
        """Encode in bfloat16, channels last, if latents and gradients of noise and of a flat picture are finite and within
        5 % of those in single precision; return whether they are. Decoding stays in single precision.
        """
        single = {
            name: part for name in ("encoder", "quant_conv") if (part := getattr(self.vae, name, None)) is not None
        }
        noise = torch.rand(1, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        pictures = [noise.to(self.device), torch.full_like(noise, 0.5, device=self.device)]
        exact = [value for picture in pictures for value in self._latents_and_gradient(picture)]
        for name, part in single.items():
            half = copy.deepcopy(part).to(dtype=torch.bfloat16, memory_format=torch.channels_last)
            setattr(self.vae, name, half)
        values = [value for picture in pictures for value in self._latents_and_gradient(picture)]
        near = [bool((v - e).norm() <= 0.05 * e.norm()) for v, e in zip(values, exact, strict=True)]  # NaN is not near
        if not all(near):
            for name, part in single.items():
                setattr(self.vae, name, part)
        return all(near)

    def _latents_and_gradient(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        picture = picture.clone().requires_grad_()
        with torch.enable_grad():
            latents = self._encode(picture)
            (gradient,) = torch.autograd.grad(latents.square().sum(), picture)
        return latents.detach(), gradient

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
        return self.embed_tokens(self.tokens(prompts, 0 if prefix is None else prefix.shape[-2]), prefix)

    def tokens(self, prompts: Sequence[str], room: int = 0) -> Int[Tensor, "b l"]:
        """Token ids of prompts, padded and cut to the text encoder's length, with room for a prefix of so many tokens."""
        length = self.tokenizer.model_max_length - room
        ids = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        ids = torch.cat([ids[:, :1], ids[:, :1].expand(-1, room), ids[:, 1:]], dim=1)  # after the start token
        return ids.to(self.device)

    def embed_tokens(
        self, ids: Int[Tensor, "b l"], prefix: Float[Tensor, "b n d"] | Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "b l d2"]:
        """`embed` of what `tokens` gave; the prefix is as long as the room in it."""
        if prefix is None:
            return self.text_encoder(ids)[0]
        hook = self.text_encoder.get_input_embeddings().register_forward_hook(functools.partial(_fill_in, prefix))
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
        inputs = (noised, t, embedding) if camera is None else (noised, t, embedding, camera)
        if torch.is_grad_enabled():  # a step of which this is a part is captured as a whole
            return self._predict(*inputs)
        key = (self.adapters.active, noised.shape, len(inputs))
        if key not in self._passes:
            self._passes[key] = Captured(self._predict, self.capture)
        return self._passes[key](*inputs)

    def _predict(self, noised: Tensor, t: Tensor, embedding: Tensor, camera: Tensor | None = None) -> Tensor:
        camera = self._no_camera.expand(len(noised), -1) if camera is None else camera
        inputs = noised.to(self._dtype), t.to(self.device), embedding.to(self._dtype)
        out = self._unet(*inputs, class_labels=camera.to(self._dtype)).sample.float()
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

    # Compiled passes

    def compile(self, backend: str | Callable = "inductor") -> None:
        """Compile the U-Net by `torch.compile` for passes without gradients, anew for each adapter in use and number of
        latents, at the first such pass. Where that fails, a warning says why, and the U-Net is used as it is."""
        limit = torch._dynamo.config.recompile_limit  # beyond it dynamo calls the plain U-Net, without a word
        torch._dynamo.config.recompile_limit = max(limit, COMPILED_KINDS)
        self._compiled = torch.compile(self.unet, backend=backend, dynamic=False)

    @property
    def is_compiled(self) -> bool:
        """Whether passes without gradients use a compiled U-Net."""
        return self._compiled is not None

    def _unet(self, *inputs: Tensor, class_labels: Tensor):
        """A pass of the U-Net, by the compiled one where there is one."""
        if self._compiled is None or torch.is_grad_enabled():
            return self.unet(*inputs, class_labels=class_labels)
        try:
            return self._compiled(*inputs, class_labels=class_labels)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.compile_error = " ".join(str(error).partition("\n\n")[0].split())
        self._compiled = None
        warnings.warn(f"The U-Net could not be compiled; it is used as it is. {self.compile_error}", stacklevel=2)
        return self.unet(*inputs, class_labels=class_labels)

    # Adapters

    def add_adapter(
        self, name: str, rank: int, generator: torch.Generator, targets: Sequence[str] = ATTENTION
    ) -> list[nn.Parameter]:
        """A fresh LoRA of this name on the U-Net's `targets`, float32; its up matrices are zero: it changes nothing yet."""
        self.remove_adapter(name)
        self.adapters.add(name, rank, targets, generator)
        return self.adapters.parameters(name)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter, if there is one of this name."""
        if name in self.adapters:
            self.adapters.remove(name)
            self._passes.clear()

    def merge_adapter(self, name: str, scale: float) -> None:
        """Prepare passes with an adapter whose parameters are final: at this scale they cost what those without it cost."""
        self.adapters.merge(name, scale)
        self._passes.clear()

    @contextmanager
    def using(self, adapter: str | None, train: bool = False, scale: float = 1.0) -> Iterator[None]:
        """Within it the U-Net is ε_φ with `scale` times this adapter's change of each weight (None: φ alone); only with
        `train` has the adapter gradients.

        What was before is restored at the end.
        """
        if adapter is not None and adapter not in self.adapters:
            raise PriorError(f"The prior has no adapter named {adapter!r}.")
        before = self.adapters.active
        trained = self.adapters.parameters(adapter) if train and adapter is not None else []
        self.adapters.use(adapter, scale, train)
        try:
            for parameter in trained:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(False)
            self.adapters.use(*before)

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


def _fill_in(prefix: Tensor, embeddings: nn.Module, ids: tuple, output: Tensor) -> Tensor:
    """A forward hook of token embeddings (b, l, d): the prefix (b, n, d) or (n, d) takes the room after the first token."""
    filling = prefix.to(output.dtype).expand(len(output), -1, -1)
    return torch.cat([output[:, :1], filling, output[:, 1 + prefix.shape[-2] :]], dim=1)
