"""Faults of the Hub: those that pass are tried again, the others become one sentence."""

import time
from collections.abc import Callable
from typing import TypeVar

from httpx2 import ReadError  # huggingface_hub's client
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from redream.errors import RedreamError
from redream.files import DISK_FULL, NOT_WRITABLE

PASSING = (500, 502, 503, 504)  # statuses that pass; huggingface_hub itself waits as long as 429 demands
RETRY_WAITS = (1.0, 3.0)  # seconds before each further attempt

T = TypeVar("T")


class HubError(RedreamError):
    """A folder or a Hub repository that cannot be used; the message says why and what to do."""


class HubUnavailable(HubError):
    """The Hub does not give what was asked for; another repository may have it."""


class HubUnreachable(HubUnavailable):
    """There is no connection to the Hub; what is in the cache can still be used."""


class HubRepositoryMissing(HubUnavailable):
    """There is no such repository, or it is not public."""


class HubFileMissing(HubUnavailable):
    """The repository is there, and the file is not in it."""


def retried(download: Callable[[], T], name: str, revision: str | None) -> T:
    """What `download` returns, tried again after faults that pass. Raises `HubError`."""
    for wait in (*RETRY_WAITS, None):
        try:
            return download()
        except (OSError, HTTPError, EntryNotFoundError, HFValidationError) as error:
            if wait is None or not _passes(error):
                raise _explained(error, name, revision) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _passes(error: Exception) -> bool:
    """Whether it may be well in a second: the Hub's own trouble, or an answer that came incomplete (as a file: an OSError
    without number). That is so too where huggingface_hub closes the client that all threads share, since one got no answer.
    """
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return isinstance(error, ReadError) or type(error) is OSError and error.errno is None


def _explained(error: Exception, name: str, revision: str | None) -> HubError:
    """One sentence or two on what is wrong and what to do."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # it is not in the cache, and this is why it was not fetched
    match error:
        case RevisionNotFoundError():
            return HubUnavailable(
                f"The Hub's {name} has no revision {revision}; name an existing branch, tag or commit."
            )
        case GatedRepoError():
            return HubUnavailable(
                f"The Hub's {name} asks for consent; accept its terms on its page and log in (hf auth login)."
            )
        case RepositoryNotFoundError() | HFValidationError():
            sentence = (
                f"The Hub has no public repository {name}; check its name, or log in (hf auth login) if it is private."
            )
            return HubRepositoryMissing(sentence)
        case EntryNotFoundError() if isinstance(error, HfHubHTTPError):
            return HubFileMissing(
                f"The Hub's {name} lacks a file that is needed, which may have been removed from there."
            )
        case HfHubHTTPError() if error.response.status_code == 429:
            return HubError(f"The Hub answers no more requests for now; fetch {name} again in a few minutes.")
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return HubUnavailable(
                f"The Hub refuses access to {name}; log in (hf auth login) with an account that may read it."
            )
        case HfHubHTTPError():
            status = error.response.status_code
            return HubUnavailable(f"The Hub answers with error {status}; {name} could not be fetched. Try again later.")
        case OSError() if error.errno in DISK_FULL:
            return HubError(
                f"The disk is full; free some space, or set HF_HOME to another disk, and fetch {name} again."
            )
        case OSError() if error.errno in NOT_WRITABLE:
            return HubError(f"The Hub's cache cannot be written; set HF_HOME to a writable folder to fetch {name}.")
        case OSError() if type(error) is OSError and error.errno is None:
            return HubError(f"A file of the Hub's {name} came incomplete; check the network and try again.")
    return HubUnreachable(f"The Hub did not answer; {name} could not be fetched. Check the network and try again.")
