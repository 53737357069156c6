"""The page at ``/`` in a real browser, without a window."""

import shutil

import pytest
from servers import KEY, SlowEngine, running, until

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Chromium's own sandbox does not start for root, as in containers.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    context = browser.new_context()
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    yield page
    context.close()


def ask(page, text):
    page.fill("#input", text)
    page.press("#input", "Enter")


def answers(page):
    return page.locator(".message.assistant span").all_text_contents()


def test_a_conversation(page, server, alone, model):
    page.goto(server[0])
    playwright.expect(page.locator("#model")).to_have_text("bitnet-stories")
    page.click("#open")
    page.fill("#max_tokens", "20")
    page.fill("#temperature", "0")
    page.click("#settings button")
    ask(page, PROMPT)
    playwright.expect(page.locator("#send")).to_be_enabled()
    first = alone.generate(model, PROMPT, model.generation_config.replace(max_new_tokens=20)).text
    assert answers(page) == [first]
    playwright.expect(page.locator("#speed")).to_contain_text("20 tokens, ")
    playwright.expect(page.locator("#speed")).to_contain_text("tokens/s")
    # The next question comes with what was said before.
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "<b>And then?</b>")
    body = sent.value.post_data_json
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == first
    assert (body["max_tokens"], body["temperature"]) == (20, 0)
    playwright.expect(page.locator("#send")).to_be_enabled()
    assert page.locator(".message.user span").all_text_contents() == [PROMPT, "<b>And then?</b>"]
    page.click("#clear")
    assert answers(page) == []
    # Settings are kept.
    page.reload()
    assert page.input_value("#max_tokens") == "20"
    assert page.problems == []


def test_it_comes_bit_by_bit_and_can_be_stopped(page, model):
    with running(model, SlowEngine()) as (address, service):
        page.goto(address)
        ask(page, PROMPT)
        playwright.expect(page.locator(".message.assistant span")).not_to_be_empty()
        assert service.active == 1
        playwright.expect(page.locator("#send")).to_be_disabled()
        before = len(answers(page)[0])
        page.wait_for_function(f"document.querySelector('.message.assistant span').textContent.length > {before}")
        page.click("#stop")
        until(lambda: service.active == 0)
        playwright.expect(page.locator("#send")).to_be_enabled()
        assert page.locator(".error").count() == 0
        assert page.problems == []


def test_a_key_is_asked_for_and_an_error_is_shown(page, model):
    with running(model, api_keys=KEY) as (address, _):
        page.goto(address)
        playwright.expect(page.locator("#model")).to_contain_text("a valid key is needed")
        ask(page, PROMPT)
        playwright.expect(page.locator(".message.error span")).to_contain_text("a valid key is needed")
        page.click("#open")
        page.fill("#key", KEY)
        page.click("#settings button")
        playwright.expect(page.locator("#model")).to_have_text("bitnet-stories")
        ask(page, PROMPT)
        playwright.expect(page.locator(".message.assistant span").last).not_to_be_empty()
