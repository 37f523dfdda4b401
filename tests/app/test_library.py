"""The library to look through: nearest first, filtered by licence, and one asset closely."""

import pytest

from redream.app.library import Library
from redream.retrieval.index import AssetUnavailable
from redream.stack.models import Models
from redream.stack.stack import Stack
from redream.stack.vocabulary import PromptError


@pytest.fixture(scope="module")
def library(tiny_stack):
    return Library(Models.load(Stack.load(tiny_stack, environ={}), "cpu"))


def test_words_bring_the_nearest_first_as_retrieval_has_them_and_no_words_bring_all(library):
    models = library.models
    best = models.index.search("a red owl", models.clip("retrieval"), 4, 6)
    rows = library.search("a red owl", count=4)
    assert [row["uid"] for row in rows] == [hit.uid for hit in best]
    assert [row["similarity"] for row in rows] == [hit.similarity for hit in best]
    assert len(library.search("")) == 6
    with pytest.raises(PromptError, match="does not know"):
        library.search("ironman")


def test_only_a_licences_own_assets_are_left(library):
    assert library.licences == ["CC0"]
    assert len(library.search("", "CC0")) == 6 and library.search("", "CC-BY") == []
    assert "nothing like that" in library.cards_html([])


def test_cards_can_be_chosen_by_uid_and_their_texts_stay_texts(library):
    row = library.search("")[0]
    assert "The library has 6;" in library.cards_html([row])
    shown = library.cards_html([row | {"caption": "<img src=x>"}])
    assert f"data-uid='{row['uid']}'" in shown and "<img" not in shown and "data:image/png" in shown


def test_an_asset_is_shown_with_its_front_faces_and_licence(library):
    shown = library.asset_html("tiny-mug")
    assert "photo" not in shown and all(words in shown for words in ("mug", "faces", "front", "CC0", "uid tiny-mug"))
    with pytest.raises(AssetUnavailable):
        library.asset_html("../../etc/passwd")
