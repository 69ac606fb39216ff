"""`make check-model`: does a model work here? Its properties, what a run would refuse or report, and samples.

The checks are those of preflight for M_0 of a profile, but all of them are made, while a run stops at the first
failure. The exception is a folder with files that could harm the machine: nothing of it is loaded. Without `weights` or
`probe`, only the weights' headers are read; a probe samples with a run's engine.
"""

import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from flows.preflight import check_templates, machine_misfits, model_checks
from prompts.native import OutputTokens
from prompts.thought import VARIANTS, ThoughtPrompt, load_prompt
from tpo.config.benchmarks import EvaluationConfig
from tpo.config.contexts import context_of
from tpo.config.data import ModelConfig, PromptConfig
from tpo.config.judges import VerifierJudge
from tpo.config.run import RunConfig
from tpo.config.training import TrainingConfig
from tpo.engines.training.check import check_training
from tpo.errors import InputError
from tpo.models.folder import check_model_folder
from tpo.models.model_config import check_use, context_tokens, quantization, read_model_config, text_part
from tpo.models.shape import ModelShape, find_model
from tpo.models.tensors import read_tensors
from tpo.planning.gpu_memory import training_memory
from tpo.planning.needs import GIB
from tpo.records import Message
from tpo.report.model_report import DEGREES, Collector, ModelReport, Probe, Trial, advice

if TYPE_CHECKING:
    from tpo.engines.inference.sampler import Output
    from tpo.models.chat import ChatEncoder

INSTRUCTIONS = (
    "Explain in two sentences why the sky is blue.",
    "A train travels 60 km in 45 minutes. How fast is it in km/h?",
    "Write a short poem about a lighthouse.",
    "List three things to check before buying a used bicycle.",
)
"""The probe's instructions."""
OUTPUTS = 2
"""Outputs per instruction and prompt."""
_GPU_GIB = (24, 48, 80)
_WORKERS = (1, 2, 4, 8, 16, 32, 64)


def check_model(model: str, config: RunConfig, *, profile: str, weights: bool, probe: bool) -> ModelReport:
    """Everything that a run with this config would report about a model, given as a folder or as `miniature`.

    Raises `InputError` only if the profile itself can't be used; what is wrong with the model is in the report.
    """
    config = _alone(config, model)
    folder = config.model.folder
    found = Collector()
    if not found.run(lambda: check_model_folder(folder)):
        return ModelReport(str(folder), profile, {}, found.refusals)
    usable = found.run(lambda: check_use(folder, read_model_config(folder), trained=True, device=config.engine.device))
    facts = _file_facts(folder)
    for check in model_checks(config):
        usable &= found.run(check)
    if not found.refusals:
        facts |= _abilities(folder, config)
    if not usable and (judging := _as_judge(folder, config)):
        facts["as judge"] = judging
    encoder = _load_encoder(folder, config, found)
    if encoder is not None:
        facts |= _template_facts(folder, encoder)
        facts["prompts"] = _working_variants(encoder)
        found.run(lambda: check_templates(config))
    found.run(lambda: machine_misfits(config))
    probes = list[Probe]()
    if encoder is not None and not found.refusals:
        if weights and found.run(lambda: facts.update(loaded=_load_weights(folder, encoder))) and "loaded" in facts:
            facts["weights"] = f"{facts['weights']}; {facts.pop('loaded')}"
        if probe and not found.refusals:
            probes = _probe(folder, config, encoder)
            found.notes += advice(probes, config.sample.max_new_tokens)
    elif weights or probe:
        found.notes.append("the weights were not loaded and nothing was sampled, since a run would refuse the model")
    return ModelReport(str(folder), profile, facts, found.refusals, found.notes, probes)


def _alone(config: RunConfig, model: str) -> RunConfig:
    """The profile with this model as M_0, and without other models, which aren't of interest here."""
    verifier = VerifierJudge()
    return config.model_copy(
        update={
            "model": ModelConfig(
                path=model, chat_template_options=config.model.chat_template_options, thinking=config.model.thinking
            ),
            "judge": verifier,
            "evaluation": EvaluationConfig(judge=verifier),
            "data": config.data.model_copy(update={"synthetic": None}),
        }
    )


def _file_facts(folder: Path) -> dict[str, str]:
    """Facts from config and headers."""
    config, tensors = read_model_config(folder), read_tensors(folder)
    text = text_part(config)
    names = ", ".join(config.get("architectures") or ["no architecture named"])
    count = sum(prod(tensor.shape) for tensor in tensors.values())
    kinds = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
    files = {tensor.file for tensor in tensors.values()}
    size = sum(path.stat().st_size for path in files) / GIB
    packed = f", quantized ({method})" if (method := quantization(config)) else ""
    tied = "tied to the embedding" if text.get("tie_word_embeddings", config.get("tie_word_embeddings")) else "its own"
    shape = (
        f"{text.get('num_hidden_layers', '?')} layers of {text.get('hidden_size', '?')}, "
        f"{text.get('num_attention_heads', '?')} heads, {text.get('num_key_value_heads') or 'as many'} of keys and "
        f"values, output matrix {tied}"
    )
    return {
        "family": f"{config['model_type']} ({names})",
        "parameters": f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.1f} M",
        "shape": shape,
        "context": f"{context_tokens(folder, config):,} tokens",
        "vocabulary": f"{text.get('vocab_size', '?'):,} rows",
        "weights": f"{kinds}{packed}, {size:,.2f} GiB in {len(files)} file{'s' if len(files) > 1 else ''}",
    }


def _as_judge(folder: Path, config: RunConfig) -> str:
    """What a model that can't be trained can still be used for; empty if for nothing."""
    try:
        check_use(folder, read_model_config(folder), trained=False, device=config.judge_engine.device)
    except InputError:
        return ""
    return 'as far as its files tell, vLLM runs it: it can be asked for verdicts (judge.kind = "pairwise")'


def _abilities(folder: Path, config: RunConfig) -> dict[str, str]:
    """How it can be split, packed and sharded."""
    facts = {"packing": _can(folder, config, packing=True), "fsdp": _can(folder, config, strategy="fsdp")}
    try:
        shape = find_model(folder).shape
    except InputError:
        return {"splits over": "not known before vLLM starts: its layers are not those that a plan knows", **facts}
    degrees = ", ".join(str(gpus) for gpus in DEGREES if shape.splits_over(gpus))
    return {"splits over": f"{degrees} GPUs an engine (engine.tensor_parallel)", **facts, **_gpus(shape, config)}


def _can(folder: Path, config: RunConfig, *, packing: bool = False, strategy: str = "ddp") -> str:
    train = config.train.model_copy(update={"packing": packing, "lora": None})
    try:
        check_training(folder, train, config.trainer.model_copy(update={"strategy": strategy}))
    except InputError as error:
        return f"no: {str(error).removeprefix(f'{folder}: ')}"
    return "yes (train.packing)" if packing else 'yes (trainer.strategy = "fsdp")'


def _gpus(shape: ModelShape, config: RunConfig) -> dict[str, str]:
    """On how many GPUs of common sizes all of it can be trained, by the plan's estimate."""

    def enough(gib: int) -> int | None:
        for workers in _WORKERS:
            spread = config.trainer.model_copy(update={"workers": workers, "strategy": "fsdp", "device": "gpu"})
            asked = config.model_copy(update={"trainer": spread})
            train: TrainingConfig = config.train.model_copy(update={"lora": None})
            if training_memory(asked, train, shape, outputs=2, gpu_bytes=gib * GIB).fits:
                return workers
        return None

    counts = [f"{enough(gib) or f'more than {_WORKERS[-1]}'} of {gib} GiB" for gib in _GPU_GIB]
    return {"training": f"in full, with this profile's lengths and batches, on GPUs: {', '.join(counts)} (estimated)"}


def _load_encoder(folder: Path, config: RunConfig, found: Collector) -> "ChatEncoder | None":
    from tpo.models.chat import writer_encoder

    loaded: list[ChatEncoder] = []
    found.run(lambda: loaded.append(writer_encoder(folder, config.model)))
    return loaded[0] if loaded else None


def _template_facts(folder: Path, encoder: "ChatEncoder") -> dict[str, str]:
    from tpo.models.template_check import stop_tokens

    thinking = encoder.thinking
    kinds = {
        "none": "does not think by itself",
        "hybrid": f"may open a thought itself ({thinking.opening})",
        "prefilled": f"the prompt opens a thought ({thinking.opening})",
        "channels": "thoughts have their own channel",
    }
    switch = f", switched off with {thinking.switch}" if thinking.switch else ""
    names = {index: str(token) for index, token in encoder.tokenizer.added_tokens_decoder.items()}
    stops = sorted(stop_tokens(encoder, folder)[0])
    return {
        "thinking": f"{thinking.kind}: {kinds[thinking.kind]}{switch}",
        "stops at": ", ".join(f"{names.get(token, '?')} ({token})" for token in stops) or "nothing",
    }


def _working_variants(encoder: "ChatEncoder") -> str:
    """The shipped thought prompts that the chat template accepts; `native` only if the template thinks."""
    accepted, refused = list[str](), list[str]()
    for variant, prompt in VARIANTS.items():
        if prompt.thinks_natively and encoder.thinking.kind == "none":
            continue
        try:
            prompt.encode(encoder, INSTRUCTIONS[0])
            accepted.append(variant)
        except InputError:
            refused.append(variant)
    others = f"; the chat template refuses {', '.join(refused)}" if refused else ""
    return f"{', '.join(accepted) or 'none'} (prompt.variant){others}"


def _load_weights(folder: Path, encoder: "ChatEncoder") -> str:
    """Loads the weights as the trainer does and reads one chat; raises `InputError` if a number isn't one."""
    import torch
    from transformers import AutoModelForCausalLM

    began = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise InputError(f"{folder} holds weights that are not numbers ({broken[0]}, …): fetch the weights again")
    reader = encoder.reading()
    chat = [Message(role="user", content="What is 2 + 3?"), Message(role="assistant", content="2 + 3 is 5.")]
    ids = torch.tensor([reader.encode(chat)])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    read = logprobs[:-1].gather(1, ids[0, 1:, None])
    if not read.isfinite().all():
        raise InputError(f"{folder} gives log-probs that are not numbers: the weights are broken, fetch them again")
    seconds = time.monotonic() - began
    return f"loaded in {seconds:.0f} s, {-read.mean().item():.1f} nats a token of a plain chat"


def _probe(folder: Path, config: RunConfig, encoder: "ChatEncoder") -> list[Probe]:
    """Samples a few instructions with every thought prompt that the template accepts, in an engine as a run starts
    it."""
    from flows.recipes import working
    from tasks.sample import rules_of
    from tpo.engines.engines import engines_of_run
    from tpo.engines.inference.sampler import Request, request_seed
    from tpo.storage.store import folder_artifact

    model, sample = folder_artifact(folder), config.sample
    forcing = sample.max_thought_tokens is not None or sample.calculator is not None
    prompts = [config.prompt, *(PromptConfig.model_validate({"variant": name}) for name in VARIANTS)]
    asked = {prompt.variant: prompt for prompt in reversed(prompts)}
    probes = []
    with working():
        pool = engines_of_run().sampler_pool(config.engine, config.cluster, context_of(config), forcing=forcing)

        def outputs(requests: Sequence[Request], prompt: ThoughtPrompt, n: int) -> "list[list[Output]]":
            rules = rules_of(sample, prompt)
            shards = pool.generate(model, [requests], sample, n=n, tries=1, accept=lambda *_: True, rules=rules)
            return next(found for _, found in shards)

        for i, (variant, settings) in enumerate(reversed(asked.items())):
            prompt = load_prompt(settings).for_model(encoder)
            try:
                ids = [prompt.encode(encoder, instruction) for instruction in INSTRUCTIONS]
            except InputError:
                continue  # The report says which prompts the template refuses.
            requests = [Request(tokens, request_seed(variant, j)) for j, tokens in enumerate(ids)]
            if not i:
                outputs(requests[:1], prompt, 1)  # Starts the engine, which isn't part of the timing.
            began = time.monotonic()
            groups = outputs(requests, prompt, OUTPUTS)
            seconds = time.monotonic() - began
            probes.append(Probe(variant, [_trial(o, prompt, encoder) for group in groups for o in group], seconds))
    return probes


def _trial(output: "Output", prompt: ThoughtPrompt, encoder: "ChatEncoder") -> Trial:
    tokens = OutputTokens(output.token_ids, encoder.decode)
    parsed = prompt.split(output.text, finished=output.finished, tokens=tokens)
    thought_tokens = len(encoder.ids(parsed.thought, as_text=True))
    error = None if parsed.error is None else str(parsed.error)
    return Trial(parsed.thought, parsed.response, error, thought_tokens, len(output.token_ids))
