"""The sample browser as static files in the run's folder `report/`, which open from disk without a server.

Existing files are not rewritten. `run.js`, which names the others, is written last; files that it no longer names are
deleted after that. With more samples than `report.samples_mib`, the oldest rounds are left out, and the page says so.
"""

from collections.abc import Sequence
from pathlib import Path

from flows.browser.site import ASSETS, RoundFiles, Site
from tpo.config.run import RunConfig
from tpo.storage.disk import make_folder, remove, write_atomically

FOLDER = "report"
"""The folder of the page below the run folder."""
PAGE = f"{FOLDER}/index.html"


def assets() -> dict[str, bytes]:
    """The page's own files by their paths below `report/`."""
    names = {"index.html": "index.html", "vendor/LICENSE.tabulator": "assets/LICENSE.tabulator"}
    for path in ("browser.js", "browser.css", "vendor/tabulator.min.js", "vendor/tabulator_simple.min.css"):
        names[path] = f"assets/{Path(path).name}"
    return {name: (ASSETS / path).read_bytes() for path, name in names.items()}


def write_browser(config: RunConfig) -> None:
    """Writes the browser of a run as it is now; with a limit of 0, removes it."""
    folder = config.root / FOLDER
    if config.report.samples_mib == 0:
        if folder.exists():
            remove(folder)
        return
    site = Site(config.root, kept_shards=1)
    rounds = site.rounds()
    kept = newest(rounds, config.report.samples_mib * 2**20)
    files = {f"data/{name}.js": make for each in kept for name, make in each.files.items()}
    for name, data in assets().items():
        _put(folder / name, data)
    for name, make in files.items():
        if not (folder / name).exists():
            _put(folder / name, make())
    _put(folder / "data" / "run.js", site.run(kept, len(rounds) - len(kept)))
    for path in sorted((folder / "data").rglob("*.js")):
        if path.relative_to(folder).as_posix() not in {*files, "data/run.js"}:
            remove(path)


def newest(rounds: Sequence[RoundFiles], limit: int) -> list[RoundFiles]:
    """The rounds whose data fit into `limit` bytes, the latest iterations first; in the order given."""
    kept, left = set[str](), limit
    for each in sorted(rounds, key=lambda each: each.round.number, reverse=True):
        if each.size > left:
            break
        left -= each.size
        kept.add(each.round.name)
    return [each for each in rounds if each.round.name in kept]


def _put(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        make_folder(path.parent)
        write_atomically(path, data)
