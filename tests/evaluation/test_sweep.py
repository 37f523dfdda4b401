"""Many runs become tables: no run is made twice, interrupted sweeps end with equal tables, failures are listed."""

import dataclasses
import html.parser
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_stack import TINY

from redream import pipeline
from redream.evaluation import gallery, trials, workers
from redream.evaluation import sweep as evaluation
from redream.evaluation.scorer import EvaluationError, Scorer, objects_of
from redream.evaluation.trials import Prompt
from redream.retrieval.index import AssetUnavailable
from redream.runs.run import Run
from redream.scoring.scores import SCORES
from redream.settings import VARIANTS, by_method
from redream.stack.models import Models
from redream.stack.vocabulary import parse_prompt

SETTINGS = TINY.with_(iterations=2, output={"checkpoint_every": 1})
PROMPTS = [Prompt("a purple owl", "validation"), Prompt("a red vase", "test")]
METHODS = ["redream", "sds", "retrieval"]


@pytest.fixture(scope="module")
def models(models_with_truth) -> Models:
    return models_with_truth


def sweep(out: Path, models: Models, **changes) -> list[evaluation.SweepProgress]:
    request = {"prompts": PROMPTS, "methods": METHODS, "seeds": [0], "settings": by_method(SETTINGS)} | changes
    return list(evaluation.evaluate(out, models=models, **request))


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory) -> Path:
    """A sweep that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    updates = sweep(out, models)
    assert [update.done for update in updates if update.ended] == list(range(1, 9)) and not any(
        update.failure for update in updates
    )
    return out


@pytest.fixture
def begun_runs(monkeypatch) -> list[str]:
    """The folders in which a run is begun_runs from here on."""
    folders, generate = [], pipeline.generate
    monkeypatch.setattr(pipeline, "generate", lambda *a, **k: folders.append(k["out"].name) or generate(*a, **k))
    return folders


# ---------------------------------------------------------------- runs


def test_a_finished_run_with_equal_settings_is_not_run_again_and_the_tables_stay_equal(
    whole, models, begun_runs, tmp_path
):
    before = (whole / "table.json").read_bytes()
    (whole / "table.json").unlink()
    sweep(whole, models)
    assert begun_runs == [] and (whole / "table.json").read_bytes() == before


def test_other_settings_or_weights_get_runs_of_their_own(whole, models, begun_runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    request = {"methods": ["sds"], "prompts": PROMPTS[:1]}
    sweep(out, models, settings=by_method(SETTINGS.with_(distillation={"t_min": 0.2})), **request)
    assert len(begun_runs) == 1 and len(list((out / "runs/sds").iterdir())) == 1 + len(PROMPTS)
    monkeypatch.setattr(trials.ModelDigests, "of", lambda stack: trials.ModelDigests("other makers", "scorers"))
    sweep(out, models, **request)
    assert len(set(begun_runs)) == 2


@pytest.mark.parametrize(
    "group, scores",
    [
        ("clips", ("clip", "view_accuracy")),
        pytest.param("perceptual", ("a_lpips", "a_lpips_error"), marks=pytest.mark.long),
    ],
)
def test_other_scoring_models_score_the_same_runs_again(whole, models, begun_runs, tmp_path, group, scores):
    """Scoring models that are swapped give swapped scores; the runs' own scores.json stay as they were."""
    stack, out = models.stack, tmp_path / "out"
    shutil.copytree(whole, out)
    entries = getattr(stack, group)
    changed = entries | {"a": entries["b"], "b": entries["a"]}
    sweep(out, Models.load(dataclasses.replace(stack, **{group: changed}), "cpu"))
    before, after = (pq.read_table(folder / "results.parquet").to_pylist() for folder in (whole, out))
    assert begun_runs == [] and len(before) == len(after) == 7  # the truth has no vase
    for row, swapped in zip(before, after, strict=True):
        assert row["scorers"] != swapped["scorers"]
        for score in scores:
            assert (swapped[f"{score}_a"], swapped[f"{score}_b"]) == (row[f"{score}_b"], row[f"{score}_a"])
        assert swapped["silhouette_iou"] == row["silhouette_iou"]
        file = Path("runs", row["method"], row["folder"], "scores.json")
        assert not (whole / file).exists() or (whole / file).read_bytes() == (out / file).read_bytes()
    assert any(row[f"{scores[0]}_a"] != row[f"{scores[0]}_b"] for row in before)


def test_a_damaged_run_that_other_scoring_models_need_is_made_anew(whole, models, begun_runs, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (folder,) = (tmp_path / "out/runs/sds").glob("a-purple*")
    malform(folder, "checkpoint")
    clips = models.stack.clips | {"a": models.stack.clips["b"]}
    other = Models.load(dataclasses.replace(models.stack, clips=clips), "cpu")
    updates = sweep(tmp_path / "out", other, methods=["sds"], prompts=PROMPTS[:1])
    assert begun_runs == [folder.name] and not any(update.failure for update in updates)


def test_settings_tuned_for_one_method_change_only_this_method(whole, models, begun_runs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    sweep(out, models, tuned={"sds": {"distillation": {"t_max": (0.9, 0.6)}}}, prompts=PROMPTS[:1])
    (made,) = begun_runs
    assert Run.open(out / "runs/sds" / made).request.settings == SETTINGS.with_(
        method="sds", distillation={"t_max": (0.9, 0.6)}
    )
    assert json.loads((out / "table.json").read_text())["changes"]["sds"] == {
        "method": "sds",
        "distillation": {"t_max": [0.9, 0.6]},
    }
    with pytest.raises(EvaluationError, match="no method magic"):
        sweep(out, models, tuned={"magic": {}})


def test_a_score_whose_network_was_missing_is_made_once_the_network_is_available(
    models, begun_runs, tmp_path, monkeypatch
):
    request, real = {"methods": ["sds"], "prompts": PROMPTS[:1]}, Models.perceptual
    with monkeypatch.context() as patch:
        patch.setattr(Models, "perceptual", lambda self, name: None if name == "b" else real(self, name))
        sweep(tmp_path, models, **request)
        assert "a_lpips_b" not in json.loads((tmp_path / "table.json").read_text())["methods"]["sds"]["scores"]
    sweep(tmp_path, models, **request)
    rows = json.loads((tmp_path / "table.json").read_text())["methods"]
    assert rows["sds"]["scores"]["a_lpips_b"]["prompts"] == rows["truth"]["scores"]["a_lpips_b"]["prompts"] == 1
    assert len(begun_runs) == 1


def test_an_object_that_diverged_is_listed_as_missing(whole, models, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (folder,) = out.glob("runs/sds/a-purple-owl*")
    (folder / "evaluation.json").unlink()
    run = Run.open(folder)
    scores = run.read_json("scores.json")
    run.write_json("scores.json", scores | {"objects": [one | {"clip_a": float("nan")} for one in scores["objects"]]})
    (failed,) = [update.failure for update in sweep(out, models) if update.failure]
    assert "not numbers" in failed
    assert json.loads((out / "table.json").read_text())["methods"]["sds"]["missing"] == 1


def test_methods_with_equal_settings_are_made_once(models, begun_runs, tmp_path):
    settings = SETTINGS.with_(distillation={"guidance": 100.0})
    sweep(tmp_path, models, settings=by_method(settings), methods=["sds", "sds-100"], prompts=PROMPTS[:1])
    table = json.loads((tmp_path / "table.json").read_text())
    assert len(begun_runs) == 1 and set(table["methods"]) == {"sds", "truth"} and table["same"] == {"sds-100": "sds"}
    assert "With these settings sds-100 is sds" in (tmp_path / "table.md").read_text()


def test_a_sweep_that_was_killed_twice_ends_with_the_same_table(whole, models, begun_runs, tmp_path):
    """First its process dies within a run, after the first checkpoint; then it is left after a run."""
    code = f"""
import os
from pathlib import Path
import torch
torch.set_num_threads(1)  # as here: sums are equal then
from test_sweep import METHODS, PROMPTS, SETTINGS
from redream.evaluation import sweep as evaluation
from redream.stack.models import Models
from redream.settings import VARIANTS, by_method
from tiny_stack import make_outputs_small
make_outputs_small()
models = Models.load({str(models.stack.base)!r}, "cpu")
for update in evaluation.evaluate(Path({str(tmp_path)!r}), PROMPTS, METHODS, models=models, settings=by_method(SETTINGS)):
    if update.trial.method == "sds" and list(update.trial.folder.glob("checkpoint/0*")):
        os._exit(9)
"""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    died = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": path})
    assert died.returncode == 9
    updates = evaluation.evaluate(tmp_path, PROMPTS, METHODS, models=models, settings=by_method(SETTINGS))
    next(update for update in updates if update.trial.method == "sds" and update.ended)
    updates.close()
    assert not (tmp_path / "table.json").exists()
    sweep(tmp_path, models)
    assert len(begun_runs) == len(set(begun_runs)) == 2  # the other two were begun_runs before the process died
    assert (tmp_path / "table.json").read_bytes() == (whole / "table.json").read_bytes()
    sessions = {row["sessions"] for row in pq.read_table(tmp_path / "results.parquet").to_pylist()}
    assert 2 in sessions  # whose seconds are not those of a whole run


def test_a_trial_that_another_program_works_on_is_left_to_that_program(
    whole, models, begun_runs, tmp_path, monkeypatch
):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.0)
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "table.json").unlink()
    digests = trials.ModelDigests.of(models.stack)
    trial = trials.plan(out, PROMPTS[1], "redream", 0, by_method(SETTINGS)["redream"], digests)
    code = f"""
import sys
from filelock import FileLock
lock = FileLock({str(trial.folder.with_name(f".{trial.folder.name}.lock"))!r})
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        updates = evaluation.evaluate(out, PROMPTS, METHODS, models=models, settings=by_method(SETTINGS))
        before = [next(update.trial for update in updates if update.ended) for _ in range(7)]
        assert trial not in before
        waiting = next(updates)
        assert waiting.trial == trial and not waiting.ended and not (out / "table.json").exists()
        other.kill()
    assert [update.trial for update in updates if update.ended] == [trial] and begun_runs == []
    assert (out / "table.json").read_bytes() == (whole / "table.json").read_bytes()


def test_a_run_without_usable_settings_is_begun_anew(whole, models, begun_runs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    first, second = sorted((out / "runs/sds").iterdir())[:2]
    (first / "settings.json").write_text("{")
    (second / "settings.json").unlink()
    sweep(out, models)
    assert sorted(begun_runs) == [first.name, second.name]
    assert (out / "table.json").read_bytes() == (whole / "table.json").read_bytes()


def malform(folder: Path, file: str) -> None:
    for path in (folder / file,) if file == "checkpoint" else folder.glob(file):
        shutil.rmtree(path) if path.is_dir() else path.write_text("{}")


@pytest.mark.parametrize("file", ["scores.json", "checkpoint", "checkpoint/*2/state.safetensors", "record.json"])
def test_a_finished_run_whose_files_are_damaged_is_made_anew_unless_its_scores_are_known(
    whole, models, begun_runs, tmp_path, file
):
    shutil.copytree(whole, tmp_path / "out")
    (folder,) = (tmp_path / "out/runs/sds").glob("a-purple*")
    request = {"methods": ["sds"], "prompts": PROMPTS[:1]}
    malform(folder, file)
    sweep(tmp_path / "out", models, **request)
    assert begun_runs == [folder.name] * (file == "record.json")
    malform(folder, file)
    (folder / "evaluation.json").unlink()
    begun_runs.clear()
    before = (tmp_path / "out/table.json").read_bytes()
    updates = sweep(tmp_path / "out", models, **request)
    assert begun_runs == [folder.name] and not any(update.failure for update in updates)
    assert (tmp_path / "out/table.json").read_bytes() == before


def test_a_finished_run_without_scores_is_scored_and_not_made_anew(whole, models, begun_runs, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (folder,) = (tmp_path / "out/runs/sds").glob("a-purple*")
    request = {"methods": ["sds"], "prompts": PROMPTS[:1]}
    sweep(tmp_path / "out", models, **request)
    before = (tmp_path / "out/table.json").read_bytes()
    for file in ("scores.json", "evaluation.json"):
        (folder / file).unlink()
    updates = sweep(tmp_path / "out", models, **request)
    assert not begun_runs and not any(update.failure for update in updates)
    assert (tmp_path / "out/table.json").read_bytes() == before


def test_an_interrupted_run_without_a_whole_checkpoint_is_made_anew(whole, models, begun_runs, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (folder,) = (tmp_path / "out/runs/sds").glob("a-purple*")
    for name in ("record.json", "evaluation.json"):
        (folder / name).unlink()
    malform(folder, "checkpoint/*/state.safetensors")
    updates = sweep(tmp_path / "out", models, methods=["sds"], prompts=PROMPTS[:1])
    assert begun_runs == [folder.name] and not any(update.failure for update in updates)


def test_scores_of_another_version_are_made_again_without_a_new_run(whole, models, begun_runs, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    for name in ("evaluation.json", "scores.json"):
        for file in (tmp_path / "out/runs").glob(f"*/*/{name}"):
            values = json.loads(file.read_text())
            one = values["objects"][0] if "objects" in values else values
            one["version"] = 0
            (one if "objects" in values else one["scores"])["clip_a"] = 9.0
            file.write_text(json.dumps(values))
    sweep(tmp_path / "out", models)
    assert begun_runs == [] and (tmp_path / "out/table.json").read_bytes() == (whole / "table.json").read_bytes()


@pytest.mark.long
def test_methods_of_two_sweeps_in_one_folder_come_together_in_the_last_one(whole, models, begun_runs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "runs/sds")
    for method in METHODS:
        sweep(out, models, methods=[method])
        assert set(json.loads((out / "table.json").read_text())["methods"]) == {method, "truth"}
    begun_runs.clear()
    sweep(out, models)
    assert begun_runs == [] and (out / "table.json").read_bytes() == (whole / "table.json").read_bytes()


def test_a_run_that_fails_is_listed_and_the_others_are_made(models, tmp_path, monkeypatch):
    prompts = [Prompt("an ironman"), Prompt("a purple owl")]
    updates = sweep(tmp_path, models, prompts=prompts, methods=["sds"], seeds=[0])
    assert [bool(update.failure) for update in updates if update.ended and update.trial.method == "sds"] == [
        True,
        False,
    ]
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["methods"]["sds"]["missing"] == 1 and table["methods"]["sds"]["runs"] == 2
    assert "*ironman*" in table["failures"][0]["reason"] and "*ironman*" in (tmp_path / "table.md").read_text()

    def gone(*arguments, **values):
        raise AssetUnavailable("The asset is gone.")

    monkeypatch.setattr(pipeline, "generate", gone)
    updates = sweep(tmp_path, models, prompts=prompts, methods=["sds", "redream"], seeds=[0])
    assert [update.failure for update in updates if update.trial.method == "redream"][-1] == "The asset is gone."
    monkeypatch.setattr(pipeline, "generate", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a fault of the program is not a result
        sweep(tmp_path, models, prompts=prompts, methods=["redream"], seeds=[0])


def test_every_method_has_the_settings_that_define_it(models, tmp_path, monkeypatch):
    request = {}

    def generate(prompt, *, settings, out, models):
        request[out.parent.name] = settings
        raise AssetUnavailable("Only request.")

    monkeypatch.setattr(pipeline, "generate", generate)
    changed = SETTINGS.with_(distillation={"guidance": 5.0})
    sweep(
        tmp_path,
        models,
        settings=by_method(changed, sds={"distillation": {"guidance": 30.0}}),
        methods=list(trials.METHODS),
        prompts=PROMPTS[:1],
        seeds=[7],
    )
    assert set(request) == set(trials.METHODS) - {"retrieval"}
    assert request["redream"] == changed.with_(seed=7)
    guidance = {name: settings.distillation.guidance for name, settings in request.items()}
    assert guidance == dict.fromkeys(request, 5.0) | {"sds": 30.0, "sds-100": 100.0}
    assert not request["vsd"].uses_assets and request["redream-no-init"].uses_assets
    different = {json.dumps(dataclasses.asdict(s)) for s in request.values()}
    assert len(different) == len(request)


def test_unknown_methods_no_prompts_and_folders_that_cannot_be_written_are_refused(models, tmp_path):
    with pytest.raises(EvaluationError, match="no method magic"):
        sweep(tmp_path, models, methods=["magic"])
    with pytest.raises(EvaluationError, match="at least one"):
        sweep(tmp_path, models, prompts=[])
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot be written"):
        sweep(tmp_path / "file", models)


# ---------------------------------------------------------------- scores and tables


def test_results_parquet_has_the_scores_and_costs_of_every_run(whole):
    for row in pq.read_table(whole / "results.parquet").to_pylist():
        folder = whole / "runs" / row["method"] / row["folder"]
        if row["method"] in ("redream", "sds"):
            (known,) = Run.open(folder).read_json("scores.json")["objects"]
            stored = {key: value for key, value in known.items() if key in SCORES}
            assert {"clip_a", "clip_b", "view_accuracy_a", "a_lpips_a", "coverage"} <= set(stored)
            assert {key: row[key] for key in stored} == stored
            assert row["seconds"] > 0 and row["seconds_distillation"] > 0 and row["peak_memory_gb"] > 0.1
        owl = row["prompt"] == "a purple owl"
        assert all((row[key] is not None) == owl for key in ("janus_rate_a", "janus_rate_b", "janus_count_a"))
        assert (row["silhouette_iou"] is not None) == owl == (row["coverage_true"] is not None)
        assert row["split"] == ("validation" if owl else "test") and row["failure"] is None
    assert len(list((whole / "runs/truth").iterdir())) == 1


@pytest.mark.gpu
def test_silhouettes_are_equal_on_cpu_and_gpu(whole, models):
    run = Run.open(next(whole.glob("runs/sds/a-purple-owl*")))
    scorer = Scorer(models, run.request.settings, parse_prompt("a purple owl"), ())
    here, there = (scorer.silhouettes(objects_of(run, device)[0][0]) for device in ("cpu", "cuda"))
    assert here.device == there.device and torch.allclose(here, there, atol=1e-2)


def test_a_lpips_difference_is_that_of_the_row_and_the_truth_of_its_prompt(whole):
    rows = [r for r in pq.read_table(whole / "results.parquet").to_pylist() if r["prompt"] == "a purple owl"]
    (true,) = (row for row in rows if row["method"] == "truth")
    for row in rows:
        if row is not true:
            assert row["a_lpips_difference_a"] == pytest.approx(row["a_lpips_a"] - true["a_lpips_a"], abs=2e-6)
            assert row["a_lpips_error_a"] == pytest.approx(abs(row["a_lpips_a"] - true["a_lpips_a"]), abs=2e-6)
            assert row["coverage_true"] == true["coverage"]


def test_table_md_states_directions_and_costs_and_table_json_has_no_costs(whole):
    text = (whole / "table.md").read_text()
    assert "CLIP a (higher is better)" in text and "A-LPIPS a (lower is better)" in text and "| coverage |" in text
    table = json.loads((whole / "table.json").read_text())
    assert table["changes"] == {
        method: dict(VARIANTS[method].changes) if method in VARIANTS else {} for method in METHODS
    }
    assert table["methods_version"] == trials.METHODS_VERSION and table["splits"] == {"validation": 1, "test": 1}
    assert text.startswith("> **Warning:**") and "lower bound" in text and "Planned" in text
    costs = text[text.index("## Costs") : text.index("## Missing")]
    assert "| redream |" in costs and "| retrieval |" in costs and "| truth |" not in costs
    assert "seconds" not in (whole / "table.json").read_text() and str(whole) not in (whole / "table.json").read_text()


# ---------------------------------------------------------------- the gallery


class Page(html.parser.HTMLParser):
    """The addresses a page would fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses, self.words, self.tags = [], [], Counter()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action") and value]

    def handle_data(self, data):
        self.words.append(data)


def test_the_gallery_shows_every_run_and_fetches_nothing(whole):
    text = (whole / "gallery.html").read_text()
    page = Page(text)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not page.tags["link"] and "http:" not in text and "https:" not in text and "@import" not in text
    assert text.count('class="sprite"') == 2 * 3 + 1  # prompts × methods, and the owl's truth
    assert page.tags["figure"] >= 2 and page.tags["tr"] == 1 + len(PROMPTS)
    assert "prefers-reduced-motion" in text and text.count("setInterval") == 1


def test_texts_of_prompts_methods_and_scores_are_escaped_in_the_gallery(tmp_path):
    nasty = "<script>alert(1)</script>\"' onload=x & $title ${rows}"
    row = gallery.Row(
        nasty, nasty, nasty, {nasty: gallery.Cell(None, [(nasty, nasty)], nasty), "b": gallery.Cell(None, [])}
    )
    text = gallery.page(nasty, [row])
    assert Page(text).tags["script"] == 1
    assert "".join(Page(text).words).count(nasty) >= 5 and "<script>alert" not in text
