"""The command line: what it makes, says and refuses. Most of it is called in this process, which is faster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stack import publish
from objaverse_files import make_objaverse
from PIL import Image
from tiny_stack import TINY

from redream import pipeline
from redream.cli import main
from redream.cli.common import score_sentences
from redream.evaluation import sweep
from redream.evaluation.sweep import SweepProgress
from redream.evaluation.trials import ModelDigests, Prompt, plan
from redream.runs import events
from redream.runs.run import Request, Run
from redream.settings import PRESETS, WARM_UP, by_method
from redream.stack import benchmark, environment, self_test, stack

COMMAND = [sys.executable, "-m", "redream"]


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "mini", by_method(TINY.with_(iterations=2)))
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))


def refused(capsys, *words) -> str:
    """The one sentence on stderr of a command that ends with 2."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_generate_says_where_the_files_are_and_the_scores_in_words(tiny_stack, capsys, tmp_path):
    assert main(["generate", "a purple owl", "--stack", str(tiny_stack), "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    (folder,) = (tmp_path / "runs").iterdir()
    assert str(folder / "turntable-0.mp4") in out and str(folder / "mesh-0.glb") in out
    assert "CLIP" in out and "higher is better" in out and "A-LPIPS" in out
    assert "Retrieved assets" in err and "iteration 2 of 2" in err
    assert Run.open(folder).request.settings == PRESETS["mini"]["redream"].with_(seed=3)

    assert main(["resume", folder.name]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["resume", str(folder), "--iterations", "1"]) == 0
    assert Run.open(folder).read_json("record.json")["done"] == 3


def test_every_switch_reaches_the_settings(tiny_stack, tmp_path, monkeypatch):
    values = {}
    monkeypatch.setattr(pipeline, "generate", lambda prompt, **options: values.update(options) or iter(()))
    words = "generate owl --preset mini-fast --method redream --no-init --particles 2 --iterations 7 --seed 5"
    words = [*words.split(), "--asset", "a.glb", "b.glb", "--asset", "c.glb", "--asset-caption", "an owl"]
    assert main([*words, "--stack", str(tiny_stack), "--out", str(tmp_path / "run")]) == 0
    expected = PRESETS["mini-fast"]["redream"].with_(initialise=False, particles=2, iterations=7, seed=5)
    assert values["settings"] == expected and values["out"] == tmp_path / "run"
    assert values["assets"] == [("a.glb", "an owl"), ("b.glb", "an owl"), ("c.glb", "an owl")]


def test_minutes_become_settings_that_are_stored_and_the_benchmark_behind_them_too(
    tiny_stack, tmp_path, monkeypatch, capsys
):
    """The first time a short benchmark comes before; the run's command names iterations, and no time."""
    monkeypatch.setattr(benchmark, "FIT_STEPS", 2)
    monkeypatch.setattr(benchmark, "COUNTED", 3)
    requests = []

    def generate(prompt, *, stack, settings, **values):
        requests.append(Request(prompt, settings, "mini", {}))
        return iter(())

    monkeypatch.setattr(pipeline, "generate", generate)
    words = ["generate", "an owl", "--stack", str(tiny_stack), "--set", "output.turntable_frames=4"]
    assert main([*words, "--minutes", "5"]) == 0
    assert "part by part" in capsys.readouterr().err and (tmp_path / "runs/benchmark-tiny.json").is_file()
    assert main([*words, "--minutes", "10"]) == 0
    err = capsys.readouterr().err
    assert "part by part" not in err and re.fullmatch(r"\d+ iterations, about (9\.9|10\.0) minutes\.\n", err)
    shorter, longer = (request.settings for request in requests)
    assert 1 < shorter.iterations < longer.iterations and longer.output.turntable_frames == 4
    assert longer.adaptation.steps == round(TINY.adaptation.steps * longer.iterations / 2)
    command = requests[1].command
    assert f"--iterations {longer.iterations}" in command and "minutes" not in command
    assert "too short" in refused(capsys, *words, "--minutes", "0.001").splitlines()[-1]


def test_bad_input_ends_with_2_and_one_sentence(tiny_stack, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    tiny = ("--stack", tiny_stack)
    assert "empty" in refused(capsys, "generate", "", *tiny)
    assert "10,000 characters" in refused(capsys, "generate", "o" * 10_000, *tiny)
    assert "kinds of things" in refused(capsys, "generate", "an ironman", *tiny)
    assert "not empty" in refused(capsys, "generate", "an owl", *tiny, "--out", tmp_path / "mine")
    assert "choose ReDream" in refused(capsys, "generate", "an owl", *tiny, "--method", "vsd", "--asset", "a.glb")
    assert "cannot be" in refused(capsys, "generate", "an owl", *tiny, "--asset", tmp_path / "none.glb")
    assert "particles" in refused(capsys, "generate", "an owl", *tiny, "--particles", "9")
    assert "not allowed with" in refused(capsys, "generate", "an owl", *tiny, "--iterations", "9", "--minutes", "1")
    for minutes in ("-1", "soon"):
        sentence = f"Argument --minutes: {minutes} is no positive number of minutes; see"
        assert sentence in refused(capsys, "generate", "an owl", *tiny, "--minutes", minutes)
    assert "t_min" in refused(capsys, "generate", "an owl", *tiny, "--set", "distillation.t_min=2")
    assert "no setting" in refused(capsys, "generate", "an owl", *tiny, "--set", "distillation.hope=2")
    assert "There is no stack" in refused(capsys, "generate", "an owl", "--stack", "none")
    assert "invalid choice" in refused(capsys, "generate", "an owl", "--method", "magic")
    assert "no run" in refused(capsys, "resume", tmp_path / "none")
    assert "no run" in refused(capsys, "export", tmp_path / "none", "--format", "stl")
    assert "cannot be" in refused(capsys, "export", tmp_path / "none.glb", "--format", "stl")
    assert "millimetres" in refused(capsys, "export", "a.glb", "--format", "stl", "--height-mm", "0")
    assert "invalid choice" in refused(capsys, "export", "a.glb", "--format", "fbx")
    for number in ("0", "50001", "-1", "2.5", "many", "²"):
        sentence = refused(capsys, "doctor", "--run", f"--iterations={number}")
        assert f"{number} is no whole number from 1 to 50,000; see" in sentence
    assert ".png" in refused(capsys, "sample", "an owl", *tiny, "--out", tmp_path / "owl.bmp")
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_once_stops_and_keeps_what_there_is(tiny_stack, capsys, tmp_path, monkeypatch):
    real = pipeline.generate

    def interrupted(*arguments, **values):
        for event in real(*arguments, **values):
            if isinstance(event, events.Progress) and event.stage == WARM_UP and event.iteration == 1:
                signal.raise_signal(signal.SIGINT)
            yield event

    monkeypatch.setattr(pipeline, "generate", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["generate", "an owl", "--stack", str(tiny_stack), "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "Stopping" in err and "resume" in out
    assert (tmp_path / "run/turntable-0.mp4").is_file()
    assert Run.open(tmp_path / "run").read_json("record.json")["done"] == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_at_once_and_names_the_folder_to_resume(tiny_stack, capsys, tmp_path, monkeypatch):
    real, folder = pipeline.generate, tmp_path / "my run"

    def interrupted(*arguments, **values):
        for event in real(*arguments, **values):
            yield event
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pipeline, "generate", interrupted)
    assert main(["generate", "an owl", "--stack", str(tiny_stack), "--out", str(folder)]) == 130
    last = capsys.readouterr().err.splitlines()[-2:]
    assert last == [
        "Stopped at once; what was done up to the last checkpoint is kept.",
        f"Go on with: python -m redream resume '{folder}'",
    ]


def test_retrieve_prints_what_retrieved_json_says(tiny_stack, capsys):
    assert main(["retrieve", "a red owl", "-k", "2", "--json", "--stack", str(tiny_stack)]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["prompt"] == "a red owl" and len(values["assets"]) == 2
    assert set(values["assets"][0]) == {"uid", "caption", "author", "license", "similarity", "source"}
    assert main(["retrieve", "a red owl", "--stack", str(tiny_stack)]) == 0
    assert capsys.readouterr().out.count("similarity") == 3


def test_sample_writes_a_grid(tiny_stack, capsys, tmp_path):
    words = ["sample", "an owl", "--view", "back", "--adapt", "-n", "6", "--stack", str(tiny_stack)]
    assert main([*words, "--out", str(tmp_path / "owls.png")]) == 0
    assert Image.open(tmp_path / "owls.png").size == (4 * 64, 2 * 64)


def test_benchmark_prints_a_table_or_one_json_object(tiny_stack, tmp_path, capsys, monkeypatch):
    """Also where it cannot be stored, and then says so."""
    monkeypatch.setattr(benchmark, "FIT_STEPS", 2)
    monkeypatch.setattr(benchmark, "COUNTED", 3)
    words = ["benchmark", "--stack", str(tiny_stack), "--iterations", "2"]
    (tmp_path / "runs").touch()
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"are not stored for later estimates. {tmp_path / 'runs'} is a file, not a folder; set REDREAM_RUNS" in err
    values = json.loads(out)
    (at,) = values["resolutions"]
    assert at["resolution"] == 16 and at["iteration_ms"]["distillation"] > 0 and "16 px: counting" in err
    (preset,) = (preset for preset in values["presets"] if preset["preset"] == "mini")
    assert preset["iterations"] == 2 and preset["minutes"] > 0
    assert "CUDA" in {path["name"] for path in values["fast_paths"]}

    assert main([*words, "--resolution", "8", "32", "--flop"]) == 0
    out = capsys.readouterr().out
    assert "8 px" in out and "32 px" in out and "variational step" in out and "minutes" not in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="is refused without CUDA only")
def test_a_prior_of_full_size_is_not_measured_on_a_cpu(capsys):
    assert "needs a CUDA GPU" in refused(capsys, "benchmark", "--random-weights")


def test_evaluate_makes_tables_of_a_split_and_goes_on_where_it_was(tiny_stack, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("validation\ta purple owl\ntest\tan ironman\n")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--methods", "sds"]
    words += ["--set", "iterations=1", "--set", "sds.distillation.t_max=[1, 0.5]", "--out", str(tmp_path / "out")]
    assert main([*words, "--split", "validation"]) == 0
    out, err = capsys.readouterr()
    assert "table.md" in out and "missing" not in out and "1 of 1: sds: a purple owl" in err
    (folder,) = (tmp_path / "out/runs/sds").iterdir()
    settings = PRESETS["mini"]["sds"].with_(iterations=1, distillation={"t_max": (1.0, 0.5)})
    assert Run.open(folder).request.settings == settings
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "1 of 2 runs are missing" in out and "*ironman*" in err
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"runs", "gallery.html", "results.parquet", "table.json", "table.md"}


def test_the_options_of_evaluate_reach_the_sweep(tiny_stack, capsys, tmp_path, monkeypatch):
    values = {}

    def evaluate(out, prompts, methods, seeds, **others):
        values.update(others, out=out, prompts=prompts, methods=methods, seeds=seeds)
        trial = plan(out, prompts[0], "sds", 0, PRESETS["mini"]["sds"], ModelDigests("", ""))
        yield SweepProgress(trial, 0.5, 1, None, warning="A worker process ended early.")
        yield SweepProgress(trial, 1.0, 1, 120.0, ended=True, failure="The asset is gone.")

    monkeypatch.setattr(sweep, "evaluate", evaluate)
    (tmp_path / "prompts.txt").write_text("validation\ta purple owl\ntest\ta red vase\ntest\ta blue cat\n")
    words = f"evaluate --stack {tiny_stack} --preset mini-fast --split test --limit 1 --methods redream,sds --seeds 0,2"
    words += f" --processes 3 --prompts {tmp_path / 'prompts.txt'} --out {tmp_path / 'out'}"
    changes = ["iterations=7", "field.levels=2", "distillation.t_max=[0.9,0.6]", "sds.distillation.guidance=30"]
    changes += ["sds.distillation.opaque=50", "sds.iterations=9"]
    assert main([*words.split(), *(word for change in changes for word in ("--set", change))]) == 0
    common = {"iterations": 7, "field": {"levels": 2}, "distillation": {"t_max": (0.9, 0.6)}}
    assert values["settings"] == {name: settings.with_(**common) for name, settings in PRESETS["mini-fast"].items()}
    assert values["tuned"] == {"sds": {"distillation": {"guidance": 30, "opaque": 50}, "iterations": 9}}
    assert values["prompts"] == [Prompt("a red vase", "test")] and values["processes"] == 3
    assert (values["methods"], values["seeds"], values["out"]) == (["redream", "sds"], [0, 2], tmp_path / "out")
    out, err = capsys.readouterr()
    assert "A worker process ended early.\nsds: a red vase: The asset is gone.\n1 of 1" in err
    assert "about 2 min left" in err and "1 of 1 runs are missing" in out


def test_an_interrupted_evaluation_says_that_the_same_command_goes_on(tiny_stack, capsys, tmp_path, monkeypatch):
    def interrupted(*arguments, **values):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(pipeline, "generate", interrupted)
    (tmp_path / "prompts.txt").write_text("a purple owl")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--methods", "sds"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("colour=1", "no setting colour"),
        ("magic.iterations=1", "no setting magic.iterations"),
        ("retrieval.iterations=1", "no setting retrieval.iterations"),
        ("iterations.guidance=1", "no setting iterations.guidance"),
        ("distillation.guidance.more=1", "no setting distillation.guidance.more"),
        ("seed=1", "differ by seed"),
        ("sds.method=vsd", "differ by method"),
        ("initialise=false", "differ by initialise"),
        ("distillation.delta_every=0", "differ by distillation.delta_every"),
        ('distillation={"delta_every": 0}', "distillation is a group"),
        ("distillation.t_max=high", "t_max"),
        ("distillation.t_max=[0.7]", "t_max"),
        ("distillation.t_max=[0.7, 0.6, 0.5]", "t_max"),
        ("field.levels=2.5", "levels = 2.5 is out of its range"),
        ("rendering.resolutions=[]", "resolutions"),
        ("initialisation.warmup=2", "warmup = 2 is out of its range"),
    ],
)
def test_evaluate_refuses_a_setting_in_a_sentence(tiny_stack, capsys, tmp_path, change, sentence):
    words = ("evaluate", "--stack", tiny_stack, "--out", tmp_path / "out")
    assert sentence in refused(capsys, *words, "--set", change)
    assert not (tmp_path / "out").exists()


def test_evaluate_refuses_other_options_in_a_sentence(tiny_stack, capsys, tmp_path):
    words = ("evaluate", "--stack", tiny_stack, "--out", tmp_path / "out")
    assert "no method magic" in refused(capsys, *words, "--methods", "magic")
    assert "--seeds" in refused(capsys, *words, "--seeds", "0,x")
    assert "invalid choice: 'dev'" in refused(capsys, *words, "--split", "dev")
    assert "--processes" in refused(capsys, *words, "--processes", "0")
    assert "cannot be read" in refused(capsys, *words, "--prompts", tmp_path / "none.txt")
    (tmp_path / "prompts.txt").write_text("validation\ta purple owl\n")
    assert "no test prompts" in refused(capsys, *words, "--split", "test", "--prompts", tmp_path / "prompts.txt")
    assert not (tmp_path / "out").exists()


def test_score_sentences_name_direction_and_decimals_of_the_table_of_scores():
    scores = {"clip_a": 0.3123, "clip_b": None, "a_lpips_a": 0.01234, "a_lpips_b": 0.02, "coverage": 0.4}
    views = {"view_accuracy_a": 0.5, "view_accuracy_b": 0.75}
    first, second = score_sentences({"objects": [scores, scores | views]})
    clip = "CLIP score 0.312 and not available (higher is better)"
    a_lpips = "A-LPIPS 0.0123 and 0.0200 (lower is better)"
    assert first == f"Object 0: {clip}; {a_lpips}."
    assert second == f"Object 1: {clip}; View accuracy 0.500 and 0.750 (higher is better); {a_lpips}."


def test_doctor_names_a_stack_and_why(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(("Stack: mini. There is", "Stack: sd21. There is")) and "torch" in out


def test_doctor_lists_damaged_files_of_the_miniature_where_that_runs(tiny_stack, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "device", lambda: "cpu")
    assert main(["doctor"]) == 0
    assert "Every file that mini needs is here." in capsys.readouterr().out
    shutil.copytree(tiny_stack, tmp_path / "mini")
    (tmp_path / "mini/prior/unet/config.json").unlink()
    monkeypatch.setattr(stack, "STACKS", tmp_path)
    assert main(["doctor"]) == 0
    assert "prior: unet/config.json: missing" in capsys.readouterr().out.splitlines()


def test_doctor_lists_the_files_that_a_stack_lacks_until_setup_has_fetched_them(
    hub_server, tiny_stack, tmp_path, monkeypatch, capsys
):
    publish(hub_server, tiny_stack, tmp_path, monkeypatch)
    assert main(["doctor", "--stack", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^prior: unet/diffusion_pytorch_model.safetensors, \d+ [kM]B: missing$", out, re.MULTILINE)
    assert f"python -m redream setup {tmp_path}" in out and re.search(r"^Fetch them, about \d MB: ", out, re.MULTILINE)
    assert "The prior of published is not here" in refused(capsys, "doctor", "--run", "--stack", tmp_path)

    assert main(["setup", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == "Everything that published needs is here.\n" and "Fetching clips.a, " in err
    assert main(["doctor", "--stack", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"Every file that {tmp_path} needs is here." in out and "missing" not in out


def test_setup_says_in_a_sentence_what_it_could_not_bring(hub_server, tiny_stack, tmp_path, monkeypatch, capsys):
    publish(hub_server, tiny_stack, tmp_path, monkeypatch, with_index=False)
    assert main(["setup", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("The Hub has no public repository allenai/objaverse")


def test_setup_builds_an_index_that_nobody_published_and_says_how_to_share_it(
    hub_server, tiny_stack, tmp_path, monkeypatch, capsys
):
    publish(hub_server, tiny_stack, tmp_path, monkeypatch, with_index=False)
    make_objaverse(60).publish(hub_server)
    assert main(["setup", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    built = tmp_path / "data/indexes/published"
    assert re.search(r"^Index: reading, \d+ of \d+ files", err, re.MULTILINE) and "|" not in err  # no other bars
    assert out.splitlines()[1].endswith(f"python -m redream index push {built} OWNER/NAME")
    assert main(["index", "check", str(built)]) == 0
    assert main(["setup", str(tmp_path)]) == 0
    assert "index push" not in capsys.readouterr().out  # it was here already


def test_doctor_makes_iterations_and_says_pass_or_fail(tiny_stack, capsys, monkeypatch):
    words = ["doctor", "--run", "--iterations", "3", "--stack", str(tiny_stack)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("tiny, preset mini, 3 of 3 iterations on ") and "16 px: 3 iterations" in err
    assert re.search(r"^CUDA: o(n|ff) \(", out, re.MULTILINE) and re.search(r"^16 px: \d+ ms", out, re.MULTILINE)
    assert "Peak memory: " in out and re.fullmatch(r"Pass, in \d+ s", out.splitlines()[-1])

    def fail(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(self_test, "Distillation", fail)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "Pass" not in out and err.splitlines()[-1].startswith("Fail: The device's memory ran out")


def test_doctor_compares_a_stack_with_the_hub_a_line_for_each_fact(
    hub_server, tiny_stack, tmp_path, monkeypatch, capsys
):
    publish(hub_server, tiny_stack, tmp_path, monkeypatch)
    assert main(["doctor", "--online", "--stack", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and all(line.startswith("right: ") for line in lines)
    del hub_server.repositories["models", "owner/index"]
    make_objaverse(9).publish(hub_server)
    assert main(["doctor", "--online", "--stack", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "WRONG: index, owner/index: The Hub has no public repository" in out and err.startswith("1 of ")


def test_the_program_itself_ends_with_2_without_a_traceback(tiny_stack):
    root = Path(__file__).parents[2]
    words = [*COMMAND, "generate", "an ironman", "--stack", str(tiny_stack)]
    ended = subprocess.run(words, check=False, capture_output=True, text=True, cwd=root, env=os.environ)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("The tiny model does not know the word *ironman*.") and ended.stderr.count("\n") == 1


def test_a_fault_of_the_program_is_raised_and_not_reported_as_bad_input(monkeypatch):
    monkeypatch.setattr(pipeline, "retrieve", lambda *a, models: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["retrieve", "an owl"])
