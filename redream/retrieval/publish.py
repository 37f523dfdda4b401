"""Check a finished index, and publish it on the Hub."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from redream import hub
from redream.files import read_json, sha256, write_text, writing_to
from redream.hub import HubError
from redream.retrieval.build import BuildError
from redream.retrieval.index import Index, IndexFormatError

MESSAGE = "A library of 3D models for Redream"  # of the commit
NOT_ALLOWED = (401, 403)  # statuses of who is not logged in, or may not do this
CARD = """---
tags: [redream, text-to-3d]
---
# A library of 3D models for Redream

{assets:,} assets with {captions:,} captions, embedded by the CLIP {clip}. `REDREAM_INDEX={repository}` uses it.
{origin}
Licences, each asset under its own, which `assets.parquet` names with its author and page: {licenses}.
"""
ORIGIN = """
The GLBs are those of [{source}](https://huggingface.co/datasets/{source}), revision `{revision}`, and are fetched one by one.
{sources}"""
SOURCE = "- made with [{name}](https://huggingface.co/datasets/{name}), commit `{commit}`{terms}\n"
TERMS = dict.fromkeys(("allenai/objaverse", "tiange/Cap3D"), ", published under ODC-By 1.0")


@dataclass(frozen=True)
class Checked:
    """What an index holds."""

    assets: int
    captions: int
    pictured: int  # assets with an image embedding
    clip: str  # its name
    licenses: dict[str, int]  # assets by licence, most first
    here: int  # assets whose GLB is a file of the library; the others come from the Hub
    unhashed: int  # assets whose GLB has no SHA-256
    size: int  # bytes of the index
    root: str


def check(folder: Path) -> Checked:
    """Verify an index: its files' hashes, its table, and the GLBs that are files of its library. All of them are read, also
    those that were right at an earlier time.

    Raises `IndexFormatError`, whose message names the first fault.
    """
    Index.load(folder, anew=True)
    manifest = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    root, has_repository = folder / manifest["root"], bool(manifest.get("repository"))
    licenses, uids, here, unhashed = Counter(), set(), 0, 0
    with pq.ParquetFile(folder / "assets.parquet") as table:
        columns = [name for name in ("uid", "license", "file", "sha256", "path") if name in table.schema_arrow.names]
        for batch in table.iter_batches(columns=columns):
            for row in batch.to_pylist():
                uids.add(row["uid"])
                licenses[row["license"] or "none"] += 1
                unhashed += not row["sha256"]
                if row["file"]:
                    here += 1
                    _check_file(root, row)
                elif not (has_repository and row.get("path")):
                    raise IndexFormatError(
                        f"The index does not say where the GLB of asset {row['uid']} is; build it again."
                    )
        if len(uids) < table.metadata.num_rows:
            raise IndexFormatError("This index has an asset twice; build it again.")
    size = sum((folder / name).stat().st_size for name in (*manifest["files"], "index.json"))
    clip, licenses = manifest["embedding"]["name"], dict(licenses.most_common())
    pictured = manifest.get("pictures", len(uids))  # in format 1 all have one
    return Checked(len(uids), manifest["captions"], pictured, clip, licenses, here, unhashed, size, manifest["root"])


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Check an index and upload it with its GLBs and a card to a repository of models; returns the commit.

    A README.md that is in the folder already is taken as it is. Raises `IndexFormatError`, `BuildError`, `FolderError` and
    `HubError`.
    """
    checked = check(folder)
    if checked.here and checked.root.startswith(".."):
        raise BuildError("The GLBs of this index are beside its folder; only what is in the folder can be uploaded.")
    manifest = read_json(folder / "index.json")
    if not (folder / "README.md").exists():
        commits = manifest.get("sources", {}).items()
        sources = "".join(SOURCE.format(name=name, commit=at, terms=TERMS.get(name, "")) for name, at in commits)
        origin = ORIGIN.format(sources=sources, **manifest["repository"]) if manifest.get("repository") else ""
        licenses = ", ".join(f"{name} ({count:,})" for name, count in checked.licenses.items())
        known = {"assets": checked.assets, "captions": checked.captions, "clip": checked.clip, "repository": repository}
        with writing_to(folder, "mend that, or put a README.md in it yourself: it is the index's card on the Hub"):
            write_text(folder / "README.md", CARD.format(origin=origin, licenses=licenses, **known))
    files = pq.read_table(folder / "assets.parquet", columns=["file"])["file"].to_pylist()
    glbs = [PurePosixPath(checked.root, file).as_posix() for file in files if file]
    return upload(folder, repository, ["index.json", "README.md", *manifest["files"], *glbs], private=private)


def upload(folder: Path, repository: str, names: Sequence[str], *, private: bool = False) -> str:
    """Upload the named files of a folder in one commit, and return it; the repository is made if it is not there.

    A file that is there already is not sent again. Raises `HubError`.
    """
    if not hub.HUB_ID.fullmatch(repository):
        raise HubError(f"{repository} is no Hub id of the form owner/name.")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        files = [CommitOperationAdd(name, folder / name) for name in names]
        return api.create_commit(repository, files, commit_message=MESSAGE).oid
    except (OSError, HTTPError, RuntimeError) as error:  # RuntimeError: around that of a large file
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in NOT_ALLOWED:
            sentence = f"The Hub does not let you write {repository}; log in with a token that may (hf auth login)."
        else:
            why = f"the Hub answers with error {status}" if status else "the Hub did not answer"
            sentence = f"{repository} was not uploaded, as {why}; try again: files that are there are not sent again."
        raise HubError(sentence) from error


def _check_file(root: Path, row: dict) -> None:
    path = root / row["file"]
    if not hub.is_inside(row["file"]) or not path.is_file():
        raise IndexFormatError(f"The file of asset {row['uid']} is missing; put it back, or build the index again.")
    if row["sha256"] and sha256(path) != row["sha256"]:
        raise IndexFormatError(
            f"The file of asset {row['uid']} is not the one that was indexed; build the index again."
        )
