"""How fast the app answers, on an otherwise idle computer: python tests/benchmark/app_speed.py [STACK]

Prints, with all models loaded: seconds from the click to the assets and to the first preview; the estimate before each of
some runs beside the truth, and how far off the time left was on the way; seconds from Stop until nothing forms any more;
the median and 95th percentile of retrieval for 20 clients at once while one object forms and the others wait.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/browser")]
CLIENTS, PROMPT = 20, "a purple owl"


def main() -> None:
    from gradio_client import Client
    from playwright.sync_api import sync_playwright
    from served import QUIET, create_button, free_port, visitor, wait_for_address

    with tempfile.TemporaryDirectory() as runs:
        port = free_port()
        environ = os.environ | {"REDREAM_STACK": (sys.argv + ["mini"])[1], "REDREAM_RUNS": runs}
        environ |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
        process = subprocess.Popen([sys.executable, "app.py"], env=environ, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for_address(address, process)
            client = Client(address, verbose=False, analytics_enabled=False)
            with sync_playwright() as playwright:
                chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
                browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
                with visitor(browser, address) as page:
                    page.wait_for_function("document.body.innerText.includes('about')", timeout=120_000)
                    report_click(page, create_button(page))
                    run = page.get_by_role("button", name="Stop and keep")
                    start = time.perf_counter()
                    run.click()
                    page.wait_for_function("document.querySelector('.now').innerText.startsWith('Filming')")
                    print(f"from Stop until nothing forms any more: {time.perf_counter() - start:.1f} s")
                    create_button(page).wait_for(timeout=300_000)
                    print(f"the first estimate, by a few pictures alone: {create_button(page).inner_text()}")
                browser.close()
            report_estimates(client)
            report_retrieval(client, address)
        finally:
            process.terminate()
            process.wait(20)


def report_click(page, button) -> None:
    page.get_by_label("Describe an object").fill(PROMPT)
    start = time.perf_counter()
    button.click()
    page.locator(".card").first.wait_for(timeout=60_000)
    print(f"from the click to the assets: {time.perf_counter() - start:.1f} s")
    page.locator(".preview img").wait_for(timeout=120_000)
    print(f"from the click to the first preview: {time.perf_counter() - start:.1f} s")


def report_estimates(client) -> None:
    """Estimates of the app's own model of costs, of runs of several kinds."""
    from redream.app.form import GenerationForm
    from redream.runs.eta import cost
    from redream.settings import PRESETS

    known: list[float] = []
    few = {"iterations": 60}
    wishes = [
        GenerationForm(**few),
        GenerationForm(iterations=150),
        GenerationForm("vsd", **few),
        GenerationForm("sds", iterations=120),
    ]
    for wish in (*wishes, GenerationForm("sds", particles=2, **few), GenerationForm(adapt=False, **few)):
        settings = wish.settings(PRESETS["mini"])
        begun = time.perf_counter()
        job = client.submit(
            PROMPT, wish.method, True, wish.adapt, wish.particles, settings.iterations, 0, api_name="/generate"
        )
        left: list[tuple[float, float]] = []
        while not job.done():
            if job.outputs() and (seconds := seconds_in(job.outputs()[-1][0]["state"])):
                left.append((time.perf_counter() - begun, seconds))
            time.sleep(0.5)
        took = time.perf_counter() - begun
        off = [abs(at + rest - took) / (took - at) for at, rest in left if took - at > 10]
        words = f"{took:.0f} s"
        if known:
            words += f", estimated {statistics.median(known) * cost(settings):.0f} s"
        told = f"; the time left was off by {statistics.median(off):.0%}, at most {max(off):.0%}" if off else ""
        print(
            f"{wish.method}, {settings.iterations} iterations, {wish.particles} objects, adapt {wish.adapt}: {words}{told}"
        )
        known.append(took / cost(settings))


def seconds_in(state: str) -> float | None:
    """98 of "… 1 min 38 s left"."""
    if not state.endswith(" left"):
        return None
    words = state.removesuffix(" left").rpartition(", ")[2].split()
    return sum(float(n) * {"h": 3600, "min": 60, "s": 1}[unit] for n, unit in zip(words[::2], words[1::2], strict=True))


def report_retrieval(client, address: str) -> None:
    from gradio_client import Client

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = list(pool.map(lambda _: Client(address, verbose=False, analytics_enabled=False), range(CLIENTS)))
        jobs = [one.submit(PROMPT, api_name="/generate") for one in clients[:3]]
        while not any("iteration" in output[0]["state"] for job in jobs for output in job.outputs()[-1:]):
            time.sleep(0.5)

        def timed(one) -> list[float]:
            spent = []
            for _ in range(5):
                start = time.perf_counter()
                one.predict(PROMPT, api_name="/retrieve")
                spent.append(time.perf_counter() - start)
            return spent

        spent = sorted(seconds for own in pool.map(timed, clients) for seconds in own)
        print(
            f"retrieval for {CLIENTS} clients at once while one object forms: median {statistics.median(spent):.2f} s, "
            f"95 % within {spent[int(0.95 * len(spent))]:.2f} s"
        )
        for job in reversed(jobs):
            client.predict(job.outputs()[0][0]["run"], api_name="/stop")


if __name__ == "__main__":
    main()
