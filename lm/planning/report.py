"""A plan laid out for reading."""

from collections.abc import Mapping
from typing import Any


def show(report: Mapping[str, Any]) -> str:
  """Lays a plan out for reading."""
  memory = report['memory_bytes']
  mesh = ' '.join(f'{k}={n}' for k, n in report['mesh'].items()) or 'one device'
  limit, total = memory['limit'], memory['total']
  lines = [
    f'{report["target"]}: {report["devices"]} devices, {mesh}; '
    f'{report["parameters"]:,} parameters, '
    f'{report["tokens_per_step"]:,} tokens a step',
    f'{"FITS" if report["fits"] else "DOES NOT FIT"}: {_size(total)} of '
    f'{_size(limit)} a device ({total / limit:.0%})',
  ]
  lines += [
    f'  {name:<12}{_size(memory[name]):>10}'
    for name in memory
    if name not in ('limit', 'total', 'arguments')
  ]
  if 'model_flops' in report:
    again = report['hardware_flops'] / max(report['model_flops'], 1) - 1
    lines.append(
      f'a step: {report["model_flops"]:.3e} FLOPs of the model, {again:+.0%} '
      'computed; '
      f'{_size(report["memory_traffic_bytes"])} through memory a device'
    )
    for item in report['collectives']:
      axes = ','.join(item['axes']) or '?'
      took = f'  {item["seconds"]:.4f} s' if 'seconds' in item else ''
      lines.append(
        f'  {item["kind"]} over {axes} ({item["parts"]}): {item["count"]}, '
        f'{_size(item["bytes"])} a device{took}'
      )
  if 'seconds' in report:
    parts = '  '.join(f'{k} {v:.4f}' for k, v in report['seconds'].items())
    lines += [
      f'seconds: {parts}',
      f'expected: MFU {report["mfu"]:.0%} (at most '
      f'{report["mfu_roofline"]:.0%}), {report["tokens_per_day"]:.3e} tokens a '
      'day',
      f'{report["tokens"]:.3e} tokens: {report["hours"]:,.1f} hours'
      + (f', ${report["dollars"]:,.0f}' if 'dollars' in report else ''),
    ]
  if 'checkpoint_bytes' in report:
    took = report.get('checkpoint_seconds')
    lines.append(
      f'checkpoint: {_size(report["checkpoint_bytes"])}'
      + (f', written in {took:.1f} s' if took is not None else '')
    )
  return '\n'.join(lines)


def _size(count: float) -> str:
  for unit in ('B', 'KiB', 'MiB', 'GiB', 'TiB'):
    if abs(count) < 1024 or unit == 'TiB':
      return f'{count:.4g} {unit}'
    count /= 1024
  raise AssertionError
