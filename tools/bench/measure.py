"""Defines the measurements: the workers, their settings, and the results."""

from collections.abc import Sequence
import contextlib
import json
import sys
from typing import Any, NamedTuple

from tools.bench import peers, table, workers
from tools.bench import spec as specs


class Run(NamedTuple):
  """Settings that all measurements share.

  Attributes:
    rounds: how many blocks each worker runs.
    block_seconds: about how long a block takes.
    torch: the interpreter of the peers; None measures `lm` alone.
    accelerator: whether there is an accelerator.
    peak: bf16 FLOP/s of all devices by data sheet; None reports no MFU.
  """

  rounds: int
  block_seconds: float
  torch: str | None
  accelerator: bool
  peak: float | None


class Entry(NamedTuple):
  """A worker before its start.

  Attributes:
    who: its name in tables.
    command: starts it; the workload and the settings are appended.
    workload: name of the workload.
    settings: arguments of the workload.
  """

  who: str
  command: Sequence[str]
  workload: str
  settings: dict[str, Any]


def training(run: Run, spec: specs.Spec, precision: str) -> list[table.Row]:
  """Measures training steps of `lm` and of the peers."""
  settings = {'spec': spec, 'precision': precision}
  entries = [Entry('lm', workers.ours(), 'training', settings)]
  if run.torch:
    entries.append(
      Entry('torch.compile', peers.torch(run.torch), 'training', settings)
    )
    if precision == 'fp32':
      entries.append(Entry('Linen + optax', peers.flax(), 'training', settings))
  rows = compare(run, entries)
  reference = rows[0]
  for row in rows:
    row.update(spec=spec.name, precision=precision)
    if 'failed' in reference:
      row.setdefault('failed', 'nothing to compare it with')
    elif 'failed' not in row and (
      row['facts']['parameters'] != reference['facts']['parameters']
    ):
      row['failed'] = 'it has another number of parameters'
    if 'failed' in row:
      continue
    rate = row['best_tokens_per_second']
    flops = reference['facts']['flops_per_token']
    # Our process measured the rate of this machine, which counts for peers too.
    gemm = table.peak(reference['blocks'], precision)
    devices = reference['facts']['devices']
    mfu = None
    if run.peak and precision == 'bf16':
      mfu = table.share(rate, flops, run.peak)
    row.update(
      gemm_flops=gemm and gemm * devices,
      gemm_share=gemm and table.share(rate, flops, gemm * devices),
      mfu=mfu,
      first_step_seconds=row['facts']['first_step_seconds'],
      start_seconds=row['facts']['start_seconds'],
      memory_bytes=row['facts']['memory_bytes'],
    )
  return rows


def loader(run: Run) -> list[table.Row]:
  """Measures the loader at length 1024, with and without threads."""
  rows = compare(
    run,
    [
      Entry(
        f'lm, {threads} threads',
        workers.ours(),
        'loader',
        {
          'threads': threads,
          'tokens': 1 << 24,
          'batch': 16,
          'length': 1024,
          'steps': 256,
        },
      )
      for threads in (0, 2)
    ],
    versus=False,
  )
  for row in rows:
    row['setting'] = 'length 1024, batch 16'
  return rows


def generation(run: Run, batch: int) -> list[table.Row]:
  """Measures greedy generation on spec S, in fp32."""
  settings = {'spec': specs.SPECS['S'], 'batch': batch, 'new': 256}
  entries = [Entry('lm', workers.ours(), 'generation', settings)]
  if run.torch:
    entries.append(
      Entry('transformers', peers.torch(run.torch), 'generation', settings)
    )
  rows = compare(run, entries)
  for row in rows:
    row['setting'] = f'S, fp32, 256 new tokens, batch {batch}'
  return rows


def checkpoint(run: Run) -> list[table.Row]:
  """Measures saving and restoring a training state of 505 MB."""
  settings = {'spec': specs.CHECKPOINT}
  rows = compare(
    run, [Entry('lm', workers.ours(), 'checkpoint', settings)], versus=False
  )
  for row in rows:
    if 'failed' not in row:
      row['bytes'] = row['facts']['bytes']
      for name in ('blocking_seconds', 'save_seconds', 'restore_seconds'):
        row[name] = [x for block in row['blocks'] for x in block[name]]
  return rows


def compare(
  run: Run, entries: Sequence[Entry], *, versus: bool = True
) -> list[table.Row]:
  """Starts workers, lets them take turns, and sums up their answers.

  Args:
    run: the number of rounds and the length of blocks.
    entries: the workers; all others are compared with the first.
    versus: whether to compare at all.

  Returns:
    A row for each entry. A worker that failed has `failed`, a line, and no
    numbers.
  """
  rows: list[table.Row] = []
  alive: list[tuple[table.Row, workers.Worker]] = []
  # Each worker may use its share of a GPU's memory. It means nothing on a CPU.
  fraction = f'{0.9 / len(entries):.2f}'
  with contextlib.ExitStack() as stack:
    for entry in entries:
      rows.append({'who': entry.who})
      _say(f'{entry.workload}: {entry.who} {_short(entry.settings)}')
      command = [*entry.command, entry.workload, json.dumps(entry.settings)]
      try:
        worker = stack.enter_context(
          workers.Worker(
            entry.who, command, {'XLA_PYTHON_CLIENT_MEM_FRACTION': fraction}
          )
        )
      except workers.Failed as failed:
        rows[-1]['failed'] = str(failed)
        continue
      rows[-1]['facts'] = worker.facts
      alive.append((rows[-1], worker))
    try:
      answers = workers.take_turns(
        [worker for _, worker in alive], run.rounds, run.block_seconds
      )
    except workers.Failed as failed:
      for row, _ in alive:
        row['failed'] = str(failed)
      return rows
  for (row, worker), blocks in zip(alive, answers, strict=True):
    row.update(blocks=blocks, **table.rates(blocks, worker.facts['tokens']))
    if versus and row is not rows[0] and 'failed' not in rows[0]:
      row.update(table.paired(rows[0]['blocks'], blocks))
  return rows


def _short(settings: dict[str, Any]) -> str:
  words = {**settings}
  if 'spec' in words:
    words['spec'] = words['spec'].name
  return ' '.join(f'{key}={value}' for key, value in words.items())


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
