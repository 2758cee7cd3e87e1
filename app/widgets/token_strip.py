"""Where the token strip is found until every page names its own place."""

from interp.figures.token_strip import STYLE, TokenStrip, shade  # noqa: F401
