"""The library: nearest assets first, filtered by licence, and one asset in detail."""

import pytest
from hub_stack import publish_assets

from redream.app.library import FETCHING, ON_THE_HUB, Library
from redream.retrieval.index import AssetUnavailable
from redream.stack.models import Models
from redream.stack.stack import Stack
from redream.stack.vocabulary import PromptError


@pytest.fixture(scope="module")
def library(tiny_stack):
    return Library(Models.load(Stack.load(tiny_stack, environ={}), "cpu"))


def test_a_search_has_the_order_of_retrieval_and_an_empty_search_has_all_assets(library):
    models = library.models
    hits = models.index.search("a red owl", models.clip("retrieval"), 4, 6)
    rows = library.search("a red owl", count=4)
    assert [row["uid"] for row in rows] == [hit.uid for hit in hits]
    assert [row["similarity"] for row in rows] == [hit.similarity for hit in hits]
    assert len(library.search("")) == 6
    with pytest.raises(PromptError, match="does not know"):
        library.search("ironman")


def test_a_licence_filter_keeps_only_assets_with_that_licence(library):
    assert library.licences == ["CC0"]
    assert len(library.search("", "CC0")) == 6 and library.search("", "CC-BY") == []
    assert "nothing like that" in library.cards_html([])


def test_a_card_carries_its_uid_and_its_views_and_its_texts_stay_text(library):
    row = library.search("")[0]
    assert "The library has 6 assets;" in library.cards_html([row])
    html = library.cards_html([row | {"caption": "<img src=x>", "license": "<img src=x>"}])
    assert f'data-uid="{row["uid"]}"' in html and "<img" not in html and "data:image/png" in html


def test_a_hostile_uid_cannot_leave_its_attribute(library):
    row = library.search("")[0]
    library.strip(row["uid"])
    html = library.cards_html([row | {"uid": '"><img src=x>'}])
    assert "<img" not in html


def test_an_asset_is_shown_with_its_faces_front_licence_and_uid(library):
    html = library.asset_html("tiny-mug")
    assert "photo" not in html and all(text in html for text in ("mug", "faces", "front", "CC0", "uid tiny-mug"))
    with pytest.raises(AssetUnavailable):
        library.asset_html("../../etc/passwd")


def test_an_asset_on_the_hub_is_fetched_when_it_is_clicked_with_its_progress(tiny_stack, hub_server, tmp_path):
    remote = Library(Models.load(publish_assets(hub_server, tiny_stack, tmp_path / "index"), "cpu"))
    rows = remote.search("")
    assert ON_THE_HUB in (html := remote.cards_html(rows)) and "data:image/png" not in html
    assert not any("tiny-mug" in request for request in hub_server.requests)
    said = list(remote.fetching("tiny-mug"))
    assert said[0] == FETCHING and "uid tiny-mug" in remote.asset_html("tiny-mug")
    assert list(remote.fetching("tiny-mug")) == [] and remote.cards_html(rows).count(ON_THE_HUB) == len(rows) - 1
    del hub_server.repositories["datasets", "owner/objects"]["glbs/000-000/tiny-dog.glb"]
    with pytest.raises(AssetUnavailable, match="lacks a file"):
        list(remote.fetching("tiny-dog"))
