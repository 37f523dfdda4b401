"""examples.client_generate and client_batch against a client that answers at once; tests/browser runs them against the app."""

import json

import pytest
from gradio_client.exceptions import AppError

from examples import client_batch, client_generate


class Job:
    """A submitted job whose outputs grow by one each time it is asked whether it is done."""

    def __init__(self, outputs, error=None):
        self.all, self.count, self.error = outputs, 0, error

    def outputs(self):
        return self.all[: self.count]

    def done(self):
        self.count += 1
        return self.count > len(self.all)

    def result(self):
        if self.error:
            raise self.error
        return self.all[-1]


def state(sentence, done=1.0, paused=False):
    values = {"run": "run-ABCDEFGHIJKLMNOP", "state": sentence, "done": done, "ended": True, "paused": paused}
    return values | {"scores": [{"clip_a": 0.5}]}


@pytest.fixture
def files(tmp_path):
    """A turntable and a mesh as an app's result names them."""
    (tmp_path / "served").mkdir()
    for name in ("turntable-0.mp4", "mesh-0.glb"):
        (tmp_path / "served" / name).write_bytes(b"")
    return [str(tmp_path / "served/turntable-0.mp4")], [str(tmp_path / "served/mesh-0.glb")]


@pytest.fixture
def calls(monkeypatch):
    """The calls that the clients make; a test sets `calls.submit` and `calls.predict` to what answers them."""

    class Calls(list):
        def __call__(self, url, **options):
            self.append(("Client", url))
            return self

    calls = Calls()
    monkeypatch.setattr(client_generate, "Client", calls)
    monkeypatch.setattr(client_batch, "Client", calls)
    monkeypatch.setattr(client_generate, "POLL_SECONDS", 0)
    return calls


def test_the_client_prints_states_and_fetches_the_files(calls, files, tmp_path, capsys):
    outputs = [(state("Distillation, iteration 1 of 2", 0.5), [], []), (state("Done."), *files)]
    calls.submit = lambda prompt, method, **values: calls.append((prompt, method, values["seed"])) or Job(outputs)
    assert client_generate.main(["a purple owl", "--method", "vsd", "--seed", "3", "--out", str(tmp_path / "owl")]) == 0
    assert calls == [("Client", "http://127.0.0.1:7860"), ("a purple owl", "vsd", 3)]
    assert {file.name for file in (tmp_path / "owl").iterdir()} == {"turntable-0.mp4", "mesh-0.glb", "result.json"}
    printed = capsys.readouterr()
    assert "Distillation" in printed.err and printed.out.startswith("Done. 2 files are in")


def test_the_client_continues_a_paused_run_until_it_is_finished_or_the_quota_is_spent(calls, files, tmp_path, capsys):
    """Three calls; then a second client whose quota ends in the second call, and that says how to go on."""
    paused = [(state("Paused.", done, paused=True), [], []) for done in (0.3, 0.6)]
    jobs = iter([Job(paused[:1]), Job(paused[1:]), Job([(state("Done."), *files)])])
    calls.submit = lambda text, *arguments, api_name, **values: calls.append((text, api_name)) or next(jobs)
    assert client_generate.main(["a red owl", "--token", "hf_x", "--out", str(tmp_path / "owl")]) == 0
    run = "run-ABCDEFGHIJKLMNOP"
    assert calls[1:] == [("a red owl", "/generate"), (run, "/continue"), (run, "/continue")]
    assert json.loads((tmp_path / "owl/result.json").read_text())["done"] == 1
    jobs = iter([Job(paused[:1]), Job(paused[1:], AppError("Your quota is spent."))])
    assert client_generate.main(["a red owl", "--resume", run, "--out", str(tmp_path / "owl")]) == 2
    assert f"Your quota is spent. Go on with --resume {run}" in capsys.readouterr().err
    assert calls[-1] == (run, "/continue")


def test_the_batch_client_continues_paused_runs(calls, files, tmp_path):
    answers = iter([(state("Paused.", 0.5, paused=True), [], []), (state("Done."), *files)])
    calls.predict = lambda text, *, api_name, **form: calls.append(api_name) or next(answers)
    (tmp_path / "prompts.txt").write_text("a red car\n")
    assert client_batch.main([str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]) == 0
    assert calls[1:] == ["/generate", "/continue"]


def test_ctrl_c_stops_the_run_and_a_refused_prompt_ends_with_status_2(calls, files, tmp_path, monkeypatch, capsys):
    outputs = [(state("Distillation", 0.5), [], []), (state("Stopped."), *files)]
    calls.submit = lambda *arguments, **values: Job(outputs)
    calls.predict = lambda run, api_name: calls.append((run, api_name))
    pressed = iter([KeyboardInterrupt])

    def sleep(seconds):
        for error in pressed:
            raise error

    monkeypatch.setattr(client_generate.time, "sleep", sleep)
    assert client_generate.main(["a purple owl", "--out", str(tmp_path / "owl")]) == 0
    assert ("run-ABCDEFGHIJKLMNOP", "/stop") in calls and capsys.readouterr().out.startswith("Stopped.")
    calls.submit = lambda *arguments, **values: Job([], AppError("does not know the word"))
    assert client_generate.main(["ironman", "--out", str(tmp_path / "ironman")]) == 2
    assert "does not know" in capsys.readouterr().err


def test_the_batch_client_makes_continues_and_skips_objects(calls, files, tmp_path, capsys):
    """Of four prompts one is refused, one was stopped and is continued; called again, all but the refused are skipped."""

    def predict(text, *, api_name, **form):
        calls.append((text, api_name))
        if text == "ironman":
            raise AppError("does not know the word")
        return state("Done."), *files

    calls.predict = predict
    (tmp_path / "prompts.txt").write_text("a red car\n# more\nironman\ntest\ta blue mug\na red owl\n")
    form = {"method": "sds", "iterations": 10, "seed": 0}
    stopped = tmp_path / "out" / client_batch.name_of("http://127.0.0.1:7860", "a blue mug", form)
    stopped.mkdir(parents=True)
    (stopped / "result.json").write_text(json.dumps(state("Stopped.", 0.5)))
    options = ["--method", "sds", "--iterations", "10", "--out", str(tmp_path / "out")]
    for expected in (["CLIP 0.500", "does not know", "CLIP 0.500", "CLIP"], ["there already", "does not know"]):
        assert client_batch.main([str(tmp_path / "prompts.txt"), *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4 and all(text in line for text, line in zip(expected, lines))
    assert sorted(calls[1:]) == sorted(
        [("a red car", "/generate"), ("a red owl", "/generate"), ("run-ABCDEFGHIJKLMNOP", "/continue")]
        + [("ironman", "/generate")] * 2
        + [("Client", "http://127.0.0.1:7860")]
    )


def test_the_batch_client_makes_anew_a_run_that_the_app_no_longer_has(calls, files, tmp_path):
    def predict(text, *, api_name, **form):
        calls.append(api_name)
        if api_name == "/continue":
            raise AppError("There is no run of this id.")
        return state("Done."), *files

    calls.predict = predict
    (tmp_path / "prompts.txt").write_text("a red car\n")
    form = {"method": "redream", "iterations": None, "seed": 0}
    stopped = tmp_path / "out" / client_batch.name_of("http://127.0.0.1:7860", "a red car", form)
    stopped.mkdir(parents=True)
    (stopped / "result.json").write_text(json.dumps(state("Stopped.", 0.5)))
    assert client_batch.main([str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]) == 0
    assert calls[1:] == ["/continue", "/generate"]
    assert json.loads((stopped / "result.json").read_text())["done"] == 1


def test_the_batch_client_refuses_a_list_that_cannot_be_read(calls, tmp_path, capsys):
    assert client_batch.main([str(tmp_path / "none.txt"), "--out", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err and not calls
