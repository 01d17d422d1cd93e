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
    measures: whether to compile the step of the largest run, for its memory.
  """
  largest, sizes, opened = None, (0, 0), set()
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
    size = host_arrays.nbytes(run.program.like), run.data.example.tokens.size
    if largest is None or size > sizes:
      largest, sizes = c, size
  platform, bytes_ = jax.devices()[0].platform, None
  if measures and platform == 'cpu' and largest is not None:
    machine = topology.target(f'cpu:{len(jax.devices())}')
    report = cost.estimate(largest, machine)
    devices = len(machine.devices)
    bytes_ = _PROCESS_BYTES + devices * report['memory_bytes']['total']
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
