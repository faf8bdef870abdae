"""A model larger than memory through statistics, quantization and evaluation, each in a process of its own whose peak is measured."""
