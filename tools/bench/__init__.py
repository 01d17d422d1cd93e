"""Measures the speed of `lm` on this machine, alone and beside other libraries.

Begin with `__main__.py` (the program) and `measure.py` (what is compared with
what). They start `workers`, which take turns; `table` formats the results. Each
worker is a process that serves one `protocol.Workload`: from `ours.py`, or from
a peer (`*_peer.py`). Only `ours.py` and `flax_peer.py` import jax.
"""
