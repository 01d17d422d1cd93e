"""All stages of the factory, on a corpus of `tools.planted_corpus`.

tests/corpus/planted_config.py:FOLDER; FOLDER holds a folder for each source,
and words.txt, a list for the counts of toxicity.
"""

from collections.abc import Mapping
import itertools
from pathlib import Path

from configs.data import base, rules
from tools import planted_corpus

# Found from any folder in which a test runs the factory.
_DATA = Path(__file__).parents[2] / planted_corpus.ROOT
EVALS = {
  name: _DATA / f'evals/{name}/test.jsonl'
  for name in ('arc_easy', 'openbookqa')
}


def get_config(folder: str):
  """Returns the config."""
  c = base.get_config()
  for path in sorted(Path(folder).iterdir()):
    if path.is_dir():
      c.sources[path.name] = base.source(str(path))
  c.stages = base.cleaning() | {
    'quality': rules.english(),
    'quality_zh': rules.chinese(),
    'toxicity': {
      'fn': 'lm.corpus.toxicity:make',
      'lists': {'words': f'{folder}/words.txt'},
    },
    'paragraphs': {
      'fn': 'lm.corpus.exact:make',
      'unit': 'paragraph',
      'least_words': 10,
    },
    'contamination': {
      'fn': 'lm.corpus.contamination:make',
      'sample': 50,
      'sets': {name: {'path': str(path)} for name, path in EVALS.items()},
    },
  }
  c.stages['language']['keep'] = ('en', 'zh')
  c.stages['language']['least'] = 0.0
  c.order = (
    'normalise',
    'language',
    'quality',
    'quality_zh',
    'personal',
    'toxicity',
    'paragraphs',
    'exact',
    'near',
    'contamination',
  )
  c.split_valid = 0.02
  c.by_source = True
  c.shard_tokens = 200_000
  c.engine.part_bytes = 500_000
  c.train_tokenizer.vocab = 4096
  c.train_tokenizer.sample_bytes = 1_000_000
  return c.lock()


def write(
  folder: Path,
  megabytes: float,
  sources: Mapping[str, int],
  rows: int | None = None,
) -> Path:
  """Writes a planted corpus as sources; returns its folder.

  Args:
    folder: for everything.
    megabytes: of the corpus, which has six files.
    sources: number of files of each.
    rows: of each file; None: all.
  """
  plan = planted_corpus.Plan(
    folder / 'planted',
    0,
    megabytes,
    1,
    planted_corpus.Rates(),
    1,
    tuple(EVALS.values()),
  )
  planted_corpus.write(plan)
  files = iter(sorted(plan.output.glob('part-*.jsonl')))
  for name, count in sources.items():
    place = folder / 'raw' / name
    place.mkdir(parents=True)
    for file in itertools.islice(files, count):
      lines = file.read_text(encoding='utf-8').splitlines(keepends=True)
      (place / file.name).write_text(''.join(lines[:rows]), encoding='utf-8')
  (folder / 'raw/words.txt').write_text('terrible\nkill\n')
  return folder / 'raw'
