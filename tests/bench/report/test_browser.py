"""report.html in a real browser: opens, loads nothing, sorts, scrolls, shows its figures, at two
widths.

Wants Debian's `chromium` and `chromium-driver`, and Selenium (the extra `browser`). A machine
without them skips these tests; CI must have them.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
WIDTHS = (1280, 390)


def _missing(what: str) -> None:
    reason = f"{what} is not installed: apt-get install chromium chromium-driver; extra `browser`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    try:
        from selenium import webdriver
    except ImportError:
        _missing("Selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        _missing("Chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def page(two_groups: Path) -> Path:
    return two_groups / "report.html"


def open_at(browser, page: Path, width: int, dark: bool = False) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page.as_uri())


def column(browser, index: int, table: int = 0) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('table.sortable')[arguments[0]].tBodies[0].rows]"
        ".map(row => row.cells[arguments[1]].textContent)", table, index,
    )  # fmt: skip


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_without_errors_or_requests_and_shows_its_figures(browser, page, width, dark):
    open_at(browser, page, width, dark)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked
    assert all(url == page.as_uri() or url.startswith("data:") for url in asked)
    assert browser.title.startswith("What training costs")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.drawing svg')].map(svg => {"
        "const box = svg.getBoundingClientRect(), bars = svg.querySelectorAll('path').length;"
        "return [box.width, box.height, bars, svg.textContent]})"
    )
    assert len(shown) == 6  # `other` has no samples
    for shape_width, height, paths, _ in shown:
        assert 300 < shape_width <= min(width, 600)
        assert height > 120
        assert paths > 10
    assert "activations" in shown[0][3]
    # Nothing sticks out sideways; wide tables scroll in their own boxes.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def edges(browser, box) -> tuple[float, float]:
    """Share of pixels that differ from the page, in the last column and in the first of a table."""
    # What follows the scrolling, an animation, is drawn a frame later.
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    shown = matplotlib.image.imread(io.BytesIO(box.screenshot_as_png))[..., :3]
    page = shown[2, shown.shape[1] // 2]  # above its caption
    height = shown.shape[0] - 20  # without the scrollbar
    first_cell = browser.execute_script(
        "return arguments[0].querySelector('tbody th').offsetWidth", box
    )
    differs = (np.abs(shown[:height] - page) > 0.03).any(axis=2).mean(axis=0)
    return differs[-2], differs[int(first_cell) + 2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_that_is_cut_shows_that_it_scrolls(browser, page, width, dark):
    open_at(browser, page, width, dark)
    cut = 0
    for box in browser.find_elements("css selector", ".scroll:has(table)"):
        size = browser.execute_script(
            "const {scrollWidth, clientWidth, clientHeight, offsetHeight} = arguments[0];"
            "return [scrollWidth - clientWidth, offsetHeight - clientHeight]", box,
        )  # fmt: skip
        if size[0] <= 0:
            continue
        cut += 1
        assert size[1] >= 8  # a scrollbar that does not hide
        right, _ = edges(browser, box)
        assert right > 0.9  # shaded from top to bottom
        browser.execute_script("arguments[0].scrollLeft = 1e6", box)
        right, left = edges(browser, box)
        assert right < 0.5  # rules only: there is no more
        if box.find_elements("css selector", "table.numbers"):
            # The first column stays in view, and shades what it covers.
            first = box.find_element("css selector", "tbody th")
            assert first.rect["x"] == box.rect["x"]
            assert left > 0.3
    assert cut >= 1


def test_sentences_in_a_table_wrap_on_a_telephone(browser, report: Path):
    open_at(browser, report / "report.html", 390)
    boxes = browser.find_elements("css selector", ".scroll:has(table.words)")
    assert boxes
    for box in boxes:
        assert box.get_property("scrollWidth") <= box.get_property("clientWidth")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_verdict_is_in_the_first_screen(browser, page, width):
    open_at(browser, page, width)
    box = browser.execute_script(
        "return document.querySelector('.verdict').getBoundingClientRect().toJSON()"
    )
    assert box["top"] >= 0
    assert box["bottom"] <= 844
    assert "For 24 GiB" in browser.find_element("css selector", ".verdict").text


def test_it_sorts_by_number_and_by_name_and_says_so(browser, page):
    open_at(browser, page, 1280)
    headers = browser.find_elements("css selector", "table.sortable:first-of-type thead th")
    names = [header.text.split("\n")[0].rstrip("↕↑↓ ") for header in headers]
    peak = next(i for i, name in enumerate(names) if name.startswith("Peak memory"))
    before = column(browser, 0)
    button = headers[peak].find_element("css selector", "button")
    button.click()
    assert headers[peak].get_attribute("aria-sort") == "ascending"
    assert column(browser, 0) == ["idm", "patchddm", "checkpoint", "idm-stored", "unet"]
    button.click()
    assert headers[peak].get_attribute("aria-sort") == "descending"
    assert column(browser, 0) == ["unet", "idm-stored", "checkpoint", "patchddm", "idm"]
    headers[0].find_element("css selector", "button").click()
    assert headers[peak].get_attribute("aria-sort") == "none"
    assert column(browser, 0) == sorted(before)


def test_what_has_no_number_is_sorted_last_both_ways(browser, page):
    open_at(browser, page, 1280)
    table = browser.find_elements("css selector", "table.sortable")[1]
    header = next(
        h for h in table.find_elements("css selector", "thead th") if "Peak memory" in h.text
    )
    for _ in range(2):
        header.find_element("css selector", "button").click()
        assert column(browser, 0, table=1)[-1] == "unet"


def test_the_keyboard_sorts_and_finds_the_source_of_a_number(browser, page):
    from selenium.webdriver import ActionChains, Keys

    open_at(browser, page, 1280)
    press = lambda *keys: ActionChains(browser).send_keys(*keys).perform()  # noqa: E731
    buttons = browser.find_elements("css selector", "table.sortable")[0].find_elements(
        "css selector", "thead button"
    )
    browser.execute_script("arguments[0].focus()", buttons[0])
    press(Keys.ENTER)
    assert column(browser, 0)[0] == "checkpoint"
    browser.execute_script("arguments[0].focus()", buttons[-1])
    press(Keys.TAB)  # one stop for the whole body of the table
    assert browser.switch_to.active_element.tag_name == "td"
    press(*[Keys.ARROW_RIGHT] * 5, Keys.ARROW_DOWN)
    cell = browser.switch_to.active_element
    assert cell.text == "6.00"
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert tip.text == "tensor-storages; median of 3 trials"
    described = browser.find_element("id", cell.get_attribute("aria-describedby"))
    assert described.get_attribute("textContent") == tip.text
    press(Keys.ESCAPE)
    assert not tip.is_displayed()
    press(Keys.TAB)
    assert browser.switch_to.active_element.tag_name == "summary"


@pytest.mark.parametrize("width", WIDTHS)
def test_hovering_shows_the_source_within_the_window(browser, page, width):
    from selenium.webdriver import ActionChains

    open_at(browser, page, width)
    cell = browser.find_element("css selector", "table.sortable tbody td")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", cell
    )
    ActionChains(browser).move_to_element(cell).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert tip.text == "of its techniques, the furthest from exact"
    box = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", tip)
    assert box["left"] >= 0
    assert box["right"] <= width


def test_text_can_be_read_by_day_and_by_night(browser, page):
    """WCAG's 4.5 for text, of every colour that the page uses on its two backgrounds."""
    for dark in (False, True):
        open_at(browser, page, 1280, dark)
        colours = browser.execute_script(
            "const style = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(['page', 'raised', 'ink', 'quiet', 'accent', 'good', 'bad',"
            " 'good-bg', 'bad-bg'].map(name => [name, style.getPropertyValue('--' + name).trim()]))"
        )
        assert (_luminance(colours["page"]) < 0.1) == dark
        for text, back in (("ink", "page"), ("ink", "raised"), ("quiet", "page"),
                           ("quiet", "raised"), ("accent", "page"), ("accent", "raised"),
                           ("good", "good-bg"), ("bad", "bad-bg")):  # fmt: skip
            assert _contrast(colours[text], colours[back]) >= 4.5, (dark, text, back)
        figure = browser.find_element("css selector", ".drawing svg text")
        shown = figure.value_of_css_property("fill")
        assert shown == browser.find_element("tag name", "body").value_of_css_property(
            "color"
        ).replace("rgba", "rgb").replace(", 1)", ")")


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
