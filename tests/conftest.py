"""Shared by all tests: the tiers, the seed that draws from large matrices, and the S3 server.

Tests in `SLOW_PLACES` or marked slow are slow; a fast test that starts Ray or an engine fails. Stories and the longest
files come first, so that no process ends long after the others. Tests marked gpu are skipped if there is no NVIDIA GPU.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import sampling
from tests.faulty_proxy import FaultyProxy
from tests.no_engines import sitecustomize as guard
from tests.s3_server import KEYS, S3Server, s3_server
from tpo.engines.engines import open_engines

settings.register_profile("tpo", deadline=None, max_examples=100 if sampling.exhaustive() else 30)
settings.load_profile("tpo")

TESTS = Path(__file__).parent
SLOW_PLACES = (
    *("browser", "end_to_end", "faults", "operations", "deploy/test_slurm.py", "zoo/test_trial.py"),
    *(f"engines/training/test_{name}.py" for name in ("many_workers", "resume", "sft_trainer", "tracking")),
)
"""Folders and files whose tests are all slow."""
LONG = (
    *("end_to_end/test_iterate.py", "end_to_end/test_engines.py", "end_to_end/test_reward_judges.py"),
    *("zoo/test_trial.py", "faults/test_stages.py", "faults/test_bucket_runs.py", "end_to_end/test_serve.py"),
    *("engines/training/test_resume.py", "engines/training/test_many_workers.py"),
)
"""Files that take minutes, or start a group that does, apart from those with a story."""
SHARED: Mapping[str, str] = {
    **dict.fromkeys(("test_iterate.py", "test_closed.py", "test_judges.py", "test_real_text.py"), "one run"),
    **dict.fromkeys(("test_engines.py", "test_forcing.py", "test_seed_model.py", "test_small_judges.py"), "engines"),
    **dict.fromkeys(
        ("test_reward_judges.py", "test_synthetic.py", "test_actor_pool.py", "test_trainer_killed.py"), "actors"
    ),
}
"""Files whose tests inspect the same run, or start Ray in pytest's own process, by group.

A group runs in one process, which makes the run once and starts Ray once.
"""


def pytest_configure() -> None:
    """Fixes the seed for the workers and processes started later, even if a commit is made meanwhile."""
    os.environ[sampling.SEED_VARIABLE] = str(sampling.seed())


def pytest_sessionstart(session: pytest.Session) -> None:
    """Shows the seed, which pytest's own header would not do with -q; xdist's workers show nothing."""
    if (terminal := session.config.pluginmanager.get_plugin("terminalreporter")) is not None:
        terminal.write_line(sampling.header())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skips files without tests of the tier, since importing all of them takes longer than a hundred tests."""
    tier = config.option.markexpr
    if tier not in ("slow", "not slow") or collection_path.suffix != ".py":
        return None
    slow = is_slow_place(collection_path)
    if tier == "not slow":
        return True if slow else None
    return None if slow or names_slow_tests(collection_path) else True


def is_slow_place(path: Path) -> bool:
    """Whether all tests of a file are slow."""
    return any(path.relative_to(TESTS).is_relative_to(slow) for slow in SLOW_PLACES)


def names_slow_tests(path: Path) -> bool:
    """Whether a file outside the slow places marks tests as slow."""
    return "pytest.mark.slow" in path.read_text(encoding="utf-8")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow_place(item.path):
            item.add_marker("slow")
        elif item.get_closest_marker("slow") and not names_slow_tests(item.path):
            raise pytest.UsageError(f"{item.nodeid} is slow, and -m slow would not find it: write pytest.mark.slow")
        if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
    stories = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("story"))}
    if config.option.markexpr == "slow":
        drawn = sampling.drawn_stories(dict(mark.args for item in stories for mark in item.iter_markers("story")))
        left_out = {item for item, story in stories.items() if story not in drawn}
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]
    if config.option.markexpr in ("slow", "not slow"):
        left_out = {*items} - {*drawn_tests(items)}
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]
    first = {item.path for item in items if item in stories}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    long = [TESTS / place for place in LONG]
    items.sort(key=lambda item: (item.path not in first, item.path not in long, item.path not in slow))


def drawn_tests(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Those without the mark `drawn`, stories, and of each file and tier as many marked ones as the mark says."""
    drawn, groups = list[pytest.Item](), dict[tuple[str, bool], list[pytest.Item]]()
    for item in items:
        if item.get_closest_marker("drawn") is None or item.get_closest_marker("story") is not None:
            drawn.append(item)
        else:
            place = item.path.relative_to(TESTS).as_posix()
            groups.setdefault((place, item.get_closest_marker("slow") is not None), []).append(item)
    for (place, _), group in groups.items():
        mark = group[0].get_closest_marker("drawn")
        assert mark is not None
        drawn += sampling.sampled(f"tests of {place}", group, mark.args[0])
    return drawn


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Like `--dist loadfile`, but all files of a group in `SHARED` go to the same worker."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class LoadGroupsOfFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return SHARED.get(Path(file).name, file)

    return LoadGroupsOfFiles(config, log)


@pytest.fixture(scope="module", autouse=True)
def _ray_left_to_the_next_module_of_its_group(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gives each module its own engines in this process, and ends Ray before a module outside all groups."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and request.path.name not in SHARED:
        ray.shutdown()
    with open_engines():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keeps fast tests, their fixtures and the processes that they start from starting Ray or engines."""
    fast = item.get_closest_marker("slow") is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(guard.TIER, guard.FAST if fast else "slow")
        if fast:
            patch.setenv("PYTHONPATH", str(Path(guard.__file__).parent), prepend=os.pathsep)
        return (yield)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; its keys are in the environment of this process and of those that it starts."""
    os.environ.update(KEYS)
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    """A proxy in front of the server; passes everything through until a test gives it a script."""
    with FaultyProxy(s3.endpoint) as proxy:
        yield proxy
