"""Trains some steps of a run again, to find out why its numbers went wrong.

  python -m tools.replay runs/a --step=1200 [--data=FOLDER] [--json]

The run is trained twice from the checkpoint before a step, up to that step,
and what comes out is compared bit by bit with the checkpoint of the step. The
folder is only read. The last line says where to look:

  data              a replay gives the bits of the run: they follow from its
                    data and code
  hardware          two replays agree and the run differs: a device or memory
                    of the run computed wrongly, if the code is the same
  nondeterministic  two replays differ: this machine, or a program that was
                    compiled for it, does not compute the same twice

Bits depend on the devices and on jax. So the replay needs the kind and number
of devices that the run had, and its version of jax.
"""

import argparse
from collections.abc import Sequence
import contextlib
from pathlib import Path
from typing import Any

from lm import checkpoint, config
from lm.checkpoint import host_arrays, manifest
from lm.runtime import compilation_cache, devices, memory
from lm.training import setup

Hashes = dict[str, str]  # sha256 by the path of a leaf


def replay(
  workdir: Path, step: int | None = None, data: str | Path | None = None
) -> tuple[str, list[str]]:
  """Trains a run again from one checkpoint to another, and compares.

  Args:
    workdir: of the run.
    step: of the checkpoint to arrive at; None for the newest.
    data: a folder that replaces the paths of the run's config, see
      `config.data_folder`; None leaves them.

  Returns:
    'data', 'hardware' or 'nondeterministic', and the paths of the leaves that
    differ.

  Raises:
    config.ConfigError: there is no such checkpoint, none before it, or the
      machine is another one.
    errors.Failure: a checkpoint is damaged.
  """
  saved = manifest.steps(workdir)
  step = max(saved, default=0) if step is None else step
  before = [x for x in saved if x < step]
  if step not in saved or not before:
    raise config.ConfigError(
      f'--step={step}: needs checkpoints of this step and of one before; '
      f'{workdir} has {", ".join(map(str, saved)) or "none"}: name another'
    )
  start = before[-1]
  content = manifest.verify(workdir, step)
  _check(workdir, content['meta'], start, step)
  want = {path: leaf['sha256'] for path, leaf in content['leaves'].items()}
  run = _assemble(workdir, content['meta'], start, data)
  first, second = (_hashes(run, workdir, start, step) for _ in range(2))
  if lines := _different(first, second):
    return 'nondeterministic', lines
  if lines := _different(first, want):
    return 'hardware', lines
  return 'data', []


def _check(workdir: Path, meta: dict, start: int, step: int) -> None:
  """Checks that a replay on this machine would mean something.

  Raises:
    config.ConfigError: it would not.
  """
  there, here = meta.get('machine', 'an unknown machine'), devices.machine()
  if there != here:
    raise config.ConfigError(
      f'{workdir}: trained with {there}, and here is {here}: bits would differ '
      'for that alone; replay it on such a machine'
    )
  for back, fault in meta['dropped']['left_out']:
    if start < fault <= step:
      raise config.ConfigError(
        f'--step={step}: the run went back from step {fault} to {back}, after '
        f'the checkpoint of step {start}: give another step'
      )


def _assemble(
  workdir: Path, last: dict[str, Any], start: int, data: str | Path | None
) -> setup.Run:
  """Builds the run that went on from a checkpoint, without its evaluators.

  Args:
    workdir: of the run.
    last: meta of the checkpoint to arrive at: some keys may change on the way.
    start: the step to go on from.
    data: see `replay`.
  """
  meta = manifest.verify(workdir, start)['meta']
  c, named = config.read_untrusted(last['config']), {}
  config.complete(c)
  if data is not None:
    named = config.data_folder.paths(c, data)
  with c.unlocked():
    for key, value in {**named, 'eval_every': 0}.items():
      c.update_from_flattened_dict({key: value})
  parts = {key: c[key] for key in ('tokenizer', 'data')}
  for key, part in parts.items():
    if key == 'data' or checkpoint.tokenizer_path(c, workdir) is None:
      config.check_files(part, workdir, tuple(named), key=key)
  return setup.assemble_in(c, workdir, meta)


def _hashes(run: setup.Run, workdir: Path, start: int, step: int) -> Hashes:
  """Trains from one step to another; hashes what comes out."""
  program = run.program
  state, _ = checkpoint.restore(workdir, program.like, program.where, start)
  with contextlib.closing(run.batches(start, step)) as batches:
    for _, batch in batches:
      state, _ = run.update(state, batch)
  leaves = host_arrays.copy(state, {})
  return {path: leaf.record()['sha256'] for path, leaf in leaves.items()}


def _different(a: Hashes, b: Hashes) -> list[str]:
  return sorted(path for path in a.keys() | b.keys() if a[path] != b[path])


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.replay',
    description=__doc__,
    epilog=config.exit_code_help('tools.replay'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  config.trust_flag(parser)
  parser.add_argument('workdir', metavar='RUN', type=Path, help='its folder')
  parser.add_argument('--step', type=int, help='of a checkpoint; the newest')
  parser.add_argument('--data', help='a folder of prepared data')
  parser.add_argument('--json', action='store_true', help='for programs')
  flags = parser.parse_args(argv)
  memory.prepare()
  compilation_cache.prepare()
  devices.announce()
  with config.user_errors():
    cause, lines = replay(flags.workdir, flags.step, flags.data)
  if flags.json:
    config.print_json({'cause': cause, 'leaves': lines})
    return
  if lines:
    print(f'differ: {len(lines)} leaves, such as {", ".join(lines[:3])}')
  print(cause)


if __name__ == '__main__':
  config.main(main)
