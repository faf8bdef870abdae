"""A model larger than memory through statistics, quantization and evaluation, and the peak of each."""
