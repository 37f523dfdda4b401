"""Whether the Hub has what a stack.json states: each fact of it with what is there, a line for each.

An index that is not there is built of data sets (`redream.stack.setup`): their files are looked up too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from redream import hub
from redream.retrieval.objaverse import CAPTIONS, HASHES, PATHS, QUALITY
from redream.stack.inventory import in_bytes, names_of, patterns
from redream.stack.stack import Entry, Stack

ROUNDING = 0.02  # share by which a file may be larger or smaller than its rounded size


@dataclass(frozen=True)
class Fact:
    """What stack.json states of an entry, or what it should, or what its index is built of, beside what the Hub has."""

    text: str
    right: bool


def facts(stack: Stack) -> Iterator[Fact]:
    """Check every entry that the Hub has, its fallback too. Raises `hub.HubUnreachable`."""
    for name, entry in stack.entries.items():
        if stack.local_folder(entry) is not None:
            continue
        yield from _facts(name, entry, entry.source, entry.revision)
        if entry.fallback:
            source, _, revision = entry.fallback.partition("@")
            yield from _facts(name, entry, source, revision or None)


def _facts(name: str, entry: Entry, source: str, revision: str | None) -> Iterator[Fact]:
    """The facts of an entry at one of its repositories."""
    where = f"{name}, {source}"
    try:
        listing = hub.listing(source, revision)
    except hub.HubUnreachable:
        raise
    except hub.HubError as error:
        yield Fact(f"{where}: {error}{f' {entry.note}' if entry.note else ''}", False)
        if name == "index" and isinstance(error, hub.HubRepositoryMissing):
            yield from _sources()
        return
    if listing.commit == revision:
        yield Fact(f"{where}: the pinned commit {revision} is there", True)
    else:
        yield Fact(f"{where}: {revision or 'main'} is no commit; pin {listing.commit}", True)
    needed = [file for pattern in patterns(name) for file in names_of(pattern, listing.files)]
    for file in dict.fromkeys([*needed, *entry.sha256]):
        found, stated, digest = listing.files.get(file), entry.size_of(file), entry.sha256.get(file)
        if found is None:
            yield Fact(f"{where}: {file} is not there", False)
            continue
        size = in_bytes(found.size)
        if stated is None:
            yield Fact(f"{where}: {file} is there, {size}", True)
        else:
            yield Fact(
                f"{where}: {file} has {size}, {in_bytes(stated)} stated", abs(found.size - stated) <= ROUNDING * stated
            )
        if digest:
            yield Fact(f"{where}: {file} has SHA-256 {found.sha256 or 'none'}, {digest} pinned", found.sha256 == digest)


def _sources() -> Iterator[Fact]:
    """Whether the files that an index is built of are there. The data sets are not listed: one has 800,000 files."""
    for file in (PATHS, HASHES, QUALITY, *CAPTIONS.values()):
        where = f"to build the index, {file.repository}"
        try:
            yield Fact(f"{where}: {file.name} is there, {in_bytes(file.listed().size)}", True)
        except hub.HubUnreachable:
            raise
        except hub.HubError as error:
            yield Fact(f"{where}: {file.name}: {error}", False)
