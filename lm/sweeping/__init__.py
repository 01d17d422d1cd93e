"""Sweeps: many runs of one config, from their points to their table.

Read points.py (the algebra that a config's `sweep()` uses), trials.py (points
that are checked and named), folder.py (what is on disk), schedule.py (the loop
that runs them), halving.py (which of them go on) and results.py (the table), in
this order. The program is lm/sweep.py.
"""
