"""GGUF to safetensors: `python -m tpo.models.gguf <file> <folder>`.

transformers reads and dequantizes GGUF, but refuses to save such a model, so the weights are copied to a new model of
the same config. The result is a plain float32 model folder; precision lost in quantization stays lost. Needs the `gguf`
package, which `tpo.models.published` downloads with the file.
"""

import sys
from pathlib import Path


def convert(file: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as a model folder in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = read.config
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    plain = AutoConfig.for_model(**config.to_dict())
    model = AutoModelForCausalLM.from_config(plain, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.model_max_length = plain.max_position_embeddings
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
