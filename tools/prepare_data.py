"""Turns text files into a dataset of token shards.

  python -m tools.prepare_data --input 'raw/*.jsonl.gz' --field text \\
      --tokenizer runs/bpe.model --output data/web

writes data/web/manifest.json and its shards, and prints a report. With
`--split-valid 0.01` it writes data/web/train and data/web/valid: the hash of a
document decides, so a document and its copies fall on the same side. Where a
side would be empty, as with a single text, the end of each is for validation.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
import sys

if not __package__:  # run as a file: find the repository's packages
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lm import config, errors
from lm.corpus import prepare
from lm.data import documents, standard_input

# Kinds of text that standard input may be, and the ending of such a file.
_STDIN = {'text': '.txt', 'jsonl': '.jsonl', 'csv': '.csv', 'tsv': '.tsv'}


def add_input(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that say which documents to read."""
  parser.add_argument(
    '--input',
    action='append',
    required=True,
    help='file, folder, quoted pattern or address, or - for standard input; '
    f'repeatable; packed or not: {", ".join(documents.KINDS)}',
  )
  parser.add_argument(
    '--stdin',
    choices=sorted(_STDIN),
    help='kind of standard input, if its beginning does not say it',
  )
  add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that say how files become documents."""
  default = documents.Settings()
  parser.add_argument(
    '--field',
    default=default.field,
    help='of JSON, CSV, TSV and Parquet; a.b is field b inside of field a',
  )
  parser.add_argument(
    '--unit',
    choices=('file', 'line', 'paragraph'),
    default=default.unit,
    help='what is one document in a text file',
  )
  parser.add_argument(
    '--errors',
    choices=('replace', 'skip', 'strict'),
    default=default.errors,
    help='what to do with invalid UTF-8 and records that are not JSON',
  )
  parser.add_argument(
    '--max-document-bytes',
    type=int,
    default=default.max_bytes,
    help='longer texts are cut, longer JSON lines left out, other longer '
    'records refused',
  )
  parser.add_argument(
    '--extract',
    choices=('main', 'all'),
    default=default.extract,
    help='text of HTML in web archives: without menus and the like, or all',
  )


def inputs(flags: argparse.Namespace) -> list[str]:
  """Returns the inputs of the flags of `add_input`."""
  suffix = _STDIN[flags.stdin] if flags.stdin else ''
  return [x + suffix if x == standard_input.NAME else x for x in flags.input]


def settings(flags: argparse.Namespace) -> documents.Settings:
  """Reads the flags of `add_settings`."""
  return documents.Settings(
    unit=flags.unit,
    field=flags.field,
    errors=flags.errors,
    max_bytes=flags.max_document_bytes,
    extract=flags.extract,
  )


def report(counts: Mapping[str, int]) -> None:
  """Prints what was read, and what was left out."""
  print('read')
  for word, count in counts.items():
    print(f'  {count:>15,} {word}')


def write(flags: argparse.Namespace) -> None:
  """Writes the datasets and prints the report.

  Raises:
    ValueError: bad input.
    OSError: the output cannot be written.
  """
  written = prepare.write_dataset(
    inputs(flags),
    flags.output,
    flags.tokenizer,
    split_valid=flags.split_valid,
    shard_tokens=flags.shard_tokens,
    settings=settings(flags),
    workers=flags.workers,
  )
  report(next(iter(written.values())).counts)
  for dataset in written.values():
    manifest = dataset.manifest
    print(f'wrote {dataset.directory} in {dataset.seconds:.1f} s')
    print(f'  {manifest.documents:>15,} documents')
    print(f'  {manifest.text_bytes:>15,} bytes')
    lost = manifest.lost_bytes or 0
    share = lost / manifest.text_bytes
    print(f'  {lost:>15,} bytes lost by the tokenizer ({share:.2%})')
    if lost:
      print(f'  {"":>15} so evaluations of this text have no bits per byte')
    print(f'  {manifest.tokens:>15,} tokens')
    print(f'  {manifest.text_bytes / manifest.tokens:>15.3f} bytes a token')
    print(f'  {len(manifest.shards):>15,} shards')
    print(f'  {manifest.fingerprint[:15]} fingerprint')


def run(action, flags: argparse.Namespace) -> int:
  """Calls `action(flags)`; an expected error becomes one line and a code."""
  try:
    action(flags)
  except ValueError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except errors.Failure as e:
    print(f'error: {e}', file=sys.stderr)
    return e.exit_code
  except OSError as e:
    print(f'error: {e.filename or flags.output}: {e.strerror}', file=sys.stderr)
    return 5
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    epilog=config.exit_code_help('tools.prepare_data'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add_input(parser)
  parser.add_argument('--output', required=True, help='directory to write')
  parser.add_argument(
    '--tokenizer', required=True, help="x.model, x.json or 'bytes'"
  )
  parser.add_argument(
    '--split-valid', type=float, default=0.0, help='share for validation'
  )
  parser.add_argument('--shard-tokens', type=int, default=1 << 28)
  parser.add_argument(
    '--workers', type=int, default=1, help='processes that work at once'
  )
  return run(write, parser.parse_args(argv))


if __name__ == '__main__':
  config.main(main)
