"""The page in a real Chromium: what it shows, in both schemes, on a phone, and what a click does.

Its pictures are left in build/web: look at them after a change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.browser import Browser
from tests.web.scene import Scene

PICTURES = Path(__file__).parents[2] / "build" / "web"
CARDS = "document.querySelectorAll('.card').length"
SIZES = {"desk": (1200, 900, False), "phone": (360, 780, True)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "s", "--allow-orders")
    yield scene
    scene.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(scheme: str, size: str, scene: Scene, browser: Browser) -> None:
    width, height, is_phone = SIZES[size]
    page = browser.page(width, height, scheme, is_phone)
    page.go(scene.url)
    page.wait(f"{CARDS} === 5")
    deadline = time.monotonic() + 30
    while page.run("document.querySelectorAll('rect.stopped').length") < 3:
        assert time.monotonic() < deadline, page.text()
        scene.checkpoint(0.001 + time.monotonic() % 0.004)
        time.sleep(0.2)
    text = page.text()
    for told in (
        "5 VMs, 2 to look at",
        "host b is out of reach",
        "tcp:10.0.0.2:9000: KEEPING",
        "taken over here in 12 ms, from checkpoint 1734: the other side was silent for 0.8 s",
        "1.5 / 4.0 ms",
        "3.0 / 8.0 ms",
    ):
        assert told in text, text
    hosts = page.run("[...document.querySelectorAll('.host h3')].map((each) => each.textContent)")
    assert hosts[1:] == ["10.0.0.2", "10.0.0.3"]
    assert page.run("document.querySelectorAll('.bar b').length") == 1, "the takeover"
    assert page.run("document.documentElement.scrollWidth") == width, "nothing is beside the page"
    back = page.run("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(245, 246, 248)", "dark": "rgb(15, 19, 24)"}[scheme]
    assert page.run(CONTRAST) == []
    assert page.complaints() == []
    assert {url for url in page.asked() if not url.startswith((scene.base, "data:"))} == set()
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.shot(PICTURES / f"{size}-{scheme}.png")


#: Texts that are too pale to be read on what is behind them: by WCAG 2.1, 1.4.3, less than 4.5 : 1.
CONTRAST = """(() => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = rgb(colour).map((each) => each / 255)
      .map((each) => (each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (rgb(colour)[3] !== 0) return colour;
    }
  };
  const pale = [];
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim())) continue;
    if (!node.getClientRects().length) continue;
    const [one, other] = [light(getComputedStyle(node).color), light(behind(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) pale.push(`${node.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return pale;
})()"""


def test_it_follows_what_happens(scene: Scene, browser: Browser) -> None:
    page = browser.page(800, 600, "light")
    page.go(scene.url)
    page.wait(f"{CARDS} === 5")
    scene.tell("new", scene.folders["web1"].last)
    page.wait(f"{CARDS} === 6")
    scene.tell("web1", scene.folders["web1"].last, state="LOST", error="the link is cut")
    page.wait(
        "document.querySelector('.card.BAD .trouble')?.textContent === 'host b is out of reach'"
    )
    page.wait("document.body.innerText.includes('the link is cut')")
    page.run("document.querySelector('[data-span=\"86400\"]').click()")
    assert page.run("document.querySelector('[aria-pressed=true]').textContent") == "24 h"


def test_what_others_say_is_text(scene: Scene, browser: Browser) -> None:
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    scene.tell("web1", scene.folders["web1"].last, state="LOST", error=evil, arbiter=evil)
    page = browser.page(800, 600, "light")
    page.go(scene.url)
    page.wait(f"{CARDS} === 5")
    assert evil in page.text()
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.complaints() == []


def test_an_order_is_asked_for_and_then_given(scene: Scene, browser: Browser) -> None:
    orders = scene.take_orders({"ok": True, "text": "the VM runs on the other host"})
    page = browser.page(800, 600, "light")
    page.go(scene.url)
    button = "document.querySelector('button[data-vm=web1]')"
    page.wait(button)
    page.run(f"{button}.click()")
    asked = "Have web1 go over to tcp:10.0.0.2:9000? Its clients see a short pause."
    assert page.run("document.getElementById('ask-text').innerText") == asked
    page.press("Escape", 27)
    page.wait("!document.getElementById('ask').open")
    assert orders == []
    page.run(f"{button}.click()")
    page.run("document.getElementById('ask-yes').click()")
    page.wait(
        "document.getElementById('notice').innerText === 'web1: the VM runs on the other host'"
    )
    assert [order["order"] for order in orders] == ["switchover"]


def test_it_is_read_only_and_says_when_nobody_answers(tmp_path: Path, browser: Browser) -> None:
    scene = Scene(tmp_path / "s")
    try:
        page = browser.page(800, 600, "light")
        page.go(scene.url)
        page.wait(f"{CARDS} === 5")
        assert page.run("document.querySelectorAll('button[data-vm]').length") == 0
    finally:
        scene.close()
    page.wait("document.getElementById('notice').innerText.startsWith('colo web does not answer')")
