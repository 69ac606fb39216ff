"""Top-p on CPUs without a sort of the vocabulary, which takes two fifths of an engine's time there.

vLLM masks the least probable tokens whose probabilities add up to at most 1 - p, and sorts each row of logits for that.
`mask_top_p` finds the same tokens from the largest few of a row; where those aren't enough, or where rounding or equal
logits could decide, as often in bfloat16, it lets vLLM sort that row.

Requests carry p as an extra argument instead of their `top_p`. `TopP` is loaded by name into vLLM's V1 model runner,
which calls it right before its own top-p. With Triton, as on GPUs, vLLM has a kernel for it, and may run V2.
"""

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from tpo.engines.inference.sampler import TOP_P

LARGEST = (64, 1024)
"""How many of a row's largest logits are looked at, first and then."""
MARGIN = 1e-5
"""How near to 1 - p a sum of probabilities is left to vLLM's own rounding, which is less than a tenth of this."""


class TopP(V1LogitsProcessor):
    """Masks the tokens outside of the nucleus, after the temperature, in rows whose request asks for it."""

    def __init__(self, vllm_config: object, device: torch.device, is_pin_memory: bool) -> None:
        self._asked: dict[int, float] = {}
        """Top-p by row."""

    def is_argmax_invariant(self) -> bool:
        """True: the most probable token is never masked."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the requests as they move between rows."""
        process_dict_updates(self._asked, batch_update, lambda params, *_: asked_top_p(params))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits (rows, vocabulary), with -inf outside of each row's nucleus."""
        if not self._asked:
            return logits
        rows, top_p = torch.tensor([*self._asked]), torch.tensor([*self._asked.values()])
        if len(rows) < len(logits):
            logits[rows] = mask_top_p(logits[rows], top_p)
            return logits
        return mask_top_p(logits, top_p[rows.argsort()])


def asked_top_p(params: SamplingParams) -> float | None:
    """The top-p that a request carries."""
    return (params.extra_args or {}).get(TOP_P)


def mask_top_p(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The logits with -inf where vLLM's `apply_top_k_top_p_pytorch` puts it, in place.

    Args:
        logits: Logits in float32 (rows, vocabulary), each row with one above -inf.
        top_p: Top-p of each row (rows,), in (0, 1].

    Returns:
        The same tensor.
    """
    rest = torch.arange(len(logits))
    normalizers = logits.logsumexp(-1, keepdim=True)
    for count in LARGEST:
        if count >= logits.shape[1] or not len(rest):
            break
        rest = rest[~_masked_by_largest(logits, top_p, normalizers, rest, count)]
    if len(rest):
        logits[rest] = apply_top_k_top_p_pytorch(logits[rest], None, top_p[rest], allow_cpu_sync=True)
    return logits


def _masked_by_largest(
    logits: torch.Tensor, top_p: torch.Tensor, normalizers: torch.Tensor, rows: torch.Tensor, count: int
) -> torch.Tensor:
    """Masks those of some `rows` whose nucleus is among the `count` largest for certain; returns which these are."""
    everything = len(rows) == len(logits)
    chosen = logits if everything else logits[rows]
    largest = chosen.topk(count).values
    mass = (largest - normalizers[rows]).double().exp()
    # A token is masked if it and all that are less probable add up to at most 1 - p, in float32 as vLLM computes it.
    below = 1 - (mass.cumsum(-1) - mass)
    limit = (1 - top_p[rows]).double()[:, None]
    inside = below > limit
    inside[:, 0] = True
    clear = ((below - limit).abs() > MARGIN)[:, 1:].all(-1) & ~inside[:, -1]
    threshold = largest.gather(1, inside.sum(-1, keepdim=True) - 1)
    # Which of equal logits are outside depends on how vLLM sorts.
    clear &= ((largest == threshold) & ~inside).sum(-1) == 0
    outside = (chosen < threshold) & clear[:, None]
    if everything:
        logits.masked_fill_(outside, -torch.inf)
    else:
        logits[rows] = chosen.masked_fill_(outside, -torch.inf)
    return clear
