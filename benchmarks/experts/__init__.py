"""What the statistics of experts are best collected over, on a small mixture grown from the bundled model."""
