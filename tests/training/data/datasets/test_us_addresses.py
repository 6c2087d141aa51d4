"""Addresses out of the package's archive: a small one of the same layout, made here."""

import json
import random

import pytest

from tests.training.data.made_archives import put_archive
from training.data import archives
from training.data.datasets import us_addresses

STREET = (
    "<AddressString><AddressNumber>{0}</AddressNumber> <StreetName>Oak</StreetName> "
    "<StreetName>Hill{0}</StreetName> <StreetNamePostType>Rd,</StreetNamePostType> "
    "<PlaceName>Elm</PlaceName></AddressString>"
)
UNUSABLE = (
    "<AddressString><Recipient>A. Body</Recipient> <AddressNumber>1</AddressNumber>"
    "</AddressString><AddressString><PlaceName>Elm</PlaceName> <ZipCode>10001</ZipCode> "
    "<PlaceName>City</PlaceName></AddressString>"
)


@pytest.mark.usefixtures("own_cache")
def test_addresses() -> None:
    text = "".join(STREET.format(number) for number in range(40)) + UNUSABLE
    files = {us_addresses.ADDRESSES_FILE: f"<AddressCollection>{text}</AddressCollection>"}
    archive = put_archive(us_addresses.ADDRESSES, files, archives.archives_directory())
    split = us_addresses.us_addresses(50, random.Random(1), archive)
    assert len(split.train) == 50
    assert len(split.test) == 6
    asked, held_out = (
        {chat.messages[0]["content"] for chat in side} for side in (split.train, split.test)
    )
    assert len(asked | held_out) == 40
    assert not asked & held_out
    for chat in split.test:
        question, answer = chat.messages
        number = question["content"].split()[0]
        assert question["content"] == f"{number} Oak Hill{number} Rd, Elm"
        assert json.loads(answer["content"]) == {
            "AddressNumber": number,
            "StreetName": f"Oak Hill{number}",
            "StreetNamePostType": "Rd",
            "PlaceName": "Elm",
        }
