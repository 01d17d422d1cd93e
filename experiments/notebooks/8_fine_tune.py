# %% [markdown]
# # Fine-tune and compare
#
# This notebook asks what pretraining is worth: it trains a small model on text
# without labels, fine-tunes it on few labels, and compares it with the same
# model that was not pretrained, three seeds each. It takes about four minutes
# on a CPU with two cores.

# %%
import glob
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = 'https://example.org/exactlm/lm.git'
SOURCE = os.environ.get('LM_SOURCE', 'lm-source')
if importlib.util.find_spec('lm') is None:  # Colab, Kaggle, or a new machine
  extra = '[tpu]' if glob.glob('/dev/vfio/[0-9]*') else ''
  extra = '[cuda]' if shutil.which('nvidia-smi') else extra
  install = [sys.executable, '-m', 'pip', 'install', '--quiet']
  subprocess.run(['git', 'clone', '--depth=1', REPOSITORY, SOURCE], check=True)
  subprocess.run([*install, f'./{SOURCE}{extra}'], check=True)
QUICK = bool(os.environ.get('QUICK'))  # a test runs this notebook shortened

# %% [markdown]
# `tools.compare` is a program of the repository, and the evaluator needs
# scikit-learn.

# %%
if importlib.util.find_spec('sklearn') is None:
  command = [sys.executable, '-m', 'pip', 'install', 'scikit-learn']
  subprocess.run(command, check=True)
if os.path.exists('../../tools/compare.py'):  # this notebook lies in a checkout
  SOURCE = '../..'
sys.path.append(SOURCE)  # at the end: the installed lm stays the one in use

# %% [markdown]
# ## Data without a download
#
# numpy, scipy and jax are here, because `lm` needs them, and each documents its
# functions. The task: which of the three does a docstring come from? We take
# the names of the libraries out of the text, and lines of examples too.

# %%
import ast
from pathlib import Path
import random
import re
import warnings

LIBRARIES = ('jax', 'numpy', 'scipy')


def docstrings(library):
  """Reads the docstrings of a library, without importing it."""
  root = Path(importlib.util.find_spec(library).origin).parent
  found = set()
  for path in sorted(root.rglob('*.py')):
    if {'test', 'tests', 'testing'} & {*path.relative_to(root).parts}:
      continue
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of code that is not ours
      tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        text = ast.get_docstring(node) or ''
        lines = [x for x in text.splitlines() if '>>>' not in x]
        text = re.sub(
          r'(?i)\b(jax|jnp|numpy|np|scipy)\b', 'it', '\n'.join(lines)
        )
        if len(text) > 120:
          found.add(text[:400])
  return sorted(found)


texts = {name: docstrings(name) for name in LIBRARIES}
print({name: len(found) for name, found in texts.items()})

# %%
import json

draw = random.Random(0)
for found in texts.values():
  draw.shuffle(found)
LABELLED, TEST = 48, 150  # of each library
with open('train.jsonl', 'w') as train, open('test.jsonl', 'w') as test:
  for name, found in texts.items():
    for n, text in enumerate(found[: LABELLED + TEST]):
      line = json.dumps({'text': text, 'label': name})
      print(line, file=train if n < LABELLED else test)
with open('unlabelled.jsonl', 'w') as file:
  for found in texts.values():
    for text in found[LABELLED + TEST :]:
      print(json.dumps({'text': text}), file=file)

# %% [markdown]
# ## Pretrain
#
# A decoder learns to predict the next token of the docstrings that have no
# label. None of the test texts is among them.

# %%
import lm
from lm.corpus import prepare

prepare.train_tokenizer(
  ['unlabelled.jsonl'], 'data/tokenizer.model', vocab=1024
)
written = prepare.write_dataset(
  'unlabelled.jsonl', 'data', 'data/tokenizer.model', split_valid=0.02
)
print(f'{written["train"].manifest.tokens:,} tokens to train on')
steps = 60 if QUICK else 300
changes = {
  'steps': steps,
  'save_every': steps,
  'log_every': steps // 4,
  'batch_size': 16,
  'optim.warmup': 10.0,
  'model.width': 96,
  'model.depth': 3,
  'model.length': 128,
  'model.compute_dtype': 'float32',
  'data.length': 128,
}
c = lm.config.load('configs/gpt/tiny.py', changes, data='data')
state = lm.train.train(c, 'runs/pretrained')

# %% [markdown]
# ## Fine-tune
#
# A head around the decoder classifies a text by the mean over its tokens.
# `init_from` takes the parameters of the pretrained run; without it they are
# drawn at random. Everything else is the same.

# %%
# %%writefile tune.py
"""Tunes the decoder to tell libraries apart; the argument: start or none."""

from configs.finetune import start

READER = 'lm.data.finetuning.readers:texts'


def get_config(first: str = 'pretrained'):
  """Returns the config."""
  head = {'fn': 'lm.models.heads:classify', 'classes': 3, 'pool': 'mean'}
  c = start.tuned(head, 'runs/pretrained')
  if first == 'random':
    c.init_from, c.init_paths = None, ()
  c.model.pool = 'mean'
  c.batch_size = 16
  c.optim.peak = 1e-3
  form = {
    'fn': 'lm.data.finetuning.forms:classify',
    'classes': 3,
    'labels': ('jax', 'numpy', 'scipy'),
    'ends': False,
  }
  train, test = (
    {'fn': READER, 'path': f'{side}.jsonl'} for side in ('train', 'test')
  )
  evaluators = {'test': {'fn': 'classification:classes'}}
  start.task(c, form, train, test, evaluators, length=128)
  return c.lock()


# %%
import contextlib
import io

steps = 30 if QUICK else 80
runs = {'random': [], 'pretrained': []}
for first, folders in runs.items():
  for seed in range(3):
    settings = {'seed': seed, 'steps': steps, 'save_every': steps}
    settings['optim.warmup'] = 5.0
    c = lm.config.load(f'tune.py:{first}', settings)
    folders.append(f'runs/{first}-{seed}')
    with contextlib.redirect_stderr(io.StringIO()):
      lm.train.train(c, folders[-1])

# %% [markdown]
# ## Compare
#
# The accuracy on texts that no model has read. Guessing gives 33 %.

# %%
import matplotlib.pyplot as plt

lm.config.trust('./')  # the runs may read the test set of this folder
accuracy = {}
for first, folders in runs.items():
  records = [lm.evaluate.evaluate(x)[-1] for x in folders]
  accuracy[first] = [x['metrics']['test/accuracy'] for x in records]
plt.figure(figsize=(6, 2))
for n, values in enumerate(accuracy.values()):
  plt.plot(values, [n] * len(values), 'o', alpha=0.7)
plt.yticks(range(2), accuracy)
plt.ylim(-0.5, 1.5)
plt.xlabel('accuracy: higher is better')
plt.grid(alpha=0.3)
plt.tight_layout()
plt.show()

# %%
from tools import compare

report = compare.compare(runs['random'], runs['pretrained'])
print(compare.table(report))

# %% [markdown]
# ## Use it

# %%
text = 'Transforms a function so that it is compiled, and traced once a shape.'
for label, p in lm.predict.predict(runs['pretrained'][0], [text])[0].items():
  print(f'{label:6} {p:.2f}')

# %% [markdown]
# The page *Fine-tuning* of the documentation lists other tasks: tags, answers,
# translation, replies, preferences. For a model that somebody else has
# pretrained, begin with docs/export-and-serving.md.
