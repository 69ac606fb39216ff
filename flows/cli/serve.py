"""Serves a model: checks everything that can be checked, and becomes vLLM's server with our layer in front.

The process is replaced by the server, so stopping this command stops the server. Nothing of vLLM is imported here: it
is started by its command line.
"""

import errno
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from prompts.thought import load_prompt
from tasks.sample import rules_of
from tpo.config.recipes import ThinkPo
from tpo.config.run import RunConfig
from tpo.config.serve import KEY, SETTINGS, ServeConfig
from tpo.console import say
from tpo.engines.cluster.processes import engine_environment
from tpo.engines.inference.forcing import as_argument
from tpo.engines.inference.sampler import engine_settings
from tpo.errors import InputError, shortened
from tpo.models.chat import writer_encoder
from tpo.models.folder import check_writer
from tpo.models.weights_check import check_weights

SERVER = "vllm.entrypoints.launchers.api_server.entry"
LAYER = "deploy.serving.layer.ResponsesOnly"
KEEP_ALIVE_SECONDS = 75
"""Seconds that an idle connection is kept. vLLM's default of 5 s is also how long OpenAI's client keeps one, so
requests would meet connections that are being closed."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Place:
    """The address and the access of a server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    key_variable: str | None = None
    """Environment variable with the key that clients must send; None for none."""


def serve(
    model: Path, config: RunConfig, place: Place, *, name: str, context_tokens: int | None, allow_thoughts: bool
) -> NoReturn:
    """Becomes the server of `model`, prompted, sampled and computed as `config` says.

    Raises `InputError` if the folder isn't loadable, the templates don't work, the context is longer than the model's,
    the key is missing, or the port is taken.
    """
    longest = check_writer(model, device=config.engine.device)
    prompt = load_prompt(config.prompt).for_model(writer_encoder(model, config.model))
    rules = rules_of(config.sample, prompt)
    if context_tokens is not None and context_tokens > longest:
        raise InputError(f"--context is {context_tokens}, more than the {longest} tokens of {model}: lower it")
    _check_port(place)
    key = _key(place)
    for line in check_weights(model):
        say(line)
    settings = ServeConfig(
        model=model.resolve(),
        name=name,
        url=f"http://{place.host}:{place.port}",
        context_tokens=context_tokens or longest,
        prompt=config.prompt,
        max_attempts=config.sample.evaluation_max_attempts,
        temperature=config.sample.temperature,
        top_p=config.sample.top_p,
        forced=as_argument(rules) if rules else "",
        writer=config.model,
        keep_native_thoughts=isinstance(config.recipe, ThinkPo),
        allow_thoughts=allow_thoughts,
    )
    command = _command(settings, config, place)
    ours = {SETTINGS: settings.model_dump_json(), KEY: key, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_SECONDS)}
    os.execve(command[0], command, {**os.environ, **engine_environment(config.engine), **ours})


def _command(settings: ServeConfig, config: RunConfig, place: Place) -> list[str]:
    engine = engine_settings(config.engine, settings.context_tokens, forcing=bool(settings.forced))
    del engine["disable_log_stats"]  # /metrics is made of them.
    del engine["distributed_executor_backend"]  # There is no Ray here.
    flags: Mapping[str, object] = {
        **engine,
        "model": settings.model,
        "served_model_name": settings.name,
        "host": place.host,
        "port": place.port,
        "middleware": LAYER,
        "disable_fastapi_docs": True,
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
    }
    command = [sys.executable, "-m", SERVER]
    for flag, value in flags.items():
        option = flag.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            command += [f"--{option}", *value]
        elif value is not None:
            command += [f"--{option}", str(value)]
    return command


def _key(place: Place) -> str:
    """The key that clients must send, empty for none; required on an address that others reach."""
    if place.key_variable is None:
        if place.host not in _LOOPBACK:
            raise InputError(f"--host {place.host} can be reached by others: name a key's variable with --api-key")
        return ""
    if not (key := os.environ.get(place.key_variable)):
        raise InputError(f"--api-key names {place.key_variable}, which is not set: put the key into that variable")
    return key


def _check_port(place: Place) -> None:
    if not place.host.strip():
        raise InputError("--host is empty: name an address of this machine, as 127.0.0.1")
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((place.host, place.port))
    except (OSError, UnicodeError) as error:
        found = error.strerror if isinstance(error, OSError) else "it isn't a host name"
        remedy = {
            errno.EADDRINUSE: "choose another --port, or end what listens there",
            errno.EACCES: "choose a --port from 1024 on",
        }
        raise InputError(
            f"{shortened(place.host)} port {place.port} cannot be listened on ({found}): "
            + remedy.get((isinstance(error, OSError) and error.errno) or 0, "set --host to an address of this machine")
        ) from error
