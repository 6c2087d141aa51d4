"""US addresses, labelled by hand for the parser usaddress (MIT)."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ElementTree
from collections import defaultdict

from training.data.archives import Archive
from training.data.conversations import exchange
from training.data.datasets.split import MIN_TEST, Split, hold_out, repeated

ADDRESSES = Archive(
    package="usaddress",
    version="0.5.16",
    file="usaddress-0.5.16.tar.gz",
    sha256="f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
    client="pip",
)
ADDRESSES_FILE = "usaddress-0.5.16/training/labeled.xml"
"""The file that was labelled by hand. Other files in the archive come from OpenStreetMap."""


def us_addresses(size: int, rng: random.Random, archive: Archive = ADDRESSES) -> Split:
    """Make examples of an address and the JSON object of its parts. Hold out whole streets.

    Addresses with a person's name are left out. About 1,300 remain, which repeat if more are asked
    for.
    """
    [(_, content)] = archive.members(ADDRESSES_FILE)
    streets: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for element in ElementTree.fromstring(content):
        text = " ".join("".join(element.itertext()).split())
        parts = _address_parts(element)
        if parts and "Recipient" not in parts:
            street = parts.get("StreetName") or parts.get("USPSBoxID") or text
            streets[street.lower()][text] = parts
    sides = hold_out(sorted(streets), rng)
    train, test = (
        [exchange(text, json.dumps(streets[s][text])) for s in side for text in streets[s]]
        for side in sides
    )
    return Split(repeated(train, size, rng), repeated(test, min(len(test), MIN_TEST), rng))


def _address_parts(element: ElementTree.Element) -> dict[str, str]:
    """Join neighbours with the same label. Return an empty dict if a label comes again later."""
    parts: dict[str, str] = {}
    last = ""
    for token in element:
        if token.tag != last and token.tag in parts:
            return {}
        text = (token.text or "").strip()
        parts[token.tag] = f"{parts[token.tag]} {text}" if token.tag in parts else text
        last = token.tag
    return {label: text.strip(" ,;") for label, text in parts.items()}
