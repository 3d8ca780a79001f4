"""/docs in a real Chromium: the page needs nothing from elsewhere, and a call is made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.fixtures.browser import chromium
from tests.fixtures.rest import RestProcess


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path / "profile") as found:
        yield found


def test_a_call_is_made_from_the_page(rest: RestProcess, browser: Chrome) -> None:
    # The page may draw anew what has just been found.
    wait = WebDriverWait(browser, 120, ignored_exceptions=(StaleElementReferenceException,))

    def click(css: str) -> None:
        def clicked(_: Chrome) -> bool:
            element = browser.find_element(By.CSS_SELECTOR, css)
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            if not (element.is_displayed() and element.is_enabled()):
                return False
            browser.execute_script("arguments[0].click()", element)
            return True

        wait.until(clicked)

    browser.get(f"{rest.url}/docs")
    operation = "#operations-ManagementService-ManagementService_GetService"
    click(f"{operation} .opblock-summary-control")
    click(f"{operation} .try-out__btn")

    def typed(_: Chrome) -> bool:
        browser.find_element(By.CSS_SELECTOR, f"{operation} input[placeholder=service]").send_keys("echo")
        return True

    wait.until(typed)

    def answer(_: Chrome) -> str:
        # The page takes over what is typed a little later: executed too early it says that a value is missing.
        found = browser.find_elements(By.CSS_SELECTOR, f"{operation} .live-responses-table .highlight-code")
        if not found:
            click(f"{operation} .execute")
        return found[0].text if found else ""

    shown = wait.until(answer)
    assert "services/echo" in shown
    assert "SERVICE_STATE_READY" in shown
    # Everything came from this server, and nothing went wrong on the page.
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert f"{rest.url}/v1/services/echo" in asked
    # Chromium's own first tab is not the page's.
    own = (rest.url, "data:", "blob:", "chrome:", "chrome-untrusted:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
