"""Describes a proposal, or evaluates its runs, inside of the proposal's code.

Started by its path in a process of its own, whose `lm` is that of a proposal:
it reads a request as JSON from standard input and prints the answer, as JSON,
on a last line that begins with a mark. Not a program for people.

Only this process opens the sealed split, when a run is evaluated for a
decision. It writes nothing: of what an evaluator finds, one number is answered.
"""

from collections.abc import Mapping
import json
import math
from pathlib import Path
import sys
from typing import Any

from lm import checkpoint, config
from lm.evals import evaluators, fingerprint, results
from lm.planning import cost, flops
from lm.runtime import compilation_cache
from lm.training import setup

MARK = 'answer: '


def describe(request: Mapping[str, Any]) -> dict[str, Any]:
  """Fills a config, and counts what its run would cost.

  Args:
    request: `config`, the name of its file; `overrides`, pairs of a key and a
      text; `data`, see `lm.train`.
  """
  c = setup.fill(
    config.load(request['config'], request['overrides'], request['data'])
  )
  # Products inside of a kernel cannot be counted: those of the plain form are.
  run = setup.assemble(cost.with_kernel(c, 'einsum'), shapes_only=True)
  work = flops.products(run.program.update, run.program.like, run.data.example)
  return {
    'config': config.to_json(c),
    'tokens': c.steps * run.data.step_tokens,
    'flops': c.steps * work,
  }


def evaluate(request: Mapping[str, Any]) -> dict[str, Any]:
  """Evaluates the last checkpoint of a run.

  Args:
    request: `workdir`; `evals`, specs by name as the JSON of a config; `metric`
      of theirs.

  Returns:
    By name of the evaluator: `value`, None if it is not finite, and `task`, the
    hash of what was evaluated.
  """
  folder = Path(request['workdir'])
  specs = config.plain(config.from_json(request['evals']))['evals']
  steps = checkpoint.steps(folder)
  found = evaluators.Evaluators(specs)
  params = found.load(folder, steps[-1])
  answer = {}
  for name, spec in specs.items():
    result = found.evaluate(name, params)
    if result is None:
      raise found.refused[name]
    metrics = results.metrics(result)
    if request['metric'] not in metrics:
      raise config.ConfigError(
        f'--metric={request["metric"]}: the evaluator has none of that name: '
        f'take one of {", ".join(sorted(metrics))}'
      )
    value = float(metrics[request['metric']])
    answer[name] = {
      'value': value if math.isfinite(value) else None,
      'task': fingerprint.task(spec),
    }
  return {'step': steps[-1], 'evals': answer}


def task(request: Mapping[str, Any]) -> dict[str, Any]:
  """Hashes what evaluators read, by their names."""
  specs = config.plain(config.from_json(request['evals']))['evals']
  return {name: fingerprint.task(spec) for name, spec in specs.items()}


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  (name,) = argv
  compilation_cache.prepare()
  request = json.load(sys.stdin)
  answer = {'describe': describe, 'evaluate': evaluate, 'task': task}[name](
    request
  )
  print(f'{MARK}{json.dumps(answer)}', flush=True)


if __name__ == '__main__':
  config.main(main)
