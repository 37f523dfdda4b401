"""Methods side by side: equal runs are used again, the best stands out, and the blind test counts what was chosen."""

import json
import os
import random

import numpy as np
import pytest
from tiny_stack import TINY

from redream.app import compare
from redream.app.compare import Made, counted, grid_html, look, missing, next_pair, runs_for, wanted
from redream.evaluation import gallery
from redream.runs.events import Failed, Finished, Progress
from redream.runs.queue import QueueError, Worker
from redream.runs.run import Request, Run
from redream.settings import by_method

PROMPT = "a purple owl"
PRESET = by_method(TINY)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))


def run_of(variant, scores=None, prompt=PROMPT, changes=(), **more):
    settings = wanted([variant], None, PRESET, 0)[variant].with_(**dict(changes))
    run = Run.create(Request(prompt, settings, "tiny", {}, **more))
    if scores:
        run.write_json("record.json", {"done": run.request.total})
        run.write_json("scores.json", {"objects": [scores]})
        gallery.save_sprites([np.zeros((8, 8, 3), np.uint8)], run.folder / "sprite.jpg")
        run.log(Progress("scoring", 4, 4))
        run.log(Finished(stopped=False))
    return run


class Idle(Worker):
    """Takes runs on, and makes none."""

    def __init__(self, queue=()):
        self.queue, self.taken = list(queue), []

    def submit(self, prompt, settings):
        run = Run.create(Request(prompt, settings, "tiny", {}))
        self.taken.append(settings)
        self.queue.append(run.folder.name)
        return run.folder.name

    def ahead(self, run):
        return self.queue.index(run) if run in self.queue else None


def test_variants_differ_from_each_other_and_keep_all_other_settings():
    run = run_of("sds", changes={"iterations": 7, "distillation": {"guidance": 33.0}})
    made = list(wanted(list(compare.VARIANTS), run, PRESET, 5).values())
    assert len(set(made)) == len(made) and all(s.seed == 5 and s.iterations == 7 for s in made)
    assert [s.uses_assets for s in made] == [True, True, True, False, False]
    assert made[-1] == run.request.settings.with_(seed=5)


def test_another_method_has_its_own_settings_and_the_same_one_keeps_those_of_the_run():
    preset = by_method(TINY, vsd={"t_min": 0.3})
    found = wanted(["redream", "redream-no-init", "vsd"], run_of("redream", changes={"t_min": 0.2}), preset, 0)
    assert [settings.distillation.t_min for settings in found.values()] == [0.2, 0.2, 0.3]


def test_an_equal_run_that_is_finished_or_will_be_is_used_again_and_what_is_missing_is_made():
    scores = {"clip_a": 0.5}
    known = [run_of("vsd", scores), run_of("sds"), run_of("redream")]  # the last one broke off
    known += [run_of("redream", scores, prompt="another")]
    known += [run_of("redream", scores, extra=3), run_of("redream", scores, uids=("x",))]
    three, worker = wanted(("redream", "vsd", "sds"), None, PRESET, 0), Idle([known[1].folder.name])
    assert missing(worker, PROMPT, three, known) == [TINY]
    told = list(runs_for(worker, PROMPT, three, known))
    assert [list(runs) for runs in told] == [["redream"], ["redream", "vsd"], ["redream", "vsd", "sds"]]
    assert told[-1]["vsd"] == known[0].folder.name and told[-1]["sds"] == known[1].folder.name
    assert worker.taken == [TINY]


def test_what_was_taken_on_before_the_queue_was_full_is_told():
    class Full(Idle):
        def submit(self, prompt, settings):
            if self.taken:
                raise QueueError("full")
            return super().submit(prompt, settings)

    told, worker = [], Full()
    with pytest.raises(QueueError):
        told.extend(runs_for(worker, PROMPT, wanted(("redream", "vsd"), None, PRESET, 0), []))
    assert len(told) == 1 and list(told[0]) == ["redream"] and told[0]["redream"] in worker.queue


def test_a_run_from_an_asset_of_ones_own_is_no_base_and_the_seed_is_ones_own():
    plain, own = run_of("vsd"), run_of("redream", uids=("x",))
    assert wanted(["vsd"], plain, PRESET, 7) == {"vsd": PRESET["vsd"].with_(seed=7)}
    assert wanted(["redream"], None, PRESET, 7) == {"redream": TINY.with_(seed=7)}
    with pytest.raises(compare.ComparisonError, match="own choice"):
        wanted(["redream"], own, PRESET, 7)


def test_the_picture_of_a_run_that_went_on_is_made_anew(monkeypatch):
    run = run_of("vsd", {"clip_a": 0.5})
    (run.folder / "turntable-0.mp4").write_bytes(b"")
    made, later = Made("vsd", run), (run.folder / "sprite.jpg").stat().st_mtime + 10
    monkeypatch.setattr(gallery, "frames", lambda file: [np.full((8, 8, 3), 255, np.uint8)])
    os.utime(run.folder / "turntable-0.mp4", (0, 0))
    before = (run.folder / "sprite.jpg").read_bytes()
    assert made.sprite.read_bytes() == before
    os.utime(run.folder / "turntable-0.mp4", (later, later))
    assert made.sprite.read_bytes() != before


def test_each_run_says_how_far_it_is():
    runs = {name: run_of(name) for name in ("redream", "redream-no-init", "vsd", "sds")}
    runs["redream"].log(Progress("distillation", 1, 4, None, {"score": 1.0}))
    runs["vsd"].log(Failed("The Hub did not answer."))
    queue = [runs[name].folder.name for name in ("redream", "redream-no-init")]
    made = look(Idle(queue), {name: run.folder.name for name, run in runs.items()})
    assert [one.sentence for one in made] == [
        "Painting, 25%",
        "Waiting for its turn: 1 run is before it",
        "The Hub did not answer.",
        "It was stopped before it was finished.",
    ]
    assert all(one.sentence in compare.progress_html(made) for one in made)
    assert "sprite" not in grid_html(made)


def test_the_best_of_each_score_is_bold_and_less_is_better_where_it_is():
    good = {"clip_a": 0.8, "janus_rate_a": 0.1, "a_lpips_a": 0.02}
    bad = {"clip_a": 0.6, "janus_rate_a": 0.9, "a_lpips_a": 0.01}
    shown = grid_html([Made("redream", run_of("redream", good)), Made("vsd", run_of("vsd", bad))])
    assert "<b>0.800</b>" in shown and "<b>0.100</b>" in shown and shown.count("<b>") == 2  # no best A-LPIPS
    assert shown.count("class='sprite'") == 2 and "0.600" in shown and "0.900" in shown
    alone = grid_html([Made("redream", run_of("redream", good)), Made("vsd", run_of("vsd"), "Painting, 3%")])
    assert "<b>" not in alone


def test_prompts_stay_texts():
    bad = "<img src=x onerror='alert(1)'>"
    shown = grid_html([Made("redream", run_of("redream", {"clip_a": 0.8}, prompt=bad))])
    assert "<img" not in shown


def test_a_pair_is_two_different_objects_in_either_order():
    made = [Made(name, run_of(name, {"clip_a": 0.5})) for name in ("redream", "vsd")]
    made.append(Made("sds", run_of("sds"), "Painting, 3%"))
    orders = {tuple(one.variant for one in next_pair(made, random.Random(seed))[:2]) for seed in range(20)}
    assert orders == {("redream", "vsd"), ("vsd", "redream")}
    assert next_pair(made[1:], random.Random(0)) is None
    shown = compare.pair_html(made[0], made[1], "shape")
    assert "redream" not in shown.lower() and "VSD" not in shown


def test_choices_are_counted_for_both_who_were_shown():
    tally = counted({}, ("redream", "vsd"), "A")
    tally = counted(json.loads(json.dumps(tally)), ("vsd", "redream"), "B")
    tally = counted(tally, ("redream", "sds"), "same")
    assert tally == {"redream": [2, 3], "vsd": [0, 2], "sds": [0, 1]}
    assert compare.tally_html(tally).index("2 of 3") < compare.tally_html(tally).index("0 of 2")
