"""examples.experiments: every experiment runs on a tiny stack; its distances and its 2D distillation are right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_stack import TINY

from examples.experiments import in_2d, in_3d, samples
from examples.experiments.__main__ import EXPERIMENTS, main, run_experiment
from examples.experiments.context import Context, ExperimentError, Row
from examples.experiments.distances import frechet, pairwise
from examples.experiments.in_2d import distil
from examples.experiments.objects import GeneratedObject, RingViews, best_asset, generate
from examples.experiments.sheet import GAP, sheet
from redream.evaluation import sweep, trials
from redream.runs.run import Run
from redream.settings import by_method
from redream.stack.stack import STACKS

PROMPTS = {
    "away": ("a red owl", "a purple cat"),
    "overfit": ("a red owl", "a blue cat"),
}
VSD_CHANGES = {"distillation": {"guidance": 7.5}}
ASSETS = {name: ("a red owl", "a green cat") for name in ("away", "assets", "overfit")}


@pytest.fixture(scope="module")
def context_for(models, tmp_path_factory):
    """A function of an experiment's name that returns its context; all have the same folder and so share runs."""
    out = tmp_path_factory.mktemp("experiments")

    def make(name, **options):
        prompts = PROMPTS.get(name, ("a red owl",))
        return Context(models, by_method(TINY), out, prompts, ASSETS.get(name, ()), samples=4, **options)

    return make


@pytest.fixture(scope="module")
def evaluated(models, tmp_path_factory):
    """An evaluation of two methods that share one finished prompt of two, and a run of other settings.

    VSD's guidance is not ReDream's, while other settings of its group are those of the tiny preset.
    """
    out, prompts = tmp_path_factory.mktemp("evaluated"), [trials.Prompt("a blue cat"), trials.Prompt("a red owl")]
    preset, shorter = by_method(TINY, vsd=VSD_CHANGES), by_method(TINY.with_(iterations=1), vsd=VSD_CHANGES)
    list(sweep.evaluate(out, prompts[:1], ["vsd"], models=models, settings=shorter))
    list(sweep.evaluate(out, prompts, ["vsd", "sds"], models=models, settings=preset))
    for folder in (out / "runs/vsd").glob("a-blue-cat*"):
        run = Run.open(folder)
        if run.request.settings.iterations == TINY.iterations:
            run.write_json("record.json", run.read_json("record.json") | {"done": 1})
    return out


EXPECTED = {
    "away": {"a purple cat: CLIP a", "a purple cat: IoU with the asset", "a purple cat: CLIP a of the asset"},
    "assets": set(),
    "particles": {"from assets, 2 particles: distance by view", "from assets, 2 starts: distance"},
    "particles-no-init": {"from nothing, 2 particles against 2 seeds: CLIP a, change in %"},
    "progress": {"a red owl, vsd, iteration 4: CLIP a", "a red owl, redream-no-init, iteration 1: CLIP a"},
    "views": {"before: back by CLIP a", "after, prefixes frozen: all views by CLIP b"},
    "overfit": {"loss on renders of the asset: after", "a blue cat, before: similarity to the asset"},
    "distil2d": {"VSD, 7.5: CLIP-feature distance", "samples, another seed: CLIP-feature distance"},
    "views3d": {"vsd: CLIP-feature distance", "sds: CLIP-feature distance"},
    "beside": {"prompts"},
    "blind": {"objects"},
}
ENDINGS = {"assets": (": IoU with the asset", ": IoU with the others", ": CLIP a")}  # of two keys each, one per asset
FOLDERS = {name: [["runs", "vsd"], ["runs", "sds"]] for name in ("views3d", "beside", "blind")}

LONG = ("assets", "away", "overfit", "particles", "particles-no-init", "progress", "views")  # several objects each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in EXPERIMENTS]
)
def test_every_experiment_writes_a_picture_and_its_metrics(name, context_for, evaluated, monkeypatch):
    monkeypatch.setattr(in_3d, "PARTICLES", (2,))
    for module in (in_2d, samples):
        monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(in_3d, "OBJECTS_DRAWN", 1)
    context = context_for(name, sweep=evaluated if name in FOLDERS else None)
    lines = list(run_experiment(name, context))
    result = json.loads((context.out / f"{name}.json").read_text())
    assert set(result["metrics"]) >= EXPECTED[name]
    assert all(sum(key.endswith(end) for key in result["metrics"]) == 2 for end in ENDINGS.get(name, ()))
    assert [line.rpartition(": ")[0] for line in lines] == [*result["metrics"], "seconds"]
    assert result["settings"]["iterations"] == TINY.iterations and result["prompts"]
    assert sorted(folder.split("/")[:2] for folder in result["folders"]) == sorted(FOLDERS.get(name, []))
    with Image.open(context.out / f"{name}.png") as picture:
        assert picture.width > 400 and picture.height > 100


def test_only_prompts_that_all_methods_have_are_compared(context_for, evaluated):
    outcome = in_3d.views3d(context_for("views3d", sweep=evaluated))
    assert outcome.metrics["sds: pictures"] == outcome.metrics["vsd: pictures"] == 10
    assert [row.label for row in outcome.rows if row.images is None] == ["a red owl"]


def test_methods_stand_between_the_best_asset_and_the_true_object(context_for, evaluated):
    """From three sides each; the tiny stack knows no true objects, so that column is left out."""
    outcome = in_3d.beside(context_for("beside", sweep=evaluated))
    assert outcome.heads == ("the best asset", "vsd", "sds") and [row.label for row in outcome.rows] == ["a red owl"]
    asset, first = best_asset(context_for("beside"), "a red owl").views.images, outcome.rows[0].images
    assert torch.equal(first[:3], asset[[0, 2, 4]]) and len(first) == 9


def test_the_objects_of_blind_are_drawn_by_the_seed_and_shown_without_their_prompts(
    context_for, evaluated, monkeypatch
):
    """Methods are shuffled and so are prompts; of a method with more runs than are drawn, some are left out."""
    monkeypatch.setattr(in_3d, "OBJECTS_DRAWN", 1)
    context = context_for("blind", sweep=evaluated)
    drawn = [in_3d.blind(replace(context, preset=by_method(TINY.with_(seed=seed)))) for seed in range(9)]
    assert all([row.label for row in outcome.rows] == ["1", "2"] for outcome in drawn)
    methods = {tuple(folder.split("/")[1] for folder in outcome.folders) for outcome in drawn}
    assert methods == {("vsd", "sds"), ("sds", "vsd")}
    assert {prompt for outcome in drawn for prompt in outcome.prompts} == {"a blue cat", "a red owl"}
    for outcome in drawn:
        pairs = zip(outcome.prompts, outcome.folders, strict=True)
        assert all(prompt.replace(" ", "-") in folder for prompt, folder in pairs)
    monkeypatch.setattr(in_3d, "OBJECTS_DRAWN", 3)
    with pytest.raises(ExperimentError, match="too few to draw 3 from"):
        in_3d.blind(context)


def test_runs_of_other_models_are_not_compared(context_for, evaluated, monkeypatch):
    others = trials.ModelDigests("other generators", "other scorers")
    monkeypatch.setattr(trials.ModelDigests, "of", lambda stack: others)
    with pytest.raises(ExperimentError, match="no finished runs"):
        in_3d.views3d(context_for("views3d", sweep=evaluated))


def test_particles_are_compared_with_as_many_single_runs_from_the_best_asset_and_from_others(context_for, monkeypatch):
    calls, context = [], context_for("particles")
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    views = RingViews(images, images[:, :1])

    def generate(context, prompt, *, uids=(), particles=1, initialise, seed=0):
        """Runs of one have a score of .5, of others .5 + .1 · particles, from assets other than the best 1; from nothing
        all of them have half of it."""
        calls.append((initialise, particles, "".join(uids), seed))
        score = (1 if uids else 0.5 if particles == 1 else 0.5 + 0.1 * particles) * (1 if initialise else 0.5)
        return [GeneratedObject(views, {"CLIP a": score, "CLIP b": 2 * score})] * particles

    monkeypatch.setattr(in_3d, "generate", generate)
    monkeypatch.setattr(in_3d, "retrieved_uids", lambda context, prompt: ["p", "q", "r"])
    metrics = in_3d.particles(context).metrics | in_3d.particles(context, initialise=False).metrics
    of_one, of_more = [(1, "", seed) for seed in range(4)], [(2, "", 0), (4, "", 0)]
    from_others = [(1, "qrp", 1), (1, "rpq", 2)]  # the first and the fourth start from the first asset anyway
    assert calls == [(True, *run) for run in of_one + from_others + of_more] + [
        (False, *run) for run in of_one + of_more
    ]
    assert all(abs(value) < 1e-5 for key, value in metrics.items() if "distance" in key)  # all objects look alike
    expected = {"from assets, 4 seeds: CLIP a": 0.5, "from nothing, 4 particles: CLIP b": 0.9}
    expected |= {"from assets, 4 starts: CLIP a": 0.75}  # two of the four start from another asset
    expected |= {"from assets, 4 starts against 4 seeds: CLIP a, change in %": 50}
    expected |= {"from assets, 4 particles against 4 starts: CLIP a, change in %": 20}
    for start in ("from assets", "from nothing"):
        expected[f"{start}, 2 particles against 2 seeds: CLIP a, change in %"] = 40
        expected[f"{start}, 4 particles against 4 seeds: CLIP b, change in %"] = 80
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)


def test_the_default_prompts_are_validation_prompts():
    validation = {p.text for p in trials.read_prompts(STACKS.parent / "examples/prompts_mini.txt", "validation")}
    assert {prompt for experiment in EXPERIMENTS.values() for prompt in experiment.prompts} <= validation


def test_a_finished_run_is_reused(context_for):
    context = context_for("particles")
    first = generate(context, "a red owl", seed=5)
    logs = {path: path.read_bytes() for path in context.out.glob("runs/*/events.jsonl")}
    reused = generate(context, "a red owl", seed=5)
    assert torch.equal(first[0].views.images, reused[0].views.images) and first[0].scores == reused[0].scores
    assert {path: path.read_bytes() for path in context.out.glob("runs/*/events.jsonl")} == logs


def test_wrong_options_end_with_status_2_and_a_sentence(tiny_stack, tmp_path, capsys):
    always = ["--stack", str(tiny_stack), "--out", str(tmp_path)]
    assert main(["views3d", *always]) == 2
    assert "--runs DIR" in capsys.readouterr().err
    assert main(["views3d", *always, "--runs", str(tmp_path)]) == 2
    assert "no table.json" in capsys.readouterr().err
    assert main(["distil2d", *always, "--samples", "0"]) == 2
    assert "samples" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["progress", "--stack", str(tiny_stack), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main(["away", *always, "--iterations", "0"]) == 2
    assert "iterations" in capsys.readouterr().err


# ---------------------------------------------------------------- distances


def test_the_frechet_distance_is_that_of_the_fitted_normals(generator):
    """N(μ, σ²) along one axis: (μ_a − μ_b)² + (σ_a − σ_b)²; here 3² + (2 − 1)² = 10 after fitting exactly."""
    base = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    base = (base - base.mean()) / base.std()
    assert frechet(base, 2 * base.flip(0) + 3) == pytest.approx(10)
    assert frechet(base, base) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_agrees_with_the_matrix_square_root(generator):
    """tr (Σ_a Σ_b)^½ is the sum of the roots of the eigenvalues of Σ_a Σ_b, also where Σ_a is singular."""
    b = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    for count in (30, 4):
        a = torch.randn(count, 6, generator=generator, dtype=torch.float64) @ torch.diag(torch.arange(1.0, 7).double())
        product = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).real.clamp(min=0)
        expected = (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace()
        assert frechet(a, b) == pytest.approx(float(expected - 2 * product.sqrt().sum()))


def test_pairwise_distance_is_one_minus_the_cosine_whatever_the_lengths():
    """0° and 60°: 1 − ½; with 90° to the first one, too: (½ + 1 + (1 − cos 30°)) / 3."""
    at = torch.tensor([[1.0, 0], [0.5, 0.75**0.5], [0, 1]]) * torch.tensor([[1.0], [3.0], [0.2]])
    assert pairwise(at[:2]) == pytest.approx(0.5)
    assert pairwise(at) == pytest.approx((0.5 + 1 + 1 - 0.75**0.5) / 3)
    assert pairwise(at[:1]) == 0


# ---------------------------------------------------------------- 2D distillation

MEAN, SPREAD = 1.5, 0.8  # of the data that `NormalPrior` models


def normal_score(noised, alpha, sigma, mean, variance):
    """ε(x_t) = σ_t (x_t − α_t μ) / (α_t² s² + σ_t²), exactly, where the data are N(μ, s²)."""
    alpha, sigma = (a[:, None, None, None] for a in (alpha, sigma))
    return sigma * (noised - alpha * mean) / (alpha.square() * variance + sigma.square())


class NormalPrior:
    """The exact prior of data which are N(1.5, 0.8²), whatever the prompt."""

    timesteps = 1000

    def embed(self, prompts):
        return torch.zeros(len(prompts), 1, 1)

    def alpha_sigma(self, t):
        angle = t / self.timesteps * torch.pi / 2
        return angle.cos(), angle.sin()

    def add_noise(self, latents, t, noise):
        alpha, sigma = (a[:, None, None, None] for a in self.alpha_sigma(t))
        return alpha * latents + sigma * noise

    def guided_noise(self, noised, t, embedding, empty, scale):
        return normal_score(noised, *self.alpha_sigma(t), MEAN, SPREAD**2)


class NormalVariational:
    """The exact score of the normal distribution fitted to the particles."""

    def __init__(self, prior, latents):
        self.prior, self.latents = prior, latents

    def predict(self, noised, t, camera):
        mean, variance = self.latents.mean(dim=0), self.latents.var(dim=0)
        return normal_score(noised, *self.prior.alpha_sigma(t), mean, variance)

    def step(self, latents, camera):
        self.latents = latents.clone()
        return 0.0


def test_2d_sds_seeks_the_mode_and_2d_vsd_samples_the_distribution(generator):
    """The theorem behind VSD: from a narrow start SDS's particles all end at μ, VSD's have mean μ and spread s."""
    prior, start = NormalPrior(), 0.3 * torch.randn(64, 1, 4, 4, generator=generator)
    ends = {}
    for name, score in (("sds", None), ("vsd", NormalVariational(prior, start))):
        ends[name] = distil(prior, "", start, 500, 7.5, torch.Generator().manual_seed(1), score)
        assert float(ends[name].mean()) == pytest.approx(MEAN, abs=0.1)
    assert float(ends["sds"].std(dim=0).mean()) < 0.35
    assert float(ends["vsd"].std(dim=0).mean()) == pytest.approx(SPREAD, abs=0.1)


# ---------------------------------------------------------------- pictures


def test_a_sheet_has_its_rows_below_each_other_and_the_images_of_a_row_side_by_side():
    red, blue = (torch.tensor(c)[:, None, None].expand(3, 8, 8) for c in ([1.0, 0, 0], [0, 0, 1.0]))
    picture = sheet([Row("heading"), Row("a", torch.stack([red, blue])), Row("b", blue[None])], ("x", "y"), size=20)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3, h, w)
    is_red, is_blue = ((pixels == torch.tensor(c)[:, None, None]).all(0) for c in ([255, 0, 0], [0, 0, 255]))
    assert int(is_red.sum()) == 20 * 20 and int(is_blue.sum()) == 2 * 20 * 20
    down, across = is_red.nonzero().min(dim=0).values.tolist()
    assert is_blue[down, across + 20 + GAP] and not is_blue[down, across]
    assert is_blue.nonzero()[-1][0] > down + 20
