"""Claims about the sample browser in a browser: it runs nothing that a model wrote, asks no other machine, can be used
by keyboard and at every width, and follows a run that is under way."""

import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.browser.export import PAGE, write_browser
from flows.browser.server import SampleServer
from flows.browser.site import Site
from tests.browser.chromium import CHROMIUM, Page
from tests.browser.test_report import PAYLOADS, RUN
from tests.rows import a_sample
from tests.stored_run import begin_run, samples_stage, write_pairs, write_prompts, write_round
from tpo.config.run import RunConfig
from tpo.records import Judgment, Message, Prompt, Sample, Score, write_turns

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
AXE = "axe-core@4.14.1"
K = 4


def score(sample: Sample) -> Score:
    broken, right = sample.parse_error is not None, sample.index % 2 == 0
    value = None if broken else right + sample.index / 100
    unscored = f"parse_error: {sample.parse_error}" if broken else None
    return Score(sample.prompt_id, sample.index, value, unscored, None if broken else right, len(sample.response))


def made(folder: Path, texts: list[str]) -> RunConfig:
    """A run with each text wherever a model, a dataset or a judge can put one."""
    config = RunConfig(name="seen", folder=folder)
    begin_run(config)
    turns: list[Message] = [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
    history = write_turns(turns)
    asked = [
        Prompt(f"{i:04x}", text, text, text if len(text) < 999 else None, i % 3, history=history if i == 0 else None)
        for i, text in enumerate(texts)
    ]
    test = write_prompts(config.root, "iter_0/prompts/test", asked)
    fresh = write_prompts(config.root, "iter_1/prompts", asked[::-1])
    groups = [
        [
            a_sample(prompt.prompt_id, i, thought=text, response=f"{i} {text}", parse_error="cut" if i == 3 else None)
            for i in range(K)
        ]
        for prompt, text in zip(asked, texts, strict=True)
    ]
    judgments = [Judgment(p.prompt_id, 0, 1, 1.0, json.dumps({"text": p.instruction[:999]})) for p in asked]
    write_pairs(config, "iter_1", write_round(config.root, "iter_1", fresh, groups, score, judgments))
    for name in ("iter_0/direct", "iter_0/test", "iter_1/test"):
        write_round(config.root, name, test, [group[:1] for group in groups], score)
    return config


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = made(tmp_path_factory.mktemp("plain"), [f"What is {i} times {i}?" for i in range(60)])
    write_browser(config)
    return config


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with Page(tmp_path / "profile", width=1400, height=900) as opened:
        yield opened


def opened(page: Page, config: RunConfig, address: str = "") -> Page:
    page.open("about:blank")  # with another fragment alone it would be the same page
    page.open((config.root / PAGE).as_uri() + address)
    page.await_("!!document.documentElement.dataset.ready")
    return page


def test_hostile_text_stays_text_and_no_other_machine_is_asked(tmp_path: Path, page: Page):
    hostile = [text.replace("RUN", RUN).replace("HOST", "http://127.0.0.1:9") for text in PAYLOADS]
    hostile += [
        "x" * 2**20,
        "\0\x07\x1b[31m\x7f",
        "a\u202e" + "b" * 50 + "\u2066",
        "z\u0301" * 3000,
        "\uffff\ufdd0",
        "\n" * 5000,
    ]
    config = made(tmp_path, hostile)
    write_browser(config)
    opened(page, config)
    for row in (*range(0, len(PAYLOADS), 12), len(PAYLOADS)):
        page.run(f"choose(current.rows[{row}].id)")
        page.await_(f"document.querySelector('.id').textContent === current.rows[{row}].id")
        page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.run("choose(current.byId.get('0000').id)")
    page.await_("document.querySelector('.earlier') !== null")
    page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert "<script>document.title='owned'" in page.await_("document.getElementById('detail').innerText")
    page.run("document.getElementById('filters-button').click()")
    assert page.run("document.title") == "Samples of seen" and page.run("document.documentElement.dataset.ran") is None
    allowed = ((config.root / "report").as_uri() + "/", "data:,", "about:blank")
    assert [url for url in page.asked if not url.startswith(allowed)] == []
    assert page.run("document.querySelectorAll('#detail img, #detail script, #detail iframe, #table img').length") == 0
    assert page.errors == []


def test_it_is_used_by_keyboard_and_a_sample_has_a_permanent_link(plain: RunConfig, page: Page):
    opened(page, plain)
    page.run("focusList()")
    first = page.await_("document.querySelector('.id').textContent")
    page.press("ArrowDown")
    page.await_(f"document.querySelector('.id').textContent !== '{first}'")
    page.press("j")
    page.await_("document.querySelector('.id').textContent === current.rows[2].id")
    page.press("t")
    assert page.await_("[...document.querySelectorAll('.fold:not(.raw)')].every(each => each.open)")
    page.press("n")
    link = page.await_("document.activeElement.querySelector('h3 a').getAttribute('href')")
    page.press("/")
    assert page.run("document.activeElement.id") == "search"
    for key in "59":
        page.press(key)
    page.await_("document.getElementById('count').textContent.startsWith('1 of 60')")
    page.press("Escape")
    assert page.run("document.activeElement.closest('#table') !== null")
    opened(page, plain, link)
    sample = page.await_("document.querySelector('.sample.linked').id")
    assert sample == "sample-" + link.split("sample=")[1].split("&")[0]
    assert page.errors == []


def test_filters_are_those_that_the_round_has_data_for_and_rounds_stand_side_by_side(plain: RunConfig, page: Page):
    opened(page, plain, "#round=iter_1&outcome=none")
    labels = "[...document.querySelectorAll('#filters .field')].map(each => each.firstChild.textContent).join()"
    offered = page.await_(labels)
    assert "Became" in offered and "Parse error" in offered and "The thought changed" not in offered
    assert page.run("document.getElementById('count').textContent").startswith("0 of 60")
    opened(page, plain, "#round=iter_1/test&beside=iter_0/test")
    assert "The thought changed the answer" in page.await_(labels)
    assert page.await_("document.querySelectorAll('.side').length") == 2
    assert (
        page.await_("[...document.querySelectorAll('.round')].map(each => each.textContent).join()")
        == "M_1 · test,M_0 · test"
    )


@pytest.mark.parametrize("width", [400, 1024, 1600])
def test_nothing_overflows(plain: RunConfig, page: Page, width: int):
    page.resize(width, 800)
    opened(page, plain, "#prompt=0003")
    holder = "document.querySelector('.tabulator-tableholder')"
    assert page.await_(f"{holder}.scrollWidth <= {holder}.clientWidth")
    for script in ("0", "toggleFilters()", "choose('0003', {open: true})"):
        page.run(script)
        assert page.await_("document.documentElement.scrollWidth") <= width
        assert page.await_(
            "document.getElementById('detail').scrollWidth <= document.getElementById('detail').clientWidth"
        )


def test_a_run_under_way_is_followed(tmp_path: Path, page: Page):
    config = RunConfig(name="seen", folder=tmp_path / "runs")
    begin_run(config)
    prompts = write_prompts(config.root, "iter_1/prompts", [Prompt(f"{i}", f"Question {i}?") for i in range(2)])
    stage = samples_stage(config.root, "iter_1", prompts)
    stage.write_shard(0, [a_sample("0", i) for i in range(K)])
    with SampleServer(Site(config.root), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.open(server.url, "Question 0?")
        assert "Question 1?" not in page.text() and "sampling now" in page.text()
        stage.write_shard(1, [a_sample("1", i) for i in range(K)])
        stage.commit(2)
        page.wait("Question 1?", "2 prompts")
        assert "sampling now" not in page.wait("live")
        assert {url.split("/report/")[0] for url in page.asked if url.startswith("http")} == {
            server.url.split("/report/")[0]
        }
        server.shutdown()
    assert page.errors == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if (
        npm is None
        or subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, timeout=120, check=False).returncode
    ):
        pytest.skip("axe-core cannot be fetched: there is no npm, or no package registry can be reached")
    with tarfile.open(next(folder.glob("*.tgz"))) as packed:
        file = packed.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()


def test_axe_finds_nothing_serious(plain: RunConfig, page: Page, axe: str):
    violations = (
        "axe.run(document, {resultTypes: ['violations']}).then(found => JSON.stringify(found.violations"
        ".filter(each => ['serious', 'critical'].includes(each.impact))"
        ".map(each => [each.id, each.nodes.map(node => node.html.slice(0, 200))])))"
    )
    pairs, tests = "#round=iter_1&prompt=0003", "#round=iter_1/test&beside=iter_0/test&prompt=0003"
    for width, dark, address in ((1400, False, pairs), (1400, True, tests + "&category=none"), (400, True, tests)):
        page.resize(width, 900, dark=dark)
        opened(page, plain, address)
        page.run("toggleFilters(), document.querySelectorAll('details').forEach(each => each.open = true)")
        page.run(axe)
        assert json.loads(page.await_(violations)) == []
        page.run("choose('0003', {open: true})")
    page.await_("document.querySelector('.sample') !== null")
    page.run("document.getElementById('keys').showModal()")
    assert json.loads(page.await_(violations)) == []
