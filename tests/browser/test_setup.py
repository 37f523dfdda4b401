"""What the stack for a GPU lacks, above the tabs, with a button that fetches it."""

import re

import pytest
from served import WAIT, button, shoot, sync_api

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_what_is_missing_is_fetched_by_a_button_stopped_and_goes_on_after_a_reload(page):
    sync_api.expect(page.locator(".setup")).to_contain_text("the stack sd21 lacks files: prior. They are about 8.7 GB")
    page.get_by_text("1 file", exact=True).click()
    sync_api.expect(page.get_by_text("prior: unet/model.safetensors, 8.7 GB: missing")).to_be_visible()
    shoot(page, "setup-missing")
    button(page, "Fetch what is missing").click()
    progress = re.compile(r"Fetching prior: \d+ MB of 8\.7 GB, 1 min 15 s left")
    sync_api.expect(page.locator(".setup")).to_contain_text(progress, timeout=WAIT)
    sync_api.expect(page.locator(".setup [role=progressbar]")).to_be_visible()
    shoot(page, "setup-fetching")
    page.reload(wait_until="domcontentloaded")
    sync_api.expect(page.locator(".setup")).to_contain_text(progress, timeout=WAIT)
    button(page, "Stop fetching").click()
    sync_api.expect(button(page, "Fetch what is missing")).to_be_visible(timeout=WAIT)
    sync_api.expect(page.locator(".setup")).to_contain_text("1 min 27 s at the 100 MB/s measured so far")
    sync_api.expect(page.locator(".setup")).to_contain_text("Setup was stopped.")
