"""A real vLLM engine with the V2 model runner on a CPU, with its kernels in Triton's interpreter.

`python -m tests.end_to_end.v2_engine MODEL` reads a JSON list of requests (`prompt`, `rules`) from standard input and
prints the list of their outputs, as token ids, decoded greedily. The engine has few KV blocks and chunked prefill, and
requests join late, so that they are preempted and change rows.
"""

import json
import os
import sys
from types import SimpleNamespace

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


class _Driver:
    """A CPU driver for Triton, which has none: without a driver vLLM considers Triton missing."""

    @staticmethod
    def is_active() -> bool:
        return True


def main(model: str) -> None:
    """Prints the outputs of the requests on standard input."""
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
