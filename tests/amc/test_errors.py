import pytest

from amc import errors


@pytest.mark.parametrize("name", ["SettingError", "FileError", "NotPrunableError", "UnavailableError"])
def test_every_kind_is_an_amc_error_and_none_a_value_error(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.AmcError)
    assert not issubclass(kind, ValueError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("could not allocate memory"), True),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_out_of_memory(error, expected):
    assert errors.out_of_memory(error) is expected


def test_first_line():
    assert errors.first_line(RuntimeError("\nno kernel\n\nTraceback: ...")) == "no kernel"
    assert errors.first_line(RuntimeError()) == ""


def test_did_you_mean():
    assert errors.did_you_mean("resnt20", ["vgg16", "resnet20"]) == "; did you mean 'resnet20'?"
    assert errors.did_you_mean("mulr", ["mul", "mull"], most=2) == "; did you mean 'mul' or 'mull'?"
    assert errors.did_you_mean("qqq", ["vgg16"]) == ""
