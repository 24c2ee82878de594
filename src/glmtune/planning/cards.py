"""Common cards (`cards.csv`), for planning where they are not installed.

Rates are the published ones of dense matrix products in 16 bits that accumulate in fp32, as training does. White papers
of GeForce cards also print twice that, for fp16 accumulation, and data sheets since Ampere print twice that again, for
sparse weights. Sources, all by NVIDIA unless said otherwise:

    turing     Turing GPU Architecture, and the T4 data sheet
    volta      V100 data sheet (SXM2; the PCIe card has 112 TFLOP/s)
    ga100      A100 Tensor Core GPU Architecture; A30 data sheet
    ga102      Ampere GA102 GPU Architecture, v2.1; data sheets of A10, A40 and the RTX A series
    ada        Ada GPU Architecture, v2.01; data sheets of L4, L40 and L40S
    blackwell  RTX Blackwell GPU Architecture
    hopper     data sheets of H100, H200 and H20
    clock      cards that no white paper lists: twice the published fp32 rate (GeForce) or four times (the others),
               as the white papers' own figures come out

Memory is what `nvidia-smi` reports where that is less than the nominal size, as with error correction.
"""

import csv
import difflib
import re
from pathlib import Path
from typing import NamedTuple

from glmtune.errors import ConfigError
from glmtune.planning.speed import ESTIMATED, MEASURED, WITHOUT_FLASH, DeviceSpeed

# What products and copies reach of the published rates, measured on an H100 (0.73 and 0.89) and an H200 (0.68 to 0.70
# and 0.89); and the launch of a plain kernel on the H100's host.
_REACHED_FLOPS, _REACHED_BYTES, _LAUNCH_S = 0.7, 0.89, 8e-6
_LIKENESS = 0.5


class Card(NamedTuple):
    """A card's published figures.

    Attributes:
        name: As NVIDIA calls it, without GeForce.
        gib: Its memory, as CUDA sees it.
        gb_per_s: Memory bandwidth.
        tflops: Products in 16 bits, dense, accumulated in fp32.
        capability: CUDA compute capability.
        source: Where the figures are from.
        is_measured: Whether runs on this card have been measured.
    """

    name: str
    gib: float
    gb_per_s: float
    tflops: float
    capability: tuple[int, int]
    source: str
    is_measured: bool = False

    @property
    def speed(self) -> DeviceSpeed:
        """What it is expected to reach."""
        time_range = MEASURED if self.is_measured else ESTIMATED if self.has_bf16 else WITHOUT_FLASH
        return DeviceSpeed(
            _REACHED_FLOPS * self.tflops * 1e12, _REACHED_BYTES * self.gb_per_s * 1e9, _LAUNCH_S, time_range
        )

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bfloat16, and has the flash attention kernel: Ampere and newer."""
        return self.capability >= (8, 0)


def _read(row: dict[str, str]) -> Card:
    major, _, minor = row["capability"].partition(".")
    return Card(
        row["name"],
        float(row["gib"]),
        float(row["gb_per_s"]),
        float(row["tflops"]),
        (int(major), int(minor)),
        row["source"],
        bool(row["is_measured"]),
    )


CARDS = tuple(map(_read, csv.DictReader(Path(__file__).with_name("cards.csv").read_text("utf-8").splitlines())))
# Makers' words that tell no cards apart; `pcie` does.
_NOISE = re.compile(r"nvidia|geforce|tesla|quadro|rtx|gtx|hbm\w*|sxm\d*|generation|[^a-z0-9]")


def find_card(name: str, gib: float | None = None) -> Card:
    """Finds a card by its name, however it is spelt: `4090`, `RTX 4090`, `rtx4090`, `A100-80G`.

    Args:
        name: The name.
        gib: The memory, to tell cards of one name apart.

    Raises:
        ConfigError: There is none, with the nearest names; or there are several.
    """
    wanted = _key(name)
    found = [card for card in CARDS if wanted == _key(card.name)]
    if not found:  # a name without its memory, or with one that goes without saying
        bare = wanted.replace("pcie", "")
        found = [card for card in CARDS if bare and _key(card.name) in _spellings(bare, str(_nominal(card)))]
    if gib is not None and found:
        found = [min(found, key=lambda card: abs(card.gib - gib))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"--gpu {name}: it comes in several sizes: {', '.join(card.name for card in found)}")
    by_key = {_key(card.name): card.name for card in CARDS}
    near = [by_key[key] for key in difflib.get_close_matches(wanted, by_key, n=3, cutoff=_LIKENESS)]
    known = f"did you mean {' / '.join(near)}?" if near else f"known: {', '.join(card.name for card in CARDS)}."
    raise ConfigError(
        f"--gpu {name}: no such card in the table; {known} For another card: --gpu-gib with its memory, "
        "and --tflops if you know its rate in 16 bits"
    )


def cards_of(gib: float) -> list[Card]:
    """The cards of the smallest size that is no less than `gib`, the fastest first.

    Its settings suit the others too: without CUDA graphs a fast card would wait for its host, while with them a slow
    one only computes some padding. Cards without bfloat16 come last, whatever their speed.

    Args:
        gib: The memory, in GiB.
    """
    sizes = sorted({_nominal(card) for card in CARDS})
    size = next((size for size in sizes if gib <= size), sizes[-1])
    return sorted(
        (card for card in CARDS if _nominal(card) == size), key=lambda card: (not card.has_bf16, -card.tflops)
    )


def _nominal(card: Card) -> int:
    """The size that a card is sold as."""
    return next(size for size in (6, 8, 10, 11, 12, 16, 24, 32, 40, 48, 80, 96, 141) if card.gib <= size)


def _spellings(key: str, size: str) -> tuple[str, ...]:
    return key, key + size, key.removesuffix(size)


def _key(name: str) -> str:
    return re.sub(r"(\d)gi?b?$", r"\1", _NOISE.sub("", name.lower()))
