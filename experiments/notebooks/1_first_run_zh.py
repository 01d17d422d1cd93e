# %% [markdown]
# # 第一次训练
#
# 本笔记本训练一个小型语言模型，在训练中途把进程杀掉，再证明它能接着训练，
# 并且数值完全相同。在双核 CPU 上大约需要三分钟，在 GPU 或单块 TPU 上更快。

# %%
import glob
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = 'https://example.org/exactlm/lm.git'
SOURCE = os.environ.get('LM_SOURCE', 'lm-source')
if importlib.util.find_spec('lm') is None:  # Colab、Kaggle 或新机器
  extra = '[tpu]' if glob.glob('/dev/vfio/[0-9]*') else ''
  extra = '[cuda]' if shutil.which('nvidia-smi') else extra
  install = [sys.executable, '-m', 'pip', 'install', '--quiet']
  subprocess.run(['git', 'clone', '--depth=1', REPOSITORY, SOURCE], check=True)
  subprocess.run([*install, f'./{SOURCE}{extra}'], check=True)
QUICK = bool(os.environ.get('QUICK'))  # 测试时缩短运行

# %% [markdown]
# ## 数据
#
# 每个 Python 都自带语言参考手册，约 460 kB 的英文文本。我们把它的每一段写成
# 一行 JSON。

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
# `prepare` 训练分词器，并把文本变成词元。十分之一的段落留作验证，这样就能在
# 模型从未读过的文本上衡量它。

# %%
from lm.corpus import prepare

prepare.train_tokenizer(['text.jsonl'], 'data/tokenizer.model', vocab=1024)
written = prepare.write_dataset(
  'text.jsonl', 'data', 'data/tokenizer.model', split_valid=0.1
)
for name, part in written.items():
  m = part.manifest
  print(f'{name}：{m.documents} 篇文档，{m.tokens:,} 个词元')

# %% [markdown]
# ## 训练
#
# 配置是一棵由设置组成的树。我们取库中自带的小型 GPT，改动其中几个键。键名拼错
# 会直接报错。

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
# 文件夹 `runs/whole` 保存了这次训练的一切：配置、检查点和指标，每两步一行
# JSON。

# %%
import matplotlib.pyplot as plt

from lm.reporting import metrics_log


def curve(run):
  """读取一次训练的损失：步数，以及每个词元的损失（nat）。"""
  lines = metrics_log.read(Path(run, 'metrics.jsonl'))
  return [x['step'] for x in lines], [x['loss_nats'] for x in lines]


plt.figure(figsize=(6, 3))
plt.plot(*curve('runs/whole'))
plt.xlabel('step')
plt.ylabel('loss, nats a token')
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# 在验证文本上，损失最好用“每字节比特数”表示，因为它不依赖于分词器。bzip2 这样
# 的压缩程序也能用同样的单位衡量。

# %%
import bz2

record = lm.evaluate.evaluate('runs/whole', data='data', steps='last')[-1]
bits = record['metrics']['valid/bits_per_byte']
everything = '\n'.join(topics.values()).encode()
bzip2 = 8 * len(bz2.compress(everything, 9)) / len(everything)
print(f'模型：每字节 {bits:.2f} 比特；bzip2 -9：{bzip2:.2f}')

# %% [markdown]
# ## 生成文本
#
# 模型很小，只读过半兆文本，所以生成的句子只是听上去像手册，没有什么意义。

# %%
texts = lm.sample.sample(
  'runs/whole', 'The ', temperature=0.7, top_p=0.95, length=60, count=3
)
for text in texts:
  print(text, end='\n\n---\n')

# %% [markdown]
# ## 杀掉进程
#
# 现在在另一个进程里用同样的配置训练。一旦走过三分之一的步数，我们就用任何程序
# 都无法捕捉的信号把它杀掉。

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
print('进程结束的信号：', signal.Signals(-process.returncode).name)
print('已保存的步数：', lm.checkpoint.steps('runs/killed'))

# %% [markdown]
# 再次调用同一个函数，就能从最后一个检查点接着训练。这一次是在本笔记本的进程里。

# %%
resumed = lm.train.train(c, 'runs/killed')

# %%
import jax
import numpy as np

whole, again = map(jax.tree.leaves, (state.params, resumed.params))
same = [np.array_equal(a, b) for a, b in zip(whole, again, strict=True)]
print(f'{len(same)} 个数组中有 {sum(same)} 个逐位相同')
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
# 两条曲线完全重合。这是因为训练的一步是状态和批次的纯函数，而批次是步数的纯
# 函数：除此之外，没有什么会因为进程被杀而丢失。
#
# 下一步（英文）：[看看数据和分词器](2_data_and_tokenizer.ipynb)。
