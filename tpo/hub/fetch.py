"""Downloads of models and datasets from the hub, before anything else in a run starts.

Each address is resolved to a commit once: `hub.json` in the run folder maps the profile's addresses to commits, and the
run's own config (`config.json`) only has addresses with commits. So a resumed run uses the same files even if a branch
has moved; `say_moves` reports that.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.config.hub import Pin, addresses_in, parse_address, with_addresses
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.engines.cluster.processes import hub_environment, proxy_fault
from tpo.errors import InputError
from tpo.hub.record import Download, Fetched, is_complete
from tpo.storage.current import HUB, read_pins
from tpo.storage.mirror import reading


@dataclass(frozen=True)
class Found:
    """A config whose addresses have commits, with the downloads that it needs."""

    config: RunConfig
    """The config."""
    downloads: Sequence[Download] = ()
    """The downloads."""
    faults: Sequence[str] = ()
    """Why something can't be downloaded; the config then keeps its address without a commit."""
    unasked: str | None = None
    """What the hub could not be asked about, and why; a sentence."""


def fetched(config: RunConfig) -> RunConfig:
    """The config with a commit in each address on the hub, after downloading all of them.

    Raises `InputError` if something can't be downloaded. Makes no request if all addresses have commits, their own or
    the run's, and are on this machine.
    """
    pins = _pins(config)
    if not pins:
        return config
    wants = [pin.address for pin in pins.values() if not _is_here(pin)]
    got = {each.written: each for each in _ask(wants, whole=True)}
    found = {written: _pinned(pin, got) for written, pin in pins.items()}
    return _at(config, found)


def looked_up(config: RunConfig) -> Found:
    """The same for a plan: only downloads models' configs and tokenizers, and collects faults."""
    pins, keys = _pins(config), list(addresses_in(config))
    found = {written: pin for written, pin in pins.items() if _is_here(pin)}
    asked = dict[str, list[str]]()
    for written, pin in pins.items():
        if written not in found:
            asked.setdefault(str(parse_address(pin.address)), []).append(written)
    downloads, faults, unasked = list[Download](), list[str](), dict[str, str]()
    try:
        for event in _events({"wants": [*asked], "whole": False}) if asked else ():
            if "fault" in event:
                address, fault, why_unasked = event["fault"]
                if why_unasked is None:
                    faults.append(fault)
                else:
                    unasked[address] = why_unasked
                continue
            each = Fetched(**event["got"])
            found |= {written: _pinned(pins[written], {each.written: each}) for written in asked[each.written]}
            naming = [key for key, address in keys if address in asked[each.written]]
            downloads.append(Download(naming, each.address, each.lacking, each.size, each.free))
    except InputError as error:
        faults.append(str(error))
    return Found(_at(config, found), downloads, faults, _not_asked(unasked))


def _not_asked(why: Mapping[str, str]) -> str | None:
    """A sentence about addresses that the hub couldn't be asked about, with the first reason; None if there are none.

    A run is certain to ask again, and says what to do if that fails as well.
    """
    if not why:
        return None
    return (
        f"the hub could not be asked about {', '.join(why)} ({next(iter(why.values()))}): how much comes from it is "
        "not known here, and models are planned by their published shapes"
    )


def local_model(place: str) -> str:
    """Downloads a model if `place` is an address on the hub; returns its pinned address, or `place` unchanged."""
    if not place.startswith("hf:"):
        return place
    try:
        address = parse_address(place)
    except ValueError as error:
        raise InputError(f"MODEL is {place}: {error}") from None
    if address.kind != "model":
        raise InputError(
            f"MODEL is {place}, the address of a dataset, expected that of a model: hf://org/name@revision"
        )
    if address.pinned and is_complete(address):
        return place
    (got,) = _ask([place], whole=True)
    return got.address


def say_moves(config: RunConfig) -> None:
    """Reports branches that have moved since the run began; nothing if the hub doesn't answer."""
    pins = config.hub_pins
    kept = {written: pins[written] for written in pins if pins[written].kept and not parse_address(written).pinned}
    if not kept:
        return
    asked = [[written, pin.revision, parse_address(pin.address).revision] for written, pin in kept.items()]
    for event in _events({"kept": asked}):
        if moved := event.get("moved"):
            written, revision, commit = moved
            pin = kept[written]
            newer = parse_address(written).at(commit)
            say(
                f"{written}: {revision} has moved to commit {commit}; this run stays at "
                f"{parse_address(pin.address).revision}, with which it began ({HUB}). To use the new one, start a run "
                f"with another name (--run-name, RUN=), or write {newer}: the stages that depend on it are then redone"
            )


def _pins(config: RunConfig) -> dict[str, Pin]:
    """Every address of a config, with its commit if that is known."""
    written = list(dict.fromkeys(address for _, address in addresses_in(config)))
    if not written:
        return {}
    known = {**config.hub_pins}
    if any(not parse_address(address).pinned for address in written):
        with reading(config):
            known = read_pins(config.root) | known
    return {address: known.get(address, Pin(address, None)) for address in written}


def _is_here(pin: Pin) -> bool:
    address = parse_address(pin.address)
    return address.pinned and is_complete(address)


def _pinned(pin: Pin, got: Mapping[str, Fetched]) -> Pin:
    each = got.get(str(parse_address(pin.address)))
    return pin if each is None else Pin(each.address, pin.revision or each.revision, kept=pin.kept)


def _at(config: RunConfig, pins: Mapping[str, Pin]) -> RunConfig:
    found: RunConfig = with_addresses(config, {written: pin.address for written, pin in pins.items()})
    resolved = {pin.address for pin in config.hub_pins.values()}
    fresh = {written: pin for written, pin in pins.items() if written not in resolved}
    return found.with_hub_pins({**config.hub_pins, **fresh}) if fresh else found


def _ask(addresses: Iterable[str], *, whole: bool) -> list[Fetched]:
    """Downloads some addresses; raises `InputError` if one of them can't be downloaded."""
    wanted = list(dict.fromkeys(addresses))
    events = _events({"wants": wanted, "whole": whole}) if wanted else ()
    return [Fetched(**event["got"]) for event in events if "got" in event]


def _events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of the hub client; its progress bars go to our terminal."""
    if (fault := proxy_fault(os.environ)) is not None:
        raise InputError(f"{fault}, but the model hub is needed: name another proxy, or unset the variable")
    variables = hub_environment(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "tpo.hub.client"]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for line in process.stdout:
                event = json.loads(line)
                if "say" in event:
                    say(event["say"])
                elif "refused" in event:
                    raise InputError(event["refused"])
                else:
                    yield event
        except BaseException:
            process.terminate()
            raise
    if (status := process.returncode) != 0:
        raise InputError(f"the hub client exited with status {status}, see above: rerun; downloaded files are kept")
