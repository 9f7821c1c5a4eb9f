"""Numbers in the page, each quoted from the report: its place there stands beside it, and a test compares the two."""
import html
import math

MISSING = "\u2013"


class Quotes:
    """Writes numbers of a report as <data value="..." data-key="...">, data-key being the place in xray.json."""

    def __init__(self, report):
        self.report = report

    def value(self, key):
        """What stands at a dotted key such as networks.0.moments.0.loss."""
        found = self.report
        for part in key.split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
        return found

    def number(self, key, how="short"):
        """The number at a key, as text. how: short (three digits), percent, signed (for changes) or error."""
        value = self.value(key)
        if value is None:
            return MISSING
        return f'<data value="{value!r}" data-key="{html.escape(key)}">{FORMATS[how](value)}</data>'


def short(value):
    """Three significant digits, thousands set apart, and powers of ten only where zeros would have to be counted."""
    if value == 0:
        return "0"
    if isinstance(value, int):
        return f"{value:,}"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return power_of_ten(value)
    return f"{round(value, 2 - size):,.{max(0, 2 - size)}f}".replace("-", "\u2212")


def power_of_ten(value):
    """Two digits and the power of ten."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}·10<sup>{int(exponent)}</sup>".replace("-", "\u2212") if value else "0"


def _percent(value):
    percent = 100 * value
    if percent == 0:
        return "0 %"
    if abs(percent) < 0.005:
        return f"{power_of_ten(percent)} %"
    return f"{percent:.{1 if abs(percent) >= 0.95 else 2}f} %".replace("-", "\u2212")


def _signed(value):
    return f"{value:+.3f}".replace("-", "\u2212")


FORMATS = {"short": short, "percent": _percent, "signed": _signed, "error": power_of_ten}
