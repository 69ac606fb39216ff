"""A model's weights in training: how they are loaded, sharded over workers, and written as one model.

Each epoch's model is one plain folder of safetensors, however it was trained: gathered from all workers, adapters
merged, in the requested precision.

`train.precision = "bfloat16"` is mixed precision: trained weights stay in float32, with Adam's moments, and are rounded
only for computing. In bfloat16 itself a weight has 8 bits: at DPO's learning rates nearly every step is smaller than
half of the last bit and would be rounded away. Frozen weights, those below an adapter, are bfloat16.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from tpo.config.training import TrainingConfig
from tpo.engines.training import checkpoints
from tpo.engines.training.distributed import as_first_worker, rank, world_size
from tpo.errors import StageError
from tpo.models.files import some_of
from tpo.storage.disk import remove

if TYPE_CHECKING:
    from peft import LoraConfig as PeftLora

_SHARD = "shard_{}.pt"


def load_for_training(folder: Path, config: TrainingConfig, *, spread: bool) -> Any:
    """The model in a folder, in the precision that its weights have in training.

    If it will be `spread`, only the first worker reads the weights, and the others get a model without (on torch's meta
    device): all workers of a machine share its memory, which would otherwise hold one copy for each.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    frozen = config.lora is not None
    dtype = getattr(torch, config.precision) if frozen else torch.float32
    if spread and rank() > 0:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder, local_files_only=True), dtype=dtype
            )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)


def adapter(config: TrainingConfig) -> "PeftLora | None":
    """peft's config, or None for full training."""
    from peft import LoraConfig as PeftLora

    if config.lora is None:
        return None
    targets = config.lora.target_modules
    return PeftLora(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def spread(model: nn.Module, *, device: str, precision: str) -> None:
    """Shards a model's weights over all workers, in place: FSDP2, one group per layer and one for the rest.

    The first worker distributes its weights a group at a time, so that no other ever holds more of the model than its
    shards and one whole group.

    The rest (embeddings, final norm, head) stays unsharded from the forward pass to the backward pass: TRL's fused head
    reads the head's weight without calling the head, and would otherwise find a shard.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device, (world_size(),))
    computed_in = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32)
    weights = _FirstWorkersWeights(model, torch.device(device))
    for layer in list(_layers(model)):
        weights.fill(layer)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    weights.fill(model)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


class _FirstWorkersWeights:
    """Broadcasts the first worker's weights to models of the same architecture without any."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._owners = {module: name for name, module in model.named_modules()}
        own = {name: (id(tensor), tensor.shape, tensor.dtype) for _, name, _, tensor in self._tensors(model)}
        self._told = as_first_worker(lambda: own)
        if own.keys() != self._told.keys():
            raise StageError(
                f"the model has other weights in its file than by its config ({some_of(own.keys() ^ self._told)}), so "
                "they cannot be spread over workers: set trainer.strategy to ddp"
            )

    def fill(self, module: nn.Module) -> None:
        """Replaces a module's tensors that aren't sharded yet by whole ones; a collective call of all workers."""
        filled: dict[int, Tensor] = {}  # Tied weights are one tensor, and must stay one.
        for held_in, name, key, tensor in list(self._tensors(module)):
            told_id = self._told[name][0]
            if told_id not in filled:
                filled[told_id] = self._received(name, tensor)
            held_in[key] = filled[told_id]

    def _received(self, name: str, tensor: Tensor) -> Tensor:
        _, shape, dtype = self._told[name]
        mine = tensor.detach() if rank() == 0 else torch.empty(shape, dtype=dtype, device=self._device)
        whole = mine.to(self._device).contiguous()
        if world_size() > 1:
            torch.distributed.broadcast(whole, src=0)
        return nn.Parameter(whole, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole

    def _tensors(self, module: nn.Module) -> Iterator[tuple[dict[str, Any], str, str, Tensor]]:
        """Every tensor that isn't spread yet: what holds it, its name in the model, its key there, and itself.

        Plain attributes too, in which some rotary embeddings keep frequencies.
        """
        for owner in module.modules():
            holders: list[dict[str, Any]] = [owner._parameters, owner._buffers, vars(owner)]
            for held_in in holders:
                for key, tensor in held_in.items():
                    if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                        yield held_in, f"{self._owners[owner]}.{key}", key, tensor


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that transformers never splits between devices: a decoder's layers."""
    names = set(getattr(_plain(model), "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            yield module


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, *, spread: bool) -> None:
    """Raises `StageError` unless the optimizer holds every trainable weight, and holds shards if the model is `spread`:
    otherwise weights would silently stay untrained."""
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    weights = trained(model)
    lost = [name for name, weight in weights if id(weight) not in held or isinstance(weight, DTensor) != spread]
    if lost or len(held) != len(weights):
        raise StageError(
            f"the optimizer holds {len(held)} of {len(weights)} trainable weights as they are trained, and would not "
            f"train {some_of(lost)}: this is a fault of ours, please report it"
        )


def write_model(model: nn.Module, tokenizer: Any, place: Path, precision: str) -> None:
    """Writes the model as one folder of safetensors, atomically; a collective call, the first worker writes."""
    plain = _plain(model)
    state = _whole_state(plain, getattr(torch, precision))
    if rank() > 0:
        return
    temporary = place.with_name(f".{place.name}.tmp")
    remove(temporary)
    with without_generation_config(plain):
        plain.save_pretrained(temporary, state_dict=state)
    _write_generation_config(plain, temporary)
    # save_pretrained recorded the training dtype; overwrite it with the dtype on disk.
    plain.config.dtype = precision
    plain.config.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    checkpoints.publish(temporary, place)


@contextmanager
def without_generation_config(model: Any) -> Iterator[None]:
    """Lets transformers save a model that has a generation config like many published ones, such as a temperature
    without `do_sample`, which it would refuse."""
    plain = _plain(model)
    own, plain.generation_config = plain.generation_config, GenerationConfig()
    try:
        yield
    finally:
        plain.generation_config = own


def _write_generation_config(model: Any, folder: Path) -> None:
    """A model's published generation config, byte for byte; a model without that file gets one from its config."""
    published = Path(model.name_or_path) / GENERATION_CONFIG_NAME
    if published.is_file():
        shutil.copyfile(published, folder / GENERATION_CONFIG_NAME)
    else:
        model.generation_config.to_json_file(folder / GENERATION_CONFIG_NAME)


def _plain(model: Any) -> Any:
    """The transformers model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _whole_state(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights under their own names, with adapters merged in float32; on the first worker only.

    Tensors are gathered one by one in the same order on all workers.
    """
    modules, whole = dict(model.named_modules()), {}
    by_id: dict[int, Tensor] = {}  # Tied weights are one tensor, and must stay one.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        owner = name.removesuffix(".base_layer.weight")
        if id(tensor) not in by_id:
            found = _gathered(tensor)
            if owner != name:
                found = found.float() + _change(modules[owner])
            by_id[id(tensor)] = found.to(dtype) if found.is_floating_point() else found
        whole[name.replace(".base_layer.", ".")] = by_id[id(tensor)]
    return whole if rank() == 0 else {}


def _change(layer: Any) -> Tensor:
    """An adapter's addition to a layer's weight, in float32."""
    (name,) = layer.active_adapters
    down, up = (_gathered(part[name].weight).float() for part in (layer.lora_A, layer.lora_B))
    change: Tensor = layer.scaling[name] * (up @ down)
    return change.T if layer.fan_in_fan_out else change


def _gathered(tensor: Tensor) -> Tensor:
    """A whole tensor in this machine's memory; empty if only the first worker needs it."""
    whole = tensor.detach()
    if isinstance(whole, DTensor):
        whole = whole.full_tensor()
    return whole.cpu() if rank() == 0 else whole.new_empty(whole.shape, device="meta")


def save_shard(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes this worker's shard of a model and of its optimizer into a checkpoint, as it is in memory."""
    state = {
        "model": {name: local(weight.detach()) for name, weight in trained(model)},
        "optimizer": [
            {key: local(value) for key, value in optimizer.state[weight].items()} for _, weight in trained(model)
        ],
    }
    torch.save(state, folder / _SHARD.format(rank()))


def load_shard_of_model(model: nn.Module, folder: Path) -> None:
    """Loads this worker's shard of the weights from `save_shard`; the number of workers must be the same."""
    saved = _read_shard(folder)["model"]
    with torch.no_grad():
        for name, weight in trained(model):
            local(weight.detach()).copy_(saved[name])


def load_shard_of_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Loads this worker's shard of the optimizer's state."""
    for (_, weight), saved in zip(trained(model), _read_shard(folder)["optimizer"], strict=True):
        optimizer.state[weight] = {key: as_spread(value, weight) for key, value in saved.items()}


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The weights that are trained, by name."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _read_shard(folder: Path) -> Any:
    return torch.load(folder / _SHARD.format(rank()), map_location="cpu", weights_only=True)


def local(value: Tensor) -> Tensor:
    """This worker's shard of a tensor, or all of one that isn't spread."""
    return value.to_local() if isinstance(value, DTensor) else value


def as_spread(value: Tensor, weight: nn.Parameter) -> Tensor:
    """A value of the optimizer's state for a weight: a moment is sharded like the weight, the number of steps isn't."""
    model = weight.data
    if not isinstance(model, DTensor) or value.dim() == 0:
        return value
    return DTensor.from_local(
        value.to(model.to_local().device),
        model.device_mesh,
        model.placements,
        run_check=False,
        shape=model.shape,
        stride=model.stride(),
    )
