"""Which weights of the architectures that people deploy a scheme reaches, on tiny models and on real configurations."""
