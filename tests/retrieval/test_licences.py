"""Licences by the names that collections use, and the attribution of a run's assets."""

import pytest

from redream.retrieval.licences import KINDS, Licence, allows_commercial_use, attribution

ENTRY = {"caption": "an owl", "author": "", "license": "by", "source": ""}


@pytest.mark.parametrize("kind", KINDS)
def test_a_licence_is_recognised_by_all_its_names(kind):
    """Objaverse writes "by-nc", others "CC BY-NC 4.0" or "cc-by-nc-4.0"."""
    names = (kind, f"cc-{kind}-4.0", f"CC {kind.upper()} 4.0", f"cc-{kind}")
    licences = {Licence.of(name) for name in names}
    title = f"CC {kind.upper()} 4.0"
    url = f"https://creativecommons.org/licenses/{kind}/4.0/"
    assert licences == {Licence(title, url, commercial="nc" not in kind)}
    assert Licence.of(f"CC {kind.upper()} 3.0").url.endswith(f"/{kind}/3.0/")


def test_cc0_allows_commercial_use_and_what_is_unknown_does_not():
    assert all(map(allows_commercial_use, ("cc0", "CC0", "CC0 1.0", "CC-0", "by", "by-sa")))
    unknown = ("", None, "nc", "by-nc", "cc-by-nc-sa", "all rights reserved", "by-nc-evil", "MIT", "cc", "CC 4.0")
    assert not any(map(allows_commercial_use, unknown))


def test_an_attribution_names_author_source_and_licence_of_each_asset():
    whole = {"caption": "a car", "author": "Ada", "license": "by-nc", "source": "https://example.org/car"}
    first, *lines = attribution([whole, ENTRY, ENTRY | {"license": ""}]).splitlines()
    assert first == "Made with Redream from these 3D assets:" and attribution([]) == ""
    assert lines == [
        "“a car” by Ada (https://example.org/car), CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)",
        "“an owl”, CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
        "“an owl”, no licence given",
    ]
