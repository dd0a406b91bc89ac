"""What people see, in a real browser: whole in one answer, nothing wider than a phone, every route and price there."""

import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import httpx
import pytest

from spawn.api.routes import charged_routes
from spawn.domain.charges import Kind
from tests.engines import chromium, require
from tests.interop.service import RunningService, spawn_dev

BROWSER: Final = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
VOID: Final = {"meta", "link", "br", "hr", "img", "input"}
MEASURE: Final = "<script>document.title = document.documentElement.scrollWidth</script>"
BROKEN: Final = """<script>document.title = [...document.querySelectorAll("td:first-child > code")]
  .filter(code => code.getClientRects().length > 1).length</script>"""
REPORT: Final = "document.title = this.contentDocument.title"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with spawn_dev(tmp_path_factory.mktemp("pages")) as running:
        yield running


def page(service: RunningService, path: str) -> str:
    answer = httpx.get(service.url + path, headers={"Accept": BROWSER})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def rendered(url: str, folder: Path, *options: str) -> str:
    """The document as Chromium has it after it was loaded."""
    require("chromium")
    program = chromium()
    assert program is not None
    quiet = (
        "--disable-quic",
        "--disable-sync",
        "--disable-component-update",
        "--disable-background-networking",
        "--no-first-run",
    )
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *quiet,
            profile,
            *options,
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


class Nesting(HTMLParser):
    """Notes every tag that is closed by another than its own, or not at all, and every id that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs).get("id")
        if found is not None:
            self.wrong += [f"id {found} twice"] if found in self.ids else []
            self.ids.add(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")


def wrong_nesting(html: str) -> list[str]:
    parser = Nesting()
    parser.feed(html)
    parser.close()
    return parser.wrong + parser.open


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_is_well_formed(service: RunningService, path: str) -> None:
    assert wrong_nesting(page(service, path)) == []


def test_wrong_nesting_is_found() -> None:
    assert wrong_nesting("<p><b>x</p></b>") == ["</p> at (1, 7)", "</b> at (1, 11)"]
    assert wrong_nesting("<ul><li>x</ul>") != []
    assert wrong_nesting('<p id="a"></p><p id="a"></p>') == ["id a twice"]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_asks_nobody_for_anything(service: RunningService, path: str) -> None:
    html = page(service, path)
    assert re.findall(r"(?:src|href|action)=\"(?!/|#|data:,)", html) == []
    # An example may name a site in its text; nothing that a browser follows by itself may.
    assert re.findall(r"<[^>]*https?://|url\(|@import|<script", html) == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_browser_shows_every_route(service: RunningService, path: str, tmp_path: Path) -> None:
    dom = rendered(service.url + path, tmp_path)
    shown = re.findall(r'<span class="verb \w+">(\w+)</span><code>([^<]+)</code>', dom)
    assert sorted(shown) == sorted((method, route) for method, route, _, _ in charged_routes())


def too_wide(html: str, folder: Path) -> int:
    """By how many pixels a page is wider than a phone, every detail of it open."""
    copy = folder / "page.html"
    copy.write_text(html.replace("<details ", "<details open ").replace("</body>", f"{MEASURE}</body>"))
    # Headless Chromium makes no window narrower than 500 pixels, but a frame may be as narrow as a phone.
    frame = folder / "frame.html"
    frame.write_text(f'<iframe width="390" height="800" src="{copy.as_uri()}" onload="{REPORT}"></iframe>')
    dom = rendered(frame.as_uri(), folder, "--allow-file-access-from-files", "--virtual-time-budget=2000")
    (measured,) = re.findall(r"<title>(\d+)</title>", dom)
    return max(0, int(measured) - 390)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_is_wider_than_a_phone(service: RunningService, path: str, tmp_path: Path) -> None:
    assert too_wide(page(service, path), tmp_path) == 0


def test_what_is_wider_than_a_phone_is_found(tmp_path: Path) -> None:
    assert too_wide('<body style="margin:0"><div style="width:400px">x</div></body>', tmp_path) == 10


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_no_name_is_broken_in_two(service: RunningService, path: str, tmp_path: Path) -> None:
    copy = tmp_path / "page.html"
    copy.write_text(
        page(service, path).replace("<details ", "<details open ").replace("</body>", f"{BROKEN}</body>")
    )
    dom = rendered(copy.as_uri(), tmp_path, "--window-size=1000,800")
    assert re.findall(r"<title>(\d+)</title>", dom) == ["0"]


def test_an_agent_is_answered_in_markdown(service: RunningService) -> None:
    for accept in ("*/*", "text/markdown", "application/json"):
        answer = httpx.get(service.url, headers={"Accept": accept})
        assert answer.headers["content-type"].startswith("text/markdown")
        assert answer.headers["vary"] == "Accept"
        assert answer.text.startswith("# spawn\n")
        for method, path, _, _ in charged_routes():
            assert f"`{method} {path}`" in answer.text


def test_the_reference_tells_fields_examples_refusals_and_error_codes(service: RunningService) -> None:
    html = page(service, "/docs")
    (create,) = re.findall(r'<details id="post-/v1/servers">.*?</details>', html, re.DOTALL)
    for text in (
        "user_data",
        "at most 32768 characters",
        "required",
        "&quot;my-agent-node&quot;",
        "Answer: 201",
    ):
        assert text in create
    assert re.findall(r"<code>(4\d\d|503)</code>", create) == [
        "400",
        "401",
        "402",
        "403",
        "404",
        "409",
        "413",
        "422",
        "429",
        "503",
    ]
    assert "<code>insufficient_deposit</code>" in html


@pytest.mark.parametrize("path", ["/v1/catalog", "/health", "/openapi.json"])
def test_what_is_for_machines_is_json(service: RunningService, path: str) -> None:
    answer = httpx.get(service.url + path, headers={"Accept": BROWSER})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()


def test_nothing_else_is_served_without_a_price(service: RunningService) -> None:
    """The framework would offer pages of its own, which fetch scripts from elsewhere."""
    for path in ("/schema", "/schema/swagger", "/_openapi", "/_openapi/swagger"):
        assert httpx.get(service.url + path).status_code == 404
    free = {path for _, path, charge, _ in charged_routes() if charge.kind is Kind.FREE}
    of_machines = {"/v1/boots/{token}", "/v1/hosts/register", "/v1/hosts/key", "/api/hosts/heartbeat"}
    assert free == {"/v1/catalog", "/v1/actions/{action_id}", "/health"} | of_machines
