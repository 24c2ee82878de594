"""Settings of a run, as the command line takes them."""


def changed(settings: list[str], *overrides: str) -> list[str]:
    """The settings with overrides in the place of those of the same key: a key given twice is an error."""
    replaced = {override.partition("=")[0] for override in overrides}
    return [*(each for each in settings if each.partition("=")[0] not in replaced), *overrides]
