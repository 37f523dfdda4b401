"""How fast the app answers, on an otherwise idle computer: python tests/benchmark/app_speed.py [STACK]

Prints, with all models loaded: seconds from the click to the assets and to the first preview; the estimate before each of
some runs beside its real time, and the error of the time left on the way; seconds from Stop until the optimisation ends;
the median and 95th percentile of retrieval for 20 clients at once while one run is made and the others wait.
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
CLIENTS, RETRIEVALS, PROMPT = 20, 5, "a purple owl"


def main() -> None:
    from gradio_client import Client
    from served import free_port, wait_for_address

    with tempfile.TemporaryDirectory() as runs:
        port = free_port()
        os.environ.update(REDREAM_STACK=(sys.argv + ["mini"])[1], REDREAM_RUNS=runs)
        environ = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
        process = subprocess.Popen([sys.executable, "app.py"], env=environ, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for_address(address, process)
            report_page(address)
            client = Client(address, verbose=False, analytics_enabled=False)
            report_estimates(client)
            report_retrieval(client, address)
        finally:
            process.terminate()
            process.wait(20)


def report_page(address: str) -> None:
    """Times of the page in a browser, up to a stopped run."""
    from playwright.sync_api import sync_playwright
    from served import QUIET, create_button, visitor

    with sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        with visitor(browser, address) as page:
            page.wait_for_function("document.body.innerText.includes('about')", timeout=120_000)
            report_click(page, create_button(page))
            start = time.perf_counter()
            page.get_by_role("button", name="Stop and keep").click()
            page.wait_for_function("document.querySelector('.status-line').innerText.startsWith('Rendering')")
            print(f"from Stop until the optimisation ends: {time.perf_counter() - start:.1f} s")
            create_button(page).wait_for(timeout=300_000)
            print(f"the first estimate, from a few samples alone: {create_button(page).inner_text()}")
        browser.close()


def report_click(page, button) -> None:
    """Times from the click on Create to the assets and to the first preview."""
    page.get_by_label("Describe an object").fill(PROMPT)
    start = time.perf_counter()
    button.click()
    page.locator(".card").first.wait_for(timeout=60_000)
    print(f"from the click to the assets: {time.perf_counter() - start:.1f} s")
    page.locator(".preview img").wait_for(timeout=120_000)
    print(f"from the click to the first preview: {time.perf_counter() - start:.1f} s")


def report_estimates(client) -> None:
    """Estimates of several kinds of runs, learned from the runs before them, beside the runs' real times."""
    from redream.app.form import GenerationForm
    from redream.runs.eta import RuntimeEstimator
    from redream.settings import PRESETS
    from redream.stack import environment

    forms = [
        GenerationForm(iterations=60),
        GenerationForm(iterations=150),
        GenerationForm("vsd", iterations=60),
        GenerationForm("sds", iterations=120),
        GenerationForm("sds", particles=2, iterations=60),
        GenerationForm(adapt=False, iterations=60),
    ]
    device = environment.device_name(environment.device())
    for form in forms:
        eta = RuntimeEstimator.of_latest_runs(os.environ["REDREAM_STACK"], device)
        estimate = eta.seconds(form.settings(PRESETS["mini"]))
        seconds, errors = timed_run(client, form)
        kind = f"{form.method}, {form.iterations} iterations, {form.particles} objects, adapt {form.adapt}"
        line = f"{kind}: {seconds:.0f} s" + (f", estimated {estimate:.0f} s" if estimate else "")
        if errors:
            line += f"; error of the time left {statistics.median(errors):.0%}, at most {max(errors):.0%}"
        print(line)


def timed_run(client, form) -> tuple[float, list[float]]:
    """Seconds that a run takes, and the relative errors of the time left that it showed until 10 s before its end."""
    start = time.perf_counter()
    values = (PROMPT, form.method, True, form.adapt, form.particles, form.iterations, 0)
    job = client.submit(*values, api_name="/generate")
    shown: list[tuple[float, float]] = []  # (seconds since the start, seconds left)
    while not job.done():
        if job.outputs() and (left := seconds_left(job.outputs()[-1][0]["state"])):
            shown.append((time.perf_counter() - start, left))
        time.sleep(0.5)
    total = time.perf_counter() - start
    return total, [abs(at + left - total) / (total - at) for at, left in shown if total - at > 10]


def seconds_left(status: str) -> float | None:
    """98 for "… 1 min 38 s left"; None for a status without a time."""
    if not status.endswith(" left"):
        return None
    parts = status.removesuffix(" left").rpartition(", ")[2].split()
    units = {"h": 3600, "min": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True))


def report_retrieval(client, address: str) -> None:
    """Times of retrieval by many clients while a run is made."""
    from gradio_client import Client

    def timed(one) -> list[float]:
        seconds = []
        for _ in range(RETRIEVALS):
            start = time.perf_counter()
            one.predict(PROMPT, api_name="/retrieve")
            seconds.append(time.perf_counter() - start)
        return seconds

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = list(pool.map(lambda _: Client(address, verbose=False, analytics_enabled=False), range(CLIENTS)))
        jobs = [one.submit(PROMPT, api_name="/generate") for one in clients[:3]]
        while not any("iteration" in output[0]["state"] for job in jobs for output in job.outputs()[-1:]):
            time.sleep(0.5)
        times = sorted(seconds for of_client in pool.map(timed, clients) for seconds in of_client)
        median, percentile = statistics.median(times), times[int(0.95 * len(times))]
        print(
            f"retrieval for {CLIENTS} clients at once during a run: median {median:.2f} s, 95 % within {percentile:.2f} s"
        )
        for job in reversed(jobs):
            client.predict(job.outputs()[0][0]["run"], api_name="/stop")


if __name__ == "__main__":
    main()
