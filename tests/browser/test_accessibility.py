"""axe finds nothing serious on any tab, in light and dark, before and after a run."""

import pytest
from served import TABS, finished, open_tab, shoot, visitor

pytestmark = [pytest.mark.browser, pytest.mark.slow]
axe = pytest.importorskip("axe_playwright_python.sync_playwright")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_tab_has_a_serious_finding(browser, app, theme):
    with visitor(browser, app[0], color_scheme=theme) as page:
        assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
        finished(page, "a red car", method="DreamFusion (SDS)")
        violations = {}
        for tab in TABS:
            open_tab(page, tab)
            page.wait_for_timeout(1500)
            shoot(page, f"axe-{theme}-{tab.lower()}")
            for violation in axe.Axe().run(page).response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    nodes = [node["html"][:120] for node in violation["nodes"]]
                    violations[f"{tab}: {violation['id']}"] = nodes
        assert violations == {}
