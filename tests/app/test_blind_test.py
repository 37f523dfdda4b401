"""The blind test: two different objects without names, and a tally of votes."""

import json

from redream.app.blind_test import answer_html, tally_html, with_vote


def test_a_vote_counts_for_both_variants_of_the_pair():
    tally = with_vote({}, ("redream", "vsd"), "A")
    tally = with_vote(json.loads(json.dumps(tally)), ("vsd", "redream"), "B")
    tally = with_vote(tally, ("redream", "sds"), "same")
    assert tally == {"redream": [2, 3], "vsd": [0, 2], "sds": [0, 1]}
    assert tally_html(tally).index("2 of 3") < tally_html(tally).index("0 of 2")


def test_a_tally_from_storage_with_unknown_variants_is_shown_without_them():
    assert "<b" not in tally_html({"<b>": [1, 1]}) and "1 of 1" in tally_html({"<b>": [1, 1], "vsd": [1, 1]})


def test_the_answer_names_both_variants_and_the_preferred_one():
    assert "A was ReDream, B was DreamFusion (SDS). You preferred ReDream." in answer_html(("redream", "sds"), "A")
    assert "preferred" not in answer_html(("redream", "sds"), "same")
