"""Strangers' GLBs in a process of their own: the same assets, and a sentence where its limits end it."""

import importlib.util
import json
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from glb_files import GlbFile

from redream.scene import assets, glb_reader, glb_validation, glb_worker
from redream.scene.assets import AssetError
from redream.scene.glb import GlbError
from redream.scene.glb_reader import GlbReader, ProcessLimits, ReadingStopped
from redream.scene.glb_worker import decode, encode
from redream.scene.gltf import read

CASES = sorted((Path(__file__).parent / "glb_cases").glob("*.glb"))


@pytest.fixture(scope="module")
def reader():
    with GlbReader() as reader:
        yield reader


def large(faces: int) -> bytes:
    file = GlbFile()
    corners = np.random.default_rng(0).random((3 * faces, 3), np.float32)
    file.node(mesh=file.mesh({"POSITION": corners}))
    return file.bytes()


def assert_same(first: assets.Asset, second: assets.Asset) -> None:
    for name in ("colours", "uv", "face_texture"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert np.array_equal(first.mesh.vertices, second.mesh.vertices)
    assert np.array_equal(first.mesh.faces, second.mesh.faces)
    assert first.samplers == second.samplers
    assert all(np.array_equal(a, b) for a, b in zip(first.textures, second.textures, strict=True))
    assert (first.appearance is None) == (second.appearance is None)
    if first.appearance is not None:
        assert first.appearance.materials == second.appearance.materials
        assert np.array_equal(first.appearance.face_material, second.appearance.face_material)
        assert np.array_equal(first.appearance.alpha, second.appearance.alpha)
        assert first.appearance.uv.keys() == second.appearance.uv.keys()


def test_all_cases_come_from_one_child_as_they_are_read_here(reader):
    children = set()
    for case in CASES:
        assert_same(reader.load(case), assets.load(case))
        children.add(reader._child.pid)
    assert len(children) == 1 and children != {os.getpid()}
    assert_same(reader.load(CASES[0], normalise=False), assets.load(CASES[0], normalise=False))


def test_validation_in_the_child_is_validation(reader):
    for case in CASES[:3]:
        validated = reader.validate(case)
        assert validated == glb_validation.validate(case)
        assert_same(reader.load(validated, validated=True), assets.load(case))
    with pytest.raises(GlbError, match="not a GLB"):
        reader.load(b"solid ascii stl" * 9)
    with pytest.raises(GlbError, match="cannot be read"):
        reader.load(Path("absent.glb"))
    with pytest.raises(GlbError, match="larger than 0 MB"):
        reader.validate(CASES[0], replace(glb_validation.LIMITS, size=10))


@pytest.mark.parametrize(
    "limits", [ProcessLimits(memory=250_000_000), ProcessLimits(cpu_seconds=-1), ProcessLimits(seconds=0.01)]
)
def test_a_file_that_takes_too_much_is_one_sentence_and_the_next_one_is_read(limits):
    with GlbReader(limits) as reader:
        with pytest.raises(AssetError, match=r"too much memory or time to read\. Simplify it"):
            reader.load(large(160_000 * (limits.memory < 2**30) + 10_000))
        reader.limits = ProcessLimits()
        reader.close()
        assert reader.load(CASES[0]).mesh.faces.any()


@pytest.mark.parametrize("most, soft", [(resource.RLIM_INFINITY, 20), (30, 20), (10, 10)])
def test_a_limit_of_time_from_outside_stays(monkeypatch, most, soft):
    """Only root may raise it: where it was tried, no file could be read."""
    limits = []
    monkeypatch.setattr(time, "process_time", lambda: 4.5)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, most))
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: limits.append(limit))
    glb_worker._limit_time(15)
    assert limits == [(resource.RLIMIT_CPU, (soft, most))]


def test_a_child_that_dies_is_one_sentence(reader):
    reader.load(CASES[0])
    reader._child.kill()
    with pytest.raises(AssetError, match="too much"):
        reader.load(CASES[0])
    reader.load(CASES[0])


@pytest.mark.parametrize("task", ["load", "validate"])
def test_stop_ends_the_reading_at_once(reader, task):
    reader.load(CASES[0])
    os.kill(reader._child.pid, signal.SIGSTOP)  # as if the file took long
    assert_stops(reader, task, CASES[0])


def test_stop_ends_the_start_of_a_child(reader, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(glb_reader.sys, "executable", str(python))
    reader.close()
    assert_stops(reader, "load", large(10_000))  # more than is sent before somebody takes it


def assert_stops(reader, task, source):
    asked = []
    start = time.monotonic()
    with pytest.raises(ReadingStopped):
        getattr(reader, task)(source, stop=lambda: asked.append(1) or len(asked) > 2)
    assert time.monotonic() - start < 2 and reader._child is None


def test_the_child_ends_with_the_block_and_the_projects_own_files_start_none():
    with GlbReader() as reader:
        reader.load(next((glb_reader.SHIPPED / "mini" / "assets").glob("*.glb")))
        assert reader._child is None
        reader.load(CASES[0])
        child = reader._child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_where_no_process_may_start_files_are_read_here(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    with GlbReader() as reader:
        assert_same(reader.load(CASES[0]), assets.load(CASES[0]))
        assert_same(reader.load(reader.validate(CASES[0]), validated=True), assets.load(CASES[0]))
        assert reader._child is None
    for value, starts in (("0", True), ("false", True), ("", True), ("True", False)):
        monkeypatch.setenv("SPACES_ZERO_GPU", value)
        assert glb_reader.can_start() == starts


def test_spoiled_files_are_drawn_or_refused_and_nothing_is_opened(monkeypatch, capsys):
    """Each way of the endurance test twice."""
    path = Path(__file__).parents[1] / "endurance/mutated_glbs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    endurance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(endurance)
    monkeypatch.setenv("PYTHONPATH", "")
    assert endurance.main(["--count", "28", "--seed", "1"]) == 0, capsys.readouterr().out
    assert "opened while serving: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a["faces"].__setitem__((0, 0), 10**6),
        lambda a: a["face_texture"].__setitem__(0, 9),
        lambda a: a["face_material"].__setitem__(0, -1),
        lambda a: a.__setitem__("alpha", a["alpha"][:-1]),
        lambda a: a.__setitem__("uv", a["uv"][:, :1]),
        lambda a: a.__setitem__("faces", a["faces"].astype(np.float32)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(spoil):
    """A file might take the child over: what comes from there is not trusted either."""
    from safetensors.numpy import load, save

    case = next(path for path in CASES if "leaf-mask" in path.name)
    content = encode(read(*glb_validation.reduced(case)))
    arrays = {name: array.copy() for name, array in load(content).items()}
    assert decode(save(arrays)).appearance is not None
    assert set(json.loads(arrays["json"].tobytes())) == {"samplers", "materials"}
    spoil(arrays)
    with pytest.raises(AssetError, match="cannot be read"):
        decode(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
