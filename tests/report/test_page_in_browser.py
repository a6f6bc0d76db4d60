"""The page in a real browser: no errors or requests, the run's numbers, keyboard, dark theme, small screens."""

import json

import pytest
from browser import open_browser
from written_run import HOSTILE, write_run

from versatune_ds.report.page import write_page
from versatune_ds.report.series import read_series

pytestmark = pytest.mark.slow

WEIGHTS = '[data-chart="run1-weights"]'
VALUES_OF_WEIGHTS = "#run1-weights .keys output"
WIDTH_BEYOND_SCREEN = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "plain": write_run(folder / "plain"),
        "other": write_run(folder / "other", best=1),
        "hostile": write_run(folder / "hostile", names=HOSTILE),
        "wide": write_run(folder / "wide", names=[f"domain_with_a_long_name_{k}" for k in range(64)]),
    }


@pytest.fixture(scope="module")
def pages(folders):
    shown = {**{name: [name] for name in folders}, "both": ["plain", "other"]}
    return {
        page: write_page([read_series(folders[name]) for name in names], folders["plain"].parent / f"{page}.html")
        for page, names in shown.items()
    }


@pytest.fixture
def show(browser, pages):
    def load(name, *, fragment="", **screen):
        browser.emulate(**screen)
        browser.show(pages[name], fragment=fragment)
        return browser

    return load


@pytest.mark.parametrize("name", ["plain", "both", "hostile", "wide"])
def test_a_page_loads_without_errors_and_without_other_requests(show, pages, name):
    page = show(name)
    assert page.errors() == []
    assert page.requests() == [pages[name].as_uri()]
    assert page.ask("document.title").endswith("versatune report")
    drawn = (
        "[...document.querySelectorAll('.plot svg')].map(e => e.getBoundingClientRect()).map(b => b.width * b.height)"
    )
    areas = page.ask(drawn)
    assert len(areas) >= 12
    assert min(areas) > 1000


def test_the_numbers_shown_at_a_step_are_those_in_the_runs_files(show, folders):
    page = show("plain", fragment="#step=20")
    decisions = [json.loads(line) for line in (folders["plain"] / "decisions.jsonl").read_text().splitlines()]
    in_force, made = decisions[1], decisions[2]
    assert page.texts(VALUES_OF_WEIGHTS) == [f"{weight:.4f}" for weight in in_force["weights_after"].values()]
    assert page.texts("#run1-loss-1 figcaption output") == [f"{made['losses']['code']['mean']:.4f} ± 0.0625"]
    assert page.texts("details[open] .reason") == [made["reason"]]
    cells = page.texts("details[open] tbody tr:first-child > *")
    loss, signals = made["losses"]["law"], made["signals"]["law"]
    before, after = made["weights_before"]["law"], made["weights_after"]["law"]
    assert cells == [
        "law", f"{loss['mean']:.4f}", f"{loss['stderr']:.4f}", "1.0000", f"{loss['mean'] - 1:.4f}",
        f"{signals['learnable_potential']:.4f}", "0.00%", "0.00%", "0.00%", f"{before:.4f}", f"{after:.4f}",
        f"▲ up {after - before:.4f}",
    ]  # fmt: skip


def test_hostile_domain_names_are_shown_as_plain_text(show):
    page = show("hostile")
    assert page.ask("document.title") == "hostile \u2013 versatune report"
    assert page.ask("document.images.length") == 0
    assert page.ask("[...document.querySelectorAll('#run1-weights .key span')].map(e => e.textContent)") == list(
        HOSTILE
    )


def test_the_keyboard_moves_through_the_steps_of_a_chart(show):
    from selenium.webdriver.common.keys import Keys

    page = show("plain")
    step = f"document.querySelector('{WEIGHTS}').ariaValueNow"
    assert page.ask(f"document.querySelector('{WEIGHTS}').tabIndex") == 0
    page.press(WEIGHTS, [Keys.HOME])
    assert (page.ask(step), page.texts(VALUES_OF_WEIGHTS)) == ("0", ["0.3333"] * 3)
    page.press(WEIGHTS, [Keys.ARROW_RIGHT])
    assert page.ask(step) == "13"
    assert page.ask(f"document.querySelector('{WEIGHTS}').ariaValueText").startswith("step 13: law 0.3750, code 0.3125")
    page.press(WEIGHTS, [Keys.END, Keys.ARROW_LEFT])
    assert page.ask(step) == "33"
    page.press("#step", [Keys.HOME])
    assert page.texts(VALUES_OF_WEIGHTS) == ["0.3333"] * 3
    page.press("#run1-weights .key", [Keys.ENTER])
    assert page.ask("document.querySelector('#run1-weights .key').ariaPressed") == "true"
    assert page.ask("document.querySelectorAll('#run1-weights .series.is-focus').length") == 1


def test_decisions_are_filtered_by_domain_and_safeguard(show):
    from selenium.webdriver.support.ui import Select

    page = show("plain")
    assert len(page.texts(".decision > summary")) == 5
    safeguard = Select(page.driver.find_element("css selector", "select[data-filter=kinds]"))
    safeguard.select_by_visible_text("floor")
    assert [text.split(" after")[0] for text in page.texts(".decision > summary")] == ["Update 2"]
    assert page.texts(".count") == ["1 of 5 shown"]
    safeguard.select_by_index(0)
    Select(page.driver.find_element("css selector", "select[data-filter=moved]")).select_by_visible_text("law")
    assert page.texts(".count") == ["4 of 5 shown"]


def test_the_dark_theme_follows_the_system_setting_and_the_button(show):
    background = "getComputedStyle(document.body).backgroundColor"
    light = show("plain").ask(background)
    page = show("plain", is_dark=True)
    dark = page.ask(background)
    assert light != dark
    assert sum(map(int, dark[4:-1].split(","))) < 100 < sum(map(int, light[4:-1].split(",")))
    assert page.texts("#theme") == ["Light"]
    page.driver.find_element("id", "theme").click()
    assert (page.ask(background), page.texts("#theme")) == (light, ["Dark"])


@pytest.mark.parametrize("name", ["plain", "both", "hostile", "wide"])
@pytest.mark.parametrize("width", [320, 360])
def test_no_page_is_wider_than_a_phone(show, name, width):
    page = show(name, width=width)
    assert page.ask("innerWidth") == width
    assert page.ask(WIDTH_BEYOND_SCREEN) <= 0


OVERLAPS = """[...document.querySelectorAll('.plot')].map(plot => [...plot.querySelectorAll('.end')]
  .filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect()).sort((a, b) => a.top - b.top)
  .filter((r, i, all) => i && r.top + r.height / 2 - all[i - 1].top - all[i - 1].height / 2 < 11)).flat().length"""
"""Labels at lines' ends whose middles are less than a line apart."""


@pytest.mark.parametrize("width", [420, 1400])
def test_long_names_are_whole_in_legends_and_tables_and_no_labels_overlap(show, width):
    page = show("wide", width=width)
    assert page.ask(WIDTH_BEYOND_SCREEN) <= 0
    assert page.ask("[...document.querySelectorAll('.key span')].every(e => e.scrollWidth <= e.clientWidth)")
    assert page.ask("[...document.querySelectorAll('tbody th:has(wbr)')].every(e => e.scrollWidth <= e.clientWidth)")
    assert page.texts("tbody th:has(wbr)")[0] == "domain_with_a_long_name_0"
    assert page.ask(OVERLAPS) == 0
    if width == 1400:  # the table of domains needs no scrolling on a desk
        assert page.ask("document.querySelector('.many > .scroll, .card > .scroll').scrollWidth") <= page.ask(
            "document.querySelector('.many > .scroll, .card > .scroll').clientWidth"
        )
        assert show("plain", width=width).ask(OVERLAPS) == 0


def test_every_chart_has_numbers_and_a_description_and_every_control_has_a_name(show):
    page = show("plain")
    assert page.ask("[...document.querySelectorAll('main figure')].every(f => f.querySelector('.numbers table'))")
    assert page.ask("[...document.querySelectorAll('[role=slider], [role=region]')].every(e => e.ariaLabel)")
    unnamed = "[...document.querySelectorAll('button, select, input')].filter(e => !(e.innerText || e.labels.length))"
    assert page.ask(f"{unnamed}.length") == 0
    described_by = page.ask(f"document.querySelector('{WEIGHTS}').getAttribute('aria-describedby')")
    words = page.ask("document.getElementById(arguments[0]).textContent", described_by)
    assert words.startswith("Steps 0 to 40: law from 0.3333 to 0.4507")
