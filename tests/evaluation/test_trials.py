"""What an evaluation makes: lists of prompts, and what distinguishes trials."""

import csv
import dataclasses
import shutil
from collections import Counter

import pytest
from filelock import FileLock
from tiny_stack import TINY

from redream.evaluation.scorer import EvaluationError
from redream.evaluation.trials import ModelDigests, Prompt, plan, read_prompts
from redream.stack.stack import STACKS, Stack
from redream.stack.vocabulary import Vocabulary, parse_prompt

EXAMPLES = STACKS.parent / "examples"


def test_a_list_of_prompts_is_read_with_its_splits(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# a comment\nvalidation\tan owl\n\ntest\ta cat\na dog, sitting\n")
    assert read_prompts(file) == [
        Prompt("an owl", "validation"),
        Prompt("a cat", "test"),
        Prompt("a dog, sitting"),
    ]
    assert read_prompts(file, "test") == [Prompt("a cat", "test")]
    for text, sentence in [("x\tan owl", "Line 1"), ("an owl\nan owl", "twice"), ("# nothing", "no prompts")]:
        file.write_text(text)
        with pytest.raises(EvaluationError, match=sentence):
            read_prompts(file)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    file.write_text("an owl\na cat")
    assert read_prompts(file, limit=1) == [Prompt("an owl")]
    with pytest.raises(EvaluationError, match="leaves no prompt"):
        read_prompts(file, limit=-1)


def test_the_prompts_of_the_miniature_have_held_out_pairs_and_true_objects_in_every_split():
    """25 for validation, 25 and 25 more for the test; no pair in two of them; at least 10 held-out pairs and 13 kinds
    with a front in each; and three true objects of each pair, which no model has seen."""
    vocabulary = Vocabulary.load(STACKS / "mini/vocabulary.json")
    with (STACKS / "mini/heldout.csv").open() as file:
        held_out = {(row["kind"], row["colour"]) for row in csv.DictReader(file)}
    with (STACKS / "mini/truth/truth.csv").open() as file:
        truth = Counter((row["kind"], row["colour"]) for row in csv.DictReader(file))
    pairs = []
    for name, split in (("prompts_mini", "validation"), ("prompts_mini", "test"), ("prompts_mini_more", "test")):
        parsed = [parse_prompt(p.text, vocabulary) for p in read_prompts(EXAMPLES / f"{name}.txt", split)]
        pairs.append({(c.kind, c.colour) for c in parsed})
        assert len(parsed) == 25 and len(pairs[-1] & held_out) >= 10
        assert len({c.kind for c in parsed} - set(vocabulary.symmetric)) >= 13
        assert all(truth[pair] == 3 for pair in pairs[-1])
    assert len(set.union(*pairs)) == 75 and ("owl", "purple") in pairs[1]
    assert set(truth) == set.union(*pairs)
    assert len(read_prompts(EXAMPLES / "prompts.txt")) == 50


def test_digests_are_of_all_files_of_the_models_those_that_score_apart_from_those_that_make_runs(
    models_with_truth, tiny_stack, tmp_path
):
    shutil.copytree(tiny_stack, tmp_path / "copy")
    copy = Stack.load(tmp_path / "copy", environ={})
    before = ModelDigests.of(copy)
    assert before == ModelDigests.of(models_with_truth.stack) and before.generation != before.scorers
    for name, entry in copy.entries.items():
        (copy.folder(entry) / "more.bin").write_bytes(b"weights")
        after = ModelDigests.of(copy)
        is_scoring = name in ("clips.a", "clips.b", "perceptual.a", "perceptual.b")
        assert (after.generation == before.generation, after.scorers == before.scorers) == (is_scoring, not is_scoring)
        before = after
    net = dataclasses.replace(copy.perceptual["b"], source=None, lpips="alex")
    other = ModelDigests.of(dataclasses.replace(copy, perceptual=copy.perceptual | {"b": net}))
    assert other.generation == before.generation and other.scorers != before.scorers
    file = tmp_path / "copy/vocabulary.json"
    file.write_text(file.read_text().replace('"photo",', ""))
    other = ModelDigests.of(Stack.load(tmp_path / "copy", environ={}))
    assert other.generation != before.generation and other.scorers == before.scorers


def test_a_trial_is_locked_once_and_its_lock_file_goes_with_the_lock(tmp_path):
    trial = plan(tmp_path, Prompt("an owl"), "sds", 0, TINY, ModelDigests("", ""))
    with trial.lock() as first, trial.lock() as second:
        assert first and not second
        assert len(list(trial.folder.parent.iterdir())) == 1
    assert not list(trial.folder.parent.iterdir())
    with trial.lock() as is_free:
        assert is_free


@pytest.mark.parametrize("error", [OSError("no locks here"), NotImplementedError])
def test_on_a_file_system_without_locks_every_trial_is_free(tmp_path, monkeypatch, error):
    def refuse(*arguments, **values):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with plan(tmp_path, Prompt("an owl"), "sds", 0, TINY, ModelDigests("", "")).lock() as is_free:
        assert is_free
