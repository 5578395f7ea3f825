"""The reader of what Docker's graph driver and its database of images have in their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from collectors.readers import docker_layers

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus" / "docker_layers"


def test_the_chain_id_of_an_images_uppermost_layer() -> None:
    # the directory of layerdb that Docker made for it
    expected = "sha256:dfebaccd81bea69f9c54e31cb487bd58f4ee3aa823668fb835a05d9b9488d824"
    assert docker_layers.parse_top_layer((CORPUS / "image.json").read_bytes()) == expected
    assert docker_layers.parse_top_layer(b'{"rootfs": {"type": "layers", "diff_ids": ["sha256:a"]}}') == "sha256:a"
    assert docker_layers.parse_top_layer(b"{}") == ""


def test_the_links_below_a_layer_in_their_order() -> None:
    assert docker_layers.parse_lower((CORPUS / "lower").read_bytes()) == (
        "SNLOWRCXUUB46ODTKLVPRWVSCP",
        "OYIERDYJWJIKQQ34D5X5GQ7WOA",
        "JIKRBBDA3UCB4CHXEKME3OM3GB",
    )
    assert docker_layers.parse_lower(b"") == ()
    assert docker_layers.parse_lower(b"l/x:/etc/passwd:root") == ("", "", "")


def test_a_link_says_its_name_and_nothing_of_other_files() -> None:
    assert docker_layers.parse_link(b"SNLOWRCXUUB46ODTKLVPRWVSCP\n") == "SNLOWRCXUUB46ODTKLVPRWVSCP"
    assert docker_layers.parse_link(b"") == ""
    with pytest.raises(ValueError, match=r"^has no name of a link in it$"):
        docker_layers.parse_link(b"secret")


@pytest.mark.parametrize(
    ("link", "layer"),
    [("../5a14/diff", "5a14"), ("../a-init/diff/", "a-init"), ("/etc/diff", None), ("../../diff", None), ("..", None)],
)
def test_a_link_leads_to_a_layer_beside_it_or_nowhere(link: str, layer: str | None) -> None:
    assert docker_layers.parse_target(link) == layer


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"rootfs": 1}', b"\xff"])
def test_what_is_no_image_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        docker_layers.parse_top_layer(damaged)
