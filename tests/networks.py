"""Small networks as users write them, each for images of shape (3, 12, 12) and CLASSES logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5
SHAPE = (3, 12, 12)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Headed(nn.Module):
    """Global average pooling and a linear layer on what `features` returns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Chain(Headed):
    """Two convolutions, one with batch norm and one with bias."""

    def __init__(self) -> None:
        super().__init__(12)
        self.first = conv_bn(3, 8)
        self.second = nn.Conv2d(8, 12, 3, stride=2)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)))


class Residual(Headed):
    """An identity block and a block with a downsample convolution."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = conv_bn(3, 8)
        self.same = nn.Sequential(conv_bn(8, 6), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.down = nn.Sequential(conv_bn(8, 10, stride=2), nn.Conv2d(10, 12, 3, padding=1))
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.same(x))
        return F.relu(self.down(x) + self.shortcut(x))


class Separable(Headed):
    """Two depthwise-separable convolutions."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = conv_bn(3, 8)
        self.body = nn.Sequential(
            conv_bn(8, 8, groups=8), conv_bn(8, 10, 1), conv_bn(10, 10, groups=10), conv_bn(10, 12, 1)
        )

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


class Dense(Headed):
    """Each convolution reads all before it, concatenated and normalised (dense block)."""

    def __init__(self) -> None:
        super().__init__(18)
        self.stem, self.first = conv_bn(3, 6), conv_bn(6, 4)
        self.norm, self.second = nn.BatchNorm2d(10), nn.Conv2d(10, 8, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(x)], 1)
        return torch.cat([x, self.second(F.relu(self.norm(x)))], 1)


class ConcatThenAdd(Headed):
    """A sum that couples two branches, concatenated, with a third one."""

    def __init__(self) -> None:
        super().__init__(10)
        self.left, self.right, self.whole = conv_bn(3, 4), conv_bn(3, 6), conv_bn(3, 10)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1) + self.whole(x)


class Flattened(nn.Module):
    """A feature map flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 6, stride=2), conv_bn(6, 8, stride=2))
        self.hidden = nn.Linear(8 * 3 * 3, 10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.body(x).flatten(1))))


class WithPReLU(Headed):
    """A learned slope per channel."""

    def __init__(self) -> None:
        super().__init__(10)
        self.first, self.first_slopes = nn.Conv2d(3, 8, 3), nn.PReLU(8)
        self.second, self.second_slopes = nn.Conv2d(8, 10, 3), nn.PReLU(10)

    def features(self, x: Tensor) -> Tensor:
        return self.second_slopes(self.second(self.first_slopes(self.first(x))))


class OneSlope(Headed):
    """One learned slope for all channels, PyTorch's default."""

    def __init__(self) -> None:
        super().__init__(10)
        self.first, self.second, self.slope = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.PReLU()

    def features(self, x: Tensor) -> Tensor:
        return self.second(self.slope(self.first(x)))


class SqueezeExcite(Headed):
    """Channels scaled by sigmoid gates that are computed from all of them."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.last = conv_bn(3, 8), conv_bn(8, 12)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gates = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.last(x * gates)


class Grouped(Headed):
    """A grouped convolution between plain ones."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.grouped = conv_bn(3, 8), conv_bn(8, 8, groups=2)
        self.narrow, self.last = conv_bn(8, 10), conv_bn(10, 12)

    def features(self, x: Tensor) -> Tensor:
        return self.last(self.narrow(self.grouped(self.stem(x))))


class Shared(Headed):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.twice, self.last = conv_bn(3, 8), nn.Conv2d(8, 8, 3, padding=1), conv_bn(8, 10)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(self.stem(x)))
        return self.last(F.relu(self.twice(x)))


class ConvHead(nn.Module):
    """Fully convolutional: the last convolution makes the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.logits = conv_bn(3, 8), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.stem(x)).mean((2, 3))


class Normalised(Headed):
    """A linear layer followed by layer norm."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.hidden, self.norm = conv_bn(3, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.hidden(self.stem(x).mean((2, 3))))))


class SecretScale(Headed):
    """Channels multiplied by constants that the graph does not follow."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.last = conv_bn(3, 8), conv_bn(8, 10)
        self.scale = torch.arange(1.0, 9.0).view(1, 8, 1, 1)  # neither a parameter nor a buffer

    def features(self, x: Tensor) -> Tensor:
        return self.last(self.stem(x) * self.scale)


class SecretSoftmax(Headed):
    """Softmax over the channels of the stem."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.last = conv_bn(3, 8), conv_bn(8, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.last(self.stem(x).softmax(1))


class Shuffled(Headed):
    """Channels of two halves interleaved, as in ShuffleNet, between layers that can be pruned."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.inner, self.mixed = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 8)
        self.after, self.last = conv_bn(8, 10), conv_bn(10, 12)

    def features(self, x: Tensor) -> Tensor:
        x = self.mixed(self.inner(self.stem(x)))
        images, channels, height, width = x.shape
        x = x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        return self.last(self.after(x))


class Chunked(Headed):
    """A map split in two halves by the forward pass; one half goes through a convolution."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.left, self.hidden = conv_bn(3, 8), conv_bn(4, 6), conv_bn(6, 4)

    def features(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        return torch.cat([self.hidden(self.left(left)), right], 1)


class Multiplied(Headed):
    """A depthwise convolution with two filters a channel."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.twice = conv_bn(3, 6), nn.Conv2d(6, 12, 3, groups=6)
        self.narrow, self.last = conv_bn(12, 8), conv_bn(8, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.last(self.narrow(F.relu(self.twice(self.stem(x)))))


class Ghost(Headed):
    """A map beside a depthwise copy of itself, both added to another one: two places for a channel."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.whole, self.last = conv_bn(3, 4), conv_bn(3, 8), conv_bn(8, 10)
        self.cheap = conv_bn(4, 4, groups=4)

    def features(self, x: Tensor) -> Tensor:
        half = self.stem(x)
        return self.last(torch.cat([half, self.cheap(half)], 1) + self.whole(x))


class Upscaled(Headed):
    """Channels moved into space."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.wide, self.last = conv_bn(3, 6), conv_bn(6, 16), conv_bn(4, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.last(F.pixel_shuffle(self.wide(self.stem(x)), 2))


class Encoder(Headed):
    """A transformer block on the pixels of a map: attention, layer norm and a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.perceptron = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head((x + self.perceptron(x)).mean(1))


class ChannelsLast(Headed):
    """A linear layer on maps whose channels come last, as in ConvNeXt; the map is not square."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.wide = nn.Conv2d(3, 8, 3, stride=(1, 2)), nn.Linear(8, 12)
        self.narrow, self.last = nn.Linear(12, 8), nn.Conv2d(8, 10, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.narrow(F.gelu(self.wide(x.permute(0, 2, 3, 1))))
        return self.last(x + y.permute(0, 3, 1, 2))


class Heads(Headed):
    """Two classifiers and a map, returned as a dictionary."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.body, self.map = conv_bn(3, 8), conv_bn(8, 12), nn.Conv2d(12, 2, 1)
        self.other = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        x = self.body(self.stem(x))
        pooled = x.mean((2, 3))
        return {"classes": (self.head(pooled), self.other(pooled)), "maps": [self.map(x)], "note": "text"}


class StandardisedConv(nn.Conv2d):
    """A convolution that standardises its weight before it uses it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, self.stride, self.padding)


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does, from the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        for dim in (-1, -2):
            size, kernel, stride = x.shape[dim], self.kernel_size[dim], self.stride[dim]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads = (total // 2, total - total // 2)
            x = F.pad(x, pads if dim == -1 else (0, 0, *pads))
        return F.conv2d(x, self.weight, self.bias, self.stride)


class ActivatedNorm(nn.BatchNorm2d):
    """Batch norm and activation in one module, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Standardised(Chain):
    """Two convolutions standardise their weights; a branch and the last layer can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Sequential(StandardisedConv(8, 12, 3, stride=2), nn.BatchNorm2d(12))
        self.third, self.fourth = conv_bn(12, 8), StandardisedConv(8, 8, 3)
        self.last, self.head = conv_bn(8, 6, 1), nn.Linear(6, CLASSES)
        self.inner = nn.Sequential(conv_bn(8, 6), nn.Conv2d(6, 8, 3, padding=1))

    def features(self, x: Tensor) -> Tensor:
        x = self.third(super().features(x))
        return self.last(self.fourth(x + self.inner(x)))


class SamePadded(Chain):
    """Dynamic padding, uneven at stride 2, and a norm with its own activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(SameConv(3, 8, 3, stride=2, bias=False), ActivatedNorm(8))
        self.second = SameConv(8, 12, 3, stride=2)


class PerChannel(Headed):
    """Bare parameters of one number a channel, added, multiplied and divided by, before a concatenation."""

    def __init__(self) -> None:
        super().__init__(14)
        self.stem, self.left, self.right = conv_bn(3, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 8, 1)
        self.scale, self.shift = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.ones(1, 8, 1, 1))
        self.slopes, self.width = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(12))
        self.divisor = nn.Parameter(torch.ones(1, 8, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        x = (self.stem(x) + self.shift) * self.scale.sigmoid() * self.width
        left = (self.left(x).permute(0, 2, 3, 1) * self.slopes).permute(0, 3, 1, 2)
        return torch.cat([left, self.right(x) / (self.divisor.abs() + 1e-6)], 1)


class FrozenNorm(nn.Module):
    """A batch norm of buffers, as detection backbones have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class FrozenNorms(Chain):
    """Norms of buffers, and a buffer of pixels that has nothing to do with the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Sequential(nn.Conv2d(3, 8, 3), FrozenNorm(8)), FrozenNorm(12)
        self.register_buffer("columns", torch.arange(4.0))

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.second(self.first(x))) + self.columns)


class InstanceNorms(Chain):
    """Instance norms: with weights and statistics, with statistics alone, and with neither."""

    def __init__(self) -> None:
        super().__init__()
        full = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), full, nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3), nn.InstanceNorm2d(12, track_running_stats=True))


class Transposed(Headed):
    """Transposed convolutions, plain and depthwise, between convolutions and a skip connection."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.deep = conv_bn(3, 6), conv_bn(6, 8, stride=2)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.each, self.last = nn.ConvTranspose2d(12, 12, 3, 1, 1, groups=12), conv_bn(12, 10)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.each(torch.cat([x, self.up(self.deep(x))], 1)))


class AttentionGate(Headed):
    """A map of one channel that scales all channels of another, and the norm of the channels."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.inner, self.last = conv_bn(3, 8), conv_bn(8, 6), conv_bn(8, 10)
        self.gate = nn.Sequential(nn.Conv2d(6, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.normalize(self.last(x * self.gate(self.inner(x)).expand_as(x)), dim=1)


class Summed(Headed):
    """A map that is the sum over channels which no layer reads scales the channels of another."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.main, self.gate = conv_bn(3, 8), conv_bn(8, 10), nn.Conv2d(8, 3, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.main(x) * torch.sigmoid(self.gate(x).relu().sum(1, keepdim=True))


class Gates(Headed):
    """Products of two halves of the channels: chunks after a depthwise layer, and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.wide, self.each = conv_bn(3, 8), nn.Conv2d(8, 12, 1), conv_bn(12, 12, groups=12)
        self.narrow, self.twice = nn.Conv2d(6, 12, 1), nn.Conv2d(6, 6, 1)

    def features(self, x: Tensor) -> Tensor:
        left, right = self.each(self.wide(self.stem(x))).chunk(2, dim=1)
        return self.twice(F.glu(self.narrow(right * left), 1))


class CrossStage(Headed):
    """Chunks that are concatenated with what a branch makes of the last one, as in YOLOv8."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.branch, self.last = conv_bn(3, 8), conv_bn(4, 4), conv_bn(12, 10)

    def features(self, x: Tensor) -> Tensor:
        parts = list(torch.chunk(self.stem(x), 2, 1))
        parts.append(parts[-1] + self.branch(parts[-1]))
        return self.last(torch.cat(parts[::-1], 1))


class WithoutGradients(Headed):
    """Layers that run without gradients before one that is trained."""

    def __init__(self) -> None:
        super().__init__(10)
        self.frozen, self.detached, self.last = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 10)

    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        return self.last(self.detached(x).detach())


class FlattenedFromTheEnd(nn.Module):
    """Maps flattened by axes from the end, channels first and channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 6, stride=2), conv_bn(6, 8, stride=2)
        self.hidden, self.other = nn.Linear(8 * 3 * 3, 10), nn.Linear(6 * 6 * 6, 10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        last = self.other(x.permute(0, 2, 3, 1).reshape(len(x), -1))
        return self.head(F.relu(self.hidden(self.second(x).flatten(-3)) + last))


PRUNABLE: tuple[type[nn.Module], ...] = (
    Chain,
    Residual,
    Separable,
    Dense,
    ConcatThenAdd,
    Flattened,
    WithPReLU,
    OneSlope,
    SqueezeExcite,
    Grouped,
    Shared,
    ConvHead,
    Normalised,
    Shuffled,
    Chunked,
    Multiplied,
    Ghost,
    Upscaled,
    Encoder,
    ChannelsLast,
    Standardised,
    SamePadded,
    PerChannel,
    FrozenNorms,
    InstanceNorms,
    Transposed,
    AttentionGate,
    Gates,
    CrossStage,
    WithoutGradients,
    FlattenedFromTheEnd,
)
"""Networks that can be pruned exactly, at least in part."""


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic at random, so that no channel is like another; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim > 1:
                tensor.normal_(generator=generator).mul_((2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(-0.5, 1.0, generator=generator)
    return model.eval()
