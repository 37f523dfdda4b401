"""The conversion of objathor's pickle: the same means as by hand, in every protocol, and nothing that could run code."""

import os
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from assets_index.convert_objathor import ConversionError, convert, main

UIDS = [f"{number:032x}" for number in (7, 3, 9)]


def written(path, values, protocol=pickle.DEFAULT_PROTOCOL):
    path.write_bytes(pickle.dumps(values, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_image_is_the_unit_mean_of_the_unit_views_of_its_asset(tmp_path, protocol):
    features = np.random.default_rng(0).standard_normal((4, 3, 8)).astype(np.float16)
    values = {"uids": [*UIDS, "not a uid"], "img_features": features, "text_features": features[:, 0]}
    assert convert(written(tmp_path / "f.pkl", values, protocol), tmp_path / "f.parquet") == 3
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["uid"].to_pylist() == sorted(UIDS)
    views = features[[1, 0, 2]].astype(np.float64)
    mean = (views / np.linalg.norm(views, axis=2, keepdims=True)).mean(axis=1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.array(table["image"].to_pylist()) == pytest.approx(expected, abs=1e-3)


def test_fortran_order_is_understood(tmp_path):
    features = np.arange(48, dtype=np.float16).reshape(3, 2, 8)
    for number, array in enumerate((features, np.asfortranarray(features))):
        values = {"uids": UIDS, "img_features": array}
        convert(written(tmp_path / f"{number}.pkl", values, 2), tmp_path / f"{number}.parquet")
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "values",
    [
        Runs(),
        {"uids": UIDS, "img_features": Runs()},
        {"uids": UIDS, "img_features": np.array([Runs()], object)},
        {"uids": UIDS, "img_features": np.zeros((3, 3, 8), np.complex64)},
        {"uids": UIDS, "img_features": np.zeros((3, 3, 8), ">f4")},
        {"uids": UIDS, "img_features": np.zeros((3, 8), np.float16)},
        {"uids": UIDS[:1], "img_features": np.zeros((3, 3, 8), np.float16)},
        {"uids": UIDS},
        [],
        print,
    ],
    ids=[
        "code",
        "code-as-features",
        "code-within",
        "complex",
        "big-endian",
        "two-axes",
        "few-uids",
        "none",
        "list",
        "function",
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(tmp_path, monkeypatch, values):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError):
        convert(written(tmp_path / "f.pkl", values), tmp_path / "f.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["f.pkl"]


def test_the_command_says_how_many_or_what_is_wrong(tmp_path, capsys):
    values = {"uids": UIDS, "img_features": np.ones((3, 3, 8), np.float16)}
    source, target = str(written(tmp_path / "f.pkl", values)), str(tmp_path / "f.parquet")
    assert main([source, target]) == 0 and capsys.readouterr().out.startswith("3 assets")
    assert main([str(tmp_path / "no.pkl"), target]) == 2 and capsys.readouterr().err.count("\n") == 1
