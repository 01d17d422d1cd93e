# %% [markdown]
# # A first run
#
# This notebook trains a small language model, kills the training in the middle,
# and shows that it goes on with exactly the same numbers. It takes about three
# minutes on a CPU with two cores, and less on a GPU or on one TPU chip.

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
# Every Python carries its own language reference, a text of 460 kB. We write
# one JSON line for each of its paragraphs.

# %%
import json
from pathlib import Path
from pydoc_data.topics import topics

with open('text.jsonl', 'w') as file:
  for text in topics.values():
    for paragraph in text.split('\n\n'):
      print(json.dumps({'text': paragraph}), file=file)
print(topics['while'][:300])

# %% [markdown]
# `prepare` trains a tokenizer and turns the text into tokens. A tenth of the
# paragraphs is held out, so that we can measure the model on text that it never
# read.

# %%
from lm.corpus import prepare

prepare.train_tokenizer(['text.jsonl'], 'data/tokenizer.model', vocab=1024)
written = prepare.write_dataset(
  'text.jsonl', 'data', 'data/tokenizer.model', split_valid=0.1
)
for name, part in written.items():
  m = part.manifest
  print(f'{name}: {m.documents} documents, {m.tokens:,} tokens')

# %% [markdown]
# ## Train
#
# A config is a tree of settings. We take the small GPT that comes with the
# library and change a few of its keys. A misspelt key is an error.

# %%
import lm

steps = 40 if QUICK else 160
changes = {
  'steps': steps,
  'save_every': steps // 4,
  'log_every': 2,
  'optim.warmup': 10.0,
  'model.width': 96,
  'model.depth': 3,
  'model.length': 128,
  'data.length': 128,
  'evals.valid.length': 128,
}
c = lm.config.load('configs/gpt/tiny.py', changes, data='data')
state = lm.train.train(c, 'runs/whole')

# %% [markdown]
# The folder `runs/whole` holds all of the run: its config, its checkpoints, and
# its metrics, one JSON line for each two steps.

# %%
import matplotlib.pyplot as plt

from lm.reporting import metrics_log


def curve(run):
  """Reads the training loss of a run: steps, and nats a token."""
  lines = metrics_log.read(Path(run, 'metrics.jsonl'))
  return [x['step'] for x in lines], [x['loss_nats'] for x in lines]


plt.figure(figsize=(6, 3))
plt.plot(*curve('runs/whole'))
plt.xlabel('step')
plt.ylabel('loss, nats a token')
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# On the text that was held out, a loss is best given in bits a byte, which
# does not depend on the tokenizer. A compressor such as bzip2 can be measured
# in the same unit.

# %%
import bz2

record = lm.evaluate.evaluate('runs/whole', data='data', steps='last')[-1]
bits = record['metrics']['valid/bits_per_byte']
everything = '\n'.join(topics.values()).encode()
bzip2 = 8 * len(bz2.compress(everything, 9)) / len(everything)
print(f'the model {bits:.2f} bits a byte, bzip2 -9 {bzip2:.2f}')

# %% [markdown]
# ## Samples
#
# The model is tiny and has read half a megabyte, so expect the sound of a
# manual rather than sense.

# %%
texts = lm.sample.sample(
  'runs/whole', 'The ', temperature=0.7, top_p=0.95, length=60, count=3
)
for text in texts:
  print(text, end='\n\n---\n')

# %% [markdown]
# ## Kill it
#
# Now the same config in a process of its own. As soon as it has passed a third
# of its steps we kill it with the signal that no program can catch.

# %%
import signal
import time

shutil.rmtree('runs/killed', ignore_errors=True)
process = subprocess.Popen(
  [sys.executable, '-m', 'lm.train', '--config=configs/gpt/tiny.py']
  + ['--workdir=runs/killed', '--data=data']
  + [f'--config.{key}={value}' for key, value in changes.items()],
  stdout=subprocess.DEVNULL,
  stderr=subprocess.DEVNULL,
)
log = Path('runs/killed/metrics.jsonl')
while process.poll() is None:
  if log.exists() and len(log.read_text().splitlines()) > steps // 6:
    process.send_signal(signal.SIGKILL)
  time.sleep(0.05)
print('it ended with', signal.Signals(-process.returncode).name)
print('saved steps:', lm.checkpoint.steps('runs/killed'))

# %% [markdown]
# To resume is to make the same call again. It goes on from the last checkpoint,
# here in the process of this notebook.

# %%
resumed = lm.train.train(c, 'runs/killed')

# %%
import jax
import numpy as np

whole, again = map(jax.tree.leaves, (state.params, resumed.params))
same = [np.array_equal(a, b) for a, b in zip(whole, again, strict=True)]
print(f'{sum(same)} of {len(same)} arrays are the same, bit for bit')
assert all(same)

# %%
plt.figure(figsize=(6, 3))
plt.plot(*curve('runs/whole'), lw=5, alpha=0.3, label='not killed')
plt.plot(*curve('runs/killed'), lw=1, label='killed and resumed')
plt.xlabel('step')
plt.ylabel('loss, nats a token')
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# One curve lies on the other. It holds because a training step is a pure
# function of a state and a batch, and a batch is a pure function of the step:
# there is nothing else that a kill could lose.
#
# Next: [look at data and tokenizer](2_data_and_tokenizer.ipynb).
