"""Tests proposals for a training recipe, so that a win is a win.

evidence.py has the statistics, procedure.py says what is run next and what is
decided, ledger.py stores what happened, board.py reads a board out of it,
proposals.py says what may change, and runs.py trains and evaluates.
"""
