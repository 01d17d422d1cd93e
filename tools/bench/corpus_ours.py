"""The work of `datatrove_peer.py` by the factory of this repository.

  python -m tools.bench.corpus_ours INPUT OUTPUT WORKERS

It verifies each near duplicate and writes shards of bytes as tokens, with the
index and the audit. It prints a line of JSON like the peer, and names the steps
that the peer has nothing like.
"""

import json
import os
from pathlib import Path
import sys
import time

from configs.data import base, rules
from lm.corpus import build, workers
from tools.bench import process_tree

_APART = ('audit: write',)
_TICKS = os.sysconf('SC_CLK_TCK')


class Steps:
  """Takes the time of each step, from the end of the one before it.

  Attributes:
    listed: name and seconds of each step; of processors, those of this process
      and of its workers, which live on.
  """

  def __init__(self):
    self.listed: list[dict[str, str | float]] = []
    self._last, self._cpu = time.perf_counter(), _cpu()

  def __call__(
    self, name: str, count: int, done: int, words: list[str], is_over: bool
  ) -> None:
    """Hears of the progress, see `lm.corpus.progress.Say`."""
    if is_over:
      now, cpu = time.perf_counter(), _cpu()
      self.listed.append(
        {
          'name': name,
          'wall_seconds': now - self._last,
          'cpu_seconds': cpu - self._cpu,
        }
      )
      self._last, self._cpu = now, cpu


def _cpu() -> float:
  """Returns the processor time of this process and of all below it."""
  ticks = 0
  for pid in (os.getpid(), *process_tree.descendants(os.getpid())):
    try:
      text = Path(f'/proc/{pid}/stat').read_text()
    except OSError:  # it has ended
      continue
    # In user mode and in the kernel, its own and of children that have ended;
    # counted behind its name, which may hold spaces (proc(5)).
    ticks += sum(map(int, text.rpartition(')')[2].split()[11:15]))
  return ticks / _TICKS


def main(argv: list[str]) -> int:
  """Runs a build; returns the exit code."""
  workers.without_pandas()
  given, output, count = argv[0], argv[1], int(argv[2])
  c = base.get_config()
  c.sources = {'given': base.source(f'{given}/part-*.jsonl')}
  c.stages = {
    'quality': {'fn': 'lm.corpus.quality:make', 'rules': rules.gopher()},
    'exact': {'fn': 'lm.corpus.exact:make'},
    'near': {'fn': 'lm.corpus.near:make', 'threshold': 0.7},
  }
  c.order = ('quality', 'exact', 'near')
  c.tokenizer_file = 'bytes'
  c.split_valid = 0.0
  steps = Steps()
  result = build.run(c.lock(), output, workers=count, say=steps)
  print(
    json.dumps(
      {
        'steps': steps.listed,
        'apart': _APART,
        'documents': sum(x.documents for x in result.datasets.values()),
        'version': 'this repository',
      }
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
