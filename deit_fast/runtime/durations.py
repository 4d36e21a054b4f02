"""Durations for a person to read: in seconds, minutes or hours, by their length."""

_UNITS = ((7200.0, 3600.0, "h"), (60.0, 60.0, "min"), (0.0, 1.0, "s"))  # from this many seconds on; seconds of the unit


def duration(seconds: float) -> str:
    """A duration with its unit, such as 0.42 s, 48 s, 7.5 min, 110 min or 2.3 h."""
    number, unit = span(seconds, seconds)
    return f"{number} {unit}"


def span(least: float, most: float) -> tuple[str, str]:
    """The seconds from `least` to `most` in words without a unit, such as 20 to 40, and the unit: s, min or h."""
    size, unit = next((size, unit) for start, size, unit in _UNITS if most >= start)
    low, high = _number(least / size), _number(most / size)
    return low if most < 1.02 * least or low == high else f"{low} to {high}", unit


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.95 else f"{value:,.1f}" if value >= 1 else f"{value:,.2g}"
