import pytest

from amc.errors import SettingError
from amc.registry import Registry

COLOURS = Registry("colour", {"red": 1, "green": 2})


def test_a_registry_is_a_mapping_in_the_order_of_its_rows():
    assert dict(COLOURS) == {"red": 1, "green": 2}
    assert list(COLOURS) == ["red", "green"]
    assert len(COLOURS) == 2
    assert COLOURS.find("green") == 2


def test_rows_added_to_the_source_later_are_not_seen():
    source = {"red": 1}
    colours = Registry("colour", source)
    source["blue"] = 3
    assert "blue" not in colours


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gren", "unknown colour 'gren'; expected one of red, green, or #RRGGBB; did you mean 'green'?"),
        ("x", "unknown colour 'x'; expected one of red, green, or #RRGGBB"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name, message):
    with pytest.raises(SettingError) as caught:
        COLOURS.find(name, hint=", or #RRGGBB")
    assert str(caught.value) == message
