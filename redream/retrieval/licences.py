"""Creative Commons licences as collections name them ("by-nc", "CC BY-NC 4.0"), and the attribution of assets."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redream.errors import RedreamError

KINDS = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")
NAME = re.compile(r"(?:cc[ -])?([a-z-]+?)(?:[ -](\d\.\d))?")
CC0 = re.compile(r"cc[ -]?0(?:[ -]1\.0)?")
BEGINNING = "Made with Redream from these 3D assets:"


class LicenceError(RedreamError):
    """An asset whose licence is not known to allow what is wanted."""


@dataclass(frozen=True)
class Licence:
    """A Creative Commons licence."""

    title: str
    url: str
    commercial: bool  # whether it allows commercial use

    @staticmethod
    def of(name: str | None) -> "Licence | None":
        """The licence of this name, 4.0 where it names no version; None for any other, of which nothing is known."""
        name = (name or "").strip().lower()
        if CC0.fullmatch(name):
            return Licence("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/", commercial=True)
        match = NAME.fullmatch(name)
        if match is None or match[1] not in KINDS:
            return None
        kind, version = match[1], match[2] or "4.0"
        url = f"https://creativecommons.org/licenses/{kind}/{version}/"
        return Licence(f"CC {kind.upper()} {version}", url, commercial="nc" not in kind.split("-"))


def allows_commercial_use(name: str | None) -> bool:
    """Whether a licence is known to allow it."""
    licence = Licence.of(name)
    return licence is not None and licence.commercial


def require_commercial_use(row: Mapping) -> None:
    """Raises `LicenceError` unless the licence of an asset (a row of an index) is known to allow commercial use."""
    if not allows_commercial_use(name := row["license"]):
        has = f"the licence {name}" if name else "no licence"
        raise LicenceError(
            f"The asset {row['uid']} has {has}, which is not known to allow commercial use; choose another one, or allow "
            "all licences."
        )


def attribution(assets: Sequence[Mapping]) -> str:
    """Who made the assets of a run (entries of its retrieved.json), where they are and under which licences, as a text that
    is ready to paste; "" without assets."""
    lines = []
    for asset in assets:
        author = f" by {asset['author']}" if asset["author"] else ""
        source = f" ({asset['source']})" if asset["source"] else ""
        licence = Licence.of(asset["license"])
        terms = f"{licence.title} ({licence.url})" if licence else asset["license"] or "no licence given"
        lines.append(f"“{asset['caption']}”{author}{source}, {terms}")
    return "\n".join([BEGINNING, *lines]) if lines else ""
