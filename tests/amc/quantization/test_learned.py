"""Training of quantized networks: gradients, the way back to a description, and resuming."""

import pytest
import torch
from torch import nn

from amc import data
from amc.quantization import storage
from amc.quantization.calibration import quantize
from amc.quantization.layers import RoundTrip
from amc.quantization.learned.layers import LearnedGrid, signs_through, straight_through
from amc.quantization.learned.network import trained
from amc.quantization.settings import QuantizeSettings
from amc.quantization.simulation import simulated
from amc.training.loop import train
from amc.training.settings import TrainSettings
from tests.amc.quantization.test_program import DecidesOnValues
from tests.networks import CLASSES, SHAPE, Residual, randomised
from tests.params import slow

FAKE = data.synthetic(
    num_classes=CLASSES, image_size=SHAPE[1], train=32, batch_size=16, search_val=16, calibration=16
)
IMAGES = FAKE.calibration.images


def outputs(model):
    with torch.no_grad():
        return model(IMAGES.clone())


def quantized(model, method, **own):
    return quantize(model, IMAGES, QuantizeSettings(method=method, sensitivity_images=0, **own))


def with_statistics_of_the_images(model):
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(IMAGES.clone())
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def imitate(target, steps=15):
    def fit(network):
        network.train()
        taught = [each for each in network.parameters() if each.requires_grad]
        optimizer = torch.optim.SGD(taught, lr=0.01, momentum=0.9)
        for _ in range(steps):
            loss = (network(IMAGES.clone()) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(taught, 1.0)
            optimizer.step()

    return fit


def test_gradients_of_a_learned_step_by_hand():
    values = torch.tensor([0.3, -0.9, 5.0, -7.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    rounded = straight_through(values, step, -3, 3)
    assert rounded.tolist() == [0.5, -1.0, 1.5, -1.5]
    rounded.sum().backward()
    assert values.grad.tolist() == [1, 1, 0, 0]
    within = (1 - 0.3 / 0.5) + (-2 + 0.9 / 0.5)  # rounded less whole; beyond the ends, the end
    assert float(step.grad) == pytest.approx(within + 3 - 3)


@pytest.mark.parametrize("shape", [(5,), (3, 2), (40, 64, 8, 8)])
def test_a_learned_grid_has_the_gradients_of_straight_through(shape):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul(2)
    values = values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values
    above, found = torch.randn(shape, generator=torch.Generator().manual_seed(1)), []
    grid = LearnedGrid(RoundTrip(0.02, 100))
    for rounded in (lambda given: grid(given), lambda given: straight_through(given, grid.scale, -100, 155)):
        given = values.clone().requires_grad_()
        grid.zero_grad()
        output = rounded(given)
        (output * above).sum().backward()
        found.append((output.detach(), given.grad, grid.step.grad))
    (moved, below, of_step), (expected, own, whole) = found
    assert torch.equal(moved, expected)
    torch.testing.assert_close(below, own)  # the operators multiply by the step and divide by it
    count = values[0].numel() * 255
    assert float(of_step) == pytest.approx(float(whole) * count**-0.5, rel=1e-3)


def test_signs_pass_the_gradient_on():
    values = torch.tensor([0.3, 0.0, -2.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    found = signs_through(values, step)
    assert found.tolist() == [0.5, 0.5, -0.5]
    (found * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert values.grad.tolist() == [1, 2, 4]
    assert float(step.grad) == -1


def test_a_learned_grid_computes_what_the_grid_computes():
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 3
    grid = RoundTrip(0.013, 70)
    learned = LearnedGrid(grid)
    found = learned(values)
    assert torch.equal(found, grid(values))
    found.square().sum().backward()
    beyond = (values / 0.013).round().add(70).clamp(0, 255) != (values / 0.013).round().add(70)
    assert beyond.any()
    assert learned.step.grad != 0


@pytest.mark.parametrize("make", [Residual, slow(DecidesOnValues)])
@pytest.mark.parametrize("own", [{"method": "qat", "weight_bits": 3}, slow({"method": "binary"})], ids=str)
def test_training_starts_at_the_quantized_network_and_its_result_is_a_description(make, own, tmp_path):
    model = with_statistics_of_the_images(randomised(make()))
    made = quantized(model, **own)
    seen = []

    def fit(network):
        seen.append(outputs(network))
        imitate(outputs(model))(network)
        seen.append(outputs(network.eval()))

    found = trained(made, fit)
    spread = outputs(model).std()
    # The training computes in float32, the quantized network on integers: single roundings differ.
    assert (seen[0] - outputs(made.model)).abs().mean() < 1e-3 * spread
    assert (outputs(found.model) - seen[1]).abs().max() < 0.05 * spread  # biases are integers now
    if make is Residual:  # one that decides on values may take other ways
        errors = [(outputs(each.model) - outputs(model)).square().mean() for each in (made, found)]
        assert errors[1] < errors[0]
    storage.save(tmp_path, found.description, found.tensors)
    again = simulated(model, SHAPE, *storage.load(tmp_path))
    assert torch.equal(outputs(again), outputs(found.model))
    assert found.description.method == ("static_int8" if own["method"] == "qat" else "weight_only")
    assert {each.rounding for each in found.description.layers} == {"learned"}


@pytest.mark.parametrize("method", ["qat", slow("binary")])
def test_norms_are_trained_and_folded_whatever_their_sign(method):
    made = quantized(randomised(Residual()), method)
    seen = []

    def fit(network):
        norms = [each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        assert len(norms) == len(made.program.norms) > 0
        with torch.no_grad():
            for norm in norms:
                norm.weight[::2] *= -1
                norm.running_var[1::3] *= 4
                norm.weight[1] = 0
        seen.append(outputs(network.eval()))

    found = trained(made, fit)
    # Where the training computes in float32, single roundings differ.
    assert (outputs(found.model) - seen[0]).abs().mean() < 0.02 * seen[0].std()
    assert all((found.tensors[f"{each.name}.scale"] > 0).all() for each in found.description.layers)


@pytest.mark.slow
def test_binary_weights_are_signs_but_for_the_first_and_the_last_layer():
    found = trained(quantized(randomised(Residual()), "binary"), lambda network: None)
    bits = [each.bits for each in found.description.layers]
    assert bits == [8, *[1] * (len(bits) - 2), 8]
    for each in found.description.layers:
        if each.bits == 1:
            assert set(found.tensors[f"{each.name}.weight"].unique().tolist()) == {-1, 1}


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken_bit_for_bit(tmp_path):
    model = randomised(Residual())
    settings = TrainSettings(epochs=2, lr=0.01, precision="fp32", distill_weight=0.5)

    def run(checkpoint, on_epoch=None):
        def fit(network):
            train(network, FAKE, settings, seed=1, teacher=model, checkpoint=checkpoint, on_epoch=on_epoch)

        return trained(quantized(model, "qat", weight_bits=4), fit)

    def killed(record):
        raise KeyboardInterrupt

    unbroken = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c.safetensors", killed)
    epochs = []
    resumed = run(tmp_path / "c.safetensors", lambda record: epochs.append(record.epoch))
    assert epochs == [2]
    assert resumed.description == unbroken.description
    assert all(torch.equal(tensor, unbroken.tensors[name]) for name, tensor in resumed.tensors.items())
