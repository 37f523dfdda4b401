"""What a session does when something goes wrong: nothing that was made is lost, and what happened is said."""

import pytest
from tiny_stack import TINY

from redream import pipeline
from redream.distillation.checkpoint import CheckpointError
from redream.distillation.loop import Distillation
from redream.hub import HubError
from redream.retrieval.clip import ClipError
from redream.runs import events, outputs, session
from redream.runs.run import Run, RunError
from redream.stack.models import Models

PROMPT = "a purple owl"
SETTINGS = TINY.with_(
    method="sds", output={"preview_every": 1, "checkpoint_every": 1}
)  # SDS needs no assets: that is faster


def begin(models, folder, until=None, settings=SETTINGS):
    """A run that is left after so many iterations, as if it had been killed; without `until`, a whole one."""
    told = pipeline.generate(PROMPT, settings=settings, out=folder, models=models)
    for event in told:
        if until and isinstance(event, events.Progress) and event.iteration > until:
            break
    told.close()
    return Run.open(folder)


def warnings(told):
    return [event.sentence for event in told if isinstance(event, events.Warned)]


def damage(checkpoint):
    file = checkpoint / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("method", ["sds", "redream"])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(models, tmp_path, method):
    settings = SETTINGS.with_(method=method)
    whole, run = begin(models, tmp_path / "a", settings=settings), begin(models, tmp_path / "b", 3, settings)
    assert [path.name for path in run.checkpoints()] == ["000002", "000003"]
    damage(run.checkpoints()[-1])
    told = list(pipeline.resume(run.folder, models=models))
    assert warnings(told) == ["The checkpoint of iteration 3 is damaged; the run goes on from iteration 2."]
    assert told[-1] == events.Finished(stopped=False)
    last = [(r.checkpoints()[-1] / "state.safetensors").read_bytes() for r in (whole, run)]
    assert last[0] == last[1] and whole.read_json("scores.json") == run.read_json("scores.json")
    assert (run.folder / "checkpoint" / "damaged-000003").is_dir()


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew_and_nothing_touched(models, tmp_path):
    run = begin(models, tmp_path)
    for checkpoint in run.checkpoints():
        damage(checkpoint)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="start the run anew"):
        list(pipeline.resume(tmp_path, 1, models=models))
    changed = [path.name for path, data in before.items() if path.read_bytes() != data]
    assert sorted(changed) == ["events.jsonl", "settings.json"]
    assert isinstance(list(run.events())[-1], events.Failed)


@pytest.mark.parametrize("error", [HubError("The Hub did not answer."), ClipError("It cannot be read.")])
def test_scores_that_fail_are_said_and_the_rest_is_kept(models, tmp_path, monkeypatch, error):
    run = begin(models, tmp_path)
    assert (tmp_path / "scores.json").is_file()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(outputs, "scores_of", fail)
    told = list(pipeline.resume(tmp_path, 1, models=models))
    assert warnings(told) == [f"There are no scores. {error}"] and told[-1] == events.Finished(stopped=False)
    assert run.read_json("record.json")["done"] == 5 and not (tmp_path / "scores.json").exists()
    assert [event.kind for event in told if isinstance(event, events.Artefact)] == ["turntable", "mesh"]


def test_without_the_scores_clips_there_are_neither_previews_nor_scores_and_this_is_said_once(
    models, tmp_path, monkeypatch
):
    real = Models.clip

    def clip(self, name):
        if name in "ab":
            raise HubError("The Hub did not answer.")
        return real(self, name)

    monkeypatch.setattr(Models, "clip", clip)
    told = list(pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path, models=models))
    assert warnings(told) == [f"There are no {what}. The Hub did not answer." for what in ("more previews", "scores")]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"turntable-0.mp4", "mesh-0.glb", "record.json"} <= names and "scores.json" not in names


def test_a_film_tells_how_far_it_is(models, tmp_path):
    told = list(pipeline.generate(PROMPT, settings=SETTINGS.with_(particles=2), out=tmp_path, models=models))
    filming = [event for event in told if isinstance(event, events.Progress) and event.stage == "filming"]
    left = [event.seconds_left for event in filming]
    assert len(left) == 2 * TINY.output.turntable_frames and left == sorted(left, reverse=True) and left[-1] > 0


def test_previews_come_early_and_then_evenly():
    assert [n for n in range(1, 31) if session.is_previewed(n, 10)] == [1, 2, 4, 8, 10, 20, 30]
    assert all(session.is_previewed(n, 1) for n in range(1, 9))


def test_iterations_without_a_score_are_counted_and_said(models, tmp_path, monkeypatch):
    real = Distillation._score_gradient

    def score(self, *arguments):
        return real(self, *arguments) * (float("nan") if self.iteration in (1, 2) else 1)

    monkeypatch.setattr(Distillation, "_score_gradient", score)
    told = list(pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path, models=models))
    assert warnings(told) == ["Iterations whose score was not a number, and counted as zero: 2."]
    losses = [event.losses["score"] for event in Run.open(tmp_path).events() if getattr(event, "losses", None)]
    assert [score is None for score in losses] == [False, True, True, False]


def test_a_run_is_locked_from_its_first_event_until_it_ends_or_is_left(models, tmp_path):
    (tmp_path / "run").mkdir()
    first = pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path / "run", models=models)
    next(first)
    history = (tmp_path / "run" / "events.jsonl").read_bytes()
    with pytest.raises(RunError, match="worked on by another program"):
        next(pipeline.resume(tmp_path / "run", models=models))
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == history  # its own, to the letter
    first.close()
    assert list(pipeline.resume(tmp_path / "run", models=models))[-1] == events.Finished(stopped=False)
    with Run.open(tmp_path / "run").working():
        pass
