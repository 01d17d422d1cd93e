"""The search for the layout of a run that is quickest on a machine."""

from collections.abc import Iterator, Mapping
import itertools
from typing import Any

from lm import config, tree
from lm.checkpoint import host_arrays
from lm.planning import cost, flops, topology


def candidates(
  c: config.Config, machine: Target, vocab: int | None
) -> list[dict[str, Any]]:
  """Lists layouts that might fit, the quickest by a rough estimate first.

  Meshes over data, fsdp and tensor (and expert, where there are experts; what
  else the config sets stays), times remat, times microbatches. The estimate
  is the products' time, what is computed again included, and that of gathering
  parameters, adding gradients and exchanging activations.

  Returns:
    Overrides of the config, each with the keys that differ.
  """
  count = len(machine.devices)
  assert machine.chip is not None
  chip = machine.chip
  fixed = c.mesh.stage * c.mesh.sequence
  where, inner = config.innermost(c.model)
  remats = ('none', 'dots', 'full') if 'remat' in inner else (None,)
  experts = (inner.get('experts') or {}).get('experts', 1)
  powers = [1 << n for n in range(count.bit_length())]
  probe = c.copy_and_resolve_references().unlock()
  probe.mesh.update(
    data=1, stage=1, fsdp=1, expert=1, sequence=1, tensor=1, slices=1
  )
  found = []
  for remat in remats:
    if remat is not None:
      config.innermost(probe.model)[1].remat = remat
    probe.microbatches = 1
    alone = machine._replace(devices=machine.devices[:1])
    run, model, mesh, example = build(probe, alone, vocab)
    state, weights = host_arrays.nbytes(run.like), tree.count(run.like.params)
    counted = build(_attending(probe, 'einsum'), alone, vocab)[0]
    work = flops.products(counted.update, counted.like, example)
    kept = residual_bytes(model, run, mesh, probe)
    depth, width = inner.get('depth', 1), inner.get('width', 1)
    rows = c.batch_size
    for fsdp, tensor, expert in itertools.product(powers, powers, powers):
      data, rest = divmod(count, fixed * fsdp * tensor * expert)
      split = data * fsdp * expert
      heads = inner.get('heads', tensor)
      keys = inner.get('kv_heads') or heads
      if rest or data < 1 or rows % split or tensor > chip.host:
        continue
      if data % c.mesh.slices or experts % expert or keys % tensor:
        continue
      for micro in (m for m in powers if rows // split % m == 0):
        held = state / (fsdp * tensor * expert) + 4 * weights / (fsdp * tensor)
        if held + kept / split / tensor / micro > machine.memory_bytes:
          continue
        gathered = 2 * 3 * weights / tensor * (fsdp > 1) * micro
        added = 2 * 4 * weights / (fsdp * tensor) * (data > 1)
        tokens = example.targets.size / split
        exchanged = 8 * 2 * tokens * width * depth * (tensor > 1)
        seconds = (
          work / count / chip.flops
          + (gathered + added + exchanged) / chip.link_speed
        )
        change: dict[str, Any] = {
          'mesh.data': data,
          'mesh.fsdp': fsdp,
          'mesh.tensor': tensor,
          'mesh.expert': expert,
          'microbatches': micro,
        }
        if remat is not None:
          change[f'{where}.remat'] = remat
        found.append((seconds, micro, sorted(change.items())))
  return [dict(change) for *_, change in sorted(found)]


def search(
  c: config.Config,
  machine: Target,
  *,
  tries: int = 4,
  say: Any = print,
  **settings: Any,
) -> dict[str, Any]:
  """Compiles the most promising layouts and returns the quickest that fits.

  Args:
    c, machine: as of `plan`.
    tries: how many to compile.
    say: told of each.
    **settings: of `plan`.

  Returns:
    Its report, with `overrides`: flags that make the config so.

  Raises:
    config.ConfigError: none can be, or what `plan` raises.
  """
  if machine.chip is None:
    raise config.ConfigError(
      f'target {machine.name}: has no table of speeds to search by: name a TPU '
      'or GPU'
    )
  filled = config.fill(c, given={'data': ('position',)})
  best = None
  for change in candidates(filled, machine, settings['vocab'])[:tries]:
    other = c.copy_and_resolve_references().unlock()
    flat = config.flatten(other)
    with other.unlocked():
      for key, value in change.items():
        *parents, last = key.split('.')
        place = other
        for parent in parents:
          place = place[parent]
        place[last] = value
    flags = ' '.join(
      f'--config.{key}={value}'
      for key, value in change.items()
      if flat.get(key) != value
    )
    report = plan(other.lock(), machine, **settings)
    report['overrides'] = flags
    time_ = report.get('seconds', {}).get('expected')
    fits = f'{time_:.4f} s a step' if report['fits'] else 'does not fit'
    say(f'{flags or "as it is"}: {fits}')
    if best is None or _rank(report) < _rank(best):
      best = report
  if best is None:
    raise config.ConfigError(
      f'target {machine.name}: no layout of data, fsdp, tensor, expert and '
      'microbatches can hold the model: take more devices'
    )
  return best


def _rank(report: Mapping[str, Any]) -> tuple[bool, float]:
  return not report['fits'], report.get('seconds', {}).get('expected', 0.0)


