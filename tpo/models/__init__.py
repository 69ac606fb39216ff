"""Model folders: files, tensors, config, tokenizer and chat template, checked before use."""
