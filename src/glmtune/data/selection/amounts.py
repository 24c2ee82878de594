"""How many rows are asked for."""

from glmtune.errors import ConfigError


def check_share(option: str, value: float) -> None:
    """Refuses what is no share.

    Raises:
        ConfigError: It is not above 0 and at most 1.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"{option}: expected a number above 0 and at most 1; found {value:g}")


def num_asked_for(num_rows: int, fraction: float | None, number: int | None) -> int:
    """The number of rows that a share or a number stands for; of a share, at least one.

    Args:
        num_rows: All rows.
        fraction: The share of them, where `number` is None.
        number: The number itself.

    Raises:
        ConfigError: The share is none.
    """
    if fraction is None or number is not None:
        return number or 0
    check_share("--fraction", fraction)
    return max(1, round(fraction * num_rows))
