"""A real vLLM engine with the V2 model runner on a CPU, where Triton's interpreter computes its kernels.

`python -m tests.end_to_end.v2_engine MODEL` reads a JSON list of asks (`prompt`, `rules`) from its standard input and
prints one of what each request wrote, as token ids, decoded greedily. The engine has few blocks, reads prompts in
chunks and has requests join late, so that they are preempted and change their rows.
"""

import json
import os
import sys
from types import SimpleNamespace

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


class _Driver:
    """Triton's own list has no CPU, and vLLM takes Triton for absent then."""

    @staticmethod
    def is_active() -> bool:
        return True


def main(model: str) -> None:
    """Writes what the asks ask for."""
    import triton.backends

    triton.backends.backends["cpu"] = SimpleNamespace(driver=_Driver, compiler=None)
    from vllm import LLM, SamplingParams

    from tpo.config.resources import EngineConfig
    from tpo.engines.inference.forcing import ARGUMENT
    from tpo.engines.inference.sampler import engine_settings

    settings = engine_settings(EngineConfig(max_num_seqs=8), 352, forcing=True)
    settings |= {"enable_chunked_prefill": True, "max_num_batched_tokens": 48, "num_gpu_blocks_override": 16}
    engine = LLM(model=model, **settings)
    assert engine.llm_engine.vllm_config.use_v2_model_runner
    asks = json.load(sys.stdin)
    params = [
        SamplingParams(temperature=0, max_tokens=64, extra_args={ARGUMENT: ask["rules"]} if ask["rules"] else None)
        for ask in asks
    ]
    found = engine.generate([{"prompt_token_ids": ask["prompt"]} for ask in asks], params, use_tqdm=False)
    print(json.dumps([list(result.outputs[0].token_ids) for result in found]))


if __name__ == "__main__":
    main(sys.argv[1])
