"""Builds what the configs of a sweep describe, before any of them is trained.

  python -m lm.sweeping.check < configs.json > answer.json

Reads {"configs": {name: config as JSON}, "measures": whether to measure memory}
and answers with one line of JSON:

  error         [name, line] of the first config that cannot be used, or null
  platform      of the devices, such as "cpu"
  memory_bytes  that the largest run takes; null if it was not measured

lm.sweep starts it as a process of its own, because whoever builds a run opens
the devices, and keeps them until it ends. Data are opened once for all configs
that read the same.
"""

import json
import operator
import sys
from typing import Any

import jax

from lm import config
from lm.checkpoint import host_arrays
from lm.planning import cost, topology
from lm.runtime import compilation_cache, memory, process_group
from lm.training import setup

# Python, jax and XLA, before there is a model.
_PROCESS_BYTES = 800 << 20


def check(configs: dict[str, str], measures: bool) -> dict[str, Any]:
  """Builds each config, see the file.

  Args:
    configs: JSON by the name of a run.
    measures: whether to compile the steps of the largest runs, for their
      memory: of that with the largest state, and of that with the largest
      batch, whose activations may take more.
  """
  opened, sizes = set(), []
  for name, text in configs.items():
    try:
      c = setup.prepare(config.from_json(text), name, process_group.alone())
      source = config.to_json({'a': c.tokenizer, 'b': c.data, 'c': c.evals})
      run = setup.assemble(c, shapes_only=source in opened)
      opened.add(source)
    except Exception as error:
      line = config.error_line(error)
      if line is None:
        raise
      return {'error': [name, line[0]], 'platform': '', 'memory_bytes': None}
    state, tokens = run.program.like, run.data.example.tokens.size
    sizes.append((host_arrays.nbytes(state), tokens, name, c))
  platform, bytes_ = jax.devices()[0].platform, None
  if measures and platform == 'cpu' and sizes:
    machine = topology.target(f'cpu:{len(jax.devices())}')
    devices = len(machine.devices)
    largest = {
      max(sizes, key=order)[2]: max(sizes, key=order)[3]
      for order in (operator.itemgetter(0, 1), operator.itemgetter(1, 0))
    }
    reports = [cost.estimate(c, machine) for c in largest.values()]
    most = max(report['memory_bytes']['total'] for report in reports)
    bytes_ = _PROCESS_BYTES + devices * most
  return {'error': None, 'platform': platform, 'memory_bytes': bytes_}


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  del argv
  asked = json.load(sys.stdin)
  memory.prepare()
  compilation_cache.prepare()
  answer, sys.stdout = sys.stdout, sys.stderr  # functions of configs may print
  found = check(asked['configs'], asked['measures'])
  print(json.dumps(found), file=answer, flush=True)


if __name__ == '__main__':
  config.main(main)
