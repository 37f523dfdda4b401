"""Put the app on a Space of yours: python -m examples.deploy_space NAME [--hardware zero-a10g] [--private] [--token TOKEN]

NAME is the Space's name, or owner/name. Called again it uploads what has changed. The stack is the miniature until the parts
of another one are on the Space.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, SpaceHardware
from huggingface_hub.errors import HfHubHTTPError, HTTPError

ROOT = Path(__file__).parent.parent
LEFT_OUT = [".venv/*", "runs/*", "build/*", "tests/*", "docs/*", ".*cache/*", "*.pyc"]  # of this folder


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        address = deploy(HfApi(token=options.token), options.name, options.hardware, options.private)
    except (HfHubHTTPError, OSError) as error:
        print(f"The Space was not made. {error}", file=sys.stderr)
        return 2
    except HTTPError:
        print("The Space was not made. The Hub did not answer; check the network and try again.", file=sys.stderr)
        return 2
    print(f"{address} is being built, which takes some minutes.")
    return 0


def deploy(api: HfApi, name: str, hardware: str, private: bool = False) -> str:
    """Make or update the Space with this folder's files and return its address."""
    space = api.create_repo(
        name, repo_type="space", space_sdk="gradio", space_hardware=hardware, private=private, exist_ok=True
    )
    api.upload_folder(repo_id=space.repo_id, repo_type="space", folder_path=ROOT, ignore_patterns=LEFT_OUT)
    return str(space)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    hardware = [flavor.value for flavor in SpaceHardware]
    parser.add_argument("--hardware", choices=hardware, default=SpaceHardware.ZERO_A10G.value, help="of a new Space")
    parser.add_argument("--private", action="store_true", help="a new Space is seen by its owner only")
    parser.add_argument("--token", help="of Hugging Face, with write access; default: that of `hf auth login`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
