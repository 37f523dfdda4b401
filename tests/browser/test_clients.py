"""The app as programs use it: the scripted examples, MCP tools, and more visitors than the queue holds."""

import asyncio
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from served import ITERATIONS

from examples import client_batch, client_generate
from redream.app.limits import MAX_BODY
from redream.settings import MAX_WAITING

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def client_of(app):
    return Client(app[0], verbose=False, analytics_enabled=False)


def test_the_example_client_downloads_an_object_with_its_scores(app, tmp_path, capsys):
    words = ["a purple owl", "--url", app[0], "--method", "sds", "--iterations", "60", "--out", str(tmp_path / "owl")]
    assert client_generate.main(words) == 0
    assert {file.suffix for file in (tmp_path / "owl").iterdir()} == {".mp4", ".glb", ".json"}
    assert json.loads((tmp_path / "owl/result.json").read_text())["scores"][0]["clip_a"] <= 1
    printed = capsys.readouterr()
    assert "Distillation, iteration" in printed.err and printed.out.startswith("Done. 2 files are in")


def test_the_batch_client_makes_missing_objects_and_says_why_one_is_not_made(app, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red car\n\nironman\na blue mug\n")
    words = [str(tmp_path / "prompts.txt"), "--url", app[0], "--method", "sds", "--iterations", "10"]
    for expected in (["CLIP", "does not know", "CLIP"], ["there already", "does not know", "there already"]):
        assert client_batch.main([*words, "--out", str(tmp_path / "out")]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 and all(word in line for word, line in zip(expected, lines, strict=True))


def test_the_batch_client_continues_a_stopped_run_and_repeats_one_that_the_app_has_removed(app, tmp_path, capsys):
    prompt, options = "a red car", {"method": "sds", "iterations": 2 * ITERATIONS, "seed": 3}
    job = client_of(app).submit(prompt, **options, api_name="/generate")
    wait_for(lambda: states(job) and "iteration" in states(job)[-1]["state"])
    client_of(app).predict(states(job)[0]["run"], api_name="/stop")
    stopped = job.result(60)[0]
    assert 0 < stopped["done"] < 1
    folder = tmp_path / "out" / client_batch.name_of(app[0], prompt, options)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(stopped))
    gone = tmp_path / "out" / client_batch.name_of(app[0], "a blue mug", options)
    gone.mkdir()
    (gone / "result.json").write_text(json.dumps({"run": "run-ABCDEFGHIJKLMNOP", "done": 0.5}))
    (tmp_path / "prompts.txt").write_text(f"# two\n{prompt}\ntest\ta blue mug\n")
    words = [str(tmp_path / "prompts.txt"), "--url", app[0], "--method", "sds", "--iterations", str(2 * ITERATIONS)]
    assert client_batch.main([*words, "--seed", "3", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("Done.") == 2
    assert json.loads((gone / "result.json").read_text())["done"] == 1
    result = json.loads((folder / "result.json").read_text())
    assert (result["run"], result["done"]) == (stopped["run"], 1)


def test_an_mcp_client_lists_and_calls_the_tools(app):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk():
        async with (
            streamablehttp_client(f"{app[0]}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            retrieved = await session.call_tool("retrieve", {"prompt": "a purple owl", "count": 2})
            generated = await session.call_tool("generate", {"prompt": "a red car", "method": "sds", "iterations": 10})
            refused = await session.call_tool("generate", {"prompt": "ironman"})
            return tools, retrieved, generated, refused

    tools, retrieved, generated, refused = asyncio.run(talk())
    assert {"retrieve", "generate", "continue", "stop", "scores", "export"} <= set(tools)
    assert "300 characters" in json.dumps(tools["generate"].inputSchema)
    assert "CC0" in retrieved.content[0].text and not retrieved.isError
    text = " ".join(getattr(part, "text", "") for part in generated.content)
    assert not generated.isError and all(part in text for part in ("Done.", "mesh-0.glb", "turntable-0.mp4"))
    assert refused.isError and "does not know the word" in refused.content[0].text


def test_each_of_many_visitors_sees_a_queue_position_and_one_too_many_is_refused(app):
    """One run is made and all places in the queue are taken; retrieval answers meanwhile."""
    first = client_of(app).submit("a red car", "redream", particles=4, iterations=5 * ITERATIONS, api_name="/generate")
    wait_for(lambda: states(first) and "iteration" in states(first)[-1]["state"])
    with ThreadPoolExecutor(MAX_WAITING) as pool:
        clients = list(pool.map(lambda _: client_of(app), range(MAX_WAITING)))
    jobs = [client.submit("a blue mug", "sds", iterations=10, api_name="/generate") for client in clients]
    wait_for(lambda: all(states(job) for job in jobs))
    places = sorted(int(re.search(r"(\d+) runs? (?:is|are) before", states(job)[0]["state"]).group(1)) for job in jobs)
    assert places == list(range(1, MAX_WAITING + 1))
    with pytest.raises(AppError, match=f"{MAX_WAITING} runs are waiting already"):
        clients[0].predict("a blue mug", api_name="/generate")
    with ThreadPoolExecutor(MAX_WAITING) as pool:
        answers = list(pool.map(lambda client: client.predict("a red car", api_name="/retrieve"), clients))
    assert all(len(assets) == 3 for assets in answers)
    for job in (*jobs, first):  # waiting runs end at once, without results
        client_of(app).predict(states(job)[0]["run"], api_name="/stop")
    assert first.result(60)[0]["state"].startswith("Stopped.")


def test_a_visitor_does_not_see_the_figures_of_all_visitors_nor_may_send_what_is_no_upload_and_large(app):
    call = Request(f"{app[0]}/gradio_api/call/scores", json.dumps({"data": ["a" * MAX_BODY]}).encode())
    call.add_header("Content-Type", "application/json")
    for request, status in ((f"{app[0]}/monitoring/summary", 403), (call, 413)):
        with pytest.raises(HTTPError) as error:
            urlopen(request)
        assert error.value.code == status


def states(job) -> list[dict]:
    return [output[0] for output in job.outputs()]


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        threading.Event().wait(0.2)
