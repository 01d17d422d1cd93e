# %% [markdown]
# # A sweep with a plot
#
# This notebook searches for the learning rate of a small GPT: five rates with
# two seeds each, in one call. It takes about a minute on a CPU with two cores.

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
# ## Data
#
# Python's own language reference, one paragraph a line.

# %%
import json
from pydoc_data.topics import topics

from lm.corpus import prepare

with open('text.jsonl', 'w') as file:
  for text in topics.values():
    for paragraph in text.split('\n\n'):
      print(json.dumps({'text': paragraph}), file=file)
prepare.train_tokenizer(['text.jsonl'], 'data/tokenizer.model', vocab=512)
written = prepare.write_dataset(
  'text.jsonl', 'data', 'data/tokenizer.model', split_valid=0.1
)
print(f'{written["train"].manifest.tokens:,} tokens to train on')

# %% [markdown]
# ## Points
#
# A point of a sweep is a dict of config keys. `log_range` spaces values by
# their logarithm, `seeds` repeats, and `product` combines each with each.

# %%
from lm.sweeping import points

over = points.product(
  points.log_range('optim.peak', 0.001, 0.1, 3 if QUICK else 5),
  points.seeds(1 if QUICK else 2),
)
print(len(over), 'runs, such as', over[0])

# %% [markdown]
# ## Run them
#
# Every point is checked before the first run starts: a wrong value would end
# the sweep here, and not after an hour. If this call is interrupted, the same
# call goes on: runs that are done are not run again.

# %%
from lm import sweep

steps = 20 if QUICK else 80
changes = {
  'steps': steps,
  'save_every': steps,
  'eval_every': steps,
  'optim.warmup': float(steps // 8),
  'model.width': 64,
  'model.depth': 2,
  'model.length': 64,
  'model.compute_dtype': 'float32',
  'data.length': 64,
  'evals.valid.length': 64,
}
rows = sweep.sweep(
  'configs/gpt/tiny.py',
  over,
  workdir='runs/sweep',
  overrides=changes.items(),
  data='data',
  jobs=1,  # one process trains all runs, and compiles their step once
  show=lambda views: None,  # without it, a table of the runs is drawn
)
for row in rows:
  print(row['name'], row['state'], f'{row["valid/loss_nats"]:.3f}')

# %% [markdown]
# ## The plot
#
# The loss of held-out text against the rate, a dot for each run. A rate that is
# too low learns slowly, and one that is too high learns badly. Above, a run is
# named by what it changes, and `base` is the config as it is.

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(6, 3))
plt.semilogx(
  [row['optim.peak'] for row in rows],
  [row['valid/loss_nats'] for row in rows],
  'o',
  alpha=0.7,
)
plt.xlabel('highest learning rate')
plt.ylabel('loss of held-out text, nats')
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The folder of the sweep holds the same as a table and a plot.

# %%
from pathlib import Path

print(Path('runs/sweep/table.md').read_text())

# %% [markdown]
# The best of many runs looks better than it is, because chance helps one of
# them. Before you believe it, run the best and the second best with new seeds:
# see [compare two runs](6_compare_two_runs.ipynb).
