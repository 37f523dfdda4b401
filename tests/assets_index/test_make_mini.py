"""The recipe: every stage goes through in small, and what takes no training comes out as it is shipped."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assets_index import make_mini, world
from redream.scene import assets
from redream.stack.models import Models
from redream.stack.stack import Stack

SHIPPED = make_mini.Recipe().out


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """All stages, as `make_mini all --trial FOLDER` runs them."""
    folder = tmp_path_factory.mktemp("recipe") / "mini"
    make_mini.main(["all", "--trial", str(folder)])
    return folder


@pytest.mark.slow
def test_every_stage_goes_through_and_the_stack_it_makes_loads(made):
    assert list(json.loads((made / "made.json").read_text())["seconds"]) == list(make_mini.STAGES)
    models = Models.load(Stack.load(made, environ={}), "cpu")
    assert len(models.index) == len(make_mini.Recipe.trial(made).index_things)
    assert {models.clip(name).size for name in ("retrieval", "a", "b")} == {models.prior.size} == {64}
    assert models.perceptual("a") and models.perceptual("b")


@pytest.mark.slow
def test_what_needs_no_training_comes_out_byte_for_byte_as_shipped(made):
    """Assets, true objects, the vocabulary, the list of held-out pairs and stack.json; the contact sheet nearly so, as other
    processors round its renderings otherwise."""
    files = ["vocabulary.json", "heldout.csv", "stack.json"]
    files += [f"{folder}/{file.name}" for folder in ("assets", "truth") for file in (made / folder).glob("*.glb")]
    assert len(files) == 3 + 4 + 6
    for file in files:
        assert (made / file).read_bytes() == (SHIPPED / file).read_bytes(), file
    sheets = [np.asarray(Image.open(folder / "kinds.jpg"), np.int16) for folder in (made, SHIPPED)]
    difference = np.abs(np.subtract(*sheets))  # levels, 0 to 255
    assert difference.max() <= 4 and (difference > 0).mean() < 0.01
    for table in ("truth.csv", "truth/truth.csv"):
        rows = set((made / table).read_text().splitlines())
        assert rows <= set((SHIPPED / table).read_text().splitlines())


@pytest.mark.slow
def test_a_stage_that_is_called_again_continues_from_its_state(made, capsys):
    """Renders are read again, and models that are trained already are only written again."""
    before = (made / "perceptual-a/model.safetensors").read_bytes()
    make_mini.main(["perceptual", "--trial", str(made)])
    assert (made / "perceptual-a/model.safetensors").read_bytes() == before
    make_mini.main(["renders", "--trial", str(made)])
    assert capsys.readouterr().out == "448 pictures to train on, 112 to test on\n"


def test_the_shipped_files_are_small_and_named_by_the_tables():
    """16-bit indices and no vertex twice: 26 KB a file in the mean. truth.csv and the index name every file."""
    for folder, table in (("assets", "truth.csv"), ("truth", "truth/truth.csv")):
        files = {file.stem: file for file in (SHIPPED / folder).glob("*.glb")}
        with (SHIPPED / table).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert {world.Thing(r["kind"], r["colour"], int(r["variant"])).uid for r in rows} == set(files)
        assert sum(file.stat().st_size for file in files.values()) < 26e3 * len(files)
    asset = assets.load(next(iter(files.values())))
    assert len(asset.mesh.faces) > 100
