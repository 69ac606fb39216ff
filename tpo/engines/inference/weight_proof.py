"""Proof that an engine computes with the weights of a model folder, and not with stale or misread ones.

Two checks, since each catches what the other misses; an engine on GPUs has only the first:

- **Weights, exactly.** Every weight the engine computes with must occur in the folder's files, bit for bit in the
  engine's dtype. vLLM repacks matrices and discards the originals, so a matrix is read back through its own kernel:
  a one-hot input returns a column. Rows are then looked up among the files' rows, which needs no knowledge of how vLLM
  names or fuses them. A stale layer is found however little training has changed it.
- **Log-probs, up to rounding.** On a probe they must equal transformers' float32 ones. The tolerance is measured on the
  model itself: transformers also computes the probe in the engine's dtype. This catches weights in the wrong place, and
  a model that vLLM computes differently.

An engine in FP8 (`fp8_per_channel`) is compared with what it has to make of the file: the rows' 8-bit codes and scales
are looked up among those of the file's rows, bit for bit, and transformers computes the probe in FP8, too
(`tpo.engines.inference.fp8`). Weights that round to the same codes and scales can't be told apart, nor do they compute
anything else. Layers of experts are quantized in a form that isn't read back.

Accepted costs: only 64 columns of each matrix are compared; the second check keeps a copy of the model in the engine's
dtype (one layer at a time in float32) in memory while it runs.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WORKER_EXTENSION = "tpo.engines.inference.weight_proof.WorkerProof"
"""What vLLM adds to its workers, by name."""
PROBE_TOKENS = 64
"""Tokens of the probe, fewer if the engine's context is shorter."""
COLUMNS = 64
"""Columns of each matrix that are compared."""
ROUNDING_FACTOR = 3.0
"""Maximum error of an engine, as a multiple of transformers' own rounding error: on real models the two differ by less
than a factor of 1.5, and wrong weights are off by nats."""
MIN_TOLERANCE = 1e-3
"""Difference in nats (root mean square) that always passes: two float32 implementations agree to 1e-5."""


@dataclass(frozen=True)
class Difference:
    """How far an engine's log-probs are from transformers' float32 ones, in nats (root mean square over a probe)."""

    found: float
    """The engine's."""
    rounding: float
    """transformers' own, when it computes in the engine's dtype."""

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it."""
        return self.found <= MIN_TOLERANCE + ROUNDING_FACTOR * self.rounding


@dataclass(frozen=True)
class _Weight:
    """A weight that an engine computes with."""

    name: str
    """Human-readable."""
    values: "torch.Tensor"
    """A vector, or the compared columns of each row of a matrix."""
    row_length: int
    """Columns of the matrix; 0 for a vector."""
    is_fp8: bool = False
    """Whether `values` are the codes of FP8 with their row's scale as the last column, in float32."""


@dataclass(frozen=True)
class _StoredWeights:
    """A folder's tensors as far as a comparison needs them."""

    rows: Mapping[int, "torch.Tensor"]
    """By row length: sorted hashes of the rows of all matrices, their compared columns in the engine's dtype."""
    fp8_rows: Mapping[int, "torch.Tensor"]
    """The same of the rows in FP8, each with its scale; empty if no weight of the engine is."""
    vectors: Sequence["torch.Tensor"]
    """Norms and biases."""
    dtype: "torch.dtype"
    """The engine's. A few vectors are in float32 nevertheless: as in the file, or rounded to this first."""

    def hold(self, weight: _Weight) -> bool:
        """Whether the weight consists of stored ones: rows in any order, or concatenated vectors."""
        import torch

        if weight.row_length:
            wanted = _hashes(weight.values)
            wanted = wanted[wanted != 0]  # Rows of zeros pad the vocabulary.
            known = (self.fp8_rows if weight.is_fp8 else self.rows).get(weight.row_length)
            if known is None or not wanted.numel():
                return not wanted.numel()
            places = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
            return torch.equal(known[places], wanted)
        exact = [vector.to(weight.values.dtype) for vector in self.vectors]
        rounded = [vector.to(self.dtype).to(weight.values.dtype) for vector in self.vectors]
        return _is_joined(weight.values, exact) or _is_joined(weight.values, rounded)


class WorkerProof:
    """Methods that vLLM adds to each of its workers, which may be processes of their own (`WORKER_EXTENSION`)."""

    _stored: "tuple[str, Future[_StoredWeights]] | None" = None
    """What `read_ahead` reads, and from where."""

    def read_ahead(self, folder: str, dtype: str) -> None:
        """Begins to read a folder for `foreign_weights`, in a thread, while vLLM loads the same weights."""
        import torch

        thread, model = ThreadPoolExecutor(1), self.get_model()  # type: ignore[attr-defined]
        self._stored = folder, thread.submit(stored_for, model, Path(folder), getattr(torch, dtype), _part())
        thread.shutdown(wait=False)

    def foreign_weights(self, folder: str, dtype: str) -> list[str]:
        """`foreign_weights` of this worker's part of the model."""
        import torch

        ahead, self._stored = self._stored, None
        stored = ahead[1].result() if ahead is not None and ahead[0] == folder else None
        model = self.get_model()  # type: ignore[attr-defined]
        return sorted(foreign_weights(model, Path(folder), getattr(torch, dtype), _part(), stored))

    def refresh_tied_heads(self) -> None:
        """`refresh_tied_heads` of this worker's model."""
        refresh_tied_heads(self.get_model())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Part:
    """Which part of a model a worker has, if it is split over several (tensor parallelism)."""

    rank: int = 0
    """The worker's number."""
    of: int = 1
    """Number of workers."""

    def of_columns(self, tensor: "torch.Tensor") -> "torch.Tensor | None":
        """This part of a tensor cut along its last dimension; None if it isn't, or can't be."""
        length = tensor.shape[-1]
        if self.of == 1 or length % self.of:
            return None
        size = length // self.of
        return tensor[..., self.rank * size : (self.rank + 1) * size]


WHOLE = Part()
"""All of a model."""


def _part() -> Part:
    """This worker's part."""
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    return Part(get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())


def refresh_tied_heads(model: Any) -> None:
    """Repack the output heads of a vLLM model for the CPU.

    A reload repacks the layers it loads; a head tied to the embedding isn't loaded and keeps the old copy.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and not module.weight.is_meta:
            module.quant_method.process_weights_after_loading(module)


def foreign_weights(
    model: Any, folder: Path, dtype: "torch.dtype", part: Part = WHOLE, stored: _StoredWeights | None = None
) -> frozenset[str]:
    """Names of the vLLM model's weights, or of this `part` of it, that don't occur in the folder's files, which have
    been read already if they are `stored`.

    If the engine has these weights, that's only those that vLLM transforms while loading: they differ right after a
    start, too.
    """
    import torch

    with torch.inference_mode():
        stored = stored or stored_for(model, folder, dtype, part)
        return frozenset(weight.name for weight in _weights(model, dtype) if not stored.hold(weight))


def stored_for(model: Any, folder: Path, dtype: "torch.dtype", part: Part) -> _StoredWeights:
    """The folder's weights, as a vLLM model of the same architecture is compared with them."""
    import torch

    with torch.inference_mode():
        return _read_folder(folder, dtype, part, in_fp8=any(map(_is_fp8, model.modules())))


@dataclass(frozen=True)
class Expected:
    """The log-probs of a probe's tokens by transformers, all but the first token's."""

    exact: "torch.Tensor"
    """In float32."""
    rounded: "torch.Tensor"
    """In the engine's dtype."""

    def difference(self, found: Sequence[float]) -> Difference:
        """How far an engine's log-probs are from them."""
        import torch

        return Difference(_rms(torch.tensor(found) - self.exact), _rms(self.rounded - self.exact))


def expected(probe: Sequence[int], folder: Path, dtype: "torch.dtype", *, in_fp8: bool = False) -> Expected:
    """What an engine with the model in `folder` has to find for a probe.

    For an engine in FP8, transformers' linear layers compute in FP8 both times; only the rest is in float32 or in
    `dtype`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tpo.engines.inference import fp8

    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    with torch.inference_mode(), fp8.linears_of(peer) if in_fp8 else contextlib.nullcontext():
        rounded = exact = _log_probs(peer, probe)
        if dtype != torch.float32:
            with _in_float32(peer):
                exact = _log_probs(peer, probe)
    return Expected(exact, rounded)


def probe_tokens(vocabulary: int, context_tokens: int) -> list[int]:
    """Tokens spread over the vocabulary; log-probs of unlikely tokens depend on all weights."""
    return [(7 + 31 * i) % vocabulary for i in range(min(PROBE_TOKENS, context_tokens - 1))]


def _log_probs(peer: Any, probe: Sequence[int]) -> "torch.Tensor":
    import torch

    logits: torch.Tensor = peer(torch.tensor([probe])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(probe[1:])[:, None])[:, 0]


def _rms(values: "torch.Tensor") -> float:
    found = float(values.double().square().mean().sqrt())
    return found if math.isfinite(found) else math.inf


@contextlib.contextmanager
def _in_float32(peer: Any) -> Iterator[None]:
    """Makes each module compute in float32: its weights are converted for its own call and back, losslessly."""
    import torch

    def convert(dtype: torch.dtype) -> Any:
        def hook(module: torch.nn.Module, *_: Any) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)

        return hook

    handles = []
    for module in peer.modules():
        kept = next(iter(module.parameters(recurse=False)), None)
        if kept is not None and kept.dtype.is_floating_point and kept.dtype != torch.float32:
            handles.append(module.register_forward_pre_hook(convert(torch.float32)))
            handles.append(module.register_forward_hook(convert(kept.dtype)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weights(model: Any, dtype: "torch.dtype") -> Iterator[_Weight]:
    """All weights of a vLLM model as it computes with them."""
    for path, module in model.named_modules():
        if (kernel := getattr(module, "cpu_linear", None)) is not None:
            yield _read_back(f"{path} (packed)", kernel, module, dtype)
        if is_fp8 := _is_fp8(module):
            yield _read_fp8(f"{path}.weight", module)
        for name, parameter in module.named_parameters(path, recurse=False):
            if is_fp8 and name.endswith((".weight", ".weight_scale")):
                continue
            if parameter.ndim < 2 and parameter.numel():
                yield _Weight(name, parameter.data.cpu(), 0)
            elif parameter.numel():
                yield _Weight(name, _columns(parameter.data).cpu(), parameter.shape[-1])


def _read_back(name: str, kernel: Any, module: Any, dtype: "torch.dtype") -> _Weight:
    """A packed matrix, as its kernel multiplies with it."""
    import torch

    lengths = (getattr(module, name, None) for name in ("input_size_per_partition", "input_size", "embedding_dim"))
    length = next(filter(None, lengths))  # A router of experts isn't sharded, and only has input_size.
    compared = _compared(length)
    ones = torch.zeros(len(compared), length, dtype=dtype)
    ones[torch.arange(len(compared)), compared] = 1
    return _Weight(name, kernel(ones, module.weight, None).T.contiguous(), length)


def _is_fp8(module: Any) -> bool:
    """Whether a layer has an FP8 weight in the form that `fp8_per_channel` leaves it in: transposed, with a scale for
    each of its rows. Kernels for other GPUs repack it."""
    import torch

    weight, scales = getattr(module, "weight", None), getattr(module, "weight_scale", None)
    if not isinstance(weight, torch.Tensor) or not isinstance(scales, torch.Tensor):
        return False
    return weight.dtype == torch.float8_e4m3fn and weight.ndim == 2 and scales.shape == (weight.shape[1], 1)


def _read_fp8(name: str, module: Any) -> _Weight:
    """The codes of an FP8 matrix with the scale of each row."""
    import torch

    weight, scales = module.weight.data.T, module.weight_scale.data
    codes = _columns(weight.view(torch.uint8)).cpu().view(weight.dtype).float()  # 8-bit floats can't be indexed
    return _Weight(name, torch.cat([codes, scales.cpu()], 1), weight.shape[-1], is_fp8=True)


def _columns(matrix: "torch.Tensor") -> "torch.Tensor":
    """The compared columns of a matrix, or of several stacked."""
    length = matrix.shape[-1]
    return matrix.reshape(-1, length)[:, _compared(length)]


def _compared(length: int) -> "torch.Tensor":
    import torch

    return torch.randperm(length, generator=torch.Generator().manual_seed(length))[:COLUMNS]


def _hashes(rows: "torch.Tensor") -> "torch.Tensor":
    """A 64-bit number for each row, equal for equal values; 0 for a row of zeros."""
    import torch

    if rows.element_size() == 1:
        rows = rows.float()  # exact, and 8-bit floats can't be added to
    bits = {2: torch.int16, 4: torch.int32}[rows.element_size()]
    random = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=random) | 1
    # Adding 0 turns -0, which a kernel can't return, into 0.
    return ((rows + 0.0).contiguous().view(bits).long() * factors).sum(1)


def _is_joined(joined: "torch.Tensor", vectors: Sequence["torch.Tensor"]) -> bool:
    """Whether a vector is a concatenation of some of `vectors`."""
    import torch

    ends = {0}
    for start in range(len(joined)):
        if start in ends:
            rest = joined[start:]
            ends |= {start + len(v) for v in vectors if len(v) <= len(rest) and torch.equal(v, rest[: len(v)])}
    return len(joined) in ends


def _read_folder(folder: Path, dtype: "torch.dtype", part: Part, *, in_fp8: bool) -> _StoredWeights:
    import torch
    from safetensors import safe_open

    from tpo.engines.inference import fp8

    rows: dict[int, list[torch.Tensor]] = {}
    fp8_rows: dict[int, list[torch.Tensor]] = {}
    vectors: list[torch.Tensor] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                if not tensor.dtype.is_floating_point:
                    continue
                if tensor.ndim < 2:
                    vectors += [held.reshape(-1) for held in _parts(tensor, part)]
                    continue
                for held in _parts(tensor, part):
                    columns = _columns(held).to(dtype)
                    rows.setdefault(held.shape[-1], []).append(_hashes(columns))
                    if in_fp8:
                        # The scale is that of the whole row on every GPU that has a part of it.
                        scales = fp8.row_scales(tensor.to(dtype)).reshape(-1, 1)
                        coded = torch.cat([fp8.codes(columns, scales).float(), scales], 1)
                        fp8_rows.setdefault(held.shape[-1], []).append(_hashes(coded))
    return _StoredWeights(_sorted(rows), _sorted(fp8_rows), vectors, dtype)


def _parts(tensor: "torch.Tensor", part: Part) -> "list[torch.Tensor]":
    """A tensor and, if a worker may have a part of its columns, that part."""
    return [held for held in (tensor, part.of_columns(tensor) if tensor.ndim else None) if held is not None]


def _sorted(hashes: "Mapping[int, Sequence[torch.Tensor]]") -> "dict[int, torch.Tensor]":
    import torch

    return {length: torch.cat([*each]).sort().values for length, each in hashes.items()}
