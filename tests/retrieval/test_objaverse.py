"""Objaverse as records: every asset is taken, or counted under the first reason that it is left out for."""

import hashlib
from collections import Counter

import pytest
from hub_server import COMMIT, Fault
from objaverse_files import GROUP, gzipped, make_objaverse

from redream import hub
from redream.retrieval.build import BuildError
from redream.retrieval.fetch import finished
from redream.retrieval.objaverse import LICENSES, Objaverse

COUNT = 150


@pytest.fixture(scope="module")
def made():
    return make_objaverse(COUNT, seed=1)


@pytest.fixture
def published(made, hub_server):
    made.publish(hub_server)
    return hub_server


def first_reason(made, uid: str, min_score: int, names: bool = False) -> str | None:
    """The same rules as plain Python, asset by asset."""
    record, quality = made.records[uid], made.quality.get(uid)
    if record["license"] not in LICENSES:
        return "another licence"
    if record["isAgeRestricted"]:
        return "for adults only"
    if record["archives"]["glb"]["faceCount"] > 500_000:
        return "more than 500,000 faces"
    if quality is None:
        return "no quality score"
    if quality["score"] < min_score:
        return f"a quality score below {min_score}"
    for flag in ("scene", "transparent"):
        if quality[f"is_{flag}"] == "true":
            return flag
    return None if uid in made.captions or names else "no caption"


def test_each_asset_is_taken_or_counted_by_its_first_reason(made, published):
    records = finished(Objaverse(min_score=1, without=("scene", "transparent")).read())
    reasons = {uid: first_reason(made, uid, 1) for uid in made.records}
    assert records.table["uid"].to_pylist() == sorted(uid for uid, reason in reasons.items() if reason is None)
    assert records.left_out == Counter(filter(None, reasons.values()))
    assert len(records.left_out) == 8  # the fixture has a case of each


def test_a_record_says_where_the_glb_is_its_hash_licence_author_and_page(made, published):
    records = finished(Objaverse().read())
    hashes = {uid: made.repositories["allenai/objaverse"].get(path) for uid, path in made.paths.items()}
    for row in records.table.to_pylist():
        record = made.records[row["uid"]]
        assert row["path"] == made.paths[row["uid"]] and row["file"] == ""
        assert row["license"] == LICENSES[record["license"]] and row["source"] == record["viewerUrl"]
        assert row["captions"] == [made.captions[row["uid"]]] and row["faces"] == record["archives"]["glb"]["faceCount"]
        glb = hashes[row["uid"]]
        assert glb is None or row["sha256"] == hashlib.sha256(glb).hexdigest()


def test_branches_are_resolved_to_commits_which_are_recorded(published):
    records = finished(Objaverse(min_score=0).read())
    assert records.repository == {"source": "allenai/objaverse", "revision": COMMIT, "kind": "dataset"}
    assert set(records.commits) == {name for _, name in published.repositories}
    assert set(records.commits.values()) == {COMMIT}


def test_quality_is_only_fetched_where_a_filter_asks_for_it(published):
    assert "cindyxl/ObjaversePlusPlus" not in finished(Objaverse().read()).commits
    assert not any("ObjaversePlusPlus" in request for request in published.requests)


def test_captions_of_several_sources_are_all_searched_and_the_first_is_shown(made, published, tmp_path):
    own = tmp_path / "own.csv"
    uid = next(uid for uid in made.records if first_reason(made, uid, 0) is None)
    own.write_text(f'{uid},"my caption"\n')
    records = finished(Objaverse(captions=(str(own), "cap3d", "cap3d-json")).read())
    captions = dict(zip(*records.table.select(["uid", "captions"]).to_pydict().values(), strict=True))
    assert captions[uid][0] == "my caption" and made.captions[uid] in captions[uid]
    for other in set(captions) - {uid}:
        found = (made.captions.get(other), made.other_captions.get(other))
        assert captions[other] == [text for text in found if text]


def test_a_name_stands_in_for_captions_that_are_not_there_when_asked_for(made, published):
    records = finished(Objaverse(names=True).read())
    named = [row for row in records.table.to_pylist() if row["uid"] not in made.captions]
    assert named and all(row["captions"] == [made.records[row["uid"]]["name"]] for row in named)
    assert "no caption" not in records.left_out


def test_a_licence_filter_keeps_only_these_and_the_limit_the_first_by_uid(published):
    records = finished(Objaverse(licenses=("cc0", "by")).read())
    assert set(records.table["license"].to_pylist()) == {"CC0", "CC-BY-4.0"}
    few = finished(Objaverse(licenses=("cc0", "by"), limit=7).read())
    assert few.table.equals(records.table.slice(0, 7))


def test_size_and_faces_can_be_limited_further_and_adult_content_be_kept(made, published):
    records = finished(Objaverse(max_faces=300, max_size=6000, age_restricted=True).read())
    for row in records.table.to_pylist():
        glb = made.records[row["uid"]]["archives"]["glb"]
        assert glb["faceCount"] <= 300 and glb["size"] <= 6000
    assert {"more than 300 faces", "larger than 0 MB"} <= set(records.left_out)
    assert any(made.records[uid]["isAgeRestricted"] for uid in records.table["uid"].to_pylist())


def test_paths_that_lead_elsewhere_are_no_glb_of_the_data_set(made, published):
    uids = [uid for uid in made.records if first_reason(made, uid, 0) is None][:3]
    paths = made.paths | {uids[0]: f"glbs/000-000/../../{uids[0]}.glb", uids[1]: "/etc/passwd", uids[2]: "a.pkl"}
    published.repositories["datasets", "allenai/objaverse"] |= {"object-paths.json.gz": gzipped(paths)}
    records = finished(Objaverse().read())
    assert records.left_out["no GLB in the data set"] == 3 and not set(uids) & set(records.table["uid"].to_pylist())


def test_an_asset_that_two_files_describe_is_taken_once(made, published):
    repository = published.repositories["datasets", "allenai/objaverse"]
    groups = {made.paths[uid].split("/")[1] for uid in made.records}
    uid = next(uid for uid in made.records if first_reason(made, uid, 0) is None)
    repository |= {f"metadata/{group}.json.gz": gzipped(made.records) for group in groups}
    records = finished(Objaverse().read())
    uids = records.table["uid"].to_pylist()
    assert uids == sorted(set(uids)) and uid in uids
    assert records.left_out["described twice"] == (len(groups) - 1) * COUNT


def test_progress_counts_every_file_that_is_read(published):
    progress = list(Objaverse(captions=("cap3d", "cap3d-json"), min_score=1).read())
    groups = COUNT // GROUP
    assert [p.done for p in progress[1:]] == list(range(groups + 4)) and progress[-1].total == groups + 4


@pytest.mark.parametrize("wrong", [{"licenses": ("nc",)}, {"without": ("scenes",)}, {"captions": ("no.csv",)}])
def test_names_that_mean_nothing_are_refused_before_anything_is_fetched(hub_server, wrong):
    with pytest.raises(BuildError):
        finished(Objaverse(**wrong).read())
    assert not hub_server.requests


def test_a_file_that_fails_for_good_ends_the_reading_in_a_sentence(published, monkeypatch):
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", ())
    published.faults["metadata/000-001.json.gz"] = Fault(
        status=404, headers={"X-Error-Code": "EntryNotFound"}, times=9, methods=("GET", "HEAD")
    )
    with pytest.raises(hub.HubFileMissing):
        finished(Objaverse().read())
