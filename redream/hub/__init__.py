"""The Hugging Face Hub: repositories and their files in its cache, downloads that go on where they were cut off, faults."""

from redream.hub.download import Count, Watch, fetch_to
from redream.hub.faults import HubError, HubFileMissing, HubRepositoryMissing, HubUnavailable, HubUnreachable
from redream.hub.repositories import (
    HUB_ID,
    OR,
    Cached,
    HubFile,
    ListedFile,
    Listing,
    Resolved,
    cached,
    is_inside,
    listing,
    no_check,
    resolve,
    verify,
)

__all__ = [
    "HUB_ID",
    "OR",
    "Cached",
    "Count",
    "HubError",
    "HubFile",
    "HubFileMissing",
    "HubRepositoryMissing",
    "HubUnavailable",
    "HubUnreachable",
    "ListedFile",
    "Listing",
    "Resolved",
    "Watch",
    "cached",
    "fetch_to",
    "is_inside",
    "listing",
    "no_check",
    "resolve",
    "verify",
]
