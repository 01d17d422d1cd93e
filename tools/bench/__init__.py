"""Speed of `lm` on this machine, alone and beside others.

Read `__main__.py` (the program) and `measure.py` (who is compared with whom).
They start `workers`, which take turns; `table` sums their numbers up. A worker
is a program of its own that serves a `protocol.Workload`: `ours.py`, or a peer
(`*_peer.py`). Nothing here but `ours.py` and `flax_peer.py` imports jax.
"""
