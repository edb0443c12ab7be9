"""`make bench`: pooledhttp and other clients against the bare socket, in one run on one machine.

No part of the wheel.  ``python -m benchmarks`` starts the servers (`servers`), runs each scenario (`scenarios`) in a
process of its own (`worker`) where all clients (`peers`) take turns round by round (`measure`), and writes what came of
it (`report`, `picture`).  docs/performance.md says how to read it.
"""
