"""What the serving layer is told: written by `python -m flows serve`, read in the server's own process.

The two are apart because vLLM starts the layer by its name (`--middleware`) and hands it nothing but the app; so it
reads its settings from one environment variable, in JSON.
"""

from pathlib import Path

from pydantic import Field

from tpo.config.base import Section
from tpo.config.data import PromptConfig

SETTINGS = "TPO_SERVE"
"""Environment variable that holds a `ServeConfig` in JSON."""
KEY = "VLLM_API_KEY"
"""Environment variable that holds the key that clients must show, for the layer and for vLLM; unset, none is asked."""


class ServeConfig(Section):
    """How one model is served."""

    model: Path
    """The model's folder, checked."""
    name: str
    """The model's name for clients."""
    url: str
    """Where it is served, for people."""
    context_tokens: int = Field(ge=1)
    """Longest prompt and output together."""
    prompt: PromptConfig
    """The thought prompt that the model was trained with."""
    max_attempts: int = Field(ge=1)
    """Times that a reply is sampled until it keeps the format."""
    temperature: float = Field(ge=0)
    """Sampling temperature of requests that name none."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling mass of requests that name none."""
    forced: str = ""
    """Rules for every output (`tpo.engines.inference.forcing.as_argument`); empty for none."""
    native_thoughts: bool = False
    """Whether the model was trained to think in its own way (ThinkPO), so that such a thought breaks no format."""
    allow_thoughts: bool = False
    """Whether a request that asks for the thought gets it."""
