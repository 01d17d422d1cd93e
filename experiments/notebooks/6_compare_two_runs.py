# %% [markdown]
# # Compare two runs
#
# This notebook asks whether one recipe is better than another, and shows how
# easily one is fooled. It trains nine tiny models, and takes about three
# minutes on a CPU with two cores.

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
# `tools.compare` is a program of the repository and not of the package.

# %%
if os.path.exists('../../tools/compare.py'):  # this notebook lies in a checkout
  SOURCE = '../..'
sys.path.append(SOURCE)  # at the end: the installed lm stays the one in use

# %% [markdown]
# ## The question
#
# Does a small GPT learn better with a learning rate of 0.01 than with 0.005?
# We train both recipes with three seeds, and the first of them with three more
# seeds, as if it were a third recipe. A good method finds no difference
# between the first and the third.

# %%
import json
from pydoc_data.topics import topics

import lm
from lm.corpus import prepare

with open('text.jsonl', 'w') as file:
  for text in topics.values():
    for part in text.split('\n\n'):  # many documents give many items
      print(json.dumps({'text': part}), file=file)
prepare.train_tokenizer(['text.jsonl'], 'data/tokenizer.model', vocab=512)
written = prepare.write_dataset(
  'text.jsonl', 'data', 'data/tokenizer.model', split_valid=0.1
)
print(written['valid'].manifest.documents, 'documents are held out')

# %%
steps = 60 if QUICK else 200
changes = {
  'steps': steps,
  'save_every': steps,
  'log_every': steps // 4,
  'optim.warmup': 10.0,
  'model.width': 64,
  'model.depth': 2,
  'model.length': 64,
  'model.compute_dtype': 'float32',
  'data.length': 64,
  'evals.valid.length': 64,
}
recipes = {'low': (0.005, (0, 1, 2)), 'high': (0.01, (0, 1, 2))}
recipes['low again'] = (0.005, (3, 4, 5))

# %%
import contextlib
import io

runs = {}
for name, (peak, seeds) in recipes.items():
  runs[name] = [f'runs/{name}-{seed}'.replace(' ', '-') for seed in seeds]
  for seed, folder in zip(seeds, runs[name], strict=True):
    settings = {'optim.peak': peak, 'seed': seed}
    c = lm.config.load('configs/gpt/tiny.py', changes | settings, data='data')
    with contextlib.redirect_stderr(io.StringIO()):
      lm.train.train(c, folder)

# %% [markdown]
# ## Look first
#
# Each dot is a run, measured on text that was held out. The spread within a
# recipe is what another seed does, and nothing else.

# %%
import matplotlib.pyplot as plt

found = {}
for name, folders in runs.items():
  records = [lm.evaluate.evaluate(x, data='data')[-1] for x in folders]
  found[name] = [x['metrics']['valid/bits_per_byte'] for x in records]
plt.figure(figsize=(6, 2.2))
for n, values in enumerate(found.values()):
  plt.plot(values, [n] * len(values), 'o', alpha=0.7)
plt.yticks(range(len(found)), found)
plt.ylim(-0.5, len(found) - 0.5)
plt.xlabel('bits a byte of held-out text: lower is better')
plt.grid(alpha=0.3)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Then test
#
# `compare` pairs the losses of the same documents, and takes both sources of
# chance into account: which documents were held out, and which seeds were
# drawn. The column `p` answers this question: if there were no difference, how
# often would chance alone give one as large as this? It is *not* the
# probability that there is no difference.

# %%
from tools import compare

print(compare.table(compare.compare(runs['low'], runs['high'])))

# %% [markdown]
# And the same recipe against itself, with other seeds. The test should not find
# a difference here; at a level of 5 % it is wrong once in twenty times.

# %%
print(compare.table(compare.compare(runs['low'], runs['low again'])))

# %% [markdown]
# ## How to fool yourself
#
# Suppose that you try 20 ideas that do nothing, one seed each, and keep the
# best. We draw the results from a normal distribution with the spread of the
# seeds that we have measured.

# %%
import numpy as np

spread = np.std([*found['low'], *found['low again']], ddof=1)
draws = np.random.default_rng(0).normal(0, spread, (10_000, 20))
gain = -draws.min(axis=1).mean()
print(f'one seed differs from another by about {spread:.4f} bits a byte')
print(f'the best of 20 ideas that do nothing "gains" {gain:.4f}')
print(f'that is {gain / spread:.1f} standard deviations of the seed')

# %% [markdown]
# So: choose the number of seeds before you look, test once, and divide the
# level by the number of ideas that you try. The page *For programs* of the
# documentation has more of such rules.
