"""What parts of a fine-tuning cost: ``python -m experiments.benchmark finetune --root DIR --checkpoint FILE``.

A uniformly pruned ResNet-20 trains on some CIFAR-10 images, once for each row, and each row in turn for every
epoch after the first two. Reported are the CPU seconds of an epoch without its validation, the median over the
epochs, and their ratio to the plain row; the memory that a step needs beside weights and images: saved
activations, gradients and momentum; and the accuracy on search_val before and after, in percent.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amc import data
from amc.budget.allocation import uniform_widths
from amc.budget.budget import Budget, get_fit, make_limit
from amc.budget.widths import width_space
from amc.cost.closed_form import macs_cost
from amc.cutting.slicing import SlicePlan, slice_model
from amc.data import Splits
from amc.graph.trace import trace
from amc.importance.orders import magnitude_orders
from amc.models import ModelSpec, build
from amc.models.checkpoint import load_into, load_state_dict
from amc.scoring.run import logits
from amc.scoring.scores import top1
from amc.third_party import missing
from amc.training.augment import cross_entropy
from amc.training.loop import train
from amc.training.methods import adapted
from amc.training.settings import TrainSettings
from amc.training.teaching.hints import hint_places

VIEWS = 2

ROWS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "ema": {"ema": 0.998},
    "randaugment": {"randaugment": 9},
    "erasing": {"erasing": 0.25},
    "mixup": {"mixup": 0.2},
    "teacher": {"distill_weight": 0.7},
    "teacher, cached": {"distill_weight": 0.7, "views": VIEWS},
    "hints": {"distill_weight": 0.7, "hint_weight": 1.0},
    "norms": {"method": "norms"},
    "lora": {"method": "lora"},
}
