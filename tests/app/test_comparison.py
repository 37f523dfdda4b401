"""Methods side by side: equal runs are used again, each column says how far it is, and the best score is bold."""

import random

import numpy as np
import pytest
from tiny_stack import TINY

from redream.app import comparison
from redream.app.blind_test import draw_pair, pair_html
from redream.app.comparison import (
    COMPARED,
    ComparedRun,
    compared_runs,
    continue_paused,
    grid_html,
    missing_settings,
    settings_by_variant,
    submit_missing,
)
from redream.runs import outputs
from redream.runs.events import Failed, Finished, Paused, Progress
from redream.runs.queue import QueueError, Worker
from redream.runs.run import Request, Run
from redream.settings import by_method

PROMPT = "a purple owl"
PRESET = by_method(TINY)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))


def run_of(variant, scores=None, prompt=PROMPT, changes=(), **more):
    settings = settings_by_variant([variant], None, PRESET, 0)[variant].with_(**dict(changes))
    run = Run.create(Request(prompt, settings, "tiny", {}, **more))
    if scores:
        run.write_json("record.json", {"done": run.request.total})
        run.write_json("scores.json", {"objects": [scores]})
        outputs.save_sprites([np.zeros((8, 8, 3), np.uint8)], run.folder / "sprite.jpg")
        run.log(Progress("scoring", 4, 4))
        run.log(Finished(stopped=False))
    return run


class Idle(Worker):
    """Queues runs, and makes none."""

    def __init__(self, queue=()):
        self.queue, self.submitted = list(queue), []

    def submit(self, prompt, settings):
        run = Run.create(Request(prompt, settings, "tiny", {}))
        self.submitted.append(settings)
        self.queue.append(run.folder.name)
        return run.folder.name

    def resume(self, run, iterations=None):
        self.queue.append(run)
        return run

    def queue_position(self, run):
        return self.queue.index(run) if run in self.queue else None


def test_only_runs_that_are_paused_and_not_queued_are_continued():
    runs = [run_of("redream") for _ in range(4)]
    for run, event in zip(runs, (Paused(), Failed("No quota."), Paused(), Finished(stopped=True)), strict=True):
        run.log(Progress("distillation", 2, 4))
        run.log(event)
    names = [run.folder.name for run in runs]
    worker = Idle([names[2]])
    continue_paused(worker, [*names, "run-of-nobody"])
    assert worker.queue == [names[2], names[0]]


def test_variants_differ_from_each_other_and_keep_all_other_settings():
    run = run_of("sds", changes={"iterations": 7, "distillation": {"guidance": 33.0}})
    settings = list(settings_by_variant(COMPARED, run, PRESET, 5).values())
    assert len(set(settings)) == len(settings) and all(s.seed == 5 and s.iterations == 7 for s in settings)
    assert [s.uses_assets for s in settings] == [True, True, True, False, False]
    assert settings[-1] == run.request.settings.with_(seed=5)


def test_another_method_has_the_presets_settings_and_the_runs_own_method_keeps_those_of_the_run():
    preset = by_method(TINY, vsd={"distillation": {"t_min": 0.3}})
    run = run_of("redream", changes={"distillation": {"t_min": 0.2}})
    settings = settings_by_variant(["redream", "redream-no-init", "vsd"], run, preset, 0)
    assert [s.distillation.t_min for s in settings.values()] == [0.2, 0.2, 0.3]


def test_an_equal_run_that_is_finished_or_pending_is_used_again_and_the_missing_one_is_submitted():
    scores = {"clip_a": 0.5}
    known = [run_of("vsd", scores), run_of("sds"), run_of("redream")]  # the last one broke off
    known += [run_of("redream", scores, prompt="another")]
    known += [run_of("redream", scores, extra=3), run_of("redream", scores, uids=("x",))]
    three = settings_by_variant(("redream", "vsd", "sds"), None, PRESET, 0)
    worker = Idle([known[1].folder.name])
    assert missing_settings(worker, PROMPT, three, known) == [TINY]
    updates = list(submit_missing(worker, PROMPT, three, known))
    assert [list(ids) for ids in updates] == [["redream"], ["redream", "vsd"], ["redream", "vsd", "sds"]]
    assert updates[-1]["vsd"] == known[0].folder.name and updates[-1]["sds"] == known[1].folder.name
    assert worker.submitted == [TINY]


def test_runs_submitted_before_the_queue_was_full_are_yielded():
    class Full(Idle):
        def submit(self, prompt, settings):
            if self.submitted:
                raise QueueError("full")
            return super().submit(prompt, settings)

    updates, worker = [], Full()
    two = settings_by_variant(("redream", "vsd"), None, PRESET, 0)
    with pytest.raises(QueueError):
        updates.extend(submit_missing(worker, PROMPT, two, []))
    assert len(updates) == 1 and list(updates[0]) == ["redream"] and updates[0]["redream"] in worker.queue


def test_a_run_from_a_chosen_asset_is_refused_as_a_base():
    with pytest.raises(comparison.ComparisonError, match="own choice"):
        settings_by_variant(["redream"], run_of("redream", uids=("x",)), PRESET, 7)


def test_the_seed_is_the_forms_with_a_base_and_without():
    assert settings_by_variant(["vsd"], run_of("vsd"), PRESET, 7) == {"vsd": PRESET["vsd"].with_(seed=7)}
    assert settings_by_variant(["redream"], None, PRESET, 7) == {"redream": TINY.with_(seed=7)}


def test_each_run_says_how_far_it_is():
    runs = {name: run_of(name) for name in ("redream", "redream-no-init", "vsd", "sds")}
    runs["redream"].log(Progress("distillation", 1, 4, None, {"score": 1.0}))
    runs["vsd"].log(Failed("The Hub did not answer."))
    queue = [runs[name].folder.name for name in ("redream", "redream-no-init")]
    compared = compared_runs(Idle(queue), {name: run.folder.name for name, run in runs.items()})
    assert [one.status for one in compared] == [
        "Distillation, 25%",
        "Waiting for its turn: 1 run is before it",
        "The Hub did not answer.",
        "It was stopped before it was finished.",
    ]
    assert all(one.status in comparison.progress_html(compared) for one in compared)
    assert "sprite" not in grid_html(compared)


def test_the_best_of_each_score_is_bold_in_its_direction_and_no_a_lpips_is():
    good = {"clip_a": 0.8, "clip_b": 0.4, "janus_rate_a": 0.1, "a_lpips_a": 0.02}
    bad = {"clip_a": 0.6, "clip_b": 0.5, "janus_rate_a": 0.9, "a_lpips_a": 0.01}
    html = grid_html([ComparedRun("redream", run_of("redream", good)), ComparedRun("vsd", run_of("vsd", bad))])
    assert "<b>0.800</b> · 0.400" in html and "0.600 · <b>0.500</b>" in html and "<b>0.100</b>" in html
    assert html.count("<b>") == 3 and html.count('class="sprite"') == 2 and "0.0100" in html


def test_a_run_alone_has_no_best_score():
    runs = [ComparedRun("redream", run_of("redream", {"clip_a": 0.8}))]
    html = grid_html([*runs, ComparedRun("vsd", run_of("vsd"), "Distillation, 3%")])
    assert "0.800" in html and "<b>" not in html


def test_hostile_prompts_and_captions_stay_text():
    hostile = "<img src=x onerror='alert(1)'>\""
    run = run_of("redream", {"clip_a": 0.8}, prompt=hostile)
    run.write_json("retrieved.json", {"prompt": hostile, "assets": [{"caption": hostile}]})
    (run.folder / "asset-0-turned.png").write_bytes(b"")
    html = grid_html([ComparedRun("redream", run)])
    assert html.count("&lt;img") == 2 and "<img" not in html


def test_a_blind_pair_is_two_different_finished_objects_in_either_order_without_names():
    runs = [ComparedRun(name, run_of(name, {"clip_a": 0.5})) for name in ("redream", "vsd")]
    runs.append(ComparedRun("sds", run_of("sds"), "Distillation, 3%"))
    orders = {tuple(one.variant for one in draw_pair(runs, random.Random(seed))[:2]) for seed in range(20)}
    assert orders == {("redream", "vsd"), ("vsd", "redream")}
    assert draw_pair(runs[1:], random.Random(0)) is None
    html = pair_html(runs[0], runs[1], "shape")
    assert "redream" not in html.lower() and "VSD" not in html
