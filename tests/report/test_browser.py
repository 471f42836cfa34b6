"""The page in a real browser, offline: it sorts, it switches, it says nothing in the console, and can be read by all.

Needs Chromium with its driver and selenium (the `dev` extra); with WORKBENCH_AXE, a path to axe-core's axe.min.js,
the page is also held against its rules. What is missing is skipped, and said.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import write_example, write_examples

from workbench.report import compare
from workbench.report.page import report_page

pytest.importorskip("selenium", reason="selenium is not installed: pip install 'continual-workbench[dev]'")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
)
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium and chromedriver are not installed")
Browser = Any


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser without a network that shows the page of a small study, one run of it unfinished."""
    folder = write_examples(tmp_path_factory.mktemp("browser") / "made")
    write_example(folder, "lora", 7, rows=2)
    write_example(folder, "lora", 0, order_name="other", task_id_at_test=True)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    everything = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", everything)
    driver.get(report_page(compare([folder]), folder).as_uri())
    yield driver
    driver.quit()


def column(browser: Browser, place: int) -> list[str]:
    """The first lines of a column's cells in the comparison."""
    cells = browser.find_elements(By.CSS_SELECTOR, f".wide:not([hidden]) > .sortable tbody tr > :nth-child({place})")
    return [cell.text.partition("\n")[0] for cell in cells]


def headings(browser: Browser) -> list[Any]:
    return list(browser.find_elements(By.CSS_SELECTOR, ".wide:not([hidden]) > .sortable thead th"))


def test_a_heading_sorts_by_mouse_and_by_keyboard(browser: Browser) -> None:
    Select(browser.find_element(By.ID, "c1-scores")).select_by_visible_text("order default")
    assert column(browser, 1) == ["seqft", "lora †"]
    name, runs = headings(browser)[:2]
    name.find_element(By.TAG_NAME, "button").click()
    assert column(browser, 1) == ["lora †", "seqft"]
    assert [cell.get_attribute("aria-sort") for cell in (name, runs)] == ["ascending", "none"]
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert column(browser, 1) == ["seqft", "lora †"]
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "runs"
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert [cell.get_attribute("aria-sort") for cell in (name, runs)] == ["none", "descending"]


def test_numbers_are_sorted_as_numbers_and_what_is_missing_stays_below(browser: Browser) -> None:
    table = browser.find_element(By.CSS_SELECTOR, ".wide:not([hidden]) > .sortable")
    rows = [("ten", "10"), ("none", ""), ("two", "2"), ("less", "-3")]
    browser.execute_script(
        "arguments[0].tBodies[0].innerHTML = arguments[1].map(([name, value]) =>"
        " `<tr><th>${name}</th><td data-value='${value}'>${name}</td></tr>`).join('')",
        table,
        rows,
    )
    button = headings(browser)[1].find_element(By.TAG_NAME, "button")
    found = []
    for _ in range(2):
        button.click()
        found.append(column(browser, 1))
    browser.refresh()
    assert sorted(found) == [["less", "two", "ten", "none"], ["ten", "two", "less", "none"]]


def test_another_seeds_matrices_are_shown_on_demand(browser: Browser) -> None:
    def shown() -> str:
        captions = browser.find_elements(By.CSS_SELECTOR, ".matrices:not([hidden]) caption")
        return str(captions[-1].text)

    Select(browser.find_element(By.ID, "c1-matrix")).select_by_visible_text("order default, seed 2")
    assert shown() == "lora, order default, seed 2"
    Select(browser.find_element(By.ID, "c1-matrix")).select_by_index(0)
    assert shown() == "lora, order default, mean over seeds"


def test_nothing_is_asked_for_and_the_console_stays_empty(browser: Browser) -> None:
    assert browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [400, 900, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read_by_all(browser: Browser, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert browser.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    axe = os.environ.get("WORKBENCH_AXE")
    if not axe:
        pytest.skip("WORKBENCH_AXE is not set to axe-core's axe.min.js: the page is not held against its rules")
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    browser.execute_script(Path(axe).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert found["passes"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
