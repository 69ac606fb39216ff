"""ArmoRM (2406.12845) as our own module: a Llama that reads a chat, 19 rewards, and a gate that weights them.

The published model comes with code, which we reject and which doesn't run with current transformers; only its tensors
are used. The Llama may compute in bfloat16; the small heads always compute in float32, as published.

Importing this file imports torch; `judges.armorm` imports it only when a model is really loaded.
"""

import copy
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tpo.models.armorm_format import ARCHITECTURE, check_armorm_weights

_BACKBONE = "model."


@dataclass(frozen=True)
class ArmoRMOutput:
    """ArmoRM's values for B chats, all in float32. N is the number of objectives, 19 as published."""

    rewards: Tensor
    """One reward per objective, in the unit it was trained on (0 to 1 and beyond); [B, N]."""
    gating: Tensor
    """How much each objective matters to the prompt, not negative; [B, N]."""
    coefficients: Tensor
    """The rewards' weights, with the length correction included; [B, N], some below 0."""
    score: Tensor
    """The sum of rewards times coefficients; [B]."""


class ArmoRM(nn.Module):
    """Backbone, rewards and gate, under the names of the published tensors.

    Args:
        config: A Llama's, with `num_objectives`, `gating_temperature`, `gating_hidden_dim` and `gating_n_hidden`.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.reward_transform_matrix: Tensor
        self.register_buffer("reward_transform_matrix", torch.eye(config.num_objectives))
        self.gating = _Gating(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, gate_index: Tensor) -> ArmoRMOutput:
        """Reads B padded chats of L tokens.

        Args:
            input_ids: Tokens; [B, L].
            attention_mask: 1 for tokens, 0 for padding; [B, L].
            gate_index: Where the assistant's header begins in each row; [B].
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        length = input_ids.shape[1]
        last = length - 1 - attention_mask.flip(1).to(torch.int32).argmax(1)
        row = torch.arange(len(input_ids), device=hidden.device)
        return self.heads(hidden[row, last], hidden[row, gate_index])

    def heads(self, last: Tensor, gate: Tensor) -> ArmoRMOutput:
        """The heads only, from the hidden states of the last token and at the assistant's header; both [B, hidden]."""
        rewards = self.regression_layer(last.float())
        gating = self.gating(gate.float())
        coefficients = gating @ self.reward_transform_matrix.T
        return ArmoRMOutput(rewards, gating, coefficients, (coefficients * rewards).sum(-1))


class _Gating(nn.Module):
    """Layers with ReLU between them, then a scaled softmax."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.temperature = config.gating_temperature
        self.logit_scale = nn.Parameter(torch.ones(1))
        widths = [config.hidden_size, *[config.gating_hidden_dim] * config.gating_n_hidden, config.num_objectives]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, hidden: Tensor) -> Tensor:
        """Gating of B prompts; [B, hidden] to [B, N]."""
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        weights: Tensor = (self.layers[-1](hidden) / self.temperature).softmax(-1)
        return self.logit_scale * weights


def save_armorm(model: ArmoRM, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` as published: the Llama in bfloat16, the heads in float32.

    The caller saves the tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [ARCHITECTURE], "bfloat16"
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    tensors = {
        name: tensor.detach().cpu().to(_dtype_of(name, torch.bfloat16)).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_armorm(folder: Path, dtype: str = "bfloat16") -> ArmoRM:
    """The model in `folder`, ready for inference, its Llama in `dtype`.

    Raises `InputError` naming missing tensors, unexpected ones, and those of another shape, before any is read.
    """
    files = check_armorm_weights(folder)
    config = LlamaConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        model = ArmoRM(config)
    state: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt") as file:
            names = [name for name, place in files.items() if place == path]
            state |= {name: file.get_tensor(name).to(_dtype_of(name, getattr(torch, dtype))) for name in names}
    model.load_state_dict(state, strict=True, assign=True)
    # The only part of a Llama that isn't in a file; on the meta device it has no values.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model.eval().requires_grad_(False)


def _dtype_of(name: str, backbone: torch.dtype) -> torch.dtype:
    return backbone if name.startswith(_BACKBONE) else torch.float32
