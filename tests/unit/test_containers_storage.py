"""The reader of containers/storage's tables: what Podman wrote, and what nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest

from collectors.readers import containers_storage
from collectors.readers.containers_storage import Config, Container, Image, Layer

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus" / "containers_storage"
BASE = "921c6fe7e29321b7385d21be2d88160c488cf07c417c289c188cce400782ae7b"
WEB, TEMP = (
    "eea122038063813f324739234c190f5ed8789b978b0f4ead94badaa3375a4321",
    "700d383156aad664e6861a81814ac60fed66d9012f7103fbc2cccf12165b0836",
)


def test_layers_have_parents_and_those_of_an_image_a_size() -> None:
    assert containers_storage.parse_layers((CORPUS / "layers.json").read_bytes()) == [
        Layer(BASE, "", 1986560, is_incomplete=False),
        Layer(WEB, BASE, None, is_incomplete=False),
        Layer(TEMP, BASE, None, is_incomplete=False),
    ]


def test_a_layer_that_was_interrupted_says_so() -> None:
    assert containers_storage.parse_layers((CORPUS / "volatile-layers.json").read_bytes()) == [
        Layer(TEMP, BASE, None, is_incomplete=True)
    ]


def test_a_container_has_one_layer_and_an_image_may_have_several() -> None:
    assert containers_storage.parse_containers((CORPUS / "containers.json").read_bytes()) == [
        Container("70b4ce60c3c7a370341d2137dba1158ab3680f5fa52eb6b7f67697ec49784f37", WEB),
        Container("200edc199920ddc48a18a391ad7b1d914668c2ae0fb781411824d2be169d5f35", TEMP),
    ]
    image = "1f2fe062390c12c7b3760f9c3ba9b4c2a4a9eaf584c33c22d9f4de661c7ac21c"
    assert containers_storage.parse_images((CORPUS / "images.json").read_bytes()) == [Image(image, (BASE,))]
    mapped = b'[{"id": "i", "layer": "a", "mapped-layers": ["b"]}, {"id": "list"}]'
    assert containers_storage.parse_images(mapped) == [Image("i", ("a", "b")), Image("list", ())]


@pytest.mark.parametrize("empty", [b"", b"[]", b"null", b"\n"])
def test_a_table_may_be_empty(empty: bytes) -> None:
    assert containers_storage.parse_layers(empty) == []


@pytest.mark.parametrize("damaged", [b"{}", b"[{}]", b'[{"id": 7}]', b"[", b'[{"id": "\xff"}]'])
def test_what_is_no_table_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        containers_storage.parse_layers(damaged)


def test_a_size_of_less_than_nothing_is_unknown() -> None:
    assert containers_storage.parse_layers(b'[{"id": "a", "diff-size": -1}]')[0].size is None


def test_where_a_store_is_and_those_that_it_reads() -> None:
    assert containers_storage.parse_config((CORPUS / "storage.conf").read_bytes()) == Config(
        "overlay", "/var/lib/containers/storage", "/run/containers/storage", ("/usr/lib/containers/storage",)
    )
    split = b'[storage]\ngraphroot = "$HOME/x"\nimagestore = "/images"\n'
    assert containers_storage.parse_config(split) == Config("", "", "", ("/images",))
    assert containers_storage.parse_config(b"") == Config("", "", "", ())


@pytest.mark.parametrize("damaged", [b"storage = 1", b"[storage", b"\xff", b"[storage]\ngraphroot = 1"])
def test_what_is_no_configuration_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        containers_storage.parse_config(damaged)
