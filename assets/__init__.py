"""The domain: one package per asset, in the order the data flows."""
