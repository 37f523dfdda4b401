"""Build, check, extend and publish a library of 3D models."""

import argparse
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from tqdm import tqdm

from redream.cli.common import list_of, number_to
from redream.scene.glb_validation import LIMITS
from redream.stack.models import retrieval_clip
from redream.stack.stack import Stack, library_folder

AFTER_INTERRUPT = "the same command goes on from there"
MAX_PROCESSES = 256


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="WHAT")

    def command(name: str, summary: str, function: Callable | None, within=commands) -> argparse.ArgumentParser:
        added = within.add_parser(name, help=summary, description=f"{summary}.")
        added.set_defaults(function=function)
        return added

    build = command("build", "Make an index; called again, it goes on where it was", None)
    sources = build.add_subparsers(required=True, metavar="SOURCE")
    objaverse = "Make an index of Objaverse 1.0 and its captions, which are fetched from the Hub"
    _add_objaverse(command("objaverse", objaverse, _build_objaverse, sources))
    _add_folder(command("folder", "Make an index of the GLBs in a folder and below", _build_folder, sources))

    merge = command("merge", "Write the index of the parts that builds with --shards made", _merge)
    merge.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="what --out was on each machine")
    merge.add_argument("--out", type=Path, required=True, metavar="INDEX", help="the index's folder")

    check = command("check", "Verify the files of an index and say what is in it", _check)
    check.add_argument("index", type=Path, metavar="INDEX", help="the index's folder")

    add = command("add", "Put GLBs into a library of your own", _add)
    add.add_argument("files", nargs="+", type=Path, metavar="FILE.glb")
    caption = {"action": "append", "default": [], "metavar": "TEXT"}
    add.add_argument("--caption", **caption, help="of all these files; again for more. Default: the file's name")
    _add_rights(add)
    library = "the library's folder; default: $REDREAM_LIBRARY, or one with your data"
    add.add_argument("--library", type=Path, metavar="DIR", help=library)
    _add_stack(add, "mini")

    push = command("push", "Upload an index to the Hub", _push)
    push.add_argument("index", type=Path, metavar="INDEX", help="the index's folder")
    push.add_argument("repository", metavar="OWNER/NAME", help="on the Hub, made if it is not there")
    push.add_argument("--private", action="store_true", help="make it one that only you can see")


def run(options: argparse.Namespace) -> None:
    options.function(options)


def _add_objaverse(parser: argparse.ArgumentParser) -> None:
    add, names = parser.add_argument, {"type": list_of(str), "metavar": "A,B,..."}
    captions = "cap3d (the default), cap3d-json and files like theirs; the first is shown, all are searched"
    faces, size = f"{LIMITS.faces:,}", f"{LIMITS.size / 1e6:,.0f}"
    add("--captions", **names, help=captions)
    add("--names", action="store_true", help="keep assets without a caption, by their name")
    add("--licenses", **names, help="keep assets with one of by, by-sa, by-nc, by-nc-sa, cc0; default: all of these")
    add("--age-restricted", action="store_true", help="keep assets for adults only")
    add("--min-score", type=int, choices=range(4), metavar="0..3", help="keep assets of this quality (Objaverse++)")
    add("--without", **names, help="leave out what is a scene, multi_object or transparent (Objaverse++)")
    add("--max-faces", type=_count, metavar="N", help=f"keep GLBs with at most so many; default: {faces}")
    add("--max-size", type=_megabytes, metavar="MB", help=f"keep GLBs that are not larger; default: {size}")
    add("--limit", type=_count, metavar="N", help="keep the first so many assets, by uid")
    pictures = "image embeddings that others made; see assets_index/convert_objathor.py"
    add("--pictures", type=Path, metavar="FILE.parquet", help=pictures)
    others = parser.add_mutually_exclusive_group()
    thumbnails = "embed Sketchfab's pictures of assets that have no image embedding yet"
    others.add_argument("--thumbnails", action="store_true", help=thumbnails)
    _add_renders(others, "or fetch and render those assets, by N processes for each worker")
    _add_building(parser, stack="sd21")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    captions = "CSV without a header: file, caption, further captions; default: the files' names"
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the GLBs are, in INDEX or beside it")
    parser.add_argument("--captions", type=Path, metavar="FILE.csv", help=captions)
    _add_rights(parser)
    _add_renders(parser, "processes that render, for each worker; default: 1")
    _add_building(parser, stack="mini")


def _add_renders(parser: argparse._ActionsContainer, summary: str) -> None:
    parser.add_argument("--renders", type=number_to(MAX_PROCESSES), metavar="N", help=summary)


def _add_building(parser: argparse.ArgumentParser, stack: str) -> None:
    add, where = parser.add_argument, parser.add_mutually_exclusive_group()
    workers = "workers at once, each with the CLIP in memory and, on a CPU, one thread; default: 1"
    where.add_argument("--processes", type=number_to(MAX_PROCESSES), default=1, metavar="N", help=workers)
    where.add_argument("--address", metavar="RAY", help="or the workers of a Ray cluster; local: start one here")
    part = "assets of a part, the most that an interrupted worker does again; default: 4096"
    add("--part-assets", type=_count, default=4096, metavar="N", help=part)
    shards = "make only every Nth part from the Kth on; merge writes the index of all"
    add("--shards", type=_shard, default=(1, 1), metavar="K/N", help=shards)
    add(
        "--out",
        type=Path,
        required=True,
        metavar="INDEX",
        help="the index's folder; one that was begun is gone on with",
    )
    _add_stack(parser, stack)


def _add_stack(parser: argparse.ArgumentParser, name: str) -> None:
    summary = f"the stack whose CLIP embeds, a name or a folder with a stack.json; default: {name}"
    parser.add_argument("--stack", default=name, metavar="S", help=summary)


def _add_rights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--author", default="", metavar="NAME", help="of all these GLBs")
    parser.add_argument("--license", default="", metavar="NAME", help="of all these GLBs: CC0, CC-BY-4.0, ...")


def _build_objaverse(options: argparse.Namespace) -> None:
    from redream.retrieval.objaverse import Objaverse

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Objaverse)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    source = Objaverse(**{name: value for name, value in given.items() if value is not None})
    pictures = "renders" if options.renders else "thumbnails" if options.thumbnails else "none"
    _build(source, options, pictures, images=options.pictures)


def _build_folder(options: argparse.Namespace) -> None:
    from redream.retrieval import assemble, own

    assemble.relative_root(options.folder, options.out)  # before what takes long
    source = own.Folder(options.folder.resolve(), options.captions, options.author, options.license)
    _build(source, options, "renders", root=source.folder)


def _build(source: object, options: argparse.Namespace, pictures: str, **origin: Path | None) -> None:
    from redream.retrieval import assemble
    from redream.retrieval.parts import Job

    load_clip, embedding = _clip(options.stack)
    steps = assemble.build(
        source,
        options.out,
        Job(load_clip, pictures, options.renders or 1, origin.get("root")),
        embedding=embedding,
        images=origin.get("images"),
        processes=options.processes,
        address=options.address,
        shard=assemble.Shard(*options.shards),
        part_assets=options.part_assets,
    )
    _conclude(steps, options.out)


def _merge(options: argparse.Namespace) -> None:
    from redream.retrieval import assemble

    _conclude(assemble.merge(options.folders, options.out), options.out)


def _check(options: argparse.Namespace) -> None:
    from redream.retrieval import publish

    found = publish.check(options.index)
    licenses = ", ".join(f"{name} ({count:,})" for name, count in found.licenses.items())
    print(f"{found.assets:,} assets, {found.captions:,} captions, {found.pictured:,} assets with pictures.")
    print(f"{found.size / 1e6:,.1f} MB, made with the CLIP {found.clip}.")
    print(
        f"{found.here:,} GLBs are here, {found.assets - found.here:,} on the Hub; {found.unhashed:,} have no SHA-256."
    )
    print(f"Licences: {licenses}.")


def _add(options: argparse.Namespace) -> None:
    from redream.retrieval import own
    from redream.retrieval.parts import Job

    load_clip, embedding = _clip(options.stack)
    library, rights = options.library or library_folder(), {"author": options.author, "license": options.license}
    count = own.add(options.files, options.caption, library, Job(load_clip), embedding=embedding, **rights)
    print(f"The library in {library} has {count:,} assets.")


def _push(options: argparse.Namespace) -> None:
    from redream.retrieval import publish

    commit = publish.push(options.index, options.repository, private=options.private)
    print(f"It is at {options.repository}, commit {commit}. Use it: REDREAM_INDEX={options.repository}@{commit}")


def _conclude(steps: Generator, out: Path) -> None:
    """Run a build with its progress, and say what it came to."""
    report = _followed(steps)
    for reason, count in report.left_out.items():
        print(f"Left out: {count:,} ({reason}).")
    made = f"{report.assets:,} assets, {report.captions:,} captions, {report.pictured:,} assets with pictures"
    if report.missing:
        print(
            f"{made}. {report.missing:,} parts are for other machines; then: python -m redream index merge FOLDER ..."
        )
    else:
        print(f"The index is in {out}: {made}.")


def _followed(steps: Generator):
    """What a build returns. Its progress is a bar on a terminal, elsewhere a line for each tenth of a stage."""
    shown: tuple | None = None  # stage and tenth of the last line
    with tqdm(disable=not sys.stderr.isatty(), bar_format="{desc} {percentage:3.0f}%|{bar}|{postfix}") as bar:
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                return end.value
            stage = progress.stage.capitalize()
            left = "" if progress.seconds_left is None else f", about {progress.seconds_left / 60:.0f} min left"
            counted = f"{int(progress.done):,} of {progress.total:,} {progress.unit}{left}"
            bar.total, bar.n = progress.total, progress.done
            bar.set_description_str(stage, refresh=False)
            bar.set_postfix_str(counted)
            line = (stage, int(progress.done * 10 / progress.total))
            if bar.disable and line != shown:
                shown = line
                print(f"{stage}, {counted}", file=sys.stderr)


def _clip(name: str) -> tuple[Callable, Mapping[str, str]]:
    """How a worker loads the retrieval CLIP of a stack, and how an index names it."""
    from redream.retrieval.clip import embedding_of

    stack = Stack.load(name)
    return functools.partial(retrieval_clip, stack), embedding_of(stack.folder(stack.clips["retrieval"]))


def _count(text: str) -> int:
    """A positive whole number."""
    if not re.fullmatch(r"0*[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is no positive whole number")
    return int(text)


def _megabytes(text: str) -> int:
    """Bytes, of a positive number of megabytes."""
    if not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) or not (size := round(float(text) * 1e6)):
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return size


def _shard(text: str) -> tuple[int, int]:
    """Parse K/N."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not K/N with K from 1 to N")
    return int(match[1]), int(match[2])
