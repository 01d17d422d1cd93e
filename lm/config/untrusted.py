"""Configs that came with a file: they are data, and never code.

A config that a run's folder, an import or an export holds may come from a
stranger. It may name the functions of `FACTORIES` alone, which build parts and
read files of their known type, and neither import nor execute what a config
says. It may read files that lie inside its own folder, or that the user named.

A config of the data factory builds no run, and the user names it to repeat that
build: it may name `STAGES` alone, and files anywhere, since sources lie outside
of its folder.

The user adds to both with words: packages, whose functions a config may name,
and folders, which it may read. `--trust=WORD` gives one, and the environment
variable LM_TRUST several, parted by commas. A word is a folder if it has a
slash.
"""

import argparse
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import glob
import os
from pathlib import Path

from lm.config import sources, specs, values
from lm.config.messages import ConfigError, show
from lm.config.values import Config

VARIABLE = 'LM_TRUST'
FLAG = (
  'a package whose functions a stored config may name, or a folder (with a '
  f'slash) that it may read; may be repeated; {VARIABLE}=A,B is the same'
)
# The keys that name files.
_PATHS = (
  *('path', 'target_path', 'init_from', 'branch_from'),
  *('pro', 'anti', 'statistics'),
)

# By module: each was read with a stranger's arguments in mind.
_FACTORIES = {
  'lm.data.corruption': ('continuation', 'one_span', 'span_corruption'),
  'lm.data.finetuning.chat_readers': ('comparisons', 'messages', 'sharegpt'),
  'lm.data.finetuning.forms': ('classify', 'span', 'tag'),
  'lm.data.finetuning.pair_forms': ('chat', 'prefer', 'reply', 'translate'),
  'lm.data.finetuning.pair_readers': (
    'alpaca',
    'crosswoz',
    'dialogsum',
    'kdconv',
    'multi30k',
    'pairs',
    'parallel',
    'preferences',
    'scitldr',
    'tatoeba',
  ),
  'lm.data.finetuning.retrieval_forms': ('match',),
  'lm.data.finetuning.retrieval_readers': ('identical', 'mined'),
  'lm.data.finetuning.readers': (
    'banking77',
    'boolq',
    'clinc150',
    'cmrc2018',
    'conll',
    'drcd',
    'flat_squad',
    'movie_reviews',
    'ocnli',
    'sentence_polarity',
    'squad',
    'subjectivity',
    'texts',
    'uner_zh',
    'wikigold',
    'wnut17',
  ),
  'lm.data.finetuning.tasks': ('make',),
  'lm.data.masking': ('masked', 'next_sentence'),
  'lm.data.objectives': ('bidirectional', 'causal', 'prefix_lm', 'skip_gram'),
  'lm.data.stream': ('make',),
  'lm.data.tokenizers.characters': ('make',),
  'lm.data.tokenizers.huggingface': ('make',),
  'lm.data.tokenizers.sentencepiece': ('make',),
  'lm.data.tokenizers.utf8_bytes': ('make',),
  'lm.data.tokenizers.words': ('make',),
  'lm.evals.bbq': ('make',),
  'lm.evals.choice': ('choice', 'cloze', 'documents', 'pairs'),
  'lm.evals.classification': ('classes', 'spans', 'tags'),
  'lm.evals.continuation': ('make',),
  'lm.evals.fairness': ('crows_pairs', 'stereoset', 'winobias', 'winogender'),
  'lm.evals.generation': ('answers', 'make'),
  'lm.evals.likelihood': ('make',),
  'lm.evals.memorization': ('exposure',),
  'lm.evals.retrieval': ('make',),
  'lm.evals.probes': (
    'arc_challenge',
    'arc_easy',
    'blimp',
    'boolq',
    'cmmlu',
    'commonsense_qa',
    'copa',
    'documents',
    'hellaswag',
    'lambada_openai',
    'mmlu',
    'openbookqa',
    'piqa',
    'sciq',
    'winogrande',
  ),
  'lm.evals.safety': ('bold',),
  'lm.layers.attention': ('cross', 'make', 'scores'),
  'lm.layers.blocks': ('make', 'single'),
  'lm.layers.delta': ('make',),
  'lm.layers.experts': ('make',),
  'lm.layers.mlp': ('make',),
  'lm.layers.norms': ('layernorm', 'rmsnorm'),
  'lm.layers.parts': ('init',),
  'lm.layers.positions': ('relative', 'rotary'),
  'lm.layers.recurrent': ('make',),
  'lm.layers.routing': ('router',),
  'lm.layers.transfer': ('mup',),
  'lm.layers.vocabulary': ('embedding', 'output'),
  'lm.loss': ('make',),
  'lm.models.decoder': ('make',),
  'lm.models.distill': ('make',),
  'lm.models.embeddings': ('glove', 'make', 'vectors'),
  'lm.models.encdec': ('make', 'side'),
  'lm.models.encoder': ('head', 'make'),
  'lm.models.heads': ('classify', 'embed', 'next_sentence', 'span', 'tag'),
  'lm.models.lora': ('make',),
  'lm.models.ngram': ('fit', 'make'),
  'lm.models.preference': ('make',),
  'lm.models.recurrent': ('make',),
  'lm.optim.optimizers': ('make',),
  'lm.optim.rules': (
    *('adafactor', 'adamw', 'lion', 'muon', 'normuon', 'sgd', 'soap'),
    'soap_muon',
  ),
  'lm.optim.transfer': ('rule',),
  'lm.reporting.to_tensorboard': ('make',),
  'lm.reporting.to_trackio': ('make',),
  'lm.reporting.to_wandb': ('make',),
  'lm.training.privacy': ('gaussian',),
}
# The same for a config of the data factory.
_STAGES = {
  'lm.corpus.classifier': ('make',),
  'lm.corpus.contamination': ('make',),
  'lm.corpus.exact': ('make',),
  'lm.corpus.language': ('make',),
  'lm.corpus.lines': ('contains', 'few_words', 'long_words', 'unfinished'),
  'lm.corpus.near': ('make',),
  'lm.corpus.normalise': ('make',),
  'lm.corpus.personal': ('make',),
  'lm.corpus.quality': ('make',),
  'lm.corpus.rules.c4': (
    'curly_brackets',
    'long_words',
    'phrases',
    'sentences',
  ),
  'lm.corpus.rules.chinese': (
    'characters',
    'debris',
    'punctuation',
    'share',
    'short_lines',
  ),
  'lm.corpus.rules.fineweb': (
    'duplicate_characters',
    'newlines',
    'punctuated_lines',
    'short_lines',
  ),
  'lm.corpus.rules.gopher': (
    'alphabetic',
    'bullets',
    'ellipses',
    'stop_words',
    'symbols',
    'word_length',
    'words',
  ),
  'lm.corpus.rules.repetition': (
    'duplicate_line_characters',
    'duplicate_lines',
    'duplicate_ngrams',
    'duplicate_paragraph_characters',
    'duplicate_paragraphs',
    'top_ngram',
  ),
  'lm.corpus.thin': ('make',),
  'lm.corpus.toxicity': ('bias', 'make'),
}


def _names(listed: Mapping[str, Iterable[str]]) -> frozenset[str]:
  return frozenset(
    f'{module}:{name}' for module, names in listed.items() for name in names
  )


FACTORIES = _names(_FACTORIES)  # of a run
STAGES = _names(_STAGES)  # of a build


def trust(*words: str) -> None:
  """Trusts packages and folders, in this process and those that it starts."""
  os.environ[VARIABLE] = ','.join(dict.fromkeys([*_words(), *words]))


def trust_flag(parser: argparse.ArgumentParser) -> None:
  """Adds the flag `--trust` to a program."""
  parser.add_argument(
    '--trust',
    metavar='WORD',
    action='append',
    default=[],
    type=trust,
    help=FLAG,
  )


def read_untrusted(text: str, factories: Collection[str] = FACTORIES) -> Config:
  """Reads the JSON of a config that came with a file.

  Args:
    text: the JSON.
    factories: functions that it may name, beside those the user trusts.

  Raises:
    ConfigError: it is no config, or names a function that it may not name.
  """
  c = values.from_json(text)
  check_functions(c, factories)
  return c


def check_functions(c: Config, factories: Collection[str] = FACTORIES) -> None:
  """Refuses a config that names other functions than it may.

  Args:
    c: the config.
    factories: functions that it may name, beside those the user trusts.

  Raises:
    ConfigError: naming the first of them, and the flag that trusts it.
  """
  packages = {word for word in _words() if '/' not in word}
  for key, spec in specs.walk(c):
    name, place = spec['fn'], f'{key}.fn' if key else 'fn'
    package = sources.split(name)[0].partition('.')[0]
    if name in factories or package in packages:
      continue
    if package == 'lm':
      raise ConfigError(
        f'{place}: {show(name)} is refused in a config that came with a file: '
        f'it builds no part of a {"run" if factories is FACTORIES else "build"}'
      )
    raise ConfigError(
      f'{place}: {show(name)} is code outside of lm, refused in a config that '
      f'came with a file: if you trust it, add --trust={package}'
    )


def check_files(
  c: Config, folder: str | Path, named: Sequence[str] = (), key: str = ''
) -> None:
  """Refuses a config, or a part of one, that reads files elsewhere.

  Args:
    c: the part that will be built.
    folder: where the config came from; what lies in it may be read.
    named: keys that the user gave by a flag.
    key: of the part in the whole config, for the error.

  Raises:
    ConfigError: naming the first file that lies elsewhere, links followed, and
      the flag that trusts its folder; or a value that is no path.
  """
  buckets = [f'{x.rstrip("/")}/' for x in _words() if '://' in x]
  folders = [Path(folder).resolve()]
  folders += [Path(x).expanduser().resolve() for x in _words() if '/' in x]
  for name, value in values.flatten(c).items():
    place = f'{key}.{name}' if key else name
    if (
      name.rpartition('.')[2] not in _PATHS
      or not isinstance(value, str)
      or place in named
      or value.startswith(tuple(buckets))
    ):
      continue

    def lies_inside(path):
      path = Path(path).resolve()
      return any(path.is_relative_to(x) for x in folders)

    # A pattern is looked up only below what may be read; what it finds there,
    # or what lies in a folder, may be a link.
    try:
      is_inside = (
        '://' not in value
        and lies_inside(value)
        and all(map(lies_inside, glob.iglob(value, recursive=True)))
        and all(map(lies_inside, _below(value)))
      )
    # It holds a NUL or a lone surrogate, or links lead around in a circle.
    except (ValueError, RuntimeError) as error:
      raise ConfigError(
        f'{place}: {show(value)} is no path of a file ({show(str(error))})'
      ) from error
    if not is_inside:
      where = value.rpartition('/')[0] or '.'
      raise ConfigError(
        f'{place}: {show(value)} lies outside of {folder}, whose config names '
        f'it: if it may be read, add --trust={where}/'
      )


def _below(folder: str) -> Iterator[str]:
  """Lists what lies in a folder, such as one of shards, at any depth."""
  for place, folders, files in os.walk(folder):
    yield from (os.path.join(place, name) for name in (*folders, *files))


def _words() -> Iterator[str]:
  for word in os.environ.get(VARIABLE, '').split(','):
    if word.strip():
      yield word.strip()
