"""What is in a model folder: files, tensors, config, tokenizer and chat template, checked before use."""
