"""Plans what a run needs and costs, without the machine that it is for.

  python -m lm.plan --config=configs/gpt/llama_1b.py --target=v5p:8x8x4
  python -m lm.plan --config=... --target=v5e:16x16 --search --tokens=2e10

Compiles the run's own training step for the target on this CPU, and reads off
the compiled program what it keeps, moves and sends. Nothing is allocated and
no data is read. Targets:

  v4 v5e v5p v6e tpu7x, as in v5p:8x8x4   a topology in chips; needs libtpu
  h100:N h200:N a100-40gb:N a100-80gb:N   N GPUs; needs jax's CUDA plugin
  l4:N t4:N rtx4090:N
  cpu:N                                   N simulated devices: fits or not

`--config.mesh.slices=2` plans for two such slices.

Seconds are bounds from data sheets (lm/planning/hardware.py). `roofline` is the
longest of products, memory and links, all at their peak and at once. `expected`
adds the time of links to the longer of the other two, at the share of its peak
that was measured on an H200, or at its peak. Memory is what the compiler says;
its parts `gradients` and `activations` are estimates, and `temp` is the rest.
"""

import argparse
from collections.abc import Mapping
from functools import partial
import json
import os
from pathlib import Path
import sys
from typing import Any

import jax

from lm import config
from lm.planning import cost, report, topology
from lm.planning import search as search_lib

_DOES_NOT_FIT = 3  # exit code


def plan(
  c: config.Config,
  target: str | topology.Target | None = None,
  *,
  vocab: int | None = None,
  tokens: float | None = None,
  prices: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Compiles a run's step for a machine and estimates what it needs.

  Args:
    c: a config with the keys of `configs/base.py`.
    target: such as 'v5p:8x8x4', see the file; None is `plan.target` of `c`.
    vocab: size of the vocabulary; None is `plan.vocab` of `c`, or else that of
      its tokenizer.
    tokens: how many to train on; None is what the config trains on.
    prices: `dollars_per_device_hour` by chip, and
      `storage_bytes_per_second_per_host`; None has no prices.

  Returns:
    The report, for `report.show` or JSON; see `cost.estimate`.

  Raises:
    config.ConfigError: the config cannot be used on this machine.
  """
  return cost.estimate(
    c,
    _machine(c, target),
    vocab=vocab or c.plan.vocab,
    tokens=tokens,
    prices=prices,
  )


def search(
  c: config.Config,
  target: str | topology.Target | None = None,
  *,
  vocab: int | None = None,
  **settings: Any,
) -> dict[str, Any]:
  """Searches for the quickest layout of a run that fits a machine.

  Args:
    c: see `plan`.
    target: see `plan`.
    vocab: see `plan`.
    **settings: `tries` and `say` of `lm.planning.search.search`; `tokens` and
      `prices` of `plan`.

  Returns:
    The report of the quickest, with `overrides`: flags that make the config so.

  Raises:
    config.ConfigError: no layout is possible, or the config cannot be used.
  """
  return search_lib.search(
    c, _machine(c, target), vocab=vocab or c.plan.vocab, **settings
  )


def _machine(
  c: config.Config, target: str | topology.Target | None
) -> topology.Target:
  if isinstance(target, topology.Target):
    return target
  return topology.target(target or c.plan.target, c.mesh.get('slices', 1))


def main(argv: list[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.plan',
    description=__doc__,
    epilog=config.exit_code_help('lm.plan'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('--config', required=True)
  add('--data', help='a folder of prepared data, for its tokenizer')
  add('--target', help='such as v5p:8x8x4, v5litepod-8 or h100:8')
  add('--vocab', type=int, help='size, where the tokenizer is not at hand')
  add('--tokens', type=float, help='of the whole run; default: the config')
  add('--prices', default='configs/prices.json', help='a file to edit')
  add('--search', action='store_true', help='try meshes, remat, microbatches')
  add('--tries', type=int, default=4, help='layouts that a search compiles')
  add('--json', action='store_true')
  args = parser.parse_args([x for x in argv if not x.startswith('--config.')])
  words = [x[9:].partition('=') for x in argv if x.startswith('--config.')]
  overrides = [(key, value) for key, _, value in words]
  c = config.load(args.config, overrides, args.data)
  name = args.target or c.plan.target
  if name.startswith('cpu:') and name[4:].isdigit():
    jax.config.update(
      'jax_num_cpu_devices', int(name[4:]) * c.mesh.get('slices', 1)
    )
  settings = {
    'vocab': args.vocab,
    'tokens': args.tokens,
    'prices': _prices(config.find(args.prices)),
  }
  if args.search:
    say = partial(print, file=sys.stderr if args.json else sys.stdout)
    found = search(c, name, tries=args.tries, say=say, **settings)
  else:
    found = plan(c, name, **settings)
  if args.json:
    config.print_json(found)
  else:
    print(report.show(found))
    if found.get('overrides'):
      print(f'use: {found["overrides"]}')
  return 0 if found['fits'] else _DOES_NOT_FIT


def _prices(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise config.ConfigError(f'{path}: not a price file: {error}') from error


if __name__ == '__main__':
  # The devices that are planned for are not here: compiling needs no others.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  jax.config.update('jax_platforms', 'cpu')
  config.main(main)
