"""Claims about a run's page in a browser: text of models, datasets and profiles is only displayed.

Each payload tries to rename the page, to leave a mark in it, and to send a request to our own server. On a control page
with the same payloads inserted as markup, all of that must happen: a browser that runs nothing would prove nothing.
"""

import dataclasses
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_fine_grained import some_kinds
from tests.report.test_run_page import EXAMPLE, FIRST, HEALTH, SEED, Reader, interval
from tpo.report.comparison import Comparison, Lead
from tpo.report.comparison_page import render_comparison
from tpo.report.run_page import render_report
from tpo.report.summary import Summary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
RUN = "document.title='owned';fetch('HOST/ran');document.documentElement.dataset.ran='1'"

PAYLOADS = (
    "<script>RUN</script>",
    "<ScRiPt >RUN</sCrIpT >",
    "<script src=HOST/ran.js></script>",
    "<script type=module>RUN</script>",
    "<script>/*</script><script>RUN//*/</script>",
    "</title><script>RUN</script>",
    "</style><script>RUN</script>",
    "</pre></code></details><script>RUN</script>",
    "</textarea></select></noscript></template><script>RUN</script>",
    "--><script>RUN</script><!--",
    "]]><script>RUN</script>",
    "</td></tr></table></main></body></html><script>RUN</script>",
    "\";RUN;//", "';RUN;//", "</script><script>RUN</script>", '{"a": "</script><script>RUN</script>"}',
    '<img src=x onerror="RUN">',
    "<img src=x onerror=RUN>",
    "<img src='HOST/ran.png'>",
    "<img/src/onerror=RUN>",
    '<img srcset="HOST/ran.png 1x">',
    '<svg onload="RUN"></svg>',
    "</svg><svg/onload=RUN>",
    "<svg><script>RUN</script></svg>",
    '<svg><animate onbegin="RUN" attributeName=x dur=1s>',
    "<svg><image href=HOST/ran.svg /><use href=HOST/ran.svg#a /></svg>",
    '<svg><style><img src=x onerror="RUN"></style></svg>',
    '<math><mtext></form><form><mglyph><style></math><img src=x onerror="RUN">',
    '<body onload="RUN">',
    '<details open ontoggle="RUN">x</details>',
    '<input autofocus onfocus="RUN">',
    '" autofocus tabindex=1 onfocus="RUN" x="',
    "' autofocus tabindex=1 onfocus='RUN' x='",
    "` onmouseover=RUN x=`",
    '<video><source onerror="RUN"></video><audio src=x onerror="RUN">',
    '<marquee onstart="RUN">x</marquee>',
    '<p style="animation:a 1s" onanimationstart="RUN">x</p><style>@keyframes a{}</style>',
    "<a href=\"javascript:RUN\">x</a>",
    "<a href=\"java\tscript:RUN\" autofocus>x</a>",
    "<a href=\"data:text/html,<script>RUN</script>\">x</a>",
    '<iframe src="javascript:parent.RUN"></iframe>',
    "<iframe srcdoc=\"<script>parent.document.title='owned';fetch('HOST/ran')</script>\"></iframe>",
    "<iframe src=HOST/ran.html></iframe>",
    "<object data=HOST/ran.html></object><embed src=HOST/ran.html>",
    '<meta http-equiv="refresh" content="0;url=HOST/ran.html">',
    "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'unsafe-inline'\"><script>RUN</script>",
    '<base href="HOST/">',
    "<link rel=stylesheet href=HOST/ran.css><link rel=preload as=image href=HOST/ran.png>",
    "<link rel=icon href=HOST/ran.ico>",
    "<style>@import 'HOST/ran.css'; body { background: url(HOST/ran.png) }</style>",
    "x; background: url(HOST/ran.png)",
    '<p style="background: url(HOST/ran.png)">x</p>',
    '<form action=HOST/ran.html></form><script>document.forms[0].submit()</script>',
    "{{ ''.__class__ }}{% raw %}<script>RUN</script>{% endraw %}",
    "&lt;script&gt;RUN&lt;/script&gt;",
    "&#60;script&#62;RUN&#60;/script&#62;",
    "\\u003cscript\\u003eRUN\\u003c/script\\u003e",
    "%3Cscript%3ERUN%3C/script%3E",
    "+ADw-script+AD4-RUN+ADw-/script+AD4-",
    "<scr\0ipt>RUN</scr\0ipt>",
    "<script\u2028>RUN</script\u2029>",
    "\u202e<script>RUN</script>\u202c\u2067\u200f",
    "\uff1cscript\uff1eRUN\uff1c/script\uff1e",
    "<!--[if IE]><script>RUN</script><![endif]-->",
    "<template shadowrootmode=open><script>RUN</script></template>",
    "<xml:namespace prefix=t /><t:script>RUN</t:script><noscript><p title=\"</noscript><img src=x onerror=RUN>\">",
)  # fmt: skip


class Server(ThreadingHTTPServer):
    """Counts requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Counting)
        self.asked: list[str] = []


class _Counting(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Seen:
    """The result of opening a page in a browser."""

    dom: str
    """The document after a while."""
    urls: list[str]
    """Requests to our server."""

    @property
    def title(self) -> str:
        """The page's title."""
        found: list[str] = re.findall(r"<title>(.*?)</title>", self.dom, re.DOTALL)
        return found[0]

    @property
    def ran(self) -> bool:
        """Whether a payload did; what it does to the document can't be text in it."""
        return "data-ran" in re.findall(r"<html[^>]*>", self.dom)[0] or self.title == "owned"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def payloads(server: Server) -> list[str]:
    return [text.replace("RUN", RUN).replace("HOST", f"http://127.0.0.1:{server.server_port}") for text in PAYLOADS]


@pytest.fixture(scope="module")
def page(payloads: list[str]) -> str:
    return report(payloads, run="".join(payloads))


def browse(page: str, folder: Path, server: Server) -> Seen:
    server.asked.clear()
    dom = chromium(page, folder, "--dump-dom")
    return Seen(dom.decode(), list(server.asked))


def chromium(page: str, folder: Path, *options: str) -> bytes:
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--use-angle=swiftshader"]
    command += ["--enable-unsafe-swiftshader", "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}"]
    return subprocess.run([*command, *options, path.as_uri()], capture_output=True, check=True, timeout=120).stdout


def report(payloads: list[str], *, run: str) -> str:
    """A report with every payload in every place where a model, a dataset, a judge or a profile can put text."""
    every = "\n".join(payloads)
    texts: dict[str, Any] = {
        field.name: every
        for field in dataclasses.fields(EXAMPLE)
        if field.type in ("str", str) or field.name in ("reference", "category", "rejected_error")
        if field.name != "kind"
    }
    by_name = {payload: interval(0.5) for payload in payloads}
    judge = dataclasses.replace(HEALTH, unscored=dict.fromkeys(payloads, 1))
    row = dataclasses.replace(
        FIRST,
        by_category=by_name,
        by_difficulty=by_name,
        dropped=dict.fromkeys(payloads, 3),
        seconds=dict.fromkeys(payloads, 1.0),
        judge=judge,
    )
    fallen = {payload: interval(0.9) for payload in payloads}
    return render_report(
        Summary(run, 0, 0.95, [dataclasses.replace(SEED, by_category=fallen), row], some_kinds(by_name)),
        config={"name": every, every: payloads, "judge": {"kind": every}, "prompt": {"variant": every}},
        epochs={},
        margins={1: [1.0, 2.0, 3.0]},
        standings={1: [{"epoch": 1, "score": 0.5, "parse_rate": 1.0}]},
        examples=[dataclasses.replace(EXAMPLE, **texts)],
    )


def test_payloads_run_where_they_are_markup(tmp_path: Path, server: Server, payloads: list[str]):
    markup = "<br>".join(payloads[16:36])
    seen = browse(f"<!doctype html><html><head><title>x</title></head><body>{markup}</body></html>", tmp_path, server)
    assert seen.ran and "/ran" in seen.urls and "/ran.png" in seen.urls


def test_the_pages_policy_by_itself_stops_markup(tmp_path: Path, server: Server, page: str, payloads: list[str]):
    (policy,) = POLICY.findall(page)
    # No policy in a page can stop navigation: a link or a refresh navigates.
    head, markup = f"{policy}<title>x</title>", "<br>".join(payload for payload in payloads if "refresh" not in payload)
    seen = browse(f"<!doctype html><html><head>{head}</head><body>{markup}</body></html>", tmp_path, server)
    assert not seen.ran and seen.urls == []


@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its policy"])
def test_a_report_full_of_payloads_runs_nothing_and_asks_for_nothing(
    tmp_path: Path, server: Server, page: str, policy: bool
):
    seen = browse(page if policy else POLICY.sub("", page), tmp_path, server)
    assert not seen.ran and seen.urls == []
    assert seen.title.startswith("Run &lt;script&gt;document.title")
    elements = Reader(seen.dom).elements
    tags = {tag for tag, _ in elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form", "video", "template"})
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its policy"])
def test_a_comparison_full_of_payloads_runs_nothing_and_asks_for_nothing(
    tmp_path: Path, server: Server, payloads: list[str], policy: bool
):
    names = {payload: interval(0.1) for payload in payloads}
    leads = [Lead(t, interval(0.1), names, names, interval(0.6)) for t in (0, 1)]
    run = Summary("".join(payloads), 0, 0.95, [dataclasses.replace(SEED, by_category=names), FIRST])
    page = render_comparison(Comparison(run, run, "difference", leads, {}, some_kinds(names)))
    seen = browse(page if policy else POLICY.sub("", page), tmp_path, server)
    assert not seen.ran and seen.urls == []
    tags = {tag for tag, _ in Reader(seen.dom).elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form", "video", "template"})


def test_a_report_looks_the_same_under_its_policy_as_without(tmp_path: Path, server: Server):
    page = report(["a", "b"], run="x")
    pictures = {}
    for name, text in {
        "as it is": page,
        "without its policy": POLICY.sub("", page),
        "without its style": re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL),
    }.items():
        chromium(text, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1000,2600")
        pictures[name] = (tmp_path / "page.png").read_bytes()
    assert pictures["as it is"] == pictures["without its policy"] != pictures["without its style"]
