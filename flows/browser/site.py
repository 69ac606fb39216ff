"""The files of the sample browser: what they are called, and what is in them.

`data/run.js` lists the rounds. Each round has a table (`table.py`) and one file of texts per shard of samples and of
judgments, which the page loads as it needs them. A name has the content's key in it, so that a file is made once and
never changes; only `run.js` does. Data are JSON, deflated, in base64, in a script: pages opened from disk may load
scripts but nothing else, and in this form no text of a model is ever code. It takes a third of the text's size.
"""

import base64
import hashlib
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows.browser.rounds import Round, Shard, StoredStage, find_rounds
from flows.browser.rows import (
    SampleRow,
    judgment_rows,
    output_keys,
    pair_rows,
    prompt_rows,
    sample_rows,
    score_rows,
    verdicts,
)
from flows.browser.table import RoundRows, detail_of_judgments, detail_of_samples, facts_of, round_table
from tpo.config.load import ignore, load_config
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.records import Prompt

FORMAT = 1
"""Version of the data; part of every key."""
ASSETS = Path(__file__).parent / "page"
"""The page without data."""
KEPT_SHARDS = 400
"""Shards whose rows stay in memory while the browser serves, so that a growing round isn't read again and again."""
KEPT_TABLES = 16
WRITTEN = "report/data"
"""Where the run leaves these files."""


@dataclass(frozen=True)
class RoundFiles:
    """A round and how to make its files."""

    round: Round
    """The round."""
    size: int
    """Bytes of the shards that its files are made from; the files have about half as many."""
    files: Mapping[str, Callable[[], bytes]]
    """What makes each file, by name."""
    entry: Mapping[str, Any]
    """Its line in `run.js`."""


class Site:
    """The browser of one run folder, for as long as it is served or written."""

    def __init__(self, root: Path, *, kept_shards: int = KEPT_SHARDS) -> None:
        """Raises `InputError` if the folder isn't a run's."""
        if not (root / "config.json").is_file():
            raise InputError(f"{root} is not the folder of a run, it has no config.json: give RUN=<name> or its folder")
        self.root = root
        self._kept_shards = kept_shards
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._tables: OrderedDict[str, bytes] = OrderedDict()
        self._rows: OrderedDict[str, list[SampleRow]] = OrderedDict()
        self._prompts: dict[str, dict[str, Prompt]] = {}
        self._made: dict[str, Callable[[], bytes]] = {}

    def config(self) -> RunConfig:
        """The run's config."""
        return load_config(self.root / "config.json", note=ignore)

    def rounds(self) -> list[RoundFiles]:
        """The rounds as they are on disk now."""
        config = self.config()
        rounds = find_rounds(self.root)
        direct = next((each for each in rounds if each.name == "iter_0/direct" and each.scores is not None), None)
        return [self._files(each, direct, config) for each in rounds]

    def run(self, rounds: Sequence[RoundFiles], left_out: int = 0) -> bytes:
        """`run.js` over some rounds; `left_out` are not among them."""
        config = self.config()
        values = {
            "format": FORMAT,
            "name": config.name,
            **facts_of(config),
            "left_out": left_out,
            "rounds": [each.entry for each in rounds],
        }
        return encoded("run", values)

    def now(self) -> bytes:
        """`run.js` as of now; afterwards `file` knows the files that it names."""
        rounds = self.rounds()
        with self._lock:
            self._made = {name: make for each in rounds for name, make in each.files.items()}
        return self.run(rounds)

    def file(self, name: str) -> bytes | None:
        """A data file by its name, or None if there is none now."""
        with self._lock:
            make = self._made.get(name)
        if make is None:
            return None
        written = self.root / WRITTEN / f"{name}.js"
        if written.is_file():  # Names have their content's key, so what a run has left of it is as good.
            return written.read_bytes()
        return self._table_once(name, make) if "/table-" in name else make()

    def _table_once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """A table, which takes seconds for a large round: made once, and waited for by all who ask."""
        with self._making:
            if (known := self._tables.get(name)) is None:
                self._tables[name] = known = make()
                while len(self._tables) > KEPT_TABLES:
                    self._tables.popitem(last=False)
            return known

    def _files(self, found: Round, direct: Round | None, config: RunConfig) -> RoundFiles:
        if direct is found or direct is None or direct.prompts != found.prompts:
            direct = None
        samples = [f"{found.name}/samples-{_short(s, found.prompts)}" for s in found.samples.shards]
        judged = found.judgments.shards if found.judgments else ()
        judgments = [f"{found.name}/judgments-{_short(shard)}" for shard in judged]
        table = f"{found.name}/table-{_table_key(found, direct, config)}"
        files: dict[str, Callable[[], bytes]] = {table: partial(self._table, table, found, direct, config)}
        for name, shard in zip(samples, found.samples.shards, strict=True):
            files[name] = partial(self._samples, name, shard, found)
        for name, shard in zip(judgments, judged, strict=True):
            files[name] = partial(_judgments, name, shard)
        size = sum(shard.bytes for shard in (*found.samples.shards, *judged))
        entry = {
            "name": found.name,
            "label": found.label,
            "kind": found.kind,
            "state": found.state,
            "table": table,
            "prompts": found.prompts.key[:16] if found.prompts else None,
            "samples": [name.rpartition("-")[2] for name in samples],
            "judgments": [name.rpartition("-")[2] for name in judgments],
            "rho": _rho(found),
        }
        return RoundFiles(found, size, files, entry)

    def _table(self, name: str, found: Round, direct: Round | None, config: RunConfig) -> bytes:
        split = found.pairs is not None and isinstance(config.recipe, SelfTrain)
        rows = RoundRows(
            shards=map(self._sample_rows, found.samples.shards),
            prompts=self._prompts_of(found),
            scores=score_rows(found.scores) if found.scores else None,
            verdicts=map(verdicts, found.judgments.shards) if found.judgments else (),
            pairs=list(pair_rows(found.pairs, with_keys=split)) if found.pairs else None,
            rho=_rho(found),
            outputs=_merged(map(output_keys, found.samples.shards)) if split else None,
            side=_side(found, config),
            direct=score_rows(direct.scores) if direct and direct.scores else None,
        )
        return encoded(name, round_table(rows, config))

    def _samples(self, name: str, shard: Shard, found: Round) -> bytes:
        return encoded(name, detail_of_samples(self._sample_rows(shard), self._prompts_of(found)))

    def _sample_rows(self, shard: Shard) -> list[SampleRow]:
        with self._lock:
            if (known := self._rows.get(shard.sha256)) is not None:
                self._rows.move_to_end(shard.sha256)
                return known
        rows = sample_rows(shard)
        with self._lock:
            self._rows[shard.sha256] = rows
            while len(self._rows) > self._kept_shards:
                self._rows.popitem(last=False)
        return rows

    def _prompts_of(self, found: Round) -> dict[str, Prompt]:
        if found.prompts is None:
            return {}
        if (known := self._prompts.get(found.prompts.key)) is None:
            self._prompts[found.prompts.key] = known = prompt_rows(found.prompts)
        return known


def _judgments(name: str, shard: Shard) -> bytes:
    return encoded(name, detail_of_judgments(judgment_rows(shard)))


def _merged(parts: Iterator[dict[bytes, int]]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for part in parts:
        found = part | found
    return found


def _rho(found: Round) -> float | None:
    return found.pairs.facts.get("rho") if found.pairs else None


def _side(found: Round, config: RunConfig) -> str | None:
    """What the outputs of one side of ThinkPO can be."""
    if not isinstance(config.recipe, ThinkPo) or found.pairs is None:
        return None
    return "chosen" if found.name.endswith("long") != config.recipe.swap else "rejected"


def _table_key(found: Round, direct: Round | None, config: RunConfig) -> str:
    parts = [found.samples, found.prompts, found.scores, found.judgments, found.pairs, direct and direct.scores]
    keys = [FORMAT, *(part.key if part else None for part in parts), facts_of(config), config.pair.model_dump()]
    return hashlib.sha256(json.dumps(keys, default=str).encode()).hexdigest()[:16]


def _short(shard: Shard, other: StoredStage | None = None) -> str:
    text = f"{FORMAT} {shard.sha256} {other.key if other else ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encoded(name: str, values: Mapping[str, Any]) -> bytes:
    """A data file: a script that hands over JSON, which neither quotes nor lone surrogates can break out of."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(text.encode("utf-8", "backslashreplace"), 6)).decode()
    return f'tpo.take({json.dumps(name)},"{packed}")\n'.encode()


def decoded(data: bytes) -> Any:
    """The values in a data file."""
    return json.loads(zlib.decompress(base64.b64decode(data.split(b'"')[-2])))
