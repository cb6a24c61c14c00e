"""One thread, and what several test files share."""

import gc
import math
import os
import signal
import tempfile

import pytest
import torch
import torch.nn.functional as F

import amc.progress
from amc.data import synthetic
from tests.networks import CLASSES, SHAPE, Residual

torch.set_num_threads(1)
gc.set_threshold(100_000, 50, 50)  # graphs and configurations are many small objects: 5 to 10% of the time
amc.progress.SECONDS = math.inf  # a test on a slow machine tells no lines on standard error
_SETTINGS = tempfile.TemporaryDirectory()
os.environ["XDG_CONFIG_HOME"] = _SETTINGS.name  # where the key lies that signs run folders
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    """Leave what is alive out of later collections: each latency measurement starts with a full one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def example():
    """One image for the networks of `tests.networks`."""
    return torch.zeros(1, *SHAPE)


@pytest.fixture(scope="session")
def data():
    """Images that the networks of `tests.networks` can learn."""
    return synthetic(num_classes=CLASSES, image_size=SHAPE[1], train=256, search_val=100, calibration=96)


@pytest.fixture(scope="session")
def trained(data):
    """A residual network trained for some steps, in eval mode; not to be changed."""
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(6):
        for images, labels in data.train_batches(epoch, 0):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()
