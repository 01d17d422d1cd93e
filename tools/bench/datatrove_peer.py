"""The same work by datatrove: rules of Gopher, exact and near duplicates.

  PYTHON -m tools.bench.datatrove_peer INPUT OUTPUT WORKERS

PYTHON is that of an environment with datatrove, see `peers.py`. Words are those
of `lm.corpus.texts`, so that both do the same work; datatrove's own tokenizers
are slower. It does not verify its near duplicates.

It prints a line of JSON: the seconds of each step, the documents that are left,
and the version.
"""

import importlib
from importlib import metadata
import json
from pathlib import Path
import resource
import sys
import time
from typing import Any

from lm.corpus import texts


def _package(name: str) -> Any:
  # Only the peer's environment has it.
  return importlib.import_module(f'datatrove.{name}')


dedup = _package('pipeline.dedup')
filters = _package('pipeline.filters')
readers = _package('pipeline.readers')
writers = _package('pipeline.writers')


class Words(_package('utils.word_tokenizers').WordTokenizer):
  """Cuts texts into our words."""

  def word_tokenize(self, text: str) -> list[str]:
    return texts.Text(text).words

  def sent_tokenize(self, text: str) -> list[str]:
    raise NotImplementedError  # no step here asks for sentences

  def span_tokenize(self, text: str) -> list[tuple[int, int]]:
    raise NotImplementedError


def content(document: Any) -> str:
  """Returns what exact duplicates are compared by, the same as ours."""
  return ' '.join(texts.Text(document.text).words)


def main(argv: list[str]) -> int:
  """Runs all steps; returns the exit code."""
  given, output, workers = Path(argv[0]), Path(argv[1]), int(argv[2])
  files = len(list(given.glob('part-*.jsonl')))
  exact = dedup.ExactDedupConfig(content_getter=content)
  near = dedup.minhash.MinhashConfig()  # its own 14 buckets of 8
  words = Words()
  seconds: list[dict[str, Any]] = []

  def folder(name: str) -> str:
    return str(output / name)

  def read(name: Path | str) -> Any:
    return readers.JsonlReader(
      str(name), compression=None, glob_pattern='*.jsonl'
    )

  def write(name: str) -> Any:
    return writers.JsonlWriter(
      folder(name), '${rank}.jsonl', compression=None, expand_metadata=True
    )

  def step(name: str, pipeline: list[Any], tasks: int = files) -> None:
    start, cpu = time.perf_counter(), _cpu()
    _package('executor').LocalPipelineExecutor(
      pipeline,
      tasks=tasks,
      workers=min(workers, tasks),
      logging_dir=folder(f'logs/{name}'),
      start_method='fork',  # the cheapest
    ).run()
    seconds.append(
      {
        'name': name,
        'wall_seconds': time.perf_counter() - start,
        'cpu_seconds': _cpu() - cpu,
      }
    )

  inputs = readers.JsonlReader(
    str(given), compression=None, glob_pattern='part-*.jsonl'
  )
  # A pass over the texts does all that it can: a writer hands them on.
  step(
    'rules; exact: keys',
    [
      inputs,
      filters.GopherQualityFilter(language=words),
      write('good'),
      dedup.ExactDedupSignature(folder('exact'), exact),
    ],
  )
  step(
    'exact: find',
    [dedup.ExactFindDedups(folder('exact'), folder('exact drops'), exact)],
    1,
  )
  step(
    'exact: drop; near: keys',
    [
      read(folder('good')),
      dedup.ExactDedupFilter(folder('exact drops'), exact),
      write('once'),
      dedup.MinhashDedupSignature(folder('near'), near, language=words),
    ],
  )
  step(
    'near: bands',
    [dedup.MinhashDedupBuckets(folder('near'), folder('bands'), config=near)],
    near.num_buckets,
  )
  step(
    'near: clusters',
    [
      dedup.MinhashDedupCluster(
        folder('bands'), folder('near drops'), config=near
      )
    ],
    1,
  )
  step(
    'near: drop; write',
    [
      read(folder('once')),
      dedup.MinhashDedupFilter(folder('near drops')),
      write('out'),
    ],
  )
  left = sum(
    path.read_bytes().count(b'\n') for path in Path(folder('out')).glob('*')
  )
  print(
    json.dumps(
      {
        'steps': seconds,
        'documents': left,
        'version': f'datatrove {metadata.version("datatrove")}',
      }
    )
  )
  return 0


def _cpu() -> float:
  """Returns the processor time of this process and of those that ended."""
  return sum(
    usage.ru_utime + usage.ru_stime
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    for usage in [resource.getrusage(who)]
  )


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
