"""How far a quantized checkpoint is from its base model, whoever quantized it. It needs no workspace."""
