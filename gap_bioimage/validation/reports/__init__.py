"""Reports for people and machines, some of them from the templates in this folder."""

import re
from typing import Any

# every character that XML 1.0 forbids, including lone surrogates
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; values are escaped for HTML and XML, and forbidden characters replaced."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__name__, ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=template.endswith((".html.j2", ".xml.j2")), keep_trailing_newline=True,
    )  # fmt: skip
    return _FORBIDDEN.sub("\ufffd", environment.get_template(template).render(**values))
