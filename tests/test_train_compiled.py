"""A compiled step is that of the plain network, and every size of batches has a graph of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

# In a process of its own: this one checks shapes in every call, which torch.compile cannot look through. One layer and no search
# for vector instructions: every kernel costs a second of g++, and every kind of instruction a start of Python.
COMPILED = """
import torch
import torch._inductor.compile_fx as inductor
import torch._inductor.cpu_vec_isa as instructions
from torch import nn
from torch._dynamo.utils import counters
from kdzoo.train.loop import Training, train_step
from kdzoo.train.optim import make_optimizer
from kdzoo.train.recipe import Recipe
from kdzoo.zoo.backbone import Backbone
from kdzoo.zoo.method import METHODS, Progress

class OneLayer(Backbone):
    widths, depths = (4,), (1,)
    def stem(self):
        return nn.Conv2d(3, 4, 4, 4)
    def stage(self, index, depth):
        return nn.Tanh()

def start(**changes):
    torch.manual_seed(0)
    method = METHODS.get("baseline").from_mapping({})
    network = method.build(OneLayer(), 5)
    document = {"method": "baseline", "backbone": "none", "dataset": "none", "epochs": 10, "batch_size": 10}
    recipe = Recipe.from_mapping({**document, **changes})
    return Training(network.train(), method, make_optimizer(network, recipe.optimizer), recipe)

def step(training, size=10):
    images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    parts, _ = train_step(training, images, torch.arange(size) % 5, Progress(3, 10))
    return parts, {name: p.grad for name, p in training.network.named_parameters()}

torch.set_num_threads(1)
instructions.valid_vec_isa_list = lambda: []
plain, fast = start(), start(compile=True)
for _ in range(2):
    (parts, gradients), (fast_parts, fast_gradients) = step(plain), step(fast)
    torch.testing.assert_close(fast_parts, parts, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fast_gradients, gradients, rtol=1e-4, atol=1e-6)
assert fast.network.state_dict().keys() == plain.network.state_dict().keys(), "it would be saved under other names"

inductor.compile_fx = lambda graph, inputs, **_: graph.forward  # from here on graphs are counted, not compiled
for size in (6, 8):
    step(fast, size)
assert not counters["graph_break"], counters
assert counters["stats"]["unique_graphs"] == 3, "one graph for several sizes of batches: resumed runs would not be exact"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a processor needs a C++ compiler")
def test_a_compiled_step_is_that_of_the_plain_network() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
