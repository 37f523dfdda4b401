"""Endpoints describe themselves and each of their parameters to clients."""

import inspect

import gradio as gr
import pytest
from gradio.utils import get_function_description

import app
from redream import pipeline
from redream.app.api import Endpoints
from redream.errors import RedreamError
from redream.runs.queue import Worker


@pytest.mark.parametrize("name", ["retrieve", "generate", "resume", "stop", "scores", "export"])
def test_every_endpoint_and_each_of_its_parameters_is_described(name):
    call = getattr(Endpoints, name)
    description, parameters, _ = get_function_description(call)
    assert len(description) > 20 and set(parameters) == set(inspect.signature(call).parameters)
    assert [name for name, text in parameters.items() if not text] == ["self"]


def test_the_app_offers_the_endpoints_under_their_names_and_no_event_of_a_tab(models, tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    demo = app.build(Worker(models, pipeline.generate, pipeline.resume), "")
    endpoints = demo.get_api_info()["named_endpoints"]
    assert set(endpoints) == {"/retrieve", "/generate", "/continue", "/stop", "/scores", "/export"}
    names = [parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]]
    assert names == list(inspect.signature(Endpoints.generate).parameters)[1:]


@pytest.mark.parametrize("on_zerogpu", [False, True])
def test_the_events_of_many_pages_may_wait_beside_each_other(models, tmp_path, monkeypatch, on_zerogpu):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    monkeypatch.setattr(gr.utils, "is_zero_gpu_space", lambda: on_zerogpu)
    demo = app.build(Worker(models, pipeline.generate, pipeline.resume), "")
    events_of_a_page = sum("load" in str(fn.targets) for fn in demo.fns.values())
    assert events_of_a_page > 1 and demo._queue.max_size >= 100 * events_of_a_page


@pytest.mark.parametrize("asked", [{"particles": 99}, {"minutes": 1e-9}, {"prompt": ""}])
def test_an_upload_of_a_run_that_is_refused_does_not_stay(models, tmp_path, monkeypatch, asked):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    upload = tmp_path / "uploads" / "a.glb"
    upload.parent.mkdir()
    upload.write_bytes(b"a GLB")
    worker = Worker(models, pipeline.generate, pipeline.resume)
    worker.eta.measured = 1.0
    with pytest.raises(RedreamError):
        next(Endpoints(worker).generate(**{"prompt": "a purple owl"} | asked, asset=str(upload)))
    assert not upload.exists()


@pytest.mark.parametrize("variable", ["REDREAM_RUNS", "GRADIO_TEMP_DIR"])
def test_the_app_refuses_a_folder_below_a_file_before_anything_else(variable, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name in ("REDREAM_RUNS", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, str(tmp_path / ("file/below" if name == variable else name)))
    monkeypatch.setattr(app, "choose_stack", lambda: pytest.fail("it went on"))
    with pytest.raises(SystemExit) as end:
        app.main([])
    sentence = f"The folder {tmp_path}/file/below would lie below a file; set {variable} to a folder of yours."
    assert end.value.code == sentence  # Python prints it, with exit status 1
