"""The serving layer's settings: written by `tpo serve`, read in the server's process.

vLLM starts the layer by its import path (`--middleware`) and passes it only the app, so the settings travel as JSON in
an environment variable.
"""

from pathlib import Path

from pydantic import Field

from tpo.config.base import Section
from tpo.config.data import ModelConfig, PromptConfig

SETTINGS = "TPO_SERVE"
"""Environment variable that holds a `ServeConfig` in JSON."""
KEY = "VLLM_API_KEY"
"""Environment variable with the API key that clients must send, to the layer and to vLLM; if unset, none is needed."""


class ServeConfig(Section):
    """How one model is served."""

    model: Path
    """The model's folder, already validated."""
    name: str
    """The model's name for clients."""
    url: str
    """Where it is served, human-readable."""
    context_tokens: int = Field(ge=1)
    """Maximum length of prompt plus output."""
    prompt: PromptConfig
    """The thought prompt that the model was trained with."""
    max_attempts: int = Field(ge=1)
    """Times that a reply is sampled until it follows the format."""
    temperature: float = Field(ge=0)
    """Sampling temperature of requests that don't set one."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling mass of requests that don't set one."""
    forced: str = ""
    """Forcing rules for every output (`tpo.engines.inference.forcing.as_argument`); empty for none."""
    writer: ModelConfig = ModelConfig()
    """How the model's chats are rendered."""
    keep_native_thoughts: bool = False
    """Whether native thoughts are part of responses, as for a model that ThinkPO trained."""
    allow_thoughts: bool = False
    """Whether requests may ask for the thought."""
