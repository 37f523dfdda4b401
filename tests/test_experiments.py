"""examples.experiments: every experiment runs on a tiny stack, and its distances and 2D distillation are right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_stack import TINY

from examples.experiments import in_2d, in_3d, samples
from examples.experiments.__main__ import EXPERIMENTS, main, perform
from examples.experiments.distances import frechet, pairwise
from examples.experiments.in_2d import distil
from examples.experiments.lab import ExperimentError, Lab, Row
from examples.experiments.objects import BeforeAfter, Made, from_library, generate
from examples.experiments.sheet import GAP, sheet
from redream.evaluation import sweep as evaluation
from redream.evaluation import trials
from redream.runs.run import Run
from redream.settings import by_method
from redream.stack.stack import STACKS

PROMPTS = {
    "away": ("a red owl", "a purple cat"),
    "overfit": ("a red owl", "a blue cat"),
}
ASSETS = {name: ("a red owl", "a green cat") for name in ("away", "assets", "overfit")}


@pytest.fixture(scope="module")
def lab(models, tmp_path_factory):
    """A folder for all experiments here: they share runs."""
    out = tmp_path_factory.mktemp("experiments")

    def make(name, **more):
        prompts = PROMPTS.get(name, ("a red owl",))
        return Lab(models, by_method(TINY), out, prompts, ASSETS.get(name, ()), samples=4, **more)

    return make


@pytest.fixture(scope="module")
def evaluated(models, tmp_path_factory):
    """An evaluation of two methods that share one finished prompt of two, and a run of other settings."""
    out, prompts = (
        tmp_path_factory.mktemp("evaluated"),
        [trials.Prompt("a blue cat"), trials.Prompt("a red owl")],
    )
    list(evaluation.evaluate(out, prompts[:1], ["vsd"], models=models, settings=by_method(TINY.with_(iterations=1))))
    list(evaluation.evaluate(out, prompts, ["vsd", "sds"], models=models, settings=by_method(TINY)))
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
    "overfit": {"loss on renders of the asset: after", "a blue cat, before: likeness"},
    "distil2d": {"VSD, 7.5: CLIP-feature distance", "samples, another seed: CLIP-feature distance"},
    "views3d": {"vsd: CLIP-feature distance", "sds: CLIP-feature distance"},
    "beside": {"prompts"},
    "blind": {"objects"},
}
TWICE = {"assets": (": IoU with the asset", ": IoU with the others", ": CLIP a")}  # how keys of two assets end
FOLDERS = {name: [["runs", "vsd"], ["runs", "sds"]] for name in ("views3d", "beside", "blind")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_leaves_a_picture_and_its_figures(name, lab, evaluated, monkeypatch):
    monkeypatch.setattr(in_3d, "PARTICLES", (2,))
    for module in (in_2d, samples):
        monkeypatch.setattr(module, "COUNT", 3)
    monkeypatch.setattr(in_3d, "TO_NAME", 1)
    own = lab(name, runs=evaluated if name in FOLDERS else None)
    lines = list(perform(name, own))
    found = json.loads((own.out / f"{name}.json").read_text())
    assert set(found["figures"]) >= EXPECTED[name]
    assert all(sum(key.endswith(end) for key in found["figures"]) == 2 for end in TWICE.get(name, ()))
    assert [line.rpartition(": ")[0] for line in lines] == [*found["figures"], "seconds"]
    assert found["settings"]["iterations"] == TINY.iterations and found["prompts"]
    assert sorted(folder.split("/")[:2] for folder in found["folders"]) == sorted(FOLDERS.get(name, []))
    with Image.open(own.out / f"{name}.png") as picture:
        assert picture.width > 400 and picture.height > 100


def test_only_prompts_that_all_methods_have_are_compared(lab, evaluated):
    outcome = in_3d.views3d(lab("views3d", runs=evaluated))
    assert outcome.figures["sds: pictures"] == outcome.figures["vsd: pictures"] == 10
    assert [row.label for row in outcome.rows if row.images is None] == ["a red owl"]


def test_methods_are_shown_between_the_best_asset_and_the_true_object(lab, evaluated):
    """From three sides each; the tiny stack knows no true objects, so that column is left out."""
    outcome = in_3d.beside(lab("beside", runs=evaluated))
    assert outcome.heads == ("the best asset", "vsd", "sds") and [row.label for row in outcome.rows] == ["a red owl"]
    asset, first = from_library(lab("beside"), "a red owl").seen.images, outcome.rows[0].images
    assert torch.equal(first[:3], asset[[0, 2, 4]]) and len(first) == 9


def test_objects_to_be_named_are_drawn_by_the_seed_and_shown_without_their_prompts(lab, evaluated, monkeypatch):
    """Methods are mixed and so are prompts; of a method with more runs than are shown, some are left out."""
    monkeypatch.setattr(in_3d, "TO_NAME", 1)
    drawn = [in_3d.blind(replace(lab("blind", runs=evaluated), preset=by_method(TINY.with_(seed=s)))) for s in range(9)]
    assert all([row.label for row in outcome.rows] == ["1", "2"] for outcome in drawn)
    methods = {tuple(folder.split("/")[1] for folder in outcome.folders) for outcome in drawn}
    assert methods == {("vsd", "sds"), ("sds", "vsd")}
    assert {prompt for outcome in drawn for prompt in outcome.prompts} == {"a blue cat", "a red owl"}
    for outcome in drawn:
        pairs = zip(outcome.prompts, outcome.folders, strict=True)
        assert all(prompt.replace(" ", "-") in folder for prompt, folder in pairs)
    monkeypatch.setattr(in_3d, "TO_NAME", 3)
    with pytest.raises(ExperimentError, match="too few to draw 3 from"):
        in_3d.blind(lab("blind", runs=evaluated))


def test_runs_of_other_weights_are_not_compared(lab, evaluated, monkeypatch):
    monkeypatch.setattr(trials.ModelDigests, "of", lambda stack: trials.ModelDigests("other makers", "other judges"))
    with pytest.raises(ExperimentError, match="no finished runs"):
        in_3d.views3d(lab("views3d", runs=evaluated))


def test_particles_are_compared_with_as_many_single_runs_from_the_best_asset_and_from_others(lab, monkeypatch):
    asked, own = [], lab("particles")
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = BeforeAfter(images, images[:, :1])

    def generate(lab, prompt, *, uids=(), particles=1, initialise, seed=0):
        """Runs of one have a score of .5, of others .5 + .1 · particles, from assets other than the best 1; from nothing
        all of them have half of it."""
        asked.append((initialise, particles, "".join(uids), seed))
        score = (1 if uids else 0.5 if particles == 1 else 0.5 + 0.1 * particles) * (1 if initialise else 0.5)
        return [Made(seen, {"CLIP a": score, "CLIP b": 2 * score})] * particles

    monkeypatch.setattr(in_3d, "generate", generate)
    monkeypatch.setattr(in_3d, "uids_for", lambda lab, prompt: ["p", "q", "r"])
    figures = in_3d.particles(own).figures | in_3d.particles(own, initialise=False).figures
    of_one, of_more = [(1, "", seed) for seed in range(4)], [(2, "", 0), (4, "", 0)]
    from_others = [(1, "qrp", 1), (1, "rpq", 2)]  # the first and the fourth start from the first asset anyway
    assert asked == [(True, *run) for run in of_one + from_others + of_more] + [
        (False, *run) for run in of_one + of_more
    ]
    assert all(abs(value) < 1e-5 for key, value in figures.items() if "distance" in key)  # all objects look alike
    expected = {"from assets, 4 seeds: CLIP a": 0.5, "from nothing, 4 particles: CLIP b": 0.9}
    expected |= {"from assets, 4 starts: CLIP a": 0.75}  # two of the four start from another asset
    expected |= {"from assets, 4 starts against 4 seeds: CLIP a, change in %": 50}
    expected |= {"from assets, 4 particles against 4 starts: CLIP a, change in %": 20}
    for start in ("from assets", "from nothing"):
        expected[f"{start}, 2 particles against 2 seeds: CLIP a, change in %"] = 40
        expected[f"{start}, 4 particles against 4 seeds: CLIP b, change in %"] = 80
    assert {key: figures[key] for key in expected} == pytest.approx(expected)


def test_the_usual_prompts_are_those_that_settings_are_chosen_with():
    dev = {p.text for p in trials.read_prompts(STACKS.parent / "examples/prompts_mini.txt", "validation")}
    assert {prompt for experiment in EXPERIMENTS.values() for prompt in experiment.prompts} <= dev


def test_a_run_that_was_made_is_used_again(lab):
    own = lab("particles")
    first = generate(own, "a red owl", seed=5)
    history = {path: path.read_bytes() for path in own.out.glob("runs/*/events.jsonl")}
    again = generate(own, "a red owl", seed=5)
    assert torch.equal(first[0].seen.images, again[0].seen.images) and first[0].scores == again[0].scores
    assert {path: path.read_bytes() for path in own.out.glob("runs/*/events.jsonl")} == history


def test_what_makes_no_experiment_is_refused_in_a_sentence(tiny_stack, tmp_path, capsys):
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

MEAN, SPREAD = 1.5, 0.8  # of the data that the stand-in prior knows


def normal_score(noised, alpha, sigma, mean, variance):
    """ε(x_t) = σ_t (x_t − α_t μ) / (α_t² s² + σ_t²), exactly, where the data are N(μ, s²)."""
    alpha, sigma = (a[:, None, None, None] for a in (alpha, sigma))
    return sigma * (noised - alpha * mean) / (alpha.square() * variance + sigma.square())


class NormalPrior:
    """A prior that is right about data which are N(1.5, 0.8²), whatever the prompt."""

    timesteps = 1000

    def embed(self, prompts):
        return torch.zeros(len(prompts), 1, 1)

    def alpha_sigma(self, t):
        angle = t / self.timesteps * torch.pi / 2
        return angle.cos(), angle.sin()

    def add_noise(self, latents, t, noise):
        alpha, sigma = (a[:, None, None, None] for a in self.alpha_sigma(t))
        return alpha * latents + sigma * noise

    def guided_noise(self, noised, t, words, empty, scale):
        return normal_score(noised, *self.alpha_sigma(t), MEAN, SPREAD**2)


class NormalVariational:
    """A variational score that is right about the particles: they are taken to be normal."""

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


def test_a_sheet_has_a_line_per_row_and_its_pictures_side_by_side():
    red, blue = (torch.tensor(c)[:, None, None].expand(3, 8, 8) for c in ([1.0, 0, 0], [0, 0, 1.0]))
    picture = sheet([Row("heading"), Row("a", torch.stack([red, blue])), Row("b", blue[None])], ("x", "y"), side=20)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3, h, w)
    is_red, is_blue = ((pixels == torch.tensor(c)[:, None, None]).all(0) for c in ([255, 0, 0], [0, 0, 255]))
    assert int(is_red.sum()) == 20 * 20 and int(is_blue.sum()) == 2 * 20 * 20
    down, across = is_red.nonzero().min(dim=0).values.tolist()
    assert is_blue[down, across + 20 + GAP] and not is_blue[down, across]
    assert is_blue.nonzero()[-1][0] > down + 20
