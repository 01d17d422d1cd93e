"""What every item of an evaluation gave, on disk, so that runs can be paired.

`WORKDIR/items/EVALUATOR/STEP.CHECKPOINT.jsonl.gz` holds JSON lines: a header,

    {"evaluator": ..., "step": ..., "checkpoint": ..., "task": ..., "code": ...}

where checkpoint, task and code are sha256 in hex, of the judged state, of the
items and of what judged them; then one object an item:

    {"id": "blimp/adjunct_island/17", "accuracy": 1, "group": "adjunct_island"}

A number is an outcome, null an outcome without a value for this item, and a
string a label. The label `group` says which items were drawn together (of one
passage, of one template) and so are no independent evidence; what a category is
goes by another name.
"""

from collections.abc import Iterable, Mapping
import gzip
import json
import os
from pathlib import Path
import re
from typing import Any
import zlib

from lm import config, errors

_EVALUATOR = re.compile(r'\w[\w.+-]*')
_FILE = re.compile(r'(\d{8,})\.[0-9a-f]{12}\.jsonl\.gz')
_SHA256 = re.compile(r'[0-9a-f]{64}')


def write(
  workdir: str | os.PathLike[str],
  header: Mapping[str, Any],
  items: Iterable[Mapping[str, Any]],
) -> Path:
  """Writes a file as a whole or not at all; equal items give equal bytes.

  Args:
    workdir: of the run.
    header: as above.
    items: as above, each `id` once, numbers finite; numpy's scalars will do.

  Returns:
    Where it is.

  Raises:
    config.ConfigError: the evaluator's name cannot be that of a folder.
  """
  name = str(header['evaluator'])
  if not _EVALUATOR.fullmatch(name):
    raise config.ConfigError(
      f'evals.{name}: its name cannot be that of a folder: use letters and _'
    )
  records = [dict(header), *map(dict, items)]
  text = ''.join(f'{_dumps(record)}\n' for record in records).encode()
  path = Path(workdir) / 'items' / name / _name(header)
  wrong = _wrong([json.loads(line) for line in text.splitlines()], path)
  assert not wrong, wrong
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
      # No time and no name in it: they would make other bytes.
      with gzip.GzipFile('', 'wb', 6, file, mtime=0) as packed:
        packed.write(text)
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
  return path


def read(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Reads a file: its header and its items, in their order.

  Raises:
    errors.Missing: there is no such file.
    errors.Damaged: its bytes are not what was written, or it is no such file.
    errors.Storage: it cannot be read.
  """
  path, records = Path(path), []
  try:
    text = gzip.decompress(path.read_bytes())
    records = [_loads(line) for line in text.splitlines()]
    wrong = _wrong(records, path)
  except FileNotFoundError:
    raise errors.Missing(f'{path}: no such file: judge the step') from None
  except (EOFError, ValueError, RecursionError, zlib.error, gzip.BadGzipFile):
    wrong = 'its bytes are not those that were written'
  except OSError as error:
    raise errors.Storage(
      f'{errors.refusal(error)}: make it readable'
    ) from error
  if wrong:
    raise errors.Damaged(
      f'{path}: no sound file of items: {wrong}: delete it and judge again'
    )
  return records[0], records[1:]


def find(
  workdir: str | os.PathLike[str], step: int | None = None
) -> dict[str, Path]:
  """Finds each evaluator's items of a step; None: of the newest that it has.

  Of several checkpoints of one step, as a run that was rewound leaves them, the
  file that was written last counts.
  """
  found: dict[str, tuple[int, int, Path]] = {}
  for path in sorted((Path(workdir) / 'items').glob('*/*')):
    match = _FILE.fullmatch(path.name)
    if match is None or step not in (None, int(match[1])):
      continue
    key = int(match[1]), path.stat().st_mtime_ns, path
    found[path.parent.name] = max(key, found.get(path.parent.name, key))
  return {name: path for name, (*_, path) in found.items()}


def _name(header: Mapping[str, Any]) -> str:
  return f'{header["step"]:08d}.{header["checkpoint"][:12]}.jsonl.gz'


def _dumps(record: dict[str, Any]) -> str:
  return json.dumps(record, allow_nan=False, default=lambda x: x.item())


def _loads(line: bytes) -> Any:
  def refuse(word: str) -> Any:
    raise ValueError(word)

  return json.loads(line, parse_constant=refuse)


def _wrong(records: list[Any], path: Path) -> str:
  """Says what makes records no file of items; '' if nothing does."""
  if not all(isinstance(record, dict) for record in records):
    return 'a line is no object'
  header, *rows = records or [{}]
  sound = (
    type(header.get('step')) is int
    and all(
      isinstance(header.get(key), str) and _SHA256.fullmatch(header[key])
      for key in ('checkpoint', 'task', 'code')
    )
    and header.get('evaluator') == path.parent.name
    and _name(header) == path.name
  )
  if not sound:
    return 'its header is not that of this name'
  names = [row.get('id') for row in rows]
  if not all(isinstance(name, str) for name in names):
    return 'an item has no id'
  if len(set(names)) < len(names):
    return 'an id is there twice'
  for row in rows:
    for key, value in row.items():
      if not isinstance(value, int | float | str | None):
        return f'{key} of {row["id"]} is no number, string or null'
  return ''
