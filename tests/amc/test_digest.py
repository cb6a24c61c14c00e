import hashlib

import torch

from amc.digest import digest, named


def test_parts_are_hashed_one_after_the_other():
    assert digest("ab", b"c") == hashlib.sha256(b"abc").hexdigest()
    assert digest() == hashlib.sha256(b"").hexdigest()


def test_a_tensor_counts_as_its_values_in_row_major_order():
    tensor = torch.arange(6, dtype=torch.float32).view(2, 3)
    assert digest(tensor) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert digest(tensor.T) == digest(tensor.T.contiguous()) != digest(tensor)
    assert digest(tensor.requires_grad_()) == digest(tensor.detach())


def test_types_that_numpy_lacks_are_hashed():
    assert digest(torch.ones(2, dtype=torch.bfloat16)) == hashlib.sha256(b"\x80\x3f" * 2).hexdigest()


def test_a_state_dict_is_its_names_and_tensors():
    tensor = torch.zeros(1)
    parts = named({"a": tensor, "b": tensor})
    assert parts[::2] == ["a", "b"]
    assert digest(*parts) == digest("a", tensor, "b", tensor)
