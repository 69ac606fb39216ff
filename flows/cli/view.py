"""`tpo view`: serves the sample browser of a run on this machine until it is stopped."""

import contextlib
from pathlib import Path
from threading import Thread

from flows.browser.server import PORT, SampleServer
from flows.browser.site import Site
from flows.recipes import resolve_config
from tpo.console import say
from tpo.errors import StoreError, TpoError
from tpo.storage.disk import bring_here
from tpo.storage.mirror import reading


def view(run: str | None, profile: str | None, port: int = PORT) -> None:
    """Serves the run called `run`, or at that path; with a profile, the one that it names, which may be in a bucket.

    Raises `InputError` if there is no such run, or if the port is taken.
    """
    site = Site(_root(run, profile))
    with SampleServer(site, port) as server:
        Thread(target=_warm_up, args=[site], daemon=True).start()
        print(f"samples of {site.config().name}: {server.url} (^C ends it)", flush=True)
        server.serve_forever()


def _warm_up(site: Site) -> None:
    """Makes the first table while the page is being opened."""
    with contextlib.suppress(TpoError, OSError):
        rounds = site.rounds()
        site.now()
        if rounds:
            site.file(rounds[0].entry["table"])


def _root(run: str | None, profile: str | None) -> Path:
    if profile is None:
        return Path(run) if run and "/" in run else Path("runs") / (run or "laptop")
    config = resolve_config(profile, run_name=run, judge=None, seed=None, overrides=[])
    try:
        with reading(config):
            for each in Site(config.root).rounds():
                round_ = each.round
                stages = (round_.samples, round_.prompts, round_.scores, round_.judgments, round_.pairs)
                for path in (shard.path for stage in stages if stage for shard in stage.shards):
                    bring_here(path)
    except StoreError as error:
        if not (config.root / "config.json").is_file():
            raise
        say(f"{error}; showing this machine's copy, {config.root}")
    return config.root
