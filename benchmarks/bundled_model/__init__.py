"""How the bundled base model was made, and what it is worth."""
