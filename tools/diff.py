"""Lists what differs between two runs, the most telling first.

  python -m tools.diff runs/a runs/b [--json]

It compares the configs, the data, the code, the environment and what came out:
the last line of metrics.jsonl and the newest evaluations. Config, data and code
say why two runs differ, so they come first; of the environment jax and the
packages that compute come before the others.

What a run was started from is in its record.json; a run that has none, from an
earlier version, is compared by its config and its metrics. Of a run that was
started several times the last start counts.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

from lm import checkpoint, config
from lm.evals import records
from lm.reporting import metrics_log
from lm.training import run_meter, run_record

# They compute or read, so another version may change numbers.
_COMPUTING = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'sentencepiece',
  'tokenizers',
  'qwix',
)
_SKIPPED = ('crc32', *run_meter.VARYING)
MISSING = 'missing'


class Difference(NamedTuple):
  """A value that two runs do not share.

  Attributes:
    part: config, data, code, environment or metrics.
    name: of the value.
    values: of each run; `MISSING` where it has none.
  """

  part: str
  name: str
  values: tuple[Any, Any]

  def line(self) -> str:
    """Writes it as a line."""
    a, b = (_short(x) for x in self.values)
    name = self.name if self.name.isprintable() else repr(self.name)
    return f'{self.part:<12} {name}: {a} -> {b}'


def differences(a: Path, b: Path) -> list[Difference]:
  """Lists what differs between two runs, the most telling first.

  Args:
    a: folder of a run.
    b: folder of the other.

  Raises:
    config.ConfigError: a folder has no config of a run.
    errors.Failure: a record is damaged.
  """
  found = [*_compared('config', *map(_config, (a, b)))]
  # What only says where and how often things happen comes after the rest.
  found.sort(key=lambda x: f'{x.name}.'.startswith(_APART))
  left, right = (_start(x) for x in (a, b))
  found += _compared(
    'data', *(config.flatten(x['data']) for x in (left, right))
  )
  found += code(left, right)
  found += environment(left, right)
  found += _compared('metrics', *map(_metrics, (a, b)))
  return found


def code(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
  """Compares the code of two starts of a record."""
  return [*_compared('code', _code(a), _code(b))]


def environment(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
  """Compares packages, machines and variables of two starts of a record."""
  sides = ({**x['machine'], **x['packages'], **x['variables']} for x in (a, b))
  found = _compared('environment', *sides)
  return sorted(found, key=lambda x: x.name not in _COMPUTING)


_APART = tuple(f'{key}.' for key in checkpoint.CHANGEABLE_KEYS)


def _compared(
  part: str, a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[Difference]:
  for name in [*a, *(x for x in b if x not in a)]:
    values = a.get(name, MISSING), b.get(name, MISSING)
    # nan is no difference from nan.
    if json.dumps(values[0]) != json.dumps(values[1]):
      yield Difference(part, name, values)


def _config(workdir: Path) -> dict[str, Any]:
  path = workdir / 'config.json'
  if not path.exists():
    raise config.ConfigError(f'{workdir}: no folder of a run: no config.json')
  return config.flatten(config.from_json(path.read_text(encoding='utf-8')))


def _start(workdir: Path) -> dict[str, Any]:
  """Reads the last start of a run; of an earlier version nothing is known."""
  starts = run_record.read(workdir)['starts']
  known = {
    'data': {},
    'code': {},
    'packages': {},
    'machine': {},
    'variables': {},
  }
  return known | (starts[-1] if starts else {})


def _code(start: Mapping[str, Any]) -> dict[str, Any]:
  """Names the sources of lm, and the commits and patches around them."""
  result = {}
  for name, state in start['code'].items():
    if isinstance(state, Mapping):
      result |= {f'{name}.{key}': state[key] for key in ('commit', 'patch')}
    else:
      result[name] = state
  return result


def _metrics(workdir: Path) -> dict[str, Any]:
  """Reads the last training metrics, and the newest of each evaluation."""
  result: dict[str, Any] = {}
  if lines := metrics_log.read(workdir / 'metrics.jsonl'):
    result |= {
      f'train/{k}': v for k, v in lines[-1].items() if k not in _SKIPPED
    }
  for line in records.read(workdir):
    result |= {**line['metrics'], 'evaluated step': line['step']}
  return result


def _short(value: Any) -> str:
  text = json.dumps(value)  # which shows no control characters
  return text if len(text) <= 60 else f'{text[:57]}...'


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.diff',
    description=__doc__,
    epilog=config.exit_code_help('tools.diff'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('a', type=Path, help='the folder of a run')
  parser.add_argument('b', type=Path, help='that of the other')
  parser.add_argument(
    '--json', action='store_true', help='print a list for programs'
  )
  flags = parser.parse_args(argv)
  found = differences(flags.a, flags.b)
  if flags.json:
    config.print_json([x._asdict() for x in found])
  else:
    print('\n'.join(x.line() for x in found) or 'nothing differs')


if __name__ == '__main__':
  config.main(main)
