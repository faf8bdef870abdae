"""What the audit says of a champion's chain that was tampered with: `python -m benchmarks.tamperings`.

One small chain is built by `plumbline run`, and its models are signed. Every tampering is done to a copy of it, the
audit is run on the copy without and with the public key, and its exit status is compared with the expected one. Beside
the tamperings stand the harmless changes (moved, cloned, pulled, re-saved, ...), which must not be called tampered.
"""
