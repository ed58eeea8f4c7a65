"""The page in a real browser: by keyboard, in both schemes, narrow and wide, and large.

They need Chromium (Debian's package ``chromium``, or any browser of its family on the
path) and what ``make test-all`` installs to drive it.
"""

import re
import shutil
import time

import pytest

from jaxclip.parity import verify
from jaxclip.parity._html._tensors import PAGE
from tests.parity.made_reports import at_kinks, hostile, large
from tests.parity.mutations import MUTATIONS, mutated
from tests.parity.trainings import recording

pytestmark = pytest.mark.long

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

WIDTHS = (400, 1280)


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(
            f"there is no browser: none of {', '.join(BROWSERS)} is on the path"
        )
    with driver.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Write a page of each kind; return the paths by name."""
    folder = tmp_path_factory.mktemp("pages")
    [bug] = [mutation for mutation in MUTATIONS if mutation.name == "transposed"]
    path = recording(folder / "run.trace", bug.net, bug.training, steps=3)
    reports = {
        "different": verify(path, mutated(bug)),
        "hostile": hostile(),
        "large": large(2000, 10),
        "same": at_kinks(large(200, 3, wrong=False), "relu: the element at (1, 3)"),
    }
    made = {}
    for name, report in reports.items():
        made[name] = folder / f"{name}.html"
        report.save_html(made[name])
    return made


@pytest.fixture
def opened(browser, pages):
    """Open a page; at the end of the test nothing must have gone wrong with it."""
    wrong, contexts = [], []

    def open_(name, *, scheme="light", width=1280, script=True):
        context = browser.new_context(
            color_scheme=scheme,
            viewport={"width": width, "height": 900},
            java_script_enabled=script,
        )
        contexts.append(context)
        page = context.new_page()
        own = pages[name].as_uri()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on(
            "request",
            lambda request: (
                request.url.split("#")[0] == own or wrong.append(request.url)
            ),
        )
        page.goto(own)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def rows(page):
    return page.locator("#table tbody tr:not(.more)")


def column(page, index):
    texts = page.locator(f"#table tbody tr:not(.more) > :nth-child({index})")
    return [text.strip() for text in texts.all_inner_texts()]


def tab_to(page, selector, most=400):
    """Press Tab until an element has the focus, as someone without a mouse does."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


@pytest.mark.parametrize("name", ["different", "hostile", "large", "same"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_accessible(opened, name, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(name, scheme=scheme, width=width)
    for details in page.locator("figure > details, section > details").all():
        details.evaluate("e => { e.open = true; }")
    if rows(page).count():
        page.locator("#table tbody button").first.click()
    # The page's policy lets no other script in; axe comes in from outside of it.
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("name", ["different", "hostile", "large", "same"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_no_wider_than_the_window(opened, name, width):
    page = opened(name, width=width)
    page.locator("#all").check()
    size = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert size[0] <= size[1]


def test_it_says_the_verdict_without_scripts(opened):
    page = opened("different", script=False)
    assert page.locator("h1").inner_text() == "Different"
    assert "step 0, in activations of fc1" in page.locator("header").inner_text()
    assert page.locator("section#first").is_visible()
    assert rows(page).count() == PAGE
    assert not page.locator(".controls").is_visible()
    assert "need JavaScript" in page.locator("noscript").inner_text()


def test_the_script_writes_rows_as_they_were(opened):
    before = opened("large", script=False).locator("#table tbody").inner_text()
    after = opened("large").locator("#table tbody").inner_text()
    assert re.sub(r"\s+", " ", after) == re.sub(r"\s+", " ", before)


def test_it_sorts_by_keyboard(opened):
    page = opened("different")
    tab_to(page, "#table thead button[data-key=share]")
    page.keyboard.press("Enter")
    header = page.locator("#table thead th.share")
    assert header.get_attribute("aria-sort") == "descending"
    assert "Sorted by Times allowed, descending" in page.locator("#status").inner_text()
    shares = [float(text.replace(",", "")) for text in column(page, 5)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] > 0
    assert page.evaluate("document.activeElement.dataset.key") == "share"
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") == "ascending"
    assert {*column(page, 5)} == {"0"}
    assert page.locator("[aria-sort]").count() == 1
    page.locator("#table thead button[data-key=name]").press("Enter")
    names = column(page, 4)
    assert names == sorted(names)
    page.locator("#table thead button[data-key=name]").press("Enter")
    assert column(page, 4)[0] > names[-1]


def test_it_filters_by_keyboard(opened):
    page = opened("different")
    tab_to(page, "#text")
    page.keyboard.type("fc1 weight")
    assert {*column(page, 4)} == {"fc1.weight", "fc1.weight/momentum_buffer"}
    page.keyboard.press("Tab")
    page.keyboard.type("different")
    assert {*column(page, 1)} == {"different"}
    page.keyboard.press("Tab")
    page.keyboard.type("gradients")
    assert {*column(page, 3)} == {"gradients"}
    page.keyboard.press("Tab")
    page.keyboard.type("2")
    assert column(page, 2) == ["2"]
    assert page.locator("#status").inner_text().startswith("1 of ")
    tab_to(page, "button[type=reset]", most=3)
    page.keyboard.press("Enter")
    assert page.locator("#text").input_value() == ""
    assert rows(page).count() == PAGE
    page.locator("#text").fill("no such tensor")
    assert rows(page).count() == 0
    assert "No tensor matches" in page.locator("#status").inner_text()


def test_a_row_opens_to_all_figures(opened):
    page = opened("different")
    tab_to(page, "#table tbody button")
    page.keyboard.press("Enter")
    button = page.locator("#table tbody button").first
    assert button.get_attribute("aria-expanded") == "true"
    more = page.locator("tr.more").inner_text()
    for label in ("Why", "Cosine", "rtol that passes", "Ulps", "Shape", "At"):
        assert label in more
    page.keyboard.press("Enter")
    assert page.locator("tr.more").count() == 0
    page.locator("#all").check()
    assert page.locator("#table thead th").count() == 23


def test_a_cell_leads_to_its_tensors(opened):
    page = opened("different")
    page.locator("table.steps a[data-stage=gradients][data-step='1']").press("Enter")
    assert {*column(page, 2)} == {"1"}
    assert {*column(page, 3)} == {"gradients"}
    assert page.evaluate("document.activeElement.id") == "h-tensors"
    assert page.locator("#h-tensors").bounding_box()["y"] < 300


def test_it_turns_pages(opened):
    page = opened("large")
    assert page.locator("#page").inner_text() == "1 to 25 of 20,000"
    first = column(page, 4)
    page.locator("#next").press("Enter")
    assert page.locator("#page").inner_text() == "26 to 50 of 20,000"
    assert column(page, 4) != first
    page.locator("#previous").press("Enter")
    assert column(page, 4) == first
    assert page.locator("#previous").is_disabled()


def test_the_modules_open_by_keyboard(opened):
    page = opened("large")
    block = page.locator(".tree details > summary").nth(2)
    assert not block.evaluate("e => e.parentElement.open")
    block.press("Enter")
    assert block.evaluate("e => e.parentElement.open")
    assert page.locator(".tree .first").is_visible()


def test_a_large_report_opens_and_answers_at_once(opened, pages):
    started = time.perf_counter()
    page = opened("large")
    painted = page.evaluate("performance.getEntriesByType('paint').at(-1).startTime")
    loaded = time.perf_counter() - started
    started = time.perf_counter()
    page.locator("#table thead button[data-key=share]").click()
    page.locator("#text").fill("layers.9")
    answered = time.perf_counter() - started
    size = pages["large"].stat().st_size / 1e6
    print(f"{size:.1f} MB, painted {painted:.0f} ms, {loaded:.1f} s, {answered:.2f} s")
    assert size < 8
    assert painted < 3000
    assert loaded < 6
    assert answered < 3
