"""The worker's side: a program that takes steps when asked, and else is idle.

Its arguments are the name of a workload and its settings as JSON. It builds the
workload, takes a first step, and then answers each line of its input with a
line of JSON:

  (start)  facts: tokens, first_step_seconds, versions ...
  step K   {'seconds': [K numbers]}, and further lists that the workload has
  peak     {'fp32': FLOP/s, 'bf16': FLOP/s}, of matrix products
  (end)    it exits

Standard library only: peers run where `lm` is not installed.
"""

from collections.abc import Callable, Mapping
import json
import os
import sys
import time
from typing import Any, NamedTuple


class Workload(NamedTuple):
  """Work that can be timed.

  Attributes:
    step: does the work once, to its end; returns further numbers to list.
    tokens: how many tokens a step processes.
    facts: a JSON object that describes the worker.
    peak: measures the FLOP/s of matrix products, by precision.
    memory: returns the most bytes that a device has held; None where a device
      does not count them.
    close: removes files and other things outside of this process.
  """

  step: Callable[[], Mapping[str, float]]
  tokens: int
  facts: dict[str, Any]
  peak: Callable[[], Mapping[str, float]] | None = None
  memory: Callable[[], int | None] = lambda: None
  close: Callable[[], None] = lambda: None


def timed(workload: Workload, steps: int) -> dict[str, list[float]]:
  """Takes K steps; returns their seconds and their own numbers, as lists."""
  lists: dict[str, list[float]] = {'seconds': []}
  for _ in range(steps):
    start = time.perf_counter()
    numbers = workload.step()
    lists['seconds'].append(time.perf_counter() - start)
    for name, value in numbers.items():
      lists.setdefault(name, []).append(value)
  return lists


def serve(makers: Mapping[str, Callable[..., Workload]]) -> None:
  """Runs a worker until its input ends."""
  # Compilers and libraries print to stdout, which is the line to the parent: so
  # the answers get a copy of it, and everything else goes to stderr.
  with os.fdopen(os.dup(1), 'w') as out:
    os.dup2(2, 1)

    def answer(value: Any) -> None:
      print(json.dumps(value), file=out, flush=True)

    start = time.perf_counter()
    workload = makers[sys.argv[1]](**json.loads(sys.argv[2]))
    try:
      workload.step()
      answer(
        {
          'tokens': workload.tokens,
          'first_step_seconds': time.perf_counter() - start,
          'memory_bytes': workload.memory(),
          **workload.facts,
        }
      )
      for line in sys.stdin:
        command, *arguments = line.split()
        if command == 'step':
          answer(timed(workload, int(arguments[0])))
        elif command == 'peak':
          answer(workload.peak() if workload.peak else {})
    finally:
      workload.close()
