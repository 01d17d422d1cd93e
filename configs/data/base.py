"""Declares every key of a config of the data factory, with its default.

A config file imports this, changes what it is about, and returns it locked.
"""

from typing import Any

from ml_collections import config_dict


def get_config() -> Any:
  """Returns the defaults as a ConfigDict; new keys cannot be added."""
  c = config_dict.ConfigDict(
    {
      'sources': config_dict.ConfigDict(),  # source() by name
      'stages': config_dict.ConfigDict(),  # specs by name
      'order': (),  # names of the stages, as they follow each other
      'split_valid': 0.01,  # share of the documents kept for validation
      'by_source': False,  # whether each source becomes a dataset of its own
      'shard_tokens': 1 << 28,  # a shard is closed when it has so many
      'tokenizer_file': None,  # its path, or 'bytes'; None: train_tokenizer
      'train_tokenizer': {
        'kind': 'bpe',  # or unigram, characters, words
        'vocab': 8192,  # pieces, or most words
        'coverage': 0.9995,  # share of characters that get pieces
        'least_count': 3,  # of a word that gets an id
        'sample_bytes': 100_000_000,  # of text that it is trained on
      },
      'engine': {
        'part_bytes': 8 << 20,  # of text in a part, the unit of work
        'memory_mb': 96,  # MiB that DuckDB uses before it spills to disk
      },
    }
  )
  return c


def source(inputs: str | tuple[str, ...], **changes: Any) -> dict[str, Any]:
  """A source of documents.

  Args:
    inputs: files, folders and patterns.
    **changes: of the keys below.
  """
  keys = {
    'inputs': inputs,
    'rank': 0,  # of duplicates the one from the source of least rank stays
    'field': 'text',  # of JSON and tables
    'unit': 'file',  # what is a document in text: file, line, paragraph
    'errors': 'replace',  # or skip, or strict
    'max_bytes': 16 << 20,  # longer texts are cut
    'extract': 'main',  # text of web archives; all takes menus, too
    'side': None,  # train or valid, for all of it; None splits it by hash
    # Stages that do not work on this source. If one is contamination, the build
    # has no certificate.
    'skip': (),
    'licence': '',  # for the card of the dataset
    'about': '',
  }
  if unknown := sorted(changes.keys() - keys.keys()):
    raise ValueError(f'source: unknown key {unknown[0]}; see its keys')
  return keys | changes


def cleaning() -> dict[str, Any]:
  """The stages that any web text passes through, by name."""
  return {
    'normalise': {'fn': 'lm.corpus.normalise:make'},
    'language': {
      'fn': 'lm.corpus.language:make',
      'keep': (),  # ISO 639-1 codes; () keeps all
      'least': 0.5,  # probability of the language
    },
    'personal': {'fn': 'lm.corpus.personal:make'},
    'exact': {'fn': 'lm.corpus.exact:make'},
    'near': {'fn': 'lm.corpus.near:make', 'threshold': 0.7},
  }


def order(*quality: str) -> tuple[str, ...]:
  """Orders the stages of `cleaning`.

  Args:
    *quality: names of the stages of rules, which come before personal data is
      masked.
  """
  return ('normalise', 'language', *quality, 'personal', 'exact', 'near')


def contamination(folder: str, language: str) -> dict[str, Any]:
  """Keeps the evaluation sets of the shared data folder out of a corpus.

  Args:
    folder: with `evals`, `qa`, `lm_en` and `lm_zh`.
    language: 'en' or 'zh', of the sets and of the text to measure them with.
  """
  english = {
    'arc_challenge': 'evals/arc_challenge/test.jsonl',
    'arc_easy': 'evals/arc_easy/test.jsonl',
    'boolq': 'qa/boolq/valid.jsonl.gz',
    'commonsense_qa': 'evals/commonsense_qa/valid.jsonl',
    'gsm8k': 'evals/gsm8k/test.jsonl.gz',
    'hellaswag': 'evals/hellaswag/valid_1000_olmes.jsonl.gz',
    'lambada_openai': 'evals/lambada_openai/lambada_test.jsonl.gz',
    'mmlu': 'evals/mmlu/test.jsonl.gz',
    'openbookqa': 'evals/openbookqa/test.jsonl',
    'piqa': 'evals/piqa/valid.jsonl.gz',
    'sciq': 'evals/sciq/valid.jsonl.gz',
  }
  chinese = {
    'cmmlu': 'evals/cmmlu/test.jsonl.gz',
    'cmrc2018': 'qa/cmrc2018/dev.json.gz',
    'drcd': 'qa/drcd/test.json.gz',
  }
  # Held-out texts of several kinds, and pages of the web.
  clean = {
    'en': (
      'gutenberg/test.jsonl.gz',
      'gutenberg/valid.jsonl.gz',
      'peps/test.jsonl.gz',
      'peps/valid.jsonl.gz',
      'web_demo/c4_demo.jsonl',
      'wikitext2/wiki.test.tokens.gz',
      'wikitext2/wiki.valid.tokens.gz',
    ),
    'zh': (
      'novels/test.jsonl.gz',
      'novels/valid.jsonl.gz',
      'wiki_passages/valid.jsonl.gz',
    ),
  }
  sets = english if language == 'en' else chinese
  return {
    'fn': 'lm.corpus.contamination:make',
    'sets': {name: {'path': f'{folder}/{x}'} for name, x in sets.items()},
    'clean': tuple(f'{folder}/lm_{language}/{x}' for x in clean[language]),
    # Of what goes with an item that is found, see lm/corpus/passages.py.
    'cut': {'margin': 200, 'least': 200, 'most_pieces': 10},
  }


def one_language(language: str, folder: str, **quality: Any) -> Any:
  """A config for texts of one language of the shared data folder.

  Args:
    language: 'en' or 'zh'.
    folder: with its evaluation sets.
    **quality: stages of rules, by name.
  """
  c = get_config()
  sets = contamination(folder, language)
  c.stages = cleaning() | quality | {'contamination': sets}
  c.order = (*order(*quality), 'contamination')
  c.stages['language']['keep'] = (language,)
  c.split_valid = 0.02
  c.train_tokenizer.vocab = 8192
  c.train_tokenizer.sample_bytes = 10_000_000
  return c
