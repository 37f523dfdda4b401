"""Methods side by side: equal runs are used again, the best stands out, and the blind test counts what was chosen."""

import json
import random

import numpy as np
import pytest
from tiny_stack import TINY

from redream import gallery
from redream.events import Failed, Finished, Progress
from redream.jobs import Worker
from redream.runs import Request, Run
from redream.screen import comparison
from redream.screen.comparison import Made, counted, grid_html, look, missing, next_pair, runs_for, settings_for

PROMPT = "a purple owl"


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))


def run_of(variant, scores=None, prompt=PROMPT, **more):
    run = Run.create(Request(prompt, settings_for(variant, TINY), "tiny", {}, **more))
    if scores:
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
    base = TINY.with_(method="sds", seed=5)
    made = [settings_for(variant, base) for variant in comparison.VARIANTS]
    assert len(set(made)) == len(made) and all(s.seed == 5 and s.iterations == TINY.iterations for s in made)
    assert [s.uses_assets for s in made] == [True, True, True, False, False]


def test_an_equal_run_is_used_again_and_what_is_missing_is_made():
    known = [
        run_of("vsd"),
        run_of("redream", prompt="another"),
        run_of("redream", extra=3),
        run_of("redream", uids=("x",)),
    ]
    wanted = ("redream", "vsd")
    assert missing(PROMPT, TINY, wanted, known) == [settings_for("redream", TINY)]
    worker = Idle()
    found = runs_for(worker, PROMPT, TINY, wanted, known)
    assert found["vsd"] == known[0].folder.name and worker.taken == [settings_for("redream", TINY)]


def test_each_run_says_how_far_it_is():
    runs = {name: run_of(name) for name in ("redream", "redream-no-init", "vsd", "sds")}
    runs["redream"].log(Progress("painting", 1, 4, None, {"score": 1.0}))
    runs["vsd"].log(Failed("The Hub did not answer."))
    queue = [runs[name].folder.name for name in ("redream", "redream-no-init")]
    made = look(Idle(queue), {name: run.folder.name for name, run in runs.items()})
    assert [one.sentence for one in made] == [
        "Painting, 25%",
        "Waits for its turn: 1 before it.",
        "The Hub did not answer.",
        "It was stopped before it began.",
    ]
    shown = grid_html(made)
    assert all(one.sentence in shown for one in made) and "sprite" not in shown


def test_the_best_of_each_score_is_bold_and_less_is_better_where_it_is():
    good = {"clip_a": 0.8, "front_behind_a": 0.1, "a_lpips_a": 0.02}
    bad = {"clip_a": 0.6, "front_behind_a": 0.9, "a_lpips_a": 0.01}
    shown = grid_html([Made("redream", run_of("redream", good)), Made("vsd", run_of("vsd", bad))])
    assert "<b>0.800</b>" in shown and "<b>10%</b>" in shown and shown.count("<b>") == 2  # no best A-LPIPS
    assert shown.count("class='sprite'") == 2 and "0.600" in shown and "90%" in shown
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
    shown = comparison.pair_html(made[0], made[1], "shape")
    assert "redream" not in shown.lower() and "VSD" not in shown


def test_choices_are_counted_for_both_who_were_shown():
    tally = counted({}, ("redream", "vsd"), "A")
    tally = counted(json.loads(json.dumps(tally)), ("vsd", "redream"), "B")
    tally = counted(tally, ("redream", "sds"), "same")
    assert tally == {"redream": [2, 3], "vsd": [0, 2], "sds": [0, 1]}
    assert comparison.tally_html(tally).index("2 of 3") < comparison.tally_html(tally).index("0 of 2")
