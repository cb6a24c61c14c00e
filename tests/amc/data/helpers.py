"""What tests of several data sets share."""

import pytest

from amc.errors import AmcError


def rows(images):
    """The set of images, as bytes: to see whether two splits share one."""
    return {image.numpy().tobytes() for image in images}


def assert_error(message, function, *args, **kwargs):
    with pytest.raises(AmcError, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
